/* Writes and reads bundles of frames: what a reader hands out lies inside the message and in range.
 */
#include "proto/frame.h"

#include "proto/wire_bytes.h"

#include <assert.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>

/* Offsets of the bundle header; docs/wire.md shows the same table. */
enum {
    BUNDLE_FLAGS = 8,
    BUNDLE_N_FRAMES = 12,
    BUNDLE_LEN = 16,
    BUNDLE_ROUND = 24,
    BUNDLE_CHECK = 28,
    BUNDLE_HEADER_BYTES = 32
};

/* Offsets of the frame header. */
enum {
    FRAME_MAGIC = 0,
    FRAME_LOOP = 4,
    FRAME_SEQUENCE = 8,
    FRAME_FIRST_POSITION = 16,
    FRAME_N_ROWS = 20,
    FRAME_FLAGS = 24,
    FRAME_SURVIVAL = 28,
    FRAME_CDF = 32,
    FRAME_D_MODEL = 36,
    FRAME_PAYLOAD = 40,
    FRAME_SENT = 48,
    FRAME_ZERO = 56,
    FRAME_CHECK = 60,
    FRAME_HEADER_BYTES = 64
};

/* Offsets of one loop's timing behind the rows. */
enum { TIMING_HOP = 0, TIMING_WAIT = 8, TIMING_COMPUTE = 12, TIMING_BYTES = 16 };

#define FRAME_MAGIC_VALUE 0x4d415246u /* "FRAM" in memory order */

/* survival and cdf are running products and sums in float: a few ulps past [0, 1] are not damage.
 */
#define PROBABILITY_SLACK 1e-4f

/* FNV-1a over a header. Each step is a bijection of the state, so a change inside one byte never
 * goes unseen; it stands for fields where every value is legal, such as the sequence. */
static uint32_t header_check(const unsigned char *bytes, size_t len_bytes)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < len_bytes; i++)
        h = (h ^ bytes[i]) * 16777619u;
    return h;
}

enum status message_kind(const void *bytes, size_t len_bytes, int *kind, struct err *err)
{
    if (len_bytes < MESSAGE_HEAD_BYTES)
        return err_set(err, STATUS_CORRUPT, "message of %zu bytes; its head alone takes %d",
                       len_bytes, MESSAGE_HEAD_BYTES);
    const unsigned char *at = bytes;
    uint32_t magic = wire_load_u32(at);
    if (magic != MESSAGE_MAGIC)
        return err_set(err, STATUS_CORRUPT,
                       "message starts with 0x%08" PRIx32 ", expected 0x%08x: the sender is not "
                       "a carousel rank, or the bytes were damaged",
                       magic, MESSAGE_MAGIC);
    unsigned version = wire_load_u16(at + 4);
    if (version != FRAME_PROTOCOL_VERSION)
        return err_set(err, STATUS_CORRUPT,
                       "message of protocol version %u, this build speaks %d: start all ranks "
                       "from the same build",
                       version, FRAME_PROTOCOL_VERSION);
    unsigned found = wire_load_u16(at + 6);
    if (found != MESSAGE_BUNDLE && found != MESSAGE_CONTROL)
        return err_set(err, STATUS_CORRUPT, "message kind %u; known are %d (bundle), %d (control)",
                       found, MESSAGE_BUNDLE, MESSAGE_CONTROL);
    *kind = (int)found;
    return STATUS_OK;
}

int32_t frame_id(const struct frame *frame, uint32_t row)
{
    assert(row < frame->n_rows);
    return (int32_t)wire_load_u32((const unsigned char *)frame->ids + (size_t)row * 4);
}

/* ---- writing -------------------------------------------------------------------------------- */

size_t bundle_header_bytes(void)
{
    return BUNDLE_HEADER_BYTES;
}

