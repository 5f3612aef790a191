/* What a loaded tokenizer consists of; for the files of tokenizer.h only. */
#ifndef MODEL_TOKENIZER_PARTS_H
#define MODEL_TOKENIZER_PARTS_H

#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"
#include "model/vocab.h"

#include <jansson.h>

/* Text runs through the parts in this order: added tokens taken literally (`raw`), those that would
 * be matched after normalization (`normalized`; there is none, but they come second), the
 * pre-tokenizer, BPE. */
struct tokenizer {
    struct added_tokens raw, normalized;
    struct pretokenizer pretokenizer;
    struct bpe bpe;
    struct vocab vocab;
    int32_t *prefix, *suffix; /* ids that the post_processor puts around the text */
    size_t n_prefix, n_suffix;
};

/* Objects of tokenizer.json. All write only their own part; err has no file name yet. */
enum status tokenizer_parse_model(struct tokenizer *t, const json_t *model,
                                  const json_t *added_tokens, struct err *err);
enum status tokenizer_parse_pre(struct tokenizer *t, const json_t *pre_tokenizer, struct err *err);
/* Needs the vocabulary. */
enum status tokenizer_parse_post(struct tokenizer *t, const json_t *post_processor,
                                 struct err *err);

/* STATUS_UNSUPPORTED when object has a field that is not in the NULL-terminated list: a field we do
 * not know may change the result. STATUS_CORRUPT when it is no object. */
enum status tokenizer_check_fields(const json_t *object, const char *where,
                                   const char *const *allowed, struct err *err);
/* A boolean field; `missing` when it is absent. STATUS_CORRUPT for another type. */
enum status tokenizer_get_bool(const json_t *object, const char *where, const char *name,
                               bool missing, bool *out, struct err *err);

#endif
