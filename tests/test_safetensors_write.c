/* safetensors_write and config_write: what was written reads back the same; what cannot be written
 * leaves the old file and says why. */
#include "tests/model_files.h"

#include "model/atomic_file.h"
#include "model/config_write.h"
#include "model/content_hash.h"
#include "model/safetensors_write.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static const float NUMBERS[] = {1, -2.5f, 3e-40f, 4, 5, 6};
static const uint16_t HALVES[] = {0x3f80, 0x4000, 0xbf80};

static size_t make_tensors(struct safetensors_tensor *t)
{
    t[0] = (struct safetensors_tensor){"z.bias", DTYPE_BF16, 1, {3}, HALVES, sizeof HALVES};
    t[1] = (struct safetensors_tensor){"b.weight", DTYPE_F32, 2, {2, 3}, NUMBERS, sizeof NUMBERS};
    t[2] = (struct safetensors_tensor){"a \"q\" \\ \xc3\xa9", DTYPE_F32, 1, {1}, NUMBERS, 4};
    t[3] = (struct safetensors_tensor){"empty", DTYPE_F32, 2, {0, 7}, NULL, 0};
    t[4] = (struct safetensors_tensor){"scalar", DTYPE_F32, 0, {0}, NUMBERS + 1, 4};
    return 5;
}

static char *join(const char *dir, const char *name)
{
    char *path = NULL;
    assert_true(asprintf(&path, "%s/%s", dir, name) > 0);
    return path;
}

static void assert_no_temporary(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        if (strstr(e->d_name, ATOMIC_FILE_SUFFIX) != NULL)
            fail_msg("%s is still there", e->d_name);
    closedir(d);
}

