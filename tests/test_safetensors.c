/* safetensors: a good file gives its tensors in place; each way a table can lie is named. */
#include "tests/model_files.h"

#include "model/safetensors.h"

static const char GOOD[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]},"
    "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[32,32]},"
    "\"scalar\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[32,34]}}   ";

static enum status open_text(const char *header, size_t data_bytes, struct safetensors **file,
                             unsigned char **bytes, struct err *err)
{
    size_t len;
    *bytes = model_files_tensors(header, data_bytes, &len);
    return safetensors_open_bytes(*bytes, len, "x.safetensors", file, err);
}

static void test_safetensors_good_table_points_into_the_bytes(void **state)
{
    (void)state;
    struct safetensors *file;
    unsigned char *bytes;
    struct err err = {0};
    assert_int_equal(open_text(GOOD, 34, &file, &bytes, &err), STATUS_OK);
    assert_int_equal(safetensors_count(file), 4);
    assert_string_equal(safetensors_at(file, 0)->name, "a");
    assert_string_equal(safetensors_at(file, 3)->name, "scalar");
    assert_null(safetensors_at(file, 4));
    const struct safetensors_tensor *b = safetensors_find(file, "b");
    assert_non_null(b);
    assert_int_equal(b->dtype, DTYPE_F32);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->len_bytes, 24);
    assert_ptr_equal(b->data, bytes + 8 + strlen(GOOD));
    assert_int_equal(safetensors_find(file, "scalar")->rank, 0);
    assert_int_equal(safetensors_find(file, "empty")->len_bytes, 0);
    assert_null(safetensors_find(file, "c"));
    assert_null(safetensors_find(file, "__metadata__"));
    safetensors_close(file);
    safetensors_close(NULL);
    free(bytes);
}

static void test_safetensors_table_without_tensors_is_good(void **state)
{
    (void)state;
    struct safetensors *file;
    unsigned char *bytes;
    assert_int_equal(open_text("{}", 0, &file, &bytes, NULL), STATUS_OK);
    assert_int_equal(safetensors_count(file), 0);
    safetensors_close(file);
    free(bytes);
}

static void test_safetensors_names_each_lie_of_the_table(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
        size_t data_bytes;
        enum status status;
        const char *says[2];
    } lies[] = {
        {"[24,32]", "[24,32]", 33, STATUS_CORRUPT, {"tensor scalar", "truncated"}},
        {"[24,32]", "[24,32]", 0, STATUS_CORRUPT, {"tensor b", "only 0"}},
        {"[24,32]", "[24,32]", 40, STATUS_CORRUPT, {"last 6 of 40", "no tensor"}},
        {"[24,32]", "[20,28]", 34, STATUS_CORRUPT, {"tensor a", "overlaps tensor b"}},
        {"[24,32]", "[0,8]", 34, STATUS_CORRUPT, {"overlaps", "tensor a"}},
        {"\"a\":", "\"b\":", 34, STATUS_CORRUPT, {"duplicate", "\"b\""}},
        {"[4],\"data_offsets\":[24,32]",
         "[3],\"data_offsets\":[26,32]",
         34,
         STATUS_CORRUPT,
         {"tensor a", "bytes 24 to 26"}},
        {"[2,3]", "[2,4]", 34, STATUS_CORRUPT, {"tensor b", "takes 32 bytes"}},
        {"[2,3]", "[2,-3]", 34, STATUS_CORRUPT, {"tensor b", "-3"}},
        {"[2,3]", "[2,3.0]", 34, STATUS_CORRUPT, {"tensor b", "3.0"}},
        {"[2,3]", "[4294967296,4294967296]", 34, STATUS_CORRUPT, {"tensor b", "4294967296"}},
        {"[2,3]", "[9223372036854775807,2]", 34, STATUS_CORRUPT, {"tensor b"}},
        {"[2,3]", "[1,1,1,1,1,1,1,2,3]", 34, STATUS_UNSUPPORTED, {"tensor b", "9 dimensions"}},
        {"[2,3]", "6", 34, STATUS_CORRUPT, {"tensor b", "found 6"}},
        {"BF16", "F64", 34, STATUS_UNSUPPORTED, {"tensor a", "\"F64\""}},
        {"BF16", "bf16", 34, STATUS_UNSUPPORTED, {"tensor a", "\"bf16\""}},
        {"\"BF16\"", "16", 34, STATUS_CORRUPT, {"tensor a", "found 16"}},
        {"\"dtype\":\"BF16\",", "", 34, STATUS_CORRUPT, {"tensor a", "nothing"}},
        {"[24,32]", "[32,24]", 34, STATUS_CORRUPT, {"tensor a", "[32,24]"}},
        {"[24,32]", "[-8,0]", 34, STATUS_CORRUPT, {"tensor a", "[-8,0]"}},
        {"[24,32]", "[24]", 34, STATUS_CORRUPT, {"tensor a", "[24]"}},
        {"[24,32]", "[9223372036854775799,9223372036854775807]", 34, STATUS_CORRUPT, {"tensor a"}},
        {",\"data_offsets\":[24,32]", "", 34, STATUS_CORRUPT, {"tensor a", "data_offsets"}},
        {"{\"format\":\"pt\"}", "{\"format\":1}", 34, STATUS_CORRUPT, {"__metadata__"}},
        {"{\"format\":\"pt\"}", "[]", 34, STATUS_CORRUPT, {"__metadata__"}},
        {"\"a\":", "\"a\\n\":", 34, STATUS_CORRUPT, {"control character 0x0a"}},
        {"}}   ", "}", 34, STATUS_CORRUPT, {"header", "JSON"}},
        {"{\"__", "[\"__", 34, STATUS_CORRUPT, {"header", "JSON"}},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        char *header = model_files_replace(GOOD, lies[i].from, lies[i].to);
        struct safetensors *file = NULL;
        unsigned char *bytes;
        struct err err = {0};
        enum status status = open_text(header, lies[i].data_bytes, &file, &bytes, &err);
        if (status != lies[i].status)
            fail_msg("%s: status %s, message %s", lies[i].to, status_name(status), err.message);
        assert_null(file);
        assert_contains(err.message, "x.safetensors");
        for (int k = 0; k < 2; k++)
            if (lies[i].says[k] != NULL)
                assert_contains(err.message, lies[i].says[k]);
        free(bytes);
        free(header);
    }
}

