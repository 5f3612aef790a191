/* Runs a kernel: its blocks one after another, the threads of a block in turns, each from one wait
 * to the next. */
#include "tests/emulator/emulator_block.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHARED_GUARD = 256, GUARD_BYTE = 0xa5, FRESH_BYTE = 0xff };

/* One at a time, under the emulator's lock. */
static struct {
    const struct emulator_kernel *kernel;
    const void *arguments;
    struct emulator_stack host;
    struct emulator_fiber *fibers[EMULATOR_MAX_THREADS];
    int n_created;
    struct emulator_warp warps[EMULATOR_MAX_THREADS / 32];
    int n_threads, n_ended, n_at_barrier;
    unsigned char *arena; /* shared memory with guards; 16 bytes off a multiple of 128 */
    enum { FORWARD, REVERSE, RANDOM } order;
    uint64_t random;
} block;
struct emulator_seen *emulator_now;

bool emulator_order_parse(const char *order)
{
    char *end;
    if (strcmp(order, "forward") == 0)
        block.order = FORWARD;
    else if (strcmp(order, "reverse") == 0)
        block.order = REVERSE;
    else if (strncmp(order, "random:", 7) == 0 && order[7] != '\0') {
        block.order = RANDOM;
        block.random = strtoull(order + 7, &end, 10) * 2 + 1;
        return *end == '\0';
    } else
        return false;
    return true;
}

/* xorshift64*. */
static uint32_t random_below(uint32_t n)
{
    block.random ^= block.random >> 12;
    block.random ^= block.random << 25;
    block.random ^= block.random >> 27;
    return (uint32_t)(((block.random * UINT64_C(2685821657736338717) >> 32) * n) >> 32);
}