/* Bytes of one row: its id, and behind loop 1 its d floats. */
static uint64_t row_bytes(uint32_t loop, uint32_t d_model)
{
    return 4 + (loop > 1 ? (uint64_t)d_model * 4 : 0);
}

/* A live row brings the timings of the loops it has done. */
static uint64_t timings_bytes(uint32_t loop, uint32_t flags)
{
    return flags & FRAME_LIVE ? (uint64_t)(loop - 1) * TIMING_BYTES : 0;
}

size_t frame_bytes(uint32_t loop, uint32_t n_rows, uint32_t flags, uint32_t d_model)
{
    size_t total;
    uint64_t fixed = FRAME_HEADER_BYTES + timings_bytes(loop, flags);
    if (__builtin_mul_overflow((uint64_t)n_rows, row_bytes(loop, d_model), &total) ||
        __builtin_add_overflow(total, fixed, &total))
        return SIZE_MAX; /* more than any buffer holds, so bundle_add refuses it */
    return total;
}

size_t frame_rows_bytes(uint32_t loop, uint32_t n_rows, uint32_t d_model)
{
    size_t total;
    if (__builtin_mul_overflow((uint64_t)n_rows, row_bytes(loop, d_model) - 4, &total))
        return SIZE_MAX;
    return total;
}

void bundle_begin(struct bundle_writer *w, void *bytes, size_t cap_bytes, uint32_t d_model,
                  uint32_t flags, uint32_t round)
{
    assert(cap_bytes >= BUNDLE_HEADER_BYTES);
    *w = (struct bundle_writer){.bytes = bytes,
                                .cap_bytes = cap_bytes,
                                .len_bytes = BUNDLE_HEADER_BYTES,
                                .flags = flags,
                                .round = round,
                                .d_model = d_model};
}

void bundle_set_apart(struct bundle_writer *w, void *rows, size_t cap_bytes)
{
    assert(w->n_frames == 0 && rows != NULL);
    w->flags |= BUNDLE_ROWS_APART;
    w->apart = rows;
    w->apart_cap_bytes = cap_bytes;
}

static void store_timings(const struct frame *frame, unsigned char *at)
{
    for (uint32_t i = 0; frame->flags & FRAME_LIVE && i + 1 < frame->loop; i++) {
        wire_store_f64(at + TIMING_HOP, frame->timings[i].hop_s);
        wire_store_f32(at + TIMING_WAIT, frame->timings[i].wait_s);
        wire_store_f32(at + TIMING_COMPUTE, frame->timings[i].compute_s);
        at += TIMING_BYTES;
    }
}

