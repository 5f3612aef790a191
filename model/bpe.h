/* Byte-pair merging of one piece of text: the merge rules of a file, and the work space of a call.
 *
 * `struct bpe` is what was loaded and never changes. `struct bpe_work` belongs to one call of
 * tokenizer_encode: it grows the output and remembers the pieces already merged, so that nothing is
 * shared between threads. A piece of n bytes costs O(n log n), whatever it is made of. */
#ifndef MODEL_BPE_H
#define MODEL_BPE_H

#include "model/vocab.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BPE_NO_RANK UINT32_MAX

struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* lower merges first; BPE_NO_RANK marks a free slot */
    int32_t id;    /* of the merged token */
};

struct bpe {
    struct bpe_merge *merges; /* open addressing by pair */
    uint32_t merge_mask;
    int32_t byte_ids[256]; /* -1 where the vocabulary lacks the byte's symbol */
    bool ignore_merges;    /* a piece that is a token as a whole is that token */
};

enum status bpe_init(struct bpe *bpe, size_t n_merges, struct err *err);
void bpe_clear(struct bpe *bpe);
/* Adds a rule; of two rules for one pair the later wins, as in the reference. */
void bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id);

struct bpe_symbol {
    int32_t id; /* -1 once merged into its left neighbour */
    int32_t prev, next;
};

struct bpe_seen; /* a piece that was merged before, see bpe.c */

struct bpe_work {
    const struct bpe *bpe;
    const struct vocab *vocab;
    const char *text; /* the whole text of the call; every piece lies in it */
    int32_t *ids;     /* the result, malloc'd */
    size_t n_ids, cap_ids;
    size_t n_dropped;
    struct bpe_symbol *symbols; /* [cap_symbols] */
    uint64_t *heap;             /* [2 * cap_symbols] */
    size_t n_heap, cap_symbols;
    struct bpe_seen *seen;
    uint32_t seen_mask;
};

/* len_bytes of text, at most INT32_MAX. STATUS_NO_MEMORY. */
enum status bpe_work_init(struct bpe_work *work, const struct bpe *bpe, const struct vocab *vocab,
                          const char *text, size_t len_bytes, struct err *err);
void bpe_work_clear(struct bpe_work *work);
/* Appends one id. STATUS_NO_MEMORY. */
enum status bpe_append(struct bpe_work *work, int32_t id, struct err *err);
/* Merges one piece (a part of work->text) and appends its ids. STATUS_NO_MEMORY. */
enum status bpe_encode_piece(struct bpe_work *work, const char *piece, size_t len_bytes,
                             struct err *err);

#endif
