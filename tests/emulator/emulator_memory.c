/* Device and pinned memory: who owns which range, guards around it, and copies that fit it. */
#include "tests/emulator/emulator_inside.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD = 256, GUARD_BYTE = 0xa5, FRESH_BYTE = 0xff };
/* Of a larger piece only the ends are filled: a KV pool of gigabytes shall not take real memory. */
#define FRESH_MOST ((size_t)1 << 20)

struct range {
    unsigned char *p;
    size_t len;
    enum emulator_place place;
    int device;
    unsigned char *base; /* of the block with its guards; NULL: registered, not ours */
};
/* By address. */
static struct range *ranges;
static size_t n_ranges, cap_ranges;
static size_t used_bytes[EMULATOR_MAX_DEVICES];

/* The last range that begins at or below p; NULL when there is none. */
static struct range *range_below(const void *p)
{
    size_t low = 0, high = n_ranges;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if ((uintptr_t)ranges[middle].p <= (uintptr_t)p)
            low = middle + 1;
        else
            high = middle;
    }
    return low == 0 ? NULL : &ranges[low - 1];
}

bool emulator_place_of(const void *p, size_t len, enum emulator_place *place, int *device)
{
    struct range *r = range_below(p);
    uintptr_t at = (uintptr_t)p;
    if (r == NULL || at >= (uintptr_t)r->p + r->len) {
        *place = EMULATOR_PAGEABLE;
        *device = -1;
        /* Not a part of it in the range behind. */
        struct range *next = r == NULL ? ranges : r + 1;
        return next >= ranges + n_ranges || at + len <= (uintptr_t)next->p;
    }
    *place = r->place;
    *device = r->device;
    return len <= (uintptr_t)r->p + r->len - at;
}

bool emulator_is_end(const void *p)
{
    const struct range *r = range_below(p);
    return r != NULL && (uintptr_t)p == (uintptr_t)r->p + r->len;
}

bool emulator_is_device(const void *p, size_t len)
{
    emulator_enter_quietly();
    enum emulator_place place;
    int device;
    bool is_inside = emulator_place_of(p, len, &place, &device) && place != EMULATOR_PAGEABLE;
    emulator_leave(cudaSuccess);
    return is_inside;
}

static void range_add(struct range added)
{
    if (n_ranges == cap_ranges) {
        cap_ranges = cap_ranges == 0 ? 64 : 2 * cap_ranges;
        ranges = realloc(ranges, cap_ranges * sizeof *ranges);
        if (ranges == NULL)
            emulator_die("no memory for the list of allocations");
    }
    struct range *below = range_below(added.p);
    size_t at = below == NULL ? 0 : (size_t)(below - ranges) + 1;
    memmove(ranges + at + 1, ranges + at, (n_ranges - at) * sizeof *ranges);
    ranges[at] = added;
    n_ranges++;
    emulator_count_live(1);
}

static void range_remove(struct range *r)
{
    size_t at = (size_t)(r - ranges);
    memmove(r, r + 1, (n_ranges - at - 1) * sizeof *ranges);
    emulator_count_live(-1);
    if (--n_ranges > 0)
        return;
    free(ranges);
    ranges = NULL;
    cap_ranges = 0;
}

/* ---- guards ------------------------------------------------------------------------------------
 */

static void guards_set(const struct range *r)
{
    memset(r->p - GUARD, GUARD_BYTE, GUARD);
    memset(r->p + r->len, GUARD_BYTE, GUARD);
#if EMULATOR_ASAN
    __asan_poison_memory_region(r->p - GUARD, GUARD);
    __asan_poison_memory_region(r->p + r->len, GUARD);
#endif
}

static void guards_check(const struct range *r, const char *what)
{
#if EMULATOR_ASAN /* which says so at the very access */
    (void)r;
    (void)what;
#else
    for (size_t i = 0; i < GUARD; i++) {
        if (r->p[-1 - (ptrdiff_t)i] != GUARD_BYTE)
            emulator_die("%s wrote %zu bytes before an allocation of %zu bytes", what, i + 1,
                         r->len);
        if (r->p[r->len + i] != GUARD_BYTE)
            emulator_die("%s wrote %zu bytes behind an allocation of %zu bytes", what, i, r->len);
    }
#endif
}

