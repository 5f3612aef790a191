/* Deliveries from the engine to the client, made once and used again. */
#include "coordinator/service_state.h"

#include "coordinator/completion.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Kept for reuse at most, about 1.2 KB each: a burst beyond that goes back to the heap. */
enum { MAX_IDLE = 4096 };

static_assert(offsetof(struct delivery, mail) == 0, "a delivery travels as its mail");

static void delivery_free(struct delivery *d)
{
    free(d->long_text);
    free(d);
}

void service_free_deliveries(struct mail *list)
{
    while (list != NULL) {
        struct delivery *d = (struct delivery *)list;
        list = list->next;
        if (d->kind == DELIVERY_STATS)
            free(d->snapshot);
        delivery_free(d);
    }
}

void service_delivery_drop(struct service *s, struct delivery *d)
{
    if (s->n_idle == MAX_IDLE) {
        delivery_free(d);
        return;
    }
    d->mail.next = s->idle;
    s->idle = &d->mail;
    s->n_idle++;
}

void service_collect_idle(struct service *s)
{
    struct mail *list = mailbox_take(&s->given_back);
    while (list != NULL) {
        struct delivery *d = (struct delivery *)list;
        list = list->next;
        service_delivery_drop(s, d);
    }
}

struct delivery *service_delivery_new(struct service *s, enum delivery_kind kind)
{
    struct delivery *d;
    if (s->idle == NULL)
        service_collect_idle(s);
    if (s->idle != NULL) {
        d = (struct delivery *)s->idle;
        s->idle = d->mail.next;
        s->n_idle--;
    } else {
        d = malloc(sizeof *d);
        if (d == NULL)
            return NULL;
        d->long_text = NULL;
    }
    /* Not all of it is wiped: token and end are a kilobyte that most kinds do not use. */
    d->kind = kind;
    d->job = NULL;
    d->choice = d->index = 0;
    d->at_ns = 0;
    d->prompt_rows = NULL;
    d->snapshot = NULL;
    d->message[0] = d->short_text[0] = '\0';
    d->text = d->short_text;
    d->text_bytes = 0;
    return d;
}

bool service_delivery_set_text(struct delivery *d, const char *text, size_t text_bytes)
{
    char *to = d->short_text;
    assert(text_bytes <= COMPLETION_TEXT_BYTES);
    if (text_bytes >= sizeof d->short_text) {
        if (d->long_text == NULL) /* stays with the delivery */
            d->long_text = malloc(COMPLETION_TEXT_BYTES + 1);
        if (d->long_text == NULL)
            return false;
        to = d->long_text;
    }
    memcpy(to, text, text_bytes);
    to[text_bytes] = '\0';
    d->text = to;
    d->text_bytes = text_bytes;
    return true;
}

void service_post(struct service *s, struct delivery *d)
{
    if (d->kind == DELIVERY_ENDED && d->end.reason == FINISH_ERROR && s->lost.code == STATUS_OK) {
        d->mail.next = NULL;
        *s->failed_last = &d->mail;
        s->failed_last = &d->mail.next;
        return;
    }
    if (mailbox_push(&s->deliveries, &d->mail))
        s->is_mail_due = true;
}

void service_post_failed(struct service *s)
{
    struct mail *list = s->failed_first;
    s->failed_first = NULL;
    s->failed_last = &s->failed_first;
    while (list != NULL) {
        struct mail *next = list->next;
        if (mailbox_push(&s->deliveries, list))
            s->is_mail_due = true;
        list = next;
    }
}

void service_give_back(struct service *s, struct delivery *d)
{
    d->snapshot = NULL; /* the receiver has freed it */
    mailbox_push(&s->given_back, &d->mail);
}

struct delivery *service_take(struct service *s)
{
    return (struct delivery *)mailbox_take(&s->deliveries);
}