enum status bundle_add(struct bundle_writer *w, const struct frame *frame, void **ids, void **rows,
                       struct err *err)
{
    assert(frame->loop >= 1 && frame->n_rows >= 1 && frame->sequence != 0);
    assert(frame->loop <= SEQUENCE_MAX_LOOPS);
    const bool is_apart = w->apart != NULL;
    const size_t n_apart = is_apart ? frame_rows_bytes(frame->loop, frame->n_rows, w->d_model) : 0;
    size_t need = frame_bytes(frame->loop, frame->n_rows, frame->flags, is_apart ? 0 : w->d_model);
    if (n_apart > w->apart_cap_bytes - w->apart_bytes)
        return err_set(err, STATUS_NO_MEMORY,
                       "%" PRIu32 " rows need %zu bytes, the second part has %zu of %zu left",
                       frame->n_rows, n_apart, w->apart_cap_bytes - w->apart_bytes,
                       w->apart_cap_bytes);
    if (need > w->cap_bytes - w->len_bytes)
        return err_set(err, STATUS_NO_MEMORY,
                       "frame of %" PRIu32 " rows needs %zu bytes, the bundle has %zu of %zu left",
                       frame->n_rows, need, w->cap_bytes - w->len_bytes, w->cap_bytes);
    unsigned char *at = w->bytes + w->len_bytes;
    memset(at, 0, FRAME_HEADER_BYTES);
    wire_store_u32(at + FRAME_MAGIC, FRAME_MAGIC_VALUE);
    wire_store_u32(at + FRAME_LOOP, frame->loop);
    wire_store_u64(at + FRAME_SEQUENCE, frame->sequence);
    wire_store_u32(at + FRAME_FIRST_POSITION, frame->first_position);
    wire_store_u32(at + FRAME_N_ROWS, frame->n_rows);
    wire_store_u32(at + FRAME_FLAGS, frame->flags);
    wire_store_f32(at + FRAME_SURVIVAL, frame->survival);
    wire_store_f32(at + FRAME_CDF, frame->cdf);
    wire_store_u32(at + FRAME_D_MODEL, w->d_model);
    wire_store_u64(at + FRAME_PAYLOAD, need - FRAME_HEADER_BYTES);
    wire_store_u64(at + FRAME_SENT, frame->sent_ns);
    store_timings(frame, at + need - timings_bytes(frame->loop, frame->flags));
    wire_store_u32(at + FRAME_CHECK, header_check(at, FRAME_CHECK));
    *ids = at + FRAME_HEADER_BYTES;
    *rows = frame->loop == 1 ? NULL
            : is_apart       ? w->apart + w->apart_bytes
                             : at + FRAME_HEADER_BYTES + (size_t)frame->n_rows * 4;
    w->apart_bytes += n_apart;
    w->len_bytes += need;
    w->n_frames++;
    return STATUS_OK;
}

size_t bundle_end(struct bundle_writer *w)
{
    unsigned char *at = w->bytes;
    memset(at, 0, BUNDLE_HEADER_BYTES);
    wire_store_head(at, FRAME_PROTOCOL_VERSION, MESSAGE_BUNDLE);
    wire_store_u32(at + BUNDLE_FLAGS, w->flags);
    wire_store_u32(at + BUNDLE_N_FRAMES, w->n_frames);
    wire_store_u64(at + BUNDLE_LEN, w->len_bytes);
    wire_store_u32(at + BUNDLE_ROUND, w->round);
    wire_store_u32(at + BUNDLE_CHECK, header_check(at, BUNDLE_CHECK));
    return w->len_bytes;
}

/* ---- reading -------------------------------------------------------------------------------- */

enum status bundle_open(struct bundle_reader *r, const void *bytes, size_t len_bytes,
                        const struct frame_limits *limits, struct err *err)
{
    int kind = 0;
    enum status st = message_kind(bytes, len_bytes, &kind, err);
    if (st != STATUS_OK)
        return st;
    if (kind != MESSAGE_BUNDLE)
        return err_set(err, STATUS_CORRUPT, "message kind %d where a bundle (%d) was expected",
                       kind, MESSAGE_BUNDLE);
    if (len_bytes < BUNDLE_HEADER_BYTES)
        return err_set(err, STATUS_CORRUPT, "bundle of %zu bytes; its header alone takes %d",
                       len_bytes, BUNDLE_HEADER_BYTES);
    const unsigned char *at = bytes;
    uint32_t check = header_check(at, BUNDLE_CHECK);
    if (wire_load_u32(at + BUNDLE_CHECK) != check)
        return err_set(err, STATUS_CORRUPT,
                       "bundle header check is 0x%08" PRIx32 ", its bytes give 0x%08" PRIx32,
                       wire_load_u32(at + BUNDLE_CHECK), check);
    uint64_t len = wire_load_u64(at + BUNDLE_LEN);
    if (len != len_bytes)
        return err_set(err, STATUS_CORRUPT, "bundle says %" PRIu64 " bytes, %zu arrived", len,
                       len_bytes);
    uint32_t flags = wire_load_u32(at + BUNDLE_FLAGS);
    if (flags & ~(uint32_t)(BUNDLE_BUSY | BUNDLE_DONE | BUNDLE_ROWS_APART))
        return err_set(err, STATUS_CORRUPT, "bundle flags 0x%" PRIx32 " hold unknown bits", flags);
    uint32_t round = wire_load_u32(at + BUNDLE_ROUND);
    if (round != 0 && (flags & BUNDLE_BUSY) == 0)
        return err_set(err, STATUS_CORRUPT, "bundle names round %" PRIu32 " and announces no batch",
                       round);
    uint32_t n_frames = wire_load_u32(at + BUNDLE_N_FRAMES);
    /* The smallest frame is a header and one id. */
    if (n_frames > (len_bytes - BUNDLE_HEADER_BYTES) / (FRAME_HEADER_BYTES + 4))
        return err_set(err, STATUS_CORRUPT, "bundle says %" PRIu32 " frames in %zu bytes", n_frames,
                       len_bytes);
    if (n_frames == 0 && len_bytes != BUNDLE_HEADER_BYTES)
        return err_set(err, STATUS_CORRUPT, "bundle without frames has %zu bytes behind its header",
                       len_bytes - BUNDLE_HEADER_BYTES);
    *r = (struct bundle_reader){.bytes = at,
                                .len_bytes = len_bytes,
                                .at = BUNDLE_HEADER_BYTES,
                                .n_frames = n_frames,
                                .flags = flags,
                                .round = round,
                                .limits = *limits};
    return STATUS_OK;
}

