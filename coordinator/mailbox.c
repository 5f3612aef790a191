/* A lock-free list that any thread pushes to while one thread takes it whole. */
#include "coordinator/mailbox.h"

void mailbox_init(struct mailbox *box)
{
    atomic_init(&box->last, NULL);
}

bool mailbox_push(struct mailbox *box, struct mail *mail)
{
    struct mail *last = atomic_load_explicit(&box->last, memory_order_relaxed);
    do {
        mail->next = last;
        /* Release: what the pusher wrote into its mail is seen by who takes it. */
    } while (!atomic_compare_exchange_weak_explicit(&box->last, &last, mail, memory_order_release,
                                                    memory_order_relaxed));
    return last == NULL;
}

struct mail *mailbox_take(struct mailbox *box)
{
    struct mail *mail = atomic_exchange_explicit(&box->last, NULL, memory_order_acquire);
    struct mail *oldest = NULL;
    while (mail != NULL) {
        struct mail *next = mail->next;
        mail->next = oldest;
        oldest = mail;
        mail = next;
    }
    return oldest;
}
