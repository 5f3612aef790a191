/* transport_inproc: messages keep their order and content, wake and timeouts end a wait, nothing
 * leaks. */
#include "tests/unit.h"

#include "cluster/host.h"
#include "cluster/transport.h"

#include <pthread.h>
#include <unistd.h>

#define SECOND_NS 1000000000ull

static void destroy_all(struct transport **t, int n)
{
    for (int i = 0; i < n; i++)
        transport_destroy(t[i]);
}

static void send_number(struct transport *t, int dest, uint64_t number, size_t n_bytes)
{
    struct err err = {0};
    struct transport_message *message = NULL;
    assert_int_equal(transport_acquire(t, n_bytes, &message, &err), STATUS_OK);
    assert_int_equal((uintptr_t)message->bytes % 64, 0);
    assert_true(message->cap_bytes >= n_bytes);
    memset(message->bytes, (int)(number & 0xff), n_bytes);
    memcpy(message->bytes, &number, sizeof number);
    message->len_bytes = n_bytes;
    assert_int_equal(transport_post(t, dest, message, &err), STATUS_OK);
}

static struct transport_message *receive(struct transport *t)
{
    struct err err = {0};
    struct transport_message *message = NULL;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(transport_poll(t, &message, &err), STATUS_OK);
        if (message != NULL)
            return message;
        assert_int_equal(transport_wait(t, SECOND_NS, &err), STATUS_OK);
    }
    return NULL;
}

static uint64_t receive_number(struct transport *t, int source, size_t n_bytes)
{
    struct transport_message *message = receive(t);
    uint64_t number;
    assert_non_null(message);
    assert_int_equal(message->source, source);
    assert_int_equal(message->len_bytes, n_bytes);
    memcpy(&number, message->bytes, sizeof number);
    for (size_t i = sizeof number; i < n_bytes; i++)
        assert_true(message->bytes[i] == (unsigned char)(number & 0xff));
    transport_release(t, message);
    return number;
}

static void test_inproc_keeps_order_between_a_pair(void **state)
{
    (void)state;
    struct transport *t[3];
    assert_int_equal(transport_inproc_create(3, t, NULL), STATUS_OK);
    for (uint64_t i = 0; i < 100; i++)
        send_number(t[0], 2, i, 64 + 100 * i);
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(receive_number(t[2], 0, 64 + 100 * i), i);
    assert_int_equal(t[0]->counters.n_messages_sent, 100);
    assert_int_equal(t[2]->counters.n_messages_received, 100);
    assert_int_equal(t[0]->counters.n_bytes_sent, t[2]->counters.n_bytes_received);
    assert_true(transport_is_drained(t[0]));
    destroy_all(t, 3);
}

static void test_inproc_reaches_itself(void **state)
{
    (void)state;
    struct transport *t[1];
    assert_int_equal(transport_inproc_create(1, t, NULL), STATUS_OK);
    assert_int_equal(t[0]->n_local_ranks, 1);
    send_number(t[0], 0, 7, 64);
    assert_int_equal(receive_number(t[0], 0, 64), 7);
    struct transport_message *message = NULL;
    assert_int_equal(transport_poll(t[0], &message, NULL), STATUS_OK);
    assert_null(message);
    destroy_all(t, 1);
}

static void test_inproc_carries_empty_and_big_messages(void **state)
{
    (void)state;
    struct transport *t[2];
    struct transport_message *message = NULL;
    assert_int_equal(transport_inproc_create(2, t, NULL), STATUS_OK);
    assert_int_equal(transport_acquire(t[0], 0, &message, NULL), STATUS_OK);
    assert_int_equal(transport_post(t[0], 1, message, NULL), STATUS_OK);
    send_number(t[0], 1, 9, 40u << 20);
    message = receive(t[1]);
    assert_int_equal(message->len_bytes, 0);
    transport_release(t[1], message);
    message = receive(t[1]);
    assert_int_equal(message->len_bytes, 40u << 20);
    assert_int_equal(message->bytes[message->len_bytes - 1], 9);
    transport_release(t[1], message);
    destroy_all(t, 2);
}

static void test_inproc_refuses_wrong_calls(void **state)
{
    (void)state;
    struct err err = {0};
    struct transport *t[2];
    struct transport_message *message = NULL;
    assert_int_equal(transport_inproc_create(0, t, &err), STATUS_INVALID);
    assert_int_equal(transport_inproc_create(2, t, &err), STATUS_OK);
    assert_int_equal(
        transport_acquire(t[0], (size_t)TRANSPORT_MAX_MESSAGE_BYTES + 1, &message, &err),
        STATUS_INVALID);
    assert_null(message);
    assert_int_equal(transport_acquire(t[0], 8, &message, &err), STATUS_OK);
    assert_int_equal(transport_post(t[0], 2, message, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "rank 2 of 2"));
    assert_int_equal(transport_acquire(t[0], 8, &message, &err), STATUS_OK);
    message->len_bytes = message->cap_bytes + 1;
    assert_int_equal(transport_post(t[0], 1, message, &err), STATUS_INVALID);
    destroy_all(t, 2);
}