enum status bundle_join_rows(struct bundle_reader *r, const void *rows, size_t len_bytes,
                             struct err *err)
{
    const bool is_apart = (r->flags & BUNDLE_ROWS_APART) != 0;
    if (is_apart != (len_bytes > 0))
        return err_set(err, STATUS_CORRUPT,
                       "bundle flags 0x%" PRIx32 " say that rows come %s, and %zu bytes of them "
                       "came in a second part",
                       r->flags, is_apart ? "apart" : "in the frames", len_bytes);
    r->apart = rows;
    r->apart_bytes = len_bytes;
    return STATUS_OK;
}

/* The header's own marks: magic, check, d_model, unused bytes. */
static enum status check_marks(const struct bundle_reader *r, const unsigned char *at,
                               struct err *err)
{
    if (wire_load_u32(at + FRAME_MAGIC) != FRAME_MAGIC_VALUE)
        return err_set(err, STATUS_CORRUPT, "starts with 0x%08" PRIx32 ", expected 0x%08x",
                       wire_load_u32(at + FRAME_MAGIC), FRAME_MAGIC_VALUE);
    uint32_t check = header_check(at, FRAME_CHECK);
    if (wire_load_u32(at + FRAME_CHECK) != check)
        return err_set(err, STATUS_CORRUPT,
                       "header check is 0x%08" PRIx32 ", its bytes give 0x%08" PRIx32,
                       wire_load_u32(at + FRAME_CHECK), check);
    uint32_t d_model = wire_load_u32(at + FRAME_D_MODEL);
    if (d_model != r->limits.d_model)
        return err_set(err, STATUS_CORRUPT,
                       "rows of %" PRIu32 " numbers, this model has %" PRIu32
                       ": start all ranks with the same model",
                       d_model, r->limits.d_model);
    for (int i = FRAME_ZERO; i < FRAME_CHECK; i++) {
        if (at[i] != 0)
            return err_set(err, STATUS_CORRUPT, "header byte %d is 0x%02x, not 0", i, at[i]);
    }
    return STATUS_OK;
}

static bool is_probability(float x)
{
    return x >= -PROBABILITY_SLACK && x <= 1.0f + PROBABILITY_SLACK; /* false for NaN */
}

