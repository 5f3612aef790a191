/* Fuzzes bundles: whatever bytes arrive, a reader hands out only what lies inside them, or inside
 * the second part that came with them.
 *
 * The second part is an address that nobody may read and a length: of one row, or what the input
 * says. Each input is read three times: as it is, with its header checks made right, and with its
 * sizes made right, too. A fuzzer does not find a hash by itself and would stay in front of the
 * field checks, and behind those it would not get to the rows. */
#include "proto/frame.h"
#include "proto/wire_bytes.h"

#include <math.h>
#include <stdlib.h>

/* More than any second part. */
#define MOST_APART_BYTES ((size_t)1 << 40)

static const struct frame_limits LIMITS = {
    .d_model = 3, .n_loops = 4, .max_positions = 4096, .vocab_size = 1 << 20};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const uint8_t *data, size_t size, size_t apart_bytes)
{
    struct bundle_reader r;
    struct err err;
    if (bundle_open(&r, data, size, &LIMITS, &err) != STATUS_OK)
        return;
    const bool is_apart = (r.flags & BUNDLE_ROWS_APART) != 0;
    const uint8_t *const nowhere = (const uint8_t *)4096;
    if (bundle_join_rows(&r, is_apart ? nowhere : NULL, is_apart ? apart_bytes : 0, &err) !=
        STATUS_OK)
        return;
    struct frame f;
    bool has_frame;
    uint64_t sum = 0;
    size_t apart_seen = 0;
    size_t seen = bundle_header_bytes();
    for (;;) {
        if (bundle_next(&r, &f, &has_frame, &err) != STATUS_OK)
            return;
        if (!has_frame)
            break;
        if (f.loop < 1 || f.loop > LIMITS.n_loops || f.n_rows < 1 || f.sequence == 0 ||
            (uint64_t)f.first_position + f.n_rows > LIMITS.max_positions ||
            (f.rows == NULL) != (f.loop == 1))
            abort();
        for (uint32_t i = 0; i < f.n_rows; i++) {
            int32_t id = frame_id(&f, i);
            if (id < 0 || (uint32_t)id >= LIMITS.vocab_size)
                abort();
        }
        for (uint32_t i = 0; i + 1 < f.loop; i++) {
            const struct loop_timing *t = &f.timings[i];
            if (!isfinite(t->hop_s) || !isfinite(t->wait_s) || !isfinite(t->compute_s) ||
                t->wait_s < 0 || t->compute_s < 0)
                abort();
        }
        size_t n_apart = is_apart ? frame_rows_bytes(f.loop, f.n_rows, LIMITS.d_model) : 0;
        if (n_apart > 0 && (f.rows != nowhere + apart_seen || n_apart > apart_bytes - apart_seen))
            abort();
        apart_seen += n_apart;
        for (size_t i = 0; f.rows && !is_apart && i < (size_t)f.n_rows * LIMITS.d_model * 4; i++)
            sum += ((const uint8_t *)f.rows)[i];
        seen += frame_bytes(f.loop, f.n_rows, f.flags, is_apart ? 0 : LIMITS.d_model);
    }
    /* A bundle that was read to its end was read completely. The sum keeps the reads alive. */
    if (seen != size || (is_apart && apart_seen != apart_bytes) || sum > (uint64_t)size * 255)
        abort();
}

static void repair_check(uint8_t *header, size_t size)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < size - 4; i++)
        h = (h ^ header[i]) * 16777619u;
    wire_store_u32(header + size - 4, h);
}

/* Makes the checks right and, for a whole frame, what else only an honest writer gets right: the
 * fuzzer should not have to find them. Returns the length of the second part that its frames ask
 * for. */
static size_t repair(uint8_t *bytes, size_t size, bool is_whole)
{
    const bool is_apart = (wire_load_u32(bytes + 8) & BUNDLE_ROWS_APART) != 0;
    size_t apart_bytes = 0;
    wire_store_head(bytes, FRAME_PROTOCOL_VERSION, MESSAGE_BUNDLE);
    wire_store_u64(bytes + 16, size);
    wire_store_u32(bytes + 24, 0);
    repair_check(bytes, 32);
    for (size_t at = 32; size - at >= 64;) {
        uint8_t *frame = bytes + at;
        size_t step = frame_bytes(wire_load_u32(frame + 4), wire_load_u32(frame + 20),
                                  wire_load_u32(frame + 24), is_apart ? 0 : LIMITS.d_model);
        size_t rows =
            frame_rows_bytes(wire_load_u32(frame + 4), wire_load_u32(frame + 20), LIMITS.d_model);
        if (rows <= MOST_APART_BYTES)
            apart_bytes += rows;
        if (is_whole) {
            memcpy(frame, "FRAM", 4);
            wire_store_u32(frame + 36, LIMITS.d_model);
            wire_store_u64(frame + 40, step - 64);
            wire_store_u32(frame + 56, 0);
        }
        repair_check(frame, 64);
        if (step > size - at)
            break;
        at += step;
    }
    return apart_bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_all(data, size, LIMITS.d_model * 4);
    if (size < 32)
        return 0;
    uint8_t *copy = malloc(size);
    if (copy == NULL)
        return 0;
    memcpy(copy, data, size);
    read_all(copy, size, repair(copy, size, false));
    read_all(copy, size, repair(copy, size, true));
    free(copy);
    return 0;
}
