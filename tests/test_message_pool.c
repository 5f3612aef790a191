/* message_pool: buffers come back, idle memory is bounded, limits hold; queues keep their order. */
#include "tests/unit.h"

#include "cluster/message_pool.h"

static void test_message_pool_uses_a_buffer_again(void **state)
{
    (void)state;
    struct message_pool *pool = NULL;
    struct message_node *a = NULL, *b = NULL;
    assert_int_equal(message_pool_create(1 << 20, &pool, NULL), STATUS_OK);
    assert_int_equal(message_pool_acquire(pool, 5000, &a, NULL), STATUS_OK);
    assert_int_equal((uintptr_t)a->message.bytes % 64, 0);
    assert_true(a->message.cap_bytes >= 5000);
    unsigned char *bytes = a->message.bytes;
    a->message.len_bytes = 77;
    a->is_complete = true;
    message_pool_release(pool, a);
    assert_int_equal(message_pool_acquire(pool, 6000, &b, NULL), STATUS_OK);
    assert_ptr_equal(b->message.bytes, bytes);
    assert_int_equal(b->message.len_bytes, 0); /* and nothing of its former life */
    assert_false(b->is_complete);
    assert_int_equal(message_pool_n_lent(pool), 1);
    message_pool_release(pool, b);
    message_pool_release(pool, NULL);
    assert_int_equal(message_pool_n_lent(pool), 0);
    message_pool_destroy(pool);
    message_pool_destroy(NULL);
}

static void test_message_pool_keeps_sizes_apart(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 255, 256, 257, 4096, 65536, 65537, 1 << 20};
    struct message_pool *pool = NULL;
    struct message_node *node = NULL;
    assert_int_equal(message_pool_create(64 << 20, &pool, NULL), STATUS_OK);
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            assert_int_equal(message_pool_acquire(pool, sizes[i], &node, NULL), STATUS_OK);
            assert_true(node->message.cap_bytes >= sizes[i]);
            memset(node->message.bytes, 1, node->message.cap_bytes);
            message_pool_release(pool, node);
        }
    }
    message_pool_destroy(pool);
}

static void test_message_pool_gives_memory_back_over_its_bound(void **state)
{
    (void)state;
    struct message_pool *pool = NULL;
    struct message_node *a = NULL, *b = NULL, *c = NULL;
    assert_int_equal(message_pool_create(4096, &pool, NULL), STATUS_OK);
    assert_int_equal(message_pool_acquire(pool, 4096, &a, NULL), STATUS_OK);
    assert_int_equal(message_pool_acquire(pool, 4096, &b, NULL), STATUS_OK);
    unsigned char *kept = a->message.bytes;
    message_pool_release(pool, a);
    message_pool_release(pool, b); /* no room for it: freed, which the sanitizer build checks */
    assert_int_equal(message_pool_acquire(pool, 4096, &c, NULL), STATUS_OK);
    assert_ptr_equal(c->message.bytes, kept);
    message_pool_release(pool, c);
    message_pool_destroy(pool);
}

/* Memory that counts what it gives. */
struct counted {
    int n_allocs, n_frees, n_releases;
    bool is_full;
};

static enum status counted_alloc(void *context, size_t len_bytes, void **out, struct err *err)
{
    struct counted *c = context;
    if (c->is_full)
        return err_set(err, STATUS_NO_MEMORY, "no room for %zu bytes there", len_bytes);
    c->n_allocs++;
    *out = aligned_alloc(64, len_bytes);
    return *out != NULL ? STATUS_OK : STATUS_NO_MEMORY;
}

static void counted_free(void *context, void *bytes, size_t len_bytes)
{
    struct counted *c = context;
    memset(bytes, 0xff, len_bytes); /* all of it, as it was asked for */
    c->n_frees++;
    assert_int_equal(c->n_releases, 0);
    free(bytes);
}

static void counted_release(void *context)
{
    ((struct counted *)context)->n_releases++;
}

static struct transport_memory memory_of(struct counted *c)
{
    return (struct transport_memory){counted_alloc, counted_free, counted_release, c};
}

static void test_message_pool_fills_with_the_memory_it_is_given(void **state)
{
    (void)state;
    struct message_pool *pool = NULL;
    struct message_node *before = NULL, *idle = NULL, *node = NULL;
    struct counted counted = {0}, second = {0};
    struct err err = {0};
    assert_int_equal(message_pool_create(1 << 20, &pool, NULL), STATUS_OK);
    assert_int_equal(message_pool_acquire(pool, 4096, &before, NULL), STATUS_OK);
    assert_int_equal(message_pool_acquire(pool, 4096, &idle, NULL), STATUS_OK);
    message_pool_release(pool, idle);
    const struct transport_memory memory = memory_of(&counted), other = memory_of(&second);
    message_pool_use_memory(pool, &memory); /* drops the idle one */
    message_pool_release(pool, before);     /* of the old kind: freed, not kept */
    assert_int_equal(message_pool_acquire(pool, 4096, &node, NULL), STATUS_OK);
    assert_int_equal(counted.n_allocs, 1);
    message_pool_release(pool, node);
    assert_int_equal(message_pool_acquire(pool, 4096, &node, NULL), STATUS_OK);
    assert_int_equal(counted.n_allocs, 1); /* it came back */
    message_pool_use_memory(pool, &other); /* the first stays */
    assert_int_equal(second.n_releases, 1);
    counted.is_full = true;
    assert_int_equal(message_pool_acquire(pool, 1 << 20, &idle, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "no room for 1048576 bytes there"));
    assert_int_equal(message_pool_n_lent(pool), 1);
    message_pool_release(pool, node);
    assert_int_equal(counted.n_frees, 0);
    message_pool_destroy(pool);
    assert_int_equal(counted.n_frees, 1);
    assert_int_equal(counted.n_releases, 1);
}

static void test_message_pool_refuses_what_is_too_long(void **state)
{
    (void)state;
    struct message_pool *pool = NULL;
    struct message_node *node = NULL;
    struct err err = {0};
    assert_int_equal(message_pool_create(4096, &pool, NULL), STATUS_OK);
    assert_int_equal(
        message_pool_acquire(pool, (size_t)TRANSPORT_MAX_MESSAGE_BYTES + 1, &node, &err),
        STATUS_INVALID);
    assert_non_null(strstr(err.message, "1073741825"));
    assert_int_equal(message_pool_acquire(pool, SIZE_MAX, &node, &err), STATUS_INVALID);
    assert_null(node);
    assert_int_equal(message_pool_n_lent(pool), 0);
    message_pool_destroy(pool);
}

static void test_message_queue_is_first_in_first_out(void **state)
{
    (void)state;
    struct message_node nodes[3] = {{.n_pending = 0}, {.n_pending = 1}, {.n_pending = 2}};
    struct message_queue queue = {NULL, NULL};
    assert_null(message_queue_pop(&queue));
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 3; i++)
            message_queue_push(&queue, &nodes[i]);
        for (int i = 0; i < 3; i++)
            assert_int_equal(message_queue_pop(&queue)->n_pending, i);
        assert_null(message_queue_pop(&queue));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_message_pool_uses_a_buffer_again),
        cmocka_unit_test(test_message_pool_keeps_sizes_apart),
        cmocka_unit_test(test_message_pool_gives_memory_back_over_its_bound),
        cmocka_unit_test(test_message_pool_fills_with_the_memory_it_is_given),
        cmocka_unit_test(test_message_pool_refuses_what_is_too_long),
        cmocka_unit_test(test_message_queue_is_first_in_first_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
