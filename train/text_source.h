/* Real text as training sequences: a JSONL file of {"text": ...} objects, tokenised once, packed.
 *
 * Think of it as one long line of ids (each document with the tokens its tokenizer puts in front,
 * and an eos behind) cut into windows of seq_length. Which window is taken is a function of (seed,
 * index) alone: every epoch is a walk over all windows in an order of its own, so any rank draws
 * the same, and a resumed run needs no saved position. */
#ifndef TRAIN_TEXT_SOURCE_H
#define TRAIN_TEXT_SOURCE_H

#include "proto/status.h"
#include "train/sequence_rows.h"

#include <stddef.h>
#include <stdint.h>

struct text_source;

struct text_source_options {
    const char *jsonl;     /* one object a line; fields besides "text" are ignored */
    const char *tokenizer; /* a tokenizer.json, or its directory; NULL or "": the 49 symbols */
    int eos_id;            /* ends a document; the 49 symbols: TASK_EOS */
    int vocab_size;        /* of the model: the tokenizer's ids must be below */
    /* Where the ids are kept, 4 bytes each: made when missing or made from other files, else taken
     * as it is. It appears whole or not at all, so that ranks may open at once. */
    const char *cache;
};

/* Maps the cache, after building it where needed; memory is the longest line's and no more.
 * STATUS_CORRUPT (a line that is no JSON object, no UTF-8, without "text"; no text at all) and
 * STATUS_INVALID (a character without token) say FILE:LINE; STATUS_MISMATCH: the tokenizer or eos
 * does not fit the vocabulary; STATUS_NOT_FOUND, STATUS_IO. */
enum status text_source_open(const struct text_source_options *options, struct text_source **out,
                             struct err *err);
void text_source_close(struct text_source *source); /* NULL is fine */

/* Fills out with sequence `index` of the run (counted over all steps and ranks): seq_length rows,
 * all prefix, each predicting the next id with weight 1, counted at `level`. Threads may take at
 * once. STATUS_INVALID when the text is shorter than seq_length + 1 ids, or out too small. */
enum status text_source_take(const struct text_source *source, int seq_length, uint64_t seed,
                             uint64_t index, int level, struct sequence_rows *out, struct err *err);

uint64_t text_source_n_ids(const struct text_source *source);
uint64_t text_source_n_documents(const struct text_source *source);
/* Sequences an epoch has: that many indices in a row take each window once. */
uint64_t text_source_n_sequences(const struct text_source *source, int seq_length);
/* Hash of the text, the tokenizer and eos: the same exactly when the sequences are. */
uint64_t text_source_fingerprint(const struct text_source *source);

#endif