static void test_safetensors_write_reads_back(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = join(dir, "x.safetensors");
    struct safetensors_tensor t[5];
    const size_t n = make_tensors(t);
    static const struct safetensors_pair pairs[] = {{"format", "pt"},
                                                    {"note", "a \"b\"\n\xc3\xa9"}};
    struct safetensors *file = NULL;
    struct err err = {0};
    if (safetensors_write(path, t, n, pairs, 2, &err) != STATUS_OK ||
        safetensors_open(path, &file, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(safetensors_count(file), n);
    for (size_t i = 0; i < n; i++) {
        const struct safetensors_tensor *got = safetensors_find(file, t[i].name);
        assert_non_null(got);
        assert_int_equal(got->dtype, t[i].dtype);
        assert_int_equal(got->rank, t[i].rank);
        assert_memory_equal(got->shape, t[i].shape, sizeof(int64_t) * (size_t)t[i].rank);
        assert_int_equal(got->len_bytes, t[i].len_bytes);
        if (t[i].len_bytes > 0)
            assert_memory_equal(got->data, t[i].data, t[i].len_bytes);
        assert_int_equal((uintptr_t)got->data % dtype_bytes(got->dtype), 0);
    }
    /* Wider first, then by name; the first at a multiple of 64 (the mapping begins at a page). */
    assert_int_equal((uintptr_t)safetensors_find(file, t[2].name)->data % 64, 0);
    assert_true(safetensors_find(file, "z.bias")->data > safetensors_find(file, "scalar")->data);
    assert_string_equal(safetensors_metadata(file, "format"), "pt");
    assert_string_equal(safetensors_metadata(file, "note"), "a \"b\"\n\xc3\xa9");
    assert_null(safetensors_metadata(file, "nothing"));
    safetensors_close(file);
    assert_no_temporary(dir);

    assert_int_equal(safetensors_write(path, NULL, 0, NULL, 0, &err), STATUS_OK);
    assert_int_equal(safetensors_open(path, &file, &err), STATUS_OK);
    assert_int_equal(safetensors_count(file), 0);
    assert_null(safetensors_metadata(file, "format"));
    safetensors_close(file);
    free(path);
    model_files_remove(dir);
}

static void test_safetensors_write_refuses_names(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = join(dir, "x.safetensors");
    struct safetensors_tensor t[5];
    struct err err = {0};
    const size_t n = make_tensors(t);
    t[0].name = "b.weight";
    assert_int_equal(safetensors_write(path, t, n, NULL, 0, &err), STATUS_INVALID);
    assert_contains(err.message, "b.weight is there twice");
    t[0].name = "\xff";
    assert_int_equal(safetensors_write(path, t, n, NULL, 0, &err), STATUS_INVALID);
    assert_contains(err.message, "UTF-8");
    make_tensors(t);
    const struct safetensors_pair pair = {"k", "\xff"};
    assert_int_equal(safetensors_write(path, t, n, &pair, 1, &err), STATUS_INVALID);
    assert_contains(err.message, "metadata k");
    assert_int_equal(access(path, F_OK), -1);
    assert_no_temporary(dir);
    free(path);
    model_files_remove(dir);
}

/* A limit on file sizes stands for a full disk: writes come back short, then fail. */
static void test_safetensors_write_without_room_leaves_the_old_file(void **state)
{
    (void)state;
    enum { N = 100000, LIMIT = 200000 };
    char *dir = model_files_dir(), *path = join(dir, "x.safetensors");
    struct safetensors_tensor t[5];
    struct err err = {0};
    assert_int_equal(safetensors_write(path, t, make_tensors(t), NULL, 0, &err), STATUS_OK);
    float *big = calloc(N, sizeof *big);
    const struct safetensors_tensor tensor = {"w", DTYPE_F32, 1, {N}, big, N * sizeof *big};
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = LIMIT;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    enum status status = safetensors_write(path, &tensor, 1, NULL, 0, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, STATUS_IO);
    assert_contains(err.message, path);
    assert_contains(err.message, "after 200000 of 400");
    assert_contains(err.message, strerror(EFBIG));
    assert_no_temporary(dir);
    struct safetensors *file = NULL;
    assert_int_equal(safetensors_open(path, &file, &err), STATUS_OK);
    assert_int_equal(safetensors_count(file), 5);
    safetensors_close(file);
    free(big);
    free(path);
    model_files_remove(dir);
}

static void test_atomic_file_says_what_the_system_said(void **state)
{
    (void)state;
    struct err err = {0};
    assert_int_equal(atomic_file_write("/nowhere/at/all", "x", 1, &err), STATUS_IO);
    assert_contains(err.message, "/nowhere/at/all");
    assert_contains(err.message, strerror(ENOENT));
    char *dir = model_files_dir(), *path = join(dir, "taken"), *inner = join(path, "x");
    assert_int_equal(mkdir(path, 0777), 0); /* a directory cannot be renamed over */
    assert_int_equal(atomic_file_write(path, "x", 1, &err), STATUS_IO);
    assert_contains(err.message, "rename failed after 1 of 1 bytes");
    assert_no_temporary(dir);
    rmdir(path);
    char *longer = calloc(1, PATH_MAX + 1);
    memset(longer, 'a', PATH_MAX - 2);
    assert_int_equal(atomic_file_write(longer, "x", 1, &err), STATUS_INVALID);
    free(longer);
    free(inner);
    free(path);
    model_files_remove(dir);
}

/* /dev/full answers every write with "no space left": the bytes after a rename never come. */
static void test_atomic_file_full_device(void **state)
{
    (void)state;
    struct atomic_file f;
    struct err err = {0};
    char *dir = model_files_dir(), *path = join(dir, "x");
    assert_int_equal(atomic_file_create(&f, path, 10, &err), STATUS_OK);
    int full = open("/dev/full", O_WRONLY);
    assert_true(full >= 0);
    assert_int_equal(dup2(full, f.fd), f.fd);
    close(full);
    assert_int_equal(atomic_file_append(&f, "0123456789", 10, &err), STATUS_IO);
    assert_contains(err.message, "after 0 of 10 bytes");
    assert_contains(err.message, strerror(ENOSPC));
    assert_contains(err.message, "free some space");
    assert_int_equal(f.fd, -1);
    assert_no_temporary(dir);
    free(path);
    model_files_remove(dir);
}

static struct model_config make_config(bool is_ouro)
{
    struct model_config c = {.has_sandwich_norms = is_ouro,
                             .has_gate = is_ouro,
                             .is_tied = !is_ouro,
                             .n_layers = 3,
                             .d_model = 24,
                             .d_ffn = 40,
                             .n_heads = 4,
                             .n_kv_heads = 2,
                             .head_dim = 10,
                             .vocab_size = 37,
                             .max_positions = 100,
                             .n_loops = is_ouro ? 4 : 1,
                             .rms_norm_eps = 1e-6f,
                             .rope_theta = 10000,
                             .exit_threshold = is_ouro ? 0.9f : 1,
                             .bos_id = is_ouro ? 0 : -1,
                             .n_eos = is_ouro ? 1 : 2,
                             .eos_ids = {1, is_ouro ? 0 : 5}};
    snprintf(c.architecture, sizeof c.architecture,
             is_ouro ? "OuroForCausalLM" : "LlamaForCausalLM");
    return c;
}

static void test_config_write_reads_back(void **state)
{
    (void)state;
    static const double thetas[] = {1, 10000, 500000, 1e15, 12345.678901234567, 1.0 / 3 + 1};
    static const float epsilons[] = {1e-6f, 1e-5f, 1.1754944e-38f, 1, 0.1f, 1.0000001e-6f};
    char *dir = model_files_dir();
    for (int i = 0; i < 12; i++) {
        struct model_config c = make_config(i % 2 == 0), got;
        struct err err = {0};
        c.rope_theta = thetas[i / 2];
        c.rms_norm_eps = epsilons[i / 2];
        if (i >= 10)
            c.n_eos = 0, memset(c.eos_ids, 0, sizeof c.eos_ids);
        if (config_write(dir, &c, &err) != STATUS_OK || config_load(dir, &got, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        assert_memory_equal(&got, &c, sizeof c);
    }
    assert_no_temporary(dir);
    model_files_remove(dir);
}

static void test_config_write_numbers_read_well(void **state)
{
    (void)state;
    struct model_config c = make_config(true);
    char *text = NULL;
    assert_int_equal(config_format(&c, &text, NULL), STATUS_OK);
    assert_contains(text, "\"rope_theta\": 10000.0,");
    assert_contains(text, "\"rms_norm_eps\": 1e-06,");
    assert_contains(text, "\"early_exit_threshold\": 0.9,");
    assert_contains(text, "\"model_type\": \"ouro\",");
    assert_contains(text, "\"eos_token_id\": 1,");
    free(text);
    c = make_config(false);
    assert_int_equal(config_format(&c, &text, NULL), STATUS_OK);
    assert_contains(text, "\"eos_token_id\": [1, 5],");
    assert_contains(text, "\"bos_token_id\": null,");
    assert_null(strstr(text, "total_ut_steps"));
    free(text);
}

static void test_content_hash_sees_every_bit_and_every_cut(void **state)
{
    (void)state;
    enum { N = 100 };
    unsigned char bytes[N];
    for (int i = 0; i < N; i++)
        bytes[i] = (unsigned char)(i * 37);
    const uint64_t whole = content_hash(CONTENT_HASH_START, bytes, N);
    for (int bit = 0; bit < 8 * N; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        assert_true(content_hash(CONTENT_HASH_START, bytes, N) != whole);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    for (size_t n = 0; n < N; n++)
        assert_true(content_hash(CONTENT_HASH_START, bytes, n) != whole);
    /* The same zeros at another length, and swapped words, are something else. */
    memset(bytes, 0, N);
    assert_true(content_hash(1, bytes, 8) != content_hash(1, bytes, 16));
    bytes[0] = 1;
    const uint64_t first = content_hash(1, bytes, 64);
    bytes[0] = 0, bytes[32] = 1;
    assert_true(content_hash(1, bytes, 64) != first);
    assert_true(content_hash_text(1, "ab") != content_hash_text(content_hash_text(1, "a"), "b"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_write_reads_back),
        cmocka_unit_test(test_safetensors_write_refuses_names),
        cmocka_unit_test(test_safetensors_write_without_room_leaves_the_old_file),
        cmocka_unit_test(test_atomic_file_says_what_the_system_said),
        cmocka_unit_test(test_atomic_file_full_device),
        cmocka_unit_test(test_config_write_reads_back),
        cmocka_unit_test(test_config_write_numbers_read_well),
        cmocka_unit_test(test_content_hash_sees_every_bit_and_every_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
