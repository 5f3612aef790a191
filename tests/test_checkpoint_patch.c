/* A patched copy of a model directory opens as the model with other tensors, copied or linked. */
#include "tests/tiny_checkpoint.h"

#include "model/checkpoint_patch.h"

#include <sys/stat.h>

enum { D = 6 };

struct fixture {
    char *from, *to;
    struct checkpoint *source;
    float weight[D], bias;
    struct safetensors_tensor tensors[2];
};

static void write_source(struct fixture *f, bool is_sharded)
{
    struct tiny_checkpoint m;
    tiny_init(&m, 1);
    if (!is_sharded) {
        tiny_write(&m, TINY_OURO_CONFIG, f->from);
        return;
    }
    model_files_write(f->from, "config.json", TINY_OURO_CONFIG, strlen(TINY_OURO_CONFIG));
    tiny_write_part(&m, 0, 9, f->from, "a.safetensors");
    tiny_write_part(&m, 9, m.n, f->from, "b.safetensors");
    char *index = calloc(1, TINY_BYTES);
    assert_non_null(index);
    size_t used = (size_t)snprintf(index, TINY_BYTES, "{\"weight_map\": {");
    for (int i = 0; i < m.n; i++)
        used += (size_t)snprintf(index + used, TINY_BYTES - used, "%s\"%s\": \"%s.safetensors\"",
                                 i ? ", " : "", m.tensors[i].name, i < 9 ? "a" : "b");
    strcat(index, "}}");
    model_files_write(f->from, "model.safetensors.index.json", index, strlen(index));
    free(index);
}

static struct fixture *open_fixture(bool is_sharded)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct err err = {0};
    assert_non_null(f);
    f->from = model_files_dir();
    f->to = model_files_dir();
    write_source(f, is_sharded);
    model_files_write(f->from, "tokenizer.json", "{\"t\": 1}", 8);
    model_files_write(f->from, "notes.bin", "x", 1);
    if (checkpoint_open(f->from, 0, &f->source, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    for (int i = 0; i < D; i++)
        f->weight[i] = (float)i - 2.5f;
    f->bias = -7;
    f->tensors[0] = (struct safetensors_tensor){.name = "model.early_exit_gate.weight",
                                                .dtype = DTYPE_F32,
                                                .rank = 2,
                                                .shape = {1, D},
                                                .data = f->weight,
                                                .len_bytes = sizeof f->weight};
    f->tensors[1] = (struct safetensors_tensor){.name = "model.early_exit_gate.bias",
                                                .dtype = DTYPE_F32,
                                                .rank = 1,
                                                .shape = {1},
                                                .data = &f->bias,
                                                .len_bytes = sizeof f->bias};
    return f;
}

static void close_fixture(struct fixture *f)
{
    checkpoint_close(f->source);
    model_files_remove(f->from);
    model_files_remove(f->to);
    free(f);
}

static bool has_file(const char *dir, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

static void check_patched(struct fixture *f)
{
    struct checkpoint *c;
    struct err err = {0};
    if (checkpoint_open(f->to, 0, &c, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_memory_equal(c->weights.gate.data, f->weight, sizeof f->weight);
    assert_memory_equal(c->weights.gate_bias.data, &f->bias, sizeof f->bias);
    assert_memory_equal(c->weights.embed.data, f->source->weights.embed.data, 5 * D * 4);
    assert_memory_equal(c->weights.layers[1].down.data, f->source->weights.layers[1].down.data,
                        6 * 10 * 4);
    assert_memory_equal(&c->config, &f->source->config, sizeof c->config);
    assert_int_equal(c->len_bytes, f->source->len_bytes);
    assert_true(c->fingerprint != f->source->fingerprint);
    checkpoint_close(c);
    assert_true(has_file(f->to, "tokenizer.json") && !has_file(f->to, "notes.bin"));
}

static void patch(struct fixture *f, uint64_t max_file_bytes)
{
    struct err err = {0};
    if (checkpoint_patch(f->source, f->to, f->tensors, 2, max_file_bytes, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void test_patch_copies_or_links_any_model(void **state)
{
    (void)state;
    for (int is_sharded = 0; is_sharded < 2; is_sharded++) {
        struct fixture *f = open_fixture(is_sharded);
        for (int i = 0; i < 4; i++) { /* each after the other: what was there must not stay */
            bool is_linked = i % 2 == 0;
            f->bias = (float)i;
            patch(f, is_linked ? 0 : UINT64_MAX);
            assert_int_equal(has_file(f->to, "model.safetensors"), !is_linked);
            check_patched(f);
        }
        close_fixture(f);
    }
}

static void test_patch_links_share_the_bytes(void **state)
{
    (void)state;
    struct fixture *f = open_fixture(false);
    struct stat a, b;
    char path[512];
    patch(f, 0);
    snprintf(path, sizeof path, "%s/model.safetensors", f->from);
    assert_int_equal(stat(path, &a), 0);
    snprintf(path, sizeof path, "%s/weights-00001-of-00001.safetensors", f->to);
    assert_int_equal(stat(path, &b), 0);
    assert_true(a.st_ino == b.st_ino && a.st_dev == b.st_dev);
    close_fixture(f);
}

static void test_patch_refuses_what_would_break_a_model(void **state)
{
    (void)state;
    struct fixture *f = open_fixture(false);
    struct err err = {0};
    assert_int_equal(checkpoint_patch(f->source, f->from, f->tensors, 2, 0, &err), STATUS_INVALID);
    assert_contains(err.message, "the model's own directory");
    f->tensors[0].shape[1] = D - 1;
    assert_int_equal(checkpoint_patch(f->source, f->to, f->tensors, 2, 0, &err), STATUS_MISMATCH);
    assert_contains(err.message, "model.early_exit_gate.weight has another shape");
    f->tensors[0].shape[1] = D;
    f->tensors[1].name = "model.no_such.bias";
    assert_int_equal(checkpoint_patch(f->source, f->to, f->tensors, 2, 0, &err), STATUS_NOT_FOUND);
    assert_contains(err.message, "model.no_such.bias");
    assert_false(has_file(f->to, "config.json"));
    f->tensors[1].name = "model.early_exit_gate.bias";
    assert_int_equal(checkpoint_patch(f->source, "/nowhere/at/all", f->tensors, 2, 0, &err),
                     STATUS_IO);
    assert_contains(err.message, "/nowhere/at/all");
    close_fixture(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patch_copies_or_links_any_model),
        cmocka_unit_test(test_patch_links_share_the_bytes),
        cmocka_unit_test(test_patch_refuses_what_would_break_a_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