/* The fields against the limits. */
static enum status check_fields(const struct bundle_reader *r, const struct frame *f,
                                struct err *err)
{
    if (f->sequence == 0)
        return err_set(err, STATUS_CORRUPT, "sequence is 0, which no sequence has");
    if (f->loop < 1 || f->loop > r->limits.n_loops)
        return err_set(err, STATUS_CORRUPT, "loop %" PRIu32 " is outside 1..%" PRIu32, f->loop,
                       r->limits.n_loops);
    if (f->n_rows < 1)
        return err_set(err, STATUS_CORRUPT, "it has no rows");
    if ((uint64_t)f->first_position + f->n_rows > r->limits.max_positions)
        return err_set(err, STATUS_CORRUPT,
                       "%" PRIu32 " rows from position %" PRIu32 " pass the limit of %" PRIu32,
                       f->n_rows, f->first_position, r->limits.max_positions);
    if (f->flags & ~(uint32_t)FRAME_LIVE)
        return err_set(err, STATUS_CORRUPT, "flags 0x%" PRIx32 " hold unknown bits", f->flags);
    if (!is_probability(f->survival))
        return err_set(err, STATUS_CORRUPT, "survival %g is outside [0, 1]", (double)f->survival);
    if (!is_probability(f->cdf))
        return err_set(err, STATUS_CORRUPT, "cdf %g is outside [0, 1]", (double)f->cdf);
    if (f->loop == 1 && (f->flags & FRAME_LIVE) && (f->survival != 1.0f || f->cdf != 0.0f))
        return err_set(
            err, STATUS_CORRUPT,
            "a live row enters loop 1 with survival %g and cdf %g; they start at 1 and 0",
            (double)f->survival, (double)f->cdf);
    return STATUS_OK;
}

static bool is_duration(float x)
{
    return x >= 0.0f && x <= FLT_MAX; /* false for NaN */
}

/* The timings at `at`; their room has been checked. */
static enum status read_timings(const unsigned char *at, struct frame *f, struct err *err)
{
    for (uint32_t i = 0; f->flags & FRAME_LIVE && i + 1 < f->loop; i++) {
        struct loop_timing t = {.hop_s = wire_load_f64(at + TIMING_HOP),
                                .wait_s = wire_load_f32(at + TIMING_WAIT),
                                .compute_s = wire_load_f32(at + TIMING_COMPUTE)};
        if (!isfinite(t.hop_s) || !is_duration(t.wait_s) || !is_duration(t.compute_s))
            return err_set(err, STATUS_CORRUPT,
                           "timing of loop %" PRIu32 " is hop %g, wait %g, compute %g: no times",
                           i + 1, t.hop_s, (double)t.wait_s, (double)t.compute_s);
        f->timings[i] = t;
        at += TIMING_BYTES;
    }
    return STATUS_OK;
}

/* Where the rows are: behind the ids, or next in the second part. */
static enum status find_rows(const struct bundle_reader *r, struct frame *f, struct err *err)
{
    if (f->loop == 1)
        return STATUS_OK;
    if ((r->flags & BUNDLE_ROWS_APART) == 0) {
        f->rows = (const unsigned char *)f->ids + (size_t)f->n_rows * 4;
        return STATUS_OK;
    }
    size_t left = r->apart_bytes - r->apart_at;
    if (f->n_rows > left / ((size_t)r->limits.d_model * 4))
        return err_set(err, STATUS_CORRUPT,
                       "%" PRIu32 " rows of %" PRIu32 " numbers do not fit in the %zu bytes that "
                       "remain of the second part",
                       f->n_rows, r->limits.d_model, left);
    f->rows = r->apart + r->apart_at;
    return STATUS_OK;
}

