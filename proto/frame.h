/* Hidden rows on the wire: one bundle is one message, a header and the frames for one destination.
 *
 *   bundle header (32 bytes) | frame header (64) | ids [n_rows] i32 | rows [n_rows, d] f32 |
 *   timings [loop - 1] of a live row | frame header (64) | ...
 *
 * All integers little-endian. A frame for loop 1 carries token ids and no rows (the worker embeds);
 * deeper frames carry both: ids, because whoever samples must know the history of its sequence.
 * Frames of one batch for one destination travel in one bundle; a bundle without frames is a note
 * (see flags). With BUNDLE_ROWS_APART the rows of all frames, one behind the other, are the
 * message's second part, which may lie in a device's memory: nothing here reads or writes it. A
 * reader checks everything against the limits before it hands out a pointer; each header carries a
 * check over itself, so that damage is seen where any value would be legal. docs/wire.md has the
 * layout. */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include "proto/sequence.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MESSAGE_BUNDLE = 1, MESSAGE_CONTROL = 2 };
enum { FRAME_PROTOCOL_VERSION = 6 };

/* The first 8 bytes of every message: u32 magic, u16 version, u16 kind.
 * STATUS_CORRUPT when it is neither kind or of another version. */
enum status message_kind(const void *bytes, size_t len_bytes, int *kind, struct err *err);

enum bundle_flags {
    BUNDLE_BUSY = 1,      /* the sender has just started a batch that may feed the receiver */
    BUNDLE_DONE = 2,      /* the batch the sender had announced is over: its rows are in here */
    BUNDLE_ROWS_APART = 4 /* rows are the message's second part; not given to bundle_begin */
};

enum frame_flags {
    FRAME_LIVE = 1 /* the last row is the live row */
};

struct frame {
    uint64_t sequence;
    uint32_t loop; /* 1-based: the loop these rows are to run */
    uint32_t first_position;
    uint32_t n_rows;
    uint32_t flags;
    float survival;   /* of the live row: prod of (1 - lambda) over the loops done; 1 at loop 1 */
    float cdf;        /* of the live row: p_1 + ... + p_{loop-1}; 0 at loop 1 */
    const void *ids;  /* n_rows int32, maybe unaligned: frame_id() reads one */
    const void *rows; /* n_rows * d float32, maybe unaligned (memcpy them); NULL at loop 1; an
                         address in the second part when rows are apart */
    uint64_t sent_ns; /* the sender's clock when the rows set out */
    /* Of the live row, 0 without one: where its time went in the loops done, [loop - 1] of them. */
    struct loop_timing timings[SEQUENCE_MAX_LOOPS];
};
int32_t frame_id(const struct frame *frame, uint32_t row);

/* What the receiver will accept. */
struct frame_limits {
    uint32_t d_model;
    uint32_t n_loops; /* at most SEQUENCE_MAX_LOOPS */
    uint32_t max_positions;
    uint32_t vocab_size;
};

/* ---- writing -------------------------------------------------------------------------------- */

struct bundle_writer {
    unsigned char *bytes;
    size_t cap_bytes, len_bytes;
    uint32_t n_frames;
    uint32_t flags;
    uint32_t round;
    uint32_t d_model;
    unsigned char *apart; /* NULL: rows lie in the frames */
    size_t apart_cap_bytes, apart_bytes;
};

size_t bundle_header_bytes(void);
/* SIZE_MAX when the product does not fit. */
size_t frame_bytes(uint32_t loop, uint32_t n_rows, uint32_t flags, uint32_t d_model);
/* Of those the rows': what a frame is shorter by when they travel apart. */
size_t frame_rows_bytes(uint32_t loop, uint32_t n_rows, uint32_t d_model);
/* cap_bytes >= bundle_header_bytes(). round is that of the batch BUNDLE_BUSY announces; 0 without.
 */
void bundle_begin(struct bundle_writer *w, void *bytes, size_t cap_bytes, uint32_t d_model,
                  uint32_t flags, uint32_t round);
/* Before the first frame: rows go to `rows` [cap_bytes], not NULL, which only the caller touches.
 * After the last one, apart_bytes of them are in use. */
void bundle_set_apart(struct bundle_writer *w, void *rows, size_t cap_bytes);
/* Appends a frame's header (ids and rows of *frame are ignored) and gives the places to fill: *ids
 * for n_rows int32 in host order written with memcpy, *rows for n_rows * d floats (NULL at loop 1).
 * STATUS_NO_MEMORY when a cap_bytes does not suffice: nothing is appended. The frame's fields are
 * the caller's promise (loop >= 1, n_rows >= 1, sequence != 0, a live row at loop 1 with survival
 * 1, cdf 0). */
enum status bundle_add(struct bundle_writer *w, const struct frame *frame, void **ids, void **rows,
                       struct err *err);
/* Writes the bundle header; returns the message's length. */
size_t bundle_end(struct bundle_writer *w);

/* ---- reading -------------------------------------------------------------------------------- */

struct bundle_reader {
    const unsigned char *bytes;
    size_t len_bytes, at;
    uint32_t n_frames, n_read;
    uint32_t flags;
    uint32_t round; /* of the batch BUNDLE_BUSY announces */
    struct frame_limits limits;
    const unsigned char *apart; /* the second part */
    size_t apart_bytes, apart_at;
};

/* bytes are borrowed while the reader and its frames are used. STATUS_CORRUPT: what was found. */
enum status bundle_open(struct bundle_reader *r, const void *bytes, size_t len_bytes,
                        const struct frame_limits *limits, struct err *err);
/* Right after bundle_open: the message's second part, NULL and 0 without one; borrowed as the bytes
 * are, and not read. STATUS_CORRUPT when the flags say something else. */
enum status bundle_join_rows(struct bundle_reader *r, const void *rows, size_t len_bytes,
                             struct err *err);
/* *has_frame false at the end, where trailing bytes, of either part, are an error. Checks magic,
 * loop in 1..T, rows
 * >= 1, position range, ids in the vocabulary, finite survival and cdf in [0, 1] (+ rounding),
 * finite timings of which only the hops may be negative, and that the payload lies inside. */
enum status bundle_next(struct bundle_reader *r, struct frame *out, bool *has_frame,
                        struct err *err);

#endif
