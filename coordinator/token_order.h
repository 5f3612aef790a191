/* Tokens that arrived before their predecessor.
 *
 * Consecutive tokens of a sequence come from different workers, and messages of different pairs of
 * ranks may overtake each other: position p + 1 can be here before p. Such a token waits in this
 * small store until its turn. */
#ifndef COORDINATOR_TOKEN_ORDER_H
#define COORDINATOR_TOKEN_ORDER_H

#include "proto/control.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct token_order {
    struct control_token *held; /* in no particular order: it holds a few at most times */
    size_t n, cap;
};

void token_order_free(struct token_order *o);
/* Keeps a copy. STATUS_CORRUPT when that position is held already (sent twice), STATUS_NO_MEMORY.
 */
enum status token_order_hold(struct token_order *o, const struct control_token *token,
                             struct err *err);
/* Moves the token of that sequence and position to *out. False: it is not here. */
bool token_order_take(struct token_order *o, uint64_t sequence, uint32_t position,
                      struct control_token *out);
/* Forgets what is held of a sequence that has ended. */
void token_order_drop(struct token_order *o, uint64_t sequence);

#endif
