/* What the lanes of a warp do together, tensor cores, and copies behind a thread's back. */
#include "tests/emulator/emulator_block.h"

#include <string.h>

/* `last` is run by the lane that completes the exchange, on all values; may be NULL. */
static const union emulator_slot *exchange(const char *what, const void *value, size_t len_bytes,
                                           const char *file, int line,
                                           void (*last)(struct emulator_warp *w, int which))
{
    struct emulator_fiber *f = emulator_fiber_now();
    struct emulator_warp *w = emulator_warp_now();
    int first = f->number & ~31;
    if (first + 32 > emulator_block_threads())
        emulator_kernel_die("%s (%s:%d) in a warp of %d threads", what, file, line,
                            emulator_block_threads() - first);
    if (len_bytes > sizeof(union emulator_slot))
        emulator_kernel_die("%s (%s:%d) of %zu bytes", what, file, line, len_bytes);
    if (w->arrived == 0) {
        w->what = what;
        w->file = file;
        w->line = line;
    } else if (w->line != line || (w->file != file && strcmp(w->file, file) != 0))
        emulator_kernel_die("comes to %s (%s:%d) while other lanes of its warp wait at %s (%s:%d)",
                            what, file, line, w->what, w->file, w->line);
    int which = (int)(w->n_exchanges % 2);
    union emulator_slot *slots = w->slots[which];
    if (len_bytes > 0)
        memcpy(slots[f->seen.lane].bytes, value, len_bytes);
    w->arrived |= UINT32_C(1) << f->seen.lane;
    if (w->arrived != UINT32_MAX) {
        emulator_give_way(EMULATOR_IN_WARP, what, file, line);
        return slots;
    }
    w->arrived = 0;
    w->n_exchanges++;
    if (last != NULL)
        last(w, which);
    for (int i = 0; i < 32; i++)
        emulator_fiber_at(first + i)->state = EMULATOR_READY;
    return slots;
}

const union emulator_slot *emulator_exchange(const char *what, const void *value, size_t len_bytes,
                                             const char *file, int line)
{
    return exchange(what, value, len_bytes, file, line, NULL);
}

/* ---- addresses ---------------------------------------------------------------------------------
 */

static void check_shared(const void *p, size_t len, const char *what)
{
    uintptr_t at = (uintptr_t)p, low = (uintptr_t)emulator_now->shared;
    if (at < low || at + len > (uintptr_t)emulator_shared_end())
        emulator_kernel_die("%s: %p is not in the block's shared memory [%p, %p)", what, p,
                            (void *)emulator_now->shared, (const void *)emulator_shared_end());
    if (at % 16 != 0)
        emulator_kernel_die("%s: %p in shared memory is not 16-byte aligned", what, p);
}

static void check_global(const void *p, size_t len, const char *what)
{
    enum emulator_place place;
    int device;
    if (!emulator_place_of(p, len, &place, &device) || place == EMULATOR_PAGEABLE)
        emulator_kernel_die("%s: %zu bytes at %p are not in one piece of device memory", what, len,
                            p);
    if ((uintptr_t)p % 16 != 0)
        emulator_kernel_die("%s: %p is not 16-byte aligned", what, p);
}

void emulator_check_load(const void *p, size_t len_bytes)
{
    check_global(p, len_bytes, "cuda_load_stream");
}

/* ---- asynchronous copies ------------------------------------------------------------------------
 *
 * On the chip the bytes may land at any time between the call and the wait: here the destination
 * is overwritten with NaN at once, for those who still read what was there, and with the copy at
 * the wait, for those who read too early. */

void emulator_copy_async(void *shared_dst, const void *global_src, bool is_there)
{
    struct emulator_fiber *f = emulator_fiber_now();
    check_shared(shared_dst, 16, "cuda_copy_async16");
    if (is_there)
        check_global(global_src, 16, "cuda_copy_async16");
    if (f->n_copies == EMULATOR_MAX_COPIES)
        emulator_kernel_die("has more than %d copies under way", EMULATOR_MAX_COPIES);
    memset(shared_dst, 0xff, 16);
    f->copies[f->n_copies++] = (struct emulator_copy){shared_dst, is_there ? global_src : NULL, -1};
}

void emulator_copy_commit(void)
{
    struct emulator_fiber *f = emulator_fiber_now();
    for (int i = f->n_copies; i > 0 && f->copies[i - 1].group < 0; i--)
        f->copies[i - 1].group = f->n_groups;
    f->n_groups++;
}