static bool is_guard_whole(const unsigned char *p)
{
    uint64_t words[GUARD / 8], all = UINT64_C(0xa5a5a5a5a5a5a5a5), diff = 0;
    memcpy(words, p, GUARD);
    for (size_t i = 0; i < GUARD / 8; i++)
        diff |= words[i] ^ all;
    return diff == 0;
}

void emulator_check_guards(const char *what)
{
    emulator_arena_open();
    for (size_t i = 0; !EMULATOR_ASAN && i < n_ranges; i++)
        if (ranges[i].base != NULL &&
            !(is_guard_whole(ranges[i].p - GUARD) && is_guard_whole(ranges[i].p + ranges[i].len)))
            guards_check(&ranges[i], what);
    emulator_arena_close();
}

/* ---- taking and giving back --------------------------------------------------------------------
 */

/* 256-byte aligned, as the real one. */
static size_t room_bytes(size_t len)
{
    return (len + 255) / 256 * 256 + 2 * GUARD;
}

static unsigned char *room_take(size_t len, enum emulator_place place)
{
    size_t room = room_bytes(len);
    void *base = NULL;
    if (room < len)
        return NULL;
    if (place == EMULATOR_DEVICE)
        return emulator_arena_take(room);
    return posix_memalign(&base, 256, room) == 0 ? base : NULL;
}

static cudaError_t take(void **out, size_t len, enum emulator_place place)
{
    int device = emulator_device();
    if (out == NULL)
        return cudaErrorInvalidValue;
    if (len == 0) {
        *out = NULL;
        return cudaSuccess;
    }
    size_t total = emulator_memory_total(), used = used_bytes[device];
    if (place == EMULATOR_DEVICE && (used > total || len > total - used))
        return cudaErrorMemoryAllocation;
    unsigned char *base = room_take(len, place);
    if (base == NULL)
        return cudaErrorMemoryAllocation;
    struct range r = {base + GUARD, len, place, device, base};
    size_t head = len < FRESH_MOST ? len : FRESH_MOST;
    emulator_arena_open();
    memset(r.p, FRESH_BYTE, head);
    memset(r.p + len - head, FRESH_BYTE, head);
    guards_set(&r);
    emulator_arena_close();
    range_add(r);
    if (place == EMULATOR_DEVICE)
        used_bytes[device] += len;
    *out = r.p;
    return cudaSuccess;
}

static cudaError_t give_back(void *p, enum emulator_place place)
{
    if (p == NULL)
        return cudaSuccess;
    /* The real one waits, too. */
    emulator_run_all();
    struct range *r = range_below(p);
    if (r == NULL || r->p != p || r->place != place || r->base == NULL)
        return cudaErrorInvalidValue;
    emulator_arena_open();
    guards_check(r, "someone");
    emulator_arena_close();
    if (place == EMULATOR_DEVICE)
        used_bytes[r->device] -= r->len;
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(r->p - GUARD, GUARD);
    __asan_unpoison_memory_region(r->p + r->len, GUARD);
#endif
    if (place == EMULATOR_DEVICE)
        emulator_arena_give_back(r->base, room_bytes(r->len));
    else
        free(r->base);
    range_remove(r);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t len)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess)
        code = emulator_refuse_in_capture();
    if (code == cudaSuccess)
        code = take(p, len, EMULATOR_DEVICE);
    return emulator_leave(code);
}
cudaError_t cudaHostAlloc(void **p, size_t len, unsigned flags)
{
    (void)flags;
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess)
        code = emulator_refuse_in_capture();
    if (code == cudaSuccess)
        code = take(p, len, EMULATOR_PINNED);
    return emulator_leave(code);
}
cudaError_t cudaMallocHost(void **p, size_t len)
{
    return cudaHostAlloc(p, len, cudaHostAllocDefault);
}
/* Given back also after a failure: what has been taken is never lost. */
cudaError_t cudaFree(void *p)
{
    cudaError_t dead = emulator_enter_quietly();
    cudaError_t code = p != NULL ? emulator_refuse_in_capture() : cudaSuccess;
    if (code == cudaSuccess)
        code = give_back(p, EMULATOR_DEVICE);
    return emulator_leave(code != cudaSuccess ? code : dead);
}
cudaError_t cudaFreeHost(void *p)
{
    cudaError_t dead = emulator_enter_quietly();
    cudaError_t code = p != NULL ? emulator_refuse_in_capture() : cudaSuccess;
    if (code == cudaSuccess)
        code = give_back(p, EMULATOR_PINNED);
    return emulator_leave(code != cudaSuccess ? code : dead);
}

