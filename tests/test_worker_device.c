/* worker_device: which backend and GPU a worker takes, and what is refused with which words. */
#include "tests/unit.h"

#include "worker/worker_device.h"

static void test_worker_device_goes_round_the_gpus(void **state)
{
    (void)state;
    struct err err = {0};
    static const int expected[] = {0, 1, 2, 0, 1};
    for (int worker = 0; worker < 5; worker++) {
        int device = -1;
        assert_int_equal(worker_device_pick(-1, worker, 3, &device, &err), STATUS_OK);
        assert_int_equal(device, expected[worker]);
        assert_int_equal(worker_device_pick(2, worker, 3, &device, &err), STATUS_OK);
        assert_int_equal(device, 2); /* asked for: the same for all */
    }
}

static void test_worker_device_names_a_gpu_that_is_not_there(void **state)
{
    (void)state;
    struct err err = {0};
    int device = 77;
    assert_int_equal(worker_device_pick(2, 0, 2, &device, &err), STATUS_NOT_FOUND);
    assert_int_equal(device, 77);
    assert_non_null(strstr(err.message, "--device 2"));
    assert_non_null(strstr(err.message, "2 GPUs, numbers 0 to 1"));
    assert_int_equal(worker_device_pick(1, 0, 1, &device, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "1 GPU, numbers 0 to 0"));
}

static struct worker_config config_of(const char *backend)
{
    return (struct worker_config){.backend = backend, .device = -1, .kv_dtype_auto = true};
}

static void test_worker_device_auto_is_what_the_host_has(void **state)
{
    (void)state;
    const struct transport place = {.n_local_before = 1, .has_local_zero = true};
    struct worker_config config = config_of("auto");
    struct worker_device device = {0};
    struct err err = {0};
    if (worker_device_choose(&config, &place, &device, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    struct kernels *k;
    bool has_gpu = kernels_create("cuda", NULL, &k, NULL) == STATUS_OK;
    if (has_gpu)
        kernels_destroy(k);
    assert_string_equal(device.backend, has_gpu ? "cuda" : "cpu");
    assert_int_equal(device.is_gpu, has_gpu);
}

static void test_worker_device_tells_of_a_cpu(void **state)
{
    (void)state;
    const struct transport place = {0};
    struct worker_config config = config_of("cpu");
    struct worker_device device = {0};
    struct control_hello hello = {0};
    assert_int_equal(worker_device_choose(&config, &place, &device, NULL), STATUS_OK);
    worker_device_tell(&device, NULL, &hello);
    assert_string_equal(hello.backend, "cpu");
    assert_string_equal(hello.isa, kernels_cpu_best_isa());
    assert_string_equal(hello.device_name, "");
    worker_device_tell(&device, "avx2", &hello);
    assert_string_equal(hello.isa, "avx2");
}

static void test_worker_device_tells_of_a_gpu(void **state)
{
    (void)state;
    const struct worker_device device = {
        .backend = "cuda",
        .is_gpu = true,
        .number = 3,
        .gpu = {.name = "X1", .id = "GPU-a", .major = 9, .minor = 0, .total_bytes = 1 << 30}};
    struct control_hello hello = {0};
    worker_device_tell(&device, NULL, &hello);
    assert_string_equal(hello.backend, "cuda");
    assert_string_equal(hello.isa, "sm_90");
    assert_string_equal(hello.device_name, "X1");
    assert_string_equal(hello.device_id, "GPU-a");
    assert_int_equal(hello.device, 3);
    assert_int_equal(hello.device_memory_bytes, 1 << 30);
}

/* Options that only a GPU, or only a CPU knows: refused whether or not there is a GPU. */
static void test_worker_device_refuses_what_does_not_fit(void **state)
{
    (void)state;
    const struct transport place = {0};
    struct worker_device device = {0};
    struct err err = {0};
    struct worker_config config = config_of("cuda");
    config.isa = "avx2";
    assert_int_equal(worker_device_choose(&config, &place, &device, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.message, "--isa avx2"));
    config = config_of("cuda");
    config.kv_dtype_auto = false;
    config.kv_dtype = DTYPE_F32;
    assert_int_equal(worker_device_choose(&config, &place, &device, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.message, "--kv-dtype f32"));
    config = config_of("auto");
    config.device = 4096; /* asks for a GPU: never the CPU in its place */
    enum status status = worker_device_choose(&config, &place, &device, &err);
    assert_int_equal(status, kernels_cuda_devices() > 0 ? STATUS_NOT_FOUND : STATUS_UNSUPPORTED);
    assert_null(device.backend);
}

static enum status no_rows(struct transport *t, struct transport_message *message,
                           size_t rows_bytes, struct err *err)
{
    (void)t;
    (void)message;
    (void)rows_bytes;
    return err_set(err, STATUS_INTERNAL, "nobody sends here");
}

/* Rows leave from device memory where backend, transport and library can; "yes" believes it of the
 * library. */
static void test_worker_device_sends_rows_directly_where_all_can(void **state)
{
    (void)state;
    static const struct transport_ops with = {.add_rows = no_rows}, without = {0};
    const struct transport mpi = {.ops = &with}, inproc = {.ops = &without};
    const struct worker_device cpu = {.backend = "cpu"}, timed = {.backend = "timed"};
    const struct worker_device gpu = {.backend = "cuda", .is_gpu = true}, unknown = {0};
    assert_false(worker_device_is_direct(&cpu, WORKER_CUDA_AWARE_AUTO, &mpi));
    assert_true(worker_device_is_direct(&cpu, WORKER_CUDA_AWARE_YES, &mpi));
    assert_false(worker_device_is_direct(&cpu, WORKER_CUDA_AWARE_YES, &inproc));
    assert_false(worker_device_is_direct(&cpu, WORKER_CUDA_AWARE_NO, &mpi));
    assert_int_equal(worker_device_is_direct(&gpu, WORKER_CUDA_AWARE_AUTO, &mpi),
                     transport_mpi_is_cuda_aware());
    assert_true(worker_device_is_direct(&gpu, WORKER_CUDA_AWARE_YES, &mpi));
    assert_false(worker_device_is_direct(&gpu, WORKER_CUDA_AWARE_NO, &mpi));
    assert_false(worker_device_is_direct(&timed, WORKER_CUDA_AWARE_YES, &mpi));
    assert_false(worker_device_is_direct(&unknown, WORKER_CUDA_AWARE_YES, &mpi)); /* none chosen */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker_device_goes_round_the_gpus),
        cmocka_unit_test(test_worker_device_names_a_gpu_that_is_not_there),
        cmocka_unit_test(test_worker_device_auto_is_what_the_host_has),
        cmocka_unit_test(test_worker_device_tells_of_a_cpu),
        cmocka_unit_test(test_worker_device_tells_of_a_gpu),
        cmocka_unit_test(test_worker_device_refuses_what_does_not_fit),
        cmocka_unit_test(test_worker_device_sends_rows_directly_where_all_can),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
