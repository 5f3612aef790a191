/* Keeps tokens that overtook their predecessor until it is their turn. */
#include "coordinator/token_order.h"

#include <inttypes.h>
#include <stdlib.h>

void token_order_free(struct token_order *o)
{
    free(o->held);
    *o = (struct token_order){0};
}

enum status token_order_hold(struct token_order *o, const struct control_token *token,
                             struct err *err)
{
    for (size_t i = 0; i < o->n; i++)
        if (o->held[i].sequence == token->sequence && o->held[i].position == token->position)
            return err_set(err, STATUS_CORRUPT,
                           "sequence %" PRIu64 " sent the token at position %" PRIu32 " twice",
                           token->sequence, token->position);
    if (o->n == o->cap) {
        size_t cap = o->cap > 0 ? 2 * o->cap : 16;
        struct control_token *grown = realloc(o->held, cap * sizeof *grown);
        if (grown == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu tokens out of order", cap);
        o->held = grown;
        o->cap = cap;
    }
    o->held[o->n++] = *token;
    return STATUS_OK;
}

bool token_order_take(struct token_order *o, uint64_t sequence, uint32_t position,
                      struct control_token *out)
{
    for (size_t i = 0; i < o->n; i++)
        if (o->held[i].sequence == sequence && o->held[i].position == position) {
            *out = o->held[i];
            o->held[i] = o->held[--o->n];
            return true;
        }
    return false;
}

void token_order_drop(struct token_order *o, uint64_t sequence)
{
    for (size_t i = 0; i < o->n;)
        if (o->held[i].sequence == sequence)
            o->held[i] = o->held[--o->n];
        else
            i++;
}