void emulator_copy_wait(int n_newest)
{
    struct emulator_fiber *f = emulator_fiber_now();
    int n_kept = 0;
    for (int i = 0; i < f->n_copies; i++) {
        struct emulator_copy c = f->copies[i];
        if (c.group < 0 || c.group >= f->n_groups - n_newest)
            f->copies[n_kept++] = c;
        else if (c.src != NULL)
            memcpy(c.dst, c.src, 16);
        else
            memset(c.dst, 0, 16);
    }
    f->n_copies = n_kept;
}

/* ---- tensor cores -------------------------------------------------------------------------------
 */

static uint16_t half_of(const unsigned char *row, int column)
{
    uint16_t half;
    memcpy(&half, row + 2 * column, sizeof half);
    return half;
}

/* PTX ISA, ldmatrix: lane 8 m + i gives row i of matrix m; lane l receives of each matrix row l /
 * 4, columns 2 (l % 4) and the next, of its transpose with .trans. */
void emulator_ldmatrix(uint32_t r[4], const void *row, bool is_transposed, const char *file,
                       int line)
{
    check_shared(row, 16, "cuda_ldmatrix");
    const union emulator_slot *slots =
        emulator_exchange("cuda_ldmatrix", &row, sizeof row, file, line);
    int i = emulator_now->lane / 4, j = 2 * (emulator_now->lane % 4);
    for (int m = 0; m < 4; m++) {
        const unsigned char *rows[8];
        for (int l = 0; l < 8; l++)
            memcpy(&rows[l], slots[8 * m + l].bytes, sizeof rows[l]);
        uint16_t lo = is_transposed ? half_of(rows[j], i) : half_of(rows[i], j);
        uint16_t hi = is_transposed ? half_of(rows[j + 1], i) : half_of(rows[i], j + 1);
        r[m] = (uint32_t)lo | (uint32_t)hi << 16;
    }
}

static double bf16_value(uint32_t pair, int which)
{
    uint32_t bits = which == 0 ? pair << 16 : pair & UINT32_C(0xffff0000);
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

/* PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type", with g = lane / 4 and
 * t = lane % 4:
 *   A, 4 registers a0 .. a7: row g for a0, a1, a4, a5, else g + 8; column 2 t + (i & 1) for i < 4,
 *      else that + 8. So register 0 holds row g, 1 row g + 8, 2 row g and 3 row g + 8, the last two
 *      8 columns on.
 *   B, 2 registers b0 .. b3: row 2 t + (i & 1) for i < 2, else that + 8; column g.
 *   C and D, c0 .. c3: row g for i < 2, else g + 8; column 2 t + (i & 1). */
static double a_value(const union emulator_slot *slots, int row, int k)
{
    int lane = 4 * (row % 8) + k % 8 / 2, reg = (row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0);
    return bf16_value(slots[lane].words[reg], k % 2);
}
static double b_value(const union emulator_slot *slots, int k, int column)
{
    int lane = 4 * column + k % 8 / 2, reg = k >= 8 ? 1 : 0;
    return bf16_value(slots[lane].words[4 + reg], k % 2);
}

/* The whole product, once a warp. */
static void multiply(struct emulator_warp *w, int which)
{
    const union emulator_slot *slots = w->slots[which];
    double b[16][8];
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++)
            b[k][j] = b_value(slots, k, j);
    for (int i = 0; i < 16; i++) {
        double sums[8] = {0};
        for (int k = 0; k < 16; k++) {
            double a = a_value(slots, i, k);
            for (int j = 0; j < 8; j++)
                sums[j] += a * b[k][j];
        }
        memcpy(w->products[which][i], sums, sizeof sums);
    }
}

/* Products are exact; their sum is rounded once to fp32 here. The chip's own order and rounding of
 * the 16 terms is its secret: results differ in the last bits. */
void emulator_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file,
                       int line)
{
    uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const struct emulator_warp *w = emulator_warp_now();
    int which = (int)(w->n_exchanges % 2);
    exchange("cuda_mma_bf16", words, sizeof words, file, line, multiply);
    int g = emulator_now->lane / 4, t = emulator_now->lane % 4;
    for (int i = 0; i < 4; i++)
        d[i] = (float)((double)d[i] + w->products[which][i < 2 ? g : g + 8][2 * t + i % 2]);
}