static void test_safetensors_tensor_must_be_an_object(void **state)
{
    (void)state;
    static const char *const headers[] = {"{\"a\":1}", "{\"a\":[]}", "{\"a\":null}", "{\"a\":{}}"};
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        struct safetensors *file = NULL;
        unsigned char *bytes;
        struct err err = {0};
        assert_int_equal(open_text(headers[i], 0, &file, &bytes, &err), STATUS_CORRUPT);
        assert_contains(err.message, "tensor a in x.safetensors");
        free(bytes);
    }
}

static void test_safetensors_header_length_is_checked_first(void **state)
{
    (void)state;
    static const struct {
        unsigned char bytes[10];
        size_t len;
        const char *says;
    } cases[] = {
        {{0}, 0, "has 0 bytes"},
        {{2, 0, 0, 0, 0, 0, 0}, 7, "has 7 bytes"},
        {{3, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, "header of 3 bytes does not fit"},
        {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{', '}'},
         10,
         "above the format's limit"},
        {{0, 0xe1, 0xf5, 5, 1, 0, 0, 0, '{', '}'}, 10, "above the format's limit"},
        {{0, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, "empty"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct safetensors *file = NULL;
        struct err err = {0};
        assert_int_equal(safetensors_open_bytes(cases[i].bytes, cases[i].len, "x", &file, &err),
                         STATUS_CORRUPT);
        assert_contains(err.message, cases[i].says);
        assert_null(file);
    }
}

/* However short a good file is cut, it is refused and never read past its end. */
static void test_safetensors_every_truncation_is_refused(void **state)
{
    (void)state;
    size_t len;
    unsigned char *bytes = model_files_tensors(GOOD, 34, &len);
    for (size_t cut = 0; cut < len; cut++) {
        unsigned char *exact = malloc(cut + (cut == 0));
        assert_non_null(exact);
        memcpy(exact, bytes, cut);
        struct safetensors *file = NULL;
        assert_int_equal(safetensors_open_bytes(exact, cut, "x", &file, NULL), STATUS_CORRUPT);
        free(exact);
    }
    free(bytes);
}

static void test_safetensors_maps_a_file(void **state)
{
    (void)state;
    char *dir = model_files_dir();
    char path[512];
    snprintf(path, sizeof path, "%s/m.safetensors", dir);
    size_t len;
    unsigned char *bytes = model_files_tensors(GOOD, 34, &len);
    bytes[len - 34] = 0x42;
    model_files_write(dir, "m.safetensors", bytes, len);
    struct safetensors *file = NULL;
    struct err err = {0};
    assert_int_equal(safetensors_open(path, &file, &err), STATUS_OK);
    assert_int_equal(*(const unsigned char *)safetensors_find(file, "b")->data, 0x42);
    safetensors_close(file);

    file = NULL;
    model_files_write(dir, "m.safetensors", bytes, len - 1);
    assert_int_equal(safetensors_open(path, &file, &err), STATUS_CORRUPT);
    assert_contains(err.message, path);
    model_files_write(dir, "m.safetensors", bytes, 5);
    assert_int_equal(safetensors_open(path, &file, &err), STATUS_CORRUPT);
    assert_contains(err.message, "5 bytes");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(safetensors_open(path, &file, &err), STATUS_NOT_FOUND);
    assert_contains(err.message, path);
    assert_int_equal(safetensors_open(dir, &file, &err), STATUS_IO);
    assert_contains(err.message, "not a regular file");
    assert_null(file);
    free(bytes);
    model_files_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_good_table_points_into_the_bytes),
        cmocka_unit_test(test_safetensors_table_without_tensors_is_good),
        cmocka_unit_test(test_safetensors_names_each_lie_of_the_table),
        cmocka_unit_test(test_safetensors_tensor_must_be_an_object),
        cmocka_unit_test(test_safetensors_header_length_is_checked_first),
        cmocka_unit_test(test_safetensors_every_truncation_is_refused),
        cmocka_unit_test(test_safetensors_maps_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