/* Reads the frame at `at`, of which `left` bytes remain; *size is its length. */
static enum status read_frame(const struct bundle_reader *r, const unsigned char *at, size_t left,
                              struct frame *out, size_t *size, struct err *err)
{
    if (left < FRAME_HEADER_BYTES)
        return err_set(err, STATUS_CORRUPT, "%zu bytes remain, a header takes %d", left,
                       FRAME_HEADER_BYTES);
    enum status st = check_marks(r, at, err);
    if (st != STATUS_OK)
        return st;
    struct frame f = {.sequence = wire_load_u64(at + FRAME_SEQUENCE),
                      .loop = wire_load_u32(at + FRAME_LOOP),
                      .first_position = wire_load_u32(at + FRAME_FIRST_POSITION),
                      .n_rows = wire_load_u32(at + FRAME_N_ROWS),
                      .flags = wire_load_u32(at + FRAME_FLAGS),
                      .survival = wire_load_f32(at + FRAME_SURVIVAL),
                      .cdf = wire_load_f32(at + FRAME_CDF),
                      .sent_ns = wire_load_u64(at + FRAME_SENT)};
    st = check_fields(r, &f, err);
    if (st != STATUS_OK)
        return st;
    /* A division, so that no product of two wire numbers can wrap. */
    const bool is_apart = (r->flags & BUNDLE_ROWS_APART) != 0;
    uint64_t per_row = row_bytes(f.loop, is_apart ? 0 : r->limits.d_model);
    uint64_t timings = timings_bytes(f.loop, f.flags);
    size_t payload_left = left - FRAME_HEADER_BYTES;
    if (timings > payload_left || f.n_rows > (payload_left - timings) / per_row)
        return err_set(err, STATUS_CORRUPT,
                       "%" PRIu32 " rows of %" PRIu64 " bytes and %" PRIu64
                       " of timings do not fit in the %zu that remain",
                       f.n_rows, per_row, timings, payload_left);
    uint64_t payload = f.n_rows * per_row + timings;
    if (wire_load_u64(at + FRAME_PAYLOAD) != payload)
        return err_set(err, STATUS_CORRUPT,
                       "payload is %" PRIu64 " bytes, its rows and timings take %" PRIu64,
                       wire_load_u64(at + FRAME_PAYLOAD), payload);
    f.ids = at + FRAME_HEADER_BYTES;
    st = find_rows(r, &f, err);
    if (st != STATUS_OK)
        return st;
    for (uint32_t i = 0; i < f.n_rows; i++) {
        int32_t id = frame_id(&f, i);
        if (id < 0 || (uint32_t)id >= r->limits.vocab_size)
            return err_set(err, STATUS_CORRUPT,
                           "id %" PRId32 " at position %" PRIu32 " is outside the vocabulary of "
                           "%" PRIu32,
                           id, f.first_position + i, r->limits.vocab_size);
    }
    st = read_timings(at + FRAME_HEADER_BYTES + (payload - timings), &f, err);
    if (st != STATUS_OK)
        return st;
    *size = FRAME_HEADER_BYTES + (size_t)payload;
    *out = f;
    return STATUS_OK;
}

enum status bundle_next(struct bundle_reader *r, struct frame *out, bool *has_frame,
                        struct err *err)
{
    if (r->n_read == r->n_frames) {
        if (r->at != r->len_bytes)
            return err_set(err, STATUS_CORRUPT, "%zu bytes follow the bundle's last frame",
                           r->len_bytes - r->at);
        if (r->apart_at != r->apart_bytes)
            return err_set(err, STATUS_CORRUPT,
                           "the second part has %zu bytes of rows, the bundle's frames take %zu",
                           r->apart_bytes, r->apart_at);
        *has_frame = false;
        return STATUS_OK;
    }
    size_t size = 0;
    enum status st = read_frame(r, r->bytes + r->at, r->len_bytes - r->at, out, &size, err);
    if (st != STATUS_OK) {
        err_wrap(err, "frame %" PRIu32 " of %" PRIu32 " at byte %zu", r->n_read + 1, r->n_frames,
                 r->at);
        return st;
    }
    if (r->flags & BUNDLE_ROWS_APART)
        r->apart_at += frame_rows_bytes(out->loop, out->n_rows, r->limits.d_model);
    r->at += size;
    r->n_read++;
    *has_frame = true;
    return STATUS_OK;
}
