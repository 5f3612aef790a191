/* Hands things from threads to one thread without locks: a list pushed by anyone, taken whole.
 *
 * The link is the first member of what travels. push is wait-free but for a retry when two threads
 * push at once; take returns everything in the order it was pushed. */
#ifndef COORDINATOR_MAILBOX_H
#define COORDINATOR_MAILBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct mail {
    struct mail *next;
};

struct mailbox {
    _Atomic(struct mail *) last; /* newest first */
};

void mailbox_init(struct mailbox *box);
/* True when the box was empty: the taker may sleep and should be woken. */
bool mailbox_push(struct mailbox *box, struct mail *mail);
/* A chain of mail, oldest first; NULL when empty. */
struct mail *mailbox_take(struct mailbox *box);

#endif