cudaError_t cudaHostRegister(void *p, size_t len, unsigned flags)
{
    (void)flags;
    cudaError_t code = emulator_enter();
    enum emulator_place place = EMULATOR_PAGEABLE;
    int device;
    if (code == cudaSuccess && (p == NULL || len == 0))
        code = cudaErrorInvalidValue;
    if (code == cudaSuccess &&
        (!emulator_place_of(p, len, &place, &device) || place != EMULATOR_PAGEABLE))
        code = cudaErrorHostMemoryAlreadyRegistered;
    if (code == cudaSuccess)
        range_add((struct range){p, len, EMULATOR_PINNED, emulator_device(), NULL});
    return emulator_leave(code);
}
cudaError_t cudaHostUnregister(void *p)
{
    cudaError_t dead = emulator_enter_quietly(), code = cudaSuccess;
    emulator_run_all();
    struct range *r = range_below(p);
    if (r == NULL || r->p != p || r->base != NULL)
        code = cudaErrorHostMemoryNotRegistered;
    else
        range_remove(r);
    return emulator_leave(code != cudaSuccess ? code : dead);
}

/* Pinned memory has one address for both sides. */
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags)
{
    (void)flags;
    cudaError_t code = emulator_enter();
    enum emulator_place place;
    int number;
    if (code == cudaSuccess &&
        (!emulator_place_of(host, 1, &place, &number) || place != EMULATOR_PINNED))
        code = cudaErrorInvalidValue;
    if (code == cudaSuccess)
        *device = host;
    return emulator_leave(code);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess) {
        size_t total = emulator_memory_total(), used = used_bytes[emulator_device()];
        *total_bytes = total;
        *free_bytes = used < total ? total - used : 0;
    }
    return emulator_leave(code);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attr, const void *p)
{
    cudaError_t code = emulator_enter();
    if (code != cudaSuccess)
        return emulator_leave(code);
    enum emulator_place place;
    int device;
    emulator_place_of(p, 1, &place, &device);
    *attr = (struct cudaPointerAttributes){.type = cudaMemoryTypeUnregistered, .device = -1};
    if (place != EMULATOR_PAGEABLE) {
        attr->type = place == EMULATOR_DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
        attr->device = device;
        attr->devicePointer = (void *)(uintptr_t)p;
        attr->hostPointer = place == EMULATOR_PINNED ? (void *)(uintptr_t)p : NULL;
    }
    return emulator_leave(cudaSuccess);
}

/* ---- copies ------------------------------------------------------------------------------------
 */

cudaError_t emulator_check_copy(const void *dst, const void *src, size_t len,
                                enum cudaMemcpyKind kind)
{
    enum emulator_place to, from;
    int device;
    if (len == 0)
        return cudaSuccess;
    if (dst == NULL || src == NULL || !emulator_place_of(dst, len, &to, &device) ||
        !emulator_place_of(src, len, &from, &device))
        return cudaErrorInvalidValue;
    bool to_device = to == EMULATOR_DEVICE, from_device = from == EMULATOR_DEVICE;
    bool fits = kind == cudaMemcpyDefault ||
                (kind == cudaMemcpyHostToHost && !to_device && !from_device) ||
                (kind == cudaMemcpyHostToDevice && to_device && !from_device) ||
                (kind == cudaMemcpyDeviceToHost && !to_device && from_device) ||
                (kind == cudaMemcpyDeviceToDevice && to_device && from_device);
    return fits ? cudaSuccess : cudaErrorInvalidMemcpyDirection;
}

void emulator_memory_reset(void)
{
    while (n_ranges > 0) {
        struct range *r = &ranges[n_ranges - 1];
        if (r->base == NULL)
            range_remove(r);
        else
            give_back(r->p, r->place);
    }
}