/* order[i]: who is i-th of n. */
static void order_fill(int *order, int n)
{
    for (int i = 0; i < n; i++)
        order[i] = block.order == REVERSE ? n - 1 - i : i;
    for (int i = n - 1; block.order == RANDOM && i > 0; i--) {
        int j = (int)random_below((uint32_t)i + 1), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

/* ---- failures ----------------------------------------------------------------------------------
 */

static void where(char *text, size_t len)
{
    const struct emulator_seen *s = emulator_now;
    if (s == NULL)
        snprintf(text, len, "kernel %s", block.kernel->name);
    else
        snprintf(text, len, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", block.kernel->name,
                 s->block.x, s->block.y, s->block.z, s->thread.x, s->thread.y, s->thread.z);
}

_Noreturn void emulator_kernel_die(const char *format, ...)
{
    char at[300], what[500];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    where(at, sizeof at);
    emulator_die("%s: %s", at, what);
}

/* Nobody can go on: says who waits where. */
static _Noreturn void die_of_divergence(void)
{
    const struct emulator_fiber *waits = NULL, *other = NULL;
    for (int i = 0; i < block.n_threads && other == NULL; i++) {
        const struct emulator_fiber *f = block.fibers[i];
        if (waits == NULL && f->state != EMULATOR_ENDED)
            waits = f;
        else if (waits != NULL &&
                 (f->state == EMULATOR_ENDED || f->line != waits->line || f->what != waits->what))
            other = f;
        if (waits != NULL && other == NULL && i > 0 && block.fibers[0]->state == EMULATOR_ENDED)
            other = block.fibers[0];
    }
    emulator_now = NULL;
    if (other == NULL)
        emulator_kernel_die("all threads wait at %s (%s:%d) for what cannot come", waits->what,
                            waits->file, waits->line);
    char there[300] = "has ended";
    if (other->state != EMULATOR_ENDED)
        snprintf(there, sizeof there, "waits at %s (%s:%d)", other->what, other->file, other->line);
    emulator_kernel_die("block (%u,%u,%u): thread %d waits at %s (%s:%d) while thread %d %s",
                        waits->seen.block.x, waits->seen.block.y, waits->seen.block.z,
                        waits->number, waits->what, waits->file, waits->line, other->number, there);
}

/* ---- waiting -----------------------------------------------------------------------------------
 */

struct emulator_fiber *emulator_fiber_now(void)
{
    return (struct emulator_fiber *)emulator_now;
}
struct emulator_warp *emulator_warp_now(void)
{
    return &block.warps[emulator_fiber_now()->number / 32];
}
int emulator_block_threads(void)
{
    return block.n_threads;
}
struct emulator_fiber *emulator_fiber_at(int i)
{
    return block.fibers[i];
}
const unsigned char *emulator_shared_end(void)
{
    return block.arena + SHARED_GUARD + 16 + block.kernel->shared_bytes;
}

void emulator_give_way(enum emulator_state state, const char *what, const char *file, int line)
{
    struct emulator_fiber *f = emulator_fiber_now();
    f->state = state;
    f->what = what;
    f->file = file;
    f->line = line;
    emulator_stack_switch(&f->stack, &block.host);
}

void emulator_barrier(const char *file, int line)
{
    block.n_at_barrier++;
    emulator_give_way(EMULATOR_AT_BARRIER, "__syncthreads", file, line);
}

/* ---- one block ---------------------------------------------------------------------------------
 */

static void fiber_run(void)
{
    emulator_stack_entered(&block.host);
    for (;;) {
        block.kernel->invoke(block.arguments);
        struct emulator_fiber *f = emulator_fiber_now();
        if (f->n_copies > 0)
            emulator_kernel_die("ends with %d asynchronous copies it never waited for",
                                f->n_copies);
        block.n_ended++;
        emulator_give_way(EMULATOR_ENDED, "its end", "", 0);
    }
}

static void fibers_create(int n)
{
    for (; block.n_created < n; block.n_created++) {
        struct emulator_fiber *f = calloc(1, sizeof *f);
        if (f == NULL)
            emulator_die("no memory for a block's threads");
        f->number = block.n_created;
        emulator_stack_create(&f->stack, fiber_run);
        block.fibers[block.n_created] = f;
    }
}

static void block_begin(unsigned x, unsigned y, unsigned z)
{
    const struct emulator_kernel *k = block.kernel;
    size_t len = k->shared_bytes;
    unsigned char *shared = block.arena + SHARED_GUARD + 16;
    memset(shared - SHARED_GUARD, GUARD_BYTE, SHARED_GUARD);
    memset(shared, FRESH_BYTE, len);
    memset(shared + len, GUARD_BYTE, SHARED_GUARD);
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(shared, len);
    __asan_poison_memory_region(shared + len, SHARED_GUARD);
#endif
    for (int i = 0; i < block.n_threads; i++) {
        struct emulator_fiber *f = block.fibers[i];
        unsigned n = (unsigned)i, bx = k->block.x, by = k->block.y;
        f->seen = (struct emulator_seen){.thread = {n % bx, n / bx % by, n / bx / by},
                                         .block = {x, y, z},
                                         .block_dim = k->block,
                                         .grid_dim = k->grid,
                                         .shared = shared,
                                         .lane = i % 32};
        f->state = EMULATOR_READY;
        f->n_copies = f->n_groups = 0;
    }
    for (int i = 0; i < (block.n_threads + 31) / 32; i++)
        block.warps[i].n_exchanges = block.warps[i].arrived = 0;
    block.n_ended = block.n_at_barrier = 0;
}

static void block_end(void)
{
    unsigned char *shared = block.arena + SHARED_GUARD + 16;
    size_t len = block.kernel->shared_bytes;
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(shared + len, SHARED_GUARD);
#endif
    for (size_t i = 0; i < SHARED_GUARD; i++) {
        if (shared[-1 - (ptrdiff_t)i] != GUARD_BYTE)
            emulator_kernel_die("wrote %zu bytes before its shared memory", i + 1);
        if (shared[len + i] != GUARD_BYTE)
            emulator_kernel_die("wrote %zu bytes behind its %zu bytes of shared memory", i, len);
    }
}

/* All threads wait, at one place, and none has ended. */
static bool barrier_is_met(void)
{
    if (block.n_at_barrier < block.n_threads)
        return false;
    for (int i = 1; i < block.n_threads; i++)
        if (block.fibers[i]->line != block.fibers[0]->line ||
            block.fibers[i]->file != block.fibers[0]->file)
            return false;
    return true;
}

static void block_run(const int *order)
{
    int turns[EMULATOR_MAX_THREADS];
    while (block.n_ended < block.n_threads) {
        bool has_moved = false;
        if (block.order == RANDOM) {
            order_fill(turns, block.n_threads);
            order = turns;
        }
        for (int i = 0; i < block.n_threads; i++) {
            struct emulator_fiber *f = block.fibers[order[i]];
            if (f->state != EMULATOR_READY)
                continue;
            has_moved = true;
            emulator_now = &f->seen;
            emulator_stack_switch(&block.host, &f->stack);
        }
        if (has_moved)
            continue;
        if (!barrier_is_met())
            die_of_divergence();
        block.n_at_barrier = 0;
        for (int i = 0; i < block.n_threads; i++)
            block.fibers[i]->state = EMULATOR_READY;
    }
    emulator_now = NULL;
}

void emulator_run_kernel(const struct emulator_kernel *kernel, const void *arguments)
{
    block.kernel = kernel;
    block.arguments = arguments;
    block.n_threads = (int)(kernel->block.x * kernel->block.y * kernel->block.z);
    fibers_create(block.n_threads);
    if (block.arena == NULL &&
        posix_memalign((void **)&block.arena, 256, EMULATOR_SHARED_MOST + 2 * SHARED_GUARD + 256))
        emulator_die("no memory for a block's shared memory");
    int order[EMULATOR_MAX_THREADS];
    order_fill(order, block.n_threads);
    uint64_t n_blocks = (uint64_t)kernel->grid.x * kernel->grid.y * kernel->grid.z;
    for (uint64_t i = 0; i < n_blocks; i++) {
        uint64_t at = block.order == REVERSE ? n_blocks - 1 - i : i;
        block_begin((unsigned)(at % kernel->grid.x),
                    (unsigned)(at / kernel->grid.x % kernel->grid.y),
                    (unsigned)(at / kernel->grid.x / kernel->grid.y));
        block_run(order);
        block_end();
    }
    char what[300];
    snprintf(what, sizeof what, "kernel %s", kernel->name);
    emulator_check_guards(what);
}

/* ---- launches ----------------------------------------------------------------------------------
 */

static bool is_grid_fine(dim3 grid, dim3 threads)
{
    uint64_t n = (uint64_t)threads.x * threads.y * threads.z;
    return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 2147483647u && grid.y <= 65535 &&
           grid.z <= 65535 && n > 0 && n <= EMULATOR_MAX_THREADS && threads.z <= 64;
}

cudaError_t emulator_launch(const void *function, const char *name, void (*invoke)(const void *),
                            const void *arguments, size_t len_bytes, const void *const *pointers,
                            int n_pointers, dim3 grid, dim3 threads, size_t shared_bytes,
                            cudaStream_t stream)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && !is_grid_fine(grid, threads))
        code = cudaErrorInvalidConfiguration;
    if (code == cudaSuccess && shared_bytes > emulator_shared_limit(function))
        code = cudaErrorInvalidValue;
    for (int i = 0; code == cudaSuccess && i < n_pointers; i++) {
        enum emulator_place place;
        int device;
        emulator_place_of(pointers[i], 0, &place, &device);
        if (pointers[i] != NULL && place == EMULATOR_PAGEABLE && !emulator_is_end(pointers[i]))
            emulator_die("kernel %s is given %p, pointer number %d of its arguments, which is "
                         "neither device nor pinned memory",
                         name, pointers[i], i + 1);
    }
    if (code == cudaSuccess) {
        struct emulator_op op = {.kind = EMULATOR_OP_KERNEL,
                                 .kernel = {name, invoke, grid, threads, shared_bytes},
                                 .len_bytes = len_bytes};
        code = emulator_add(stream, &op, arguments);
    }
    /* As cuda_launch, which takes the error with cudaGetLastError. */
    emulator_leave(code);
    if (code != cudaSuccess)
        (void)cudaGetLastError();
    return code;
}