static void test_inproc_destroy_frees_undelivered_messages(void **state)
{
    (void)state;
    struct transport *t[2];
    assert_int_equal(transport_inproc_create(2, t, NULL), STATUS_OK);
    send_number(t[0], 1, 1, 5000); /* the leak checker of the sanitizer build counts these */
    send_number(t[0], 0, 2, 5000);
    transport_destroy(t[1]);
    send_number(t[0], 1, 3, 5000); /* to a rank that has gone */
    transport_destroy(t[0]);
    transport_destroy(NULL);
}

static void test_inproc_wait_ends_at_its_deadline(void **state)
{
    (void)state;
    struct transport *t[1];
    assert_int_equal(transport_inproc_create(1, t, NULL), STATUS_OK);
    uint64_t begin_ns = host_now_ns();
    assert_int_equal(transport_wait(t[0], 5000000, NULL), STATUS_OK);
    assert_true(host_now_ns() - begin_ns >= 5000000);
    transport_wake(t[0]); /* before the wait: it must not be lost */
    assert_int_equal(transport_wait(t[0], UINT64_MAX, NULL), STATUS_OK);
    destroy_all(t, 1);
}

struct waker {
    struct transport *t;
    pthread_barrier_t *start;
    int n_wakes;
};

static void *wake_from_thread(void *arg)
{
    struct waker *w = arg;
    pthread_barrier_wait(w->start);
    for (int i = 0; i < w->n_wakes; i++)
        transport_wake(w->t);
    return NULL;
}

static void test_inproc_wake_from_other_threads(void **state)
{
    (void)state;
    struct transport *t[1];
    pthread_barrier_t start;
    pthread_t threads[3];
    assert_int_equal(transport_inproc_create(1, t, NULL), STATUS_OK);
    pthread_barrier_init(&start, NULL, 4);
    struct waker waker = {t[0], &start, 500};
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, wake_from_thread, &waker);
    pthread_barrier_wait(&start);
    /* Without a wake this would never come back. */
    assert_int_equal(transport_wait(t[0], UINT64_MAX, NULL), STATUS_OK);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start);
    destroy_all(t, 1);
}

enum { N_TALKERS = 6, N_EACH = 200 };

static void *talk_to_all(void *arg)
{
    struct transport *t = arg;
    uint64_t got[N_TALKERS] = {0};
    for (uint64_t i = 0; i < N_EACH; i++)
        for (int dest = 0; dest < N_TALKERS; dest++)
            send_number(t, dest, i, 64 + 16 * (size_t)dest);
    for (int i = 0; i < N_TALKERS * N_EACH; i++) {
        struct transport_message *message = receive(t);
        uint64_t number;
        assert_non_null(message);
        memcpy(&number, message->bytes, sizeof number);
        assert_int_equal(number, got[message->source]++);
        assert_int_equal(message->len_bytes, 64 + 16 * (size_t)t->rank);
        transport_release(t, message);
    }
    return t;
}

static void test_inproc_many_threads_talk_at_once(void **state)
{
    (void)state;
    struct transport *t[N_TALKERS];
    pthread_t threads[N_TALKERS];
    assert_int_equal(transport_inproc_create(N_TALKERS, t, NULL), STATUS_OK);
    for (int i = 0; i < N_TALKERS; i++)
        pthread_create(&threads[i], NULL, talk_to_all, t[i]);
    for (int i = 0; i < N_TALKERS; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        assert_ptr_equal(result, t[i]);
        assert_int_equal(t[i]->counters.n_messages_received, N_TALKERS * N_EACH);
    }
    destroy_all(t, N_TALKERS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inproc_keeps_order_between_a_pair),
        cmocka_unit_test(test_inproc_reaches_itself),
        cmocka_unit_test(test_inproc_carries_empty_and_big_messages),
        cmocka_unit_test(test_inproc_refuses_wrong_calls),
        cmocka_unit_test(test_inproc_destroy_frees_undelivered_messages),
        cmocka_unit_test(test_inproc_wait_ends_at_its_deadline),
        cmocka_unit_test(test_inproc_wake_from_other_threads),
        cmocka_unit_test(test_inproc_many_threads_talk_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
