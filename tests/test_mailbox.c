/* mailbox: order, the wake-up rule, and threads that push while one takes. */
#include "tests/unit.h"

#include "coordinator/mailbox.h"

#include <pthread.h>
#include <sched.h>

enum { N_PUSHERS = 3, N_LETTERS = 20000 };

struct letter {
    struct mail mail;
    int pusher, number;
};

static void test_mailbox_gives_back_in_the_order_pushed(void **state)
{
    (void)state;
    struct mailbox box;
    struct letter letters[5] = {{.number = 0}};
    mailbox_init(&box);
    assert_null(mailbox_take(&box));
    for (int i = 0; i < 5; i++) {
        letters[i].number = i;
        assert_int_equal(mailbox_push(&box, &letters[i].mail), i == 0);
    }
    int n = 0;
    for (struct mail *m = mailbox_take(&box); m != NULL; m = m->next)
        assert_int_equal(((struct letter *)m)->number, n++);
    assert_int_equal(n, 5);
    assert_null(mailbox_take(&box));
}

static void test_mailbox_says_when_the_taker_must_be_woken(void **state)
{
    (void)state;
    struct mailbox box;
    struct letter a = {.number = 1}, b = {.number = 2};
    mailbox_init(&box);
    assert_true(mailbox_push(&box, &a.mail));
    assert_false(mailbox_push(&box, &b.mail));
    assert_ptr_equal(mailbox_take(&box), &a.mail);
    assert_true(mailbox_push(&box, &a.mail));
    assert_ptr_equal(mailbox_take(&box), &a.mail);
    assert_null(a.mail.next);
}

struct pusher {
    pthread_t thread;
    struct mailbox *box;
    atomic_int *n_wakes;
    struct letter *letters; /* [N_LETTERS] */
};

static void *push_all(void *argument)
{
    struct pusher *p = argument;
    for (int i = 0; i < N_LETTERS; i++) {
        p->letters[i].number = i;
        if (mailbox_push(p->box, &p->letters[i].mail))
            atomic_fetch_add(p->n_wakes, 1);
    }
    return NULL;
}

/* Every letter arrives once, those of one pusher in its order, and every take that found something
 * was announced by exactly one push. */
static void test_mailbox_loses_nothing_between_threads(void **state)
{
    (void)state;
    struct mailbox box;
    struct pusher pushers[N_PUSHERS];
    atomic_int n_wakes = 0;
    mailbox_init(&box);
    for (int i = 0; i < N_PUSHERS; i++) {
        pushers[i] = (struct pusher){.box = &box, .n_wakes = &n_wakes};
        pushers[i].letters = calloc(N_LETTERS, sizeof *pushers[i].letters);
        assert_non_null(pushers[i].letters);
        for (int k = 0; k < N_LETTERS; k++)
            pushers[i].letters[k].pusher = i;
        assert_int_equal(pthread_create(&pushers[i].thread, NULL, push_all, &pushers[i]), 0);
    }
    int next[N_PUSHERS] = {0}, n_taken = 0, n_takes = 0;
    while (n_taken < N_PUSHERS * N_LETTERS) {
        struct mail *m = mailbox_take(&box);
        if (m == NULL)
            sched_yield();
        else
            n_takes++;
        for (; m != NULL; m = m->next, n_taken++) {
            const struct letter *letter = (const struct letter *)m;
            assert_int_equal(letter->number, next[letter->pusher]++);
        }
    }
    for (int i = 0; i < N_PUSHERS; i++)
        pthread_join(pushers[i].thread, NULL);
    assert_null(mailbox_take(&box));
    assert_int_equal(n_takes, n_wakes);
    for (int i = 0; i < N_PUSHERS; i++)
        free(pushers[i].letters);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mailbox_gives_back_in_the_order_pushed),
        cmocka_unit_test(test_mailbox_says_when_the_taker_must_be_woken),
        cmocka_unit_test(test_mailbox_loses_nothing_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
