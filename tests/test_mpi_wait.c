/* mpi_wait: a bell, a wake and a watched listener end the sleep; nothing else does. */
#include "tests/unit.h"

#include "cluster/host.h"
#include "cluster/mpi_wait.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LONG_NS  (20ull * 1000 * 1000 * 1000)
#define SHORT_NS (3 * 1000 * 1000u)

/* True when the sleep ended before its time: an event was there. */
static bool is_ended_by_event(struct mpi_wait *w, uint64_t timeout_ns)
{
    uint64_t begin_ns = host_now_ns();
    mpi_wait_sleep(w, timeout_ns);
    return host_now_ns() - begin_ns < timeout_ns;
}

static void test_mpi_wait_bell_ends_one_sleep(void **state)
{
    (void)state;
    struct mpi_wait a, b;
    assert_int_equal(mpi_wait_open(&a, NULL), STATUS_OK);
    assert_int_equal(mpi_wait_open(&b, NULL), STATUS_OK);
    assert_true(a.bell.len_bytes > 1 && a.bell.name[0] == '\0'); /* in the abstract namespace */
    assert_true(memcmp(&a.bell, &b.bell, sizeof a.bell) != 0);
    struct mpi_peer_bell to_a;
    mpi_wait_attach(&a.bell, &to_a);
    assert_non_null(to_a.sign);
    mpi_wait_set_may_sleep(&a, true);
    for (int i = 0; i < 100; i++) /* more than its queue holds: must not block, and is one event */
        mpi_wait_ring(&b, &to_a);
    assert_true(is_ended_by_event(&a, LONG_NS));
    assert_false(is_ended_by_event(&a, SHORT_NS));
    assert_false(is_ended_by_event(&b, SHORT_NS));
    mpi_wait_close(&a);
    mpi_wait_ring(&b, &to_a); /* nobody there any more */
    mpi_wait_detach(&to_a);
    mpi_wait_ring(&b, &to_a); /* nobody known */
    mpi_wait_close(&b);
}

static void test_mpi_wait_does_not_ring_who_is_awake(void **state)
{
    (void)state;
    struct mpi_wait a, b;
    struct mpi_peer_bell to_a;
    assert_int_equal(mpi_wait_open(&a, NULL), STATUS_OK);
    assert_int_equal(mpi_wait_open(&b, NULL), STATUS_OK);
    mpi_wait_attach(&a.bell, &to_a);
    mpi_wait_ring(&b, &to_a);
    assert_false(is_ended_by_event(&a, SHORT_NS));
    mpi_wait_set_may_sleep(&a, true);
    mpi_wait_ring(&b, &to_a);
    assert_true(is_ended_by_event(&a, LONG_NS));
    mpi_wait_set_may_sleep(&a, false);
    mpi_wait_ring(&b, &to_a);
    assert_false(is_ended_by_event(&a, SHORT_NS));
    mpi_wait_detach(&to_a);
    mpi_wait_close(&a);
    mpi_wait_close(&b);
}

static void test_mpi_wait_rings_always_without_the_right_sign(void **state)
{
    (void)state;
    struct mpi_wait a, b;
    struct mpi_peer_bell to_a;
    assert_int_equal(mpi_wait_open(&a, NULL), STATUS_OK);
    assert_int_equal(mpi_wait_open(&b, NULL), STATUS_OK);
    struct mpi_bell wrong[3] = {a.bell, a.bell, a.bell};
    wrong[0].nonce ^= 1;          /* the path leads to another sign */
    wrong[1].sign_fd = a.bell_fd; /* to no file */
    wrong[2].sign_fd = -1;
    for (int i = 0; i < 3; i++) {
        mpi_wait_attach(&wrong[i], &to_a);
        assert_null(to_a.sign);
        mpi_wait_ring(&b, &to_a);
        assert_true(is_ended_by_event(&a, LONG_NS));
        mpi_wait_detach(&to_a);
    }
    struct mpi_bell too_long = a.bell;
    too_long.len_bytes = sizeof too_long.name + 1;
    mpi_wait_attach(&too_long, &to_a);
    assert_int_equal(to_a.bell.len_bytes, 0);
    mpi_wait_close(&a);
    mpi_wait_close(&b);
}

static void test_mpi_wait_wake_ends_one_sleep(void **state)
{
    (void)state;
    struct mpi_wait w;
    assert_int_equal(mpi_wait_open(&w, NULL), STATUS_OK);
    assert_false(mpi_wait_take_wake(&w));
    mpi_wait_wake(&w);
    mpi_wait_wake(&w);
    assert_true(is_ended_by_event(&w, LONG_NS));
    assert_true(mpi_wait_take_wake(&w));
    assert_false(mpi_wait_take_wake(&w));
    assert_false(is_ended_by_event(&w, SHORT_NS));
    mpi_wait_wake(&w); /* taken before the sleep: a later wake must still be heard */
    assert_true(mpi_wait_take_wake(&w));
    mpi_wait_wake(&w);
    assert_true(is_ended_by_event(&w, LONG_NS));
    mpi_wait_close(&w);
}

static void *wake_many_times(void *arg)
{
    for (int i = 0; i < 20000; i++)
        mpi_wait_wake(arg);
    return NULL;
}

static void test_mpi_wait_loses_no_wake(void **state)
{
    (void)state;
    struct mpi_wait w;
    pthread_t thread;
    assert_int_equal(mpi_wait_open(&w, NULL), STATUS_OK);
    pthread_create(&thread, NULL, wake_many_times, &w);
    for (int i = 0; i < 300; i++) {
        mpi_wait_sleep(&w, SHORT_NS / 30);
        (void)mpi_wait_take_wake(&w);
    }
    pthread_join(thread, NULL);
    mpi_wait_sleep(&w, SHORT_NS);
    (void)mpi_wait_take_wake(&w);
    mpi_wait_wake(&w); /* whatever the race has left behind, the next wake counts */
    assert_true(is_ended_by_event(&w, LONG_NS));
    mpi_wait_close(&w);
}

static void test_mpi_wait_finds_the_epoll_that_watches_a_listener(void **state)
{
    (void)state;
    struct mpi_wait w;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t len = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int other = epoll_create1(EPOLL_CLOEXEC), epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(mpi_wait_open(&w, NULL), STATUS_OK);
    mpi_wait_find_epoll(&w);
    assert_int_equal(w.epoll_fd, -1);

    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    struct epoll_event event = {.events = EPOLLIN};
    assert_int_equal(epoll_ctl(other, EPOLL_CTL_ADD, w.wake_fd, &event), 0);
    assert_int_equal(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event), 0);
    mpi_wait_find_epoll(&w);
    assert_int_equal(w.epoll_fd, epoll);

    assert_false(is_ended_by_event(&w, SHORT_NS));
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
    assert_int_equal(connect(client, (struct sockaddr *)&address, sizeof address), 0);
    assert_true(is_ended_by_event(&w, LONG_NS));
    mpi_wait_close(&w);
    close(client);
    close(listener);
    close(epoll);
    close(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mpi_wait_bell_ends_one_sleep),
        cmocka_unit_test(test_mpi_wait_does_not_ring_who_is_awake),
        cmocka_unit_test(test_mpi_wait_rings_always_without_the_right_sign),
        cmocka_unit_test(test_mpi_wait_wake_ends_one_sleep),
        cmocka_unit_test(test_mpi_wait_loses_no_wake),
        cmocka_unit_test(test_mpi_wait_finds_the_epoll_that_watches_a_listener),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
