/* Finds added tokens in text by their content: leftmost, and of those the longest. */
#ifndef MODEL_ADDED_TOKENS_H
#define MODEL_ADDED_TOKENS_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    const char *content; /* borrowed from the vocabulary */
    size_t n_content;    /* at least 1 */
    int32_t id;
    bool is_special;
};

struct added_tokens {
    struct added_token *sorted; /* by content */
    size_t n, cap;
    bool starts[256]; /* bytes that some token starts with */
};

enum status added_tokens_add(struct added_tokens *set, struct added_token token, struct err *err);
/* Call once after the last add, before the first find. */
void added_tokens_sort(struct added_tokens *set);
void added_tokens_clear(struct added_tokens *set);

/* The first match at or after `at`, or NULL; *where is its start. */
const struct added_token *added_tokens_find(const struct added_tokens *set, const char *at,
                                            const char *end, const char **where);

#endif
