/* Added tokens, sorted by content, are found by narrowing a range byte by byte. */
#include "model/added_tokens.h"

#include <stdlib.h>
#include <string.h>

enum status added_tokens_add(struct added_tokens *set, struct added_token token, struct err *err)
{
    if (set->n == set->cap) {
        size_t cap = 2 * set->cap + 16;
        struct added_token *grown = realloc(set->sorted, cap * sizeof *grown);
        if (!grown)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu added tokens", cap);
        set->sorted = grown;
        set->cap = cap;
    }
    set->sorted[set->n++] = token;
    set->starts[(unsigned char)token.content[0]] = true;
    return STATUS_OK;
}

static int compare_contents(const void *left, const void *right)
{
    const struct added_token *a = left, *b = right;
    size_t n = a->n_content < b->n_content ? a->n_content : b->n_content;
    int order = memcmp(a->content, b->content, n);
    if (order != 0)
        return order;
    return (a->n_content > b->n_content) - (a->n_content < b->n_content);
}

void added_tokens_sort(struct added_tokens *set)
{
    if (set->n > 1)
        qsort(set->sorted, set->n, sizeof *set->sorted, compare_contents);
}

void added_tokens_clear(struct added_tokens *set)
{
    free(set->sorted);
    *set = (struct added_tokens){0};
}

/* First index in [low, high) whose byte at depth is >= byte; all of them are longer than depth. */
static size_t lower_bound(const struct added_tokens *set, size_t low, size_t high, size_t depth,
                          int byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)set->sorted[middle].content[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that starts at `at`, or NULL. */
static const struct added_token *match_longest(const struct added_tokens *set, const char *at,
                                               const char *end)
{
    const struct added_token *best = NULL;
    size_t low = 0, high = set->n;
    for (size_t depth = 0; at + depth < end; depth++) {
        int byte = (unsigned char)at[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
        if (low == high)
            break;
        /* The shortest of a range comes first, and contents are distinct. */
        if (set->sorted[low].n_content == depth + 1)
            best = &set->sorted[low++];
    }
    return best;
}

const struct added_token *added_tokens_find(const struct added_tokens *set, const char *at,
                                            const char *end, const char **where)
{
    if (set->n == 0)
        return NULL;
    for (; at < end; at++) {
        if (!set->starts[(unsigned char)*at])
            continue;
        const struct added_token *token = match_longest(set, at, end);
        if (token) {
            *where = at;
            return token;
        }
    }
    return NULL;
}
