/* train_state: what was saved comes back bit by bit; a damaged, cut, foreign or half-written file
 * never does, and the message says what to resume from. */
#include "tests/model_files.h"

#include "model/checkpoint.h"
#include "train/train_state.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

enum { SEED = 11, RECIPE = 0x1234 };

static struct model_config make_config(void)
{
    struct model_config c = {.has_sandwich_norms = true,
                             .has_gate = true,
                             .n_layers = 2,
                             .d_model = 4,
                             .d_ffn = 6,
                             .n_heads = 2,
                             .n_kv_heads = 1,
                             .head_dim = 2,
                             .vocab_size = 49,
                             .max_positions = 64,
                             .n_loops = 3,
                             .rms_norm_eps = 1e-6f,
                             .rope_theta = 10000,
                             .exit_threshold = 1,
                             .bos_id = 0,
                             .n_eos = 1,
                             .eos_ids = {1}};
    snprintf(c.architecture, sizeof c.architecture, "OuroForCausalLM");
    return c;
}

struct run {
    struct params *p;
    struct optimizer o;
    struct train_state_head head;
};

static void run_create(struct run *r, const struct model_config *config)
{
    memset(r, 0, sizeof *r);
    assert_int_equal(params_create(config, &r->p, NULL), STATUS_OK);
    assert_int_equal(optimizer_create(r->p, &r->o, NULL), STATUS_OK);
}

static void run_free(struct run *r)
{
    params_destroy(r->p);
    optimizer_free(&r->o);
}

/* Every number another one, also those that print badly. */
static void run_fill(struct run *r, uint64_t step)
{
    for (size_t i = 0; i < r->p->n_values; i++) {
        r->p->values[i] = (float)(i + step) / 3;
        r->o.m[i] = -1e-41f * (float)(i + 1); /* subnormal */
        r->o.v[i] = 1e30f / (float)(i + 1);
    }
    r->o.step = step - 1;
    r->head.seed = SEED;
    r->head.recipe_fingerprint = RECIPE;
    struct curriculum_state *c = &r->head.curriculum;
    c->step = step;
    c->attempt_step = step - 1;
    c->stage_step = step / 2;
    c->stage = 2;
    c->attempt = 1;
    c->loops = 3;
    c->is_finished = 1;
    for (int t = 0; t < RECIPE_MAX_TRACKS; t++) {
        c->track_steps[t] = t;
        c->track_begins[t] = step - (uint64_t)t;
    }
    for (int d = 0; d < RECIPE_MAX_DATA; d++)
        for (int k = 0; k < TASK_MAX_KNOBS; k++)
            c->knobs[d][k] = d % 2 == 0 ? k - 3 : INT32_MIN + k;
    for (int l = 0; l < METRICS_MAX_LEVELS; l++)
        for (int t = 0; t < METRICS_MAX_LOOPS; t++)
            c->accuracy[l][t] = 1.0f / (float)(1 + l * METRICS_MAX_LOOPS + t);
    c->accuracy[3][1] = -0.0f;
}

static void save(const char *dir, int keep, uint64_t step)
{
    struct run r;
    struct err err = {0};
    const struct model_config config = make_config();
    run_create(&r, &config);
    run_fill(&r, step);
    if (train_state_save(dir, keep, &r.head, r.p, &r.o, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    run_free(&r);
}

static enum status load(const char *path, struct run *r, struct err *err)
{
    return train_state_load(path, SEED, RECIPE, &r->head, r->p, &r->o, err);
}

static void assert_runs_equal(const struct run *a, const struct run *b)
{
    const size_t n = a->p->n_values * sizeof(float);
    assert_memory_equal(a->p->values, b->p->values, n);
    assert_memory_equal(a->o.m, b->o.m, n);
    assert_memory_equal(a->o.v, b->o.v, n);
    assert_int_equal(a->o.step, b->o.step);
    assert_memory_equal(&a->head, &b->head, sizeof a->head);
}

static char *state_path(const char *dir, int step)
{
    char *path = NULL;
    assert_true(asprintf(&path, "%s/state-%09d.safetensors", dir, step) > 0);
    return path;
}

static unsigned char *read_all(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    struct stat info;
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &info), 0);
    *n = (size_t)info.st_size;
    unsigned char *bytes = malloc(*n);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

static void write_all(const char *path, const unsigned char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static void test_train_state_comes_back_bit_by_bit(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = state_path(dir, 120);
    struct run saved, loaded;
    struct err err = {0};
    const struct model_config config = make_config();
    run_create(&saved, &config);
    run_create(&loaded, &config);
    run_fill(&saved, 120);
    assert_int_equal(train_state_save(dir, 2, &saved.head, saved.p, &saved.o, &err), STATUS_OK);
    if (load(path, &loaded, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_runs_equal(&saved, &loaded);
    run_free(&saved);
    run_free(&loaded);
    free(path);
    model_files_remove(dir);
}

static void test_train_state_keeps_the_newest(void **state)
{
    (void)state;
    char *base = model_files_dir(), *dir = NULL;
    assert_true(asprintf(&dir, "%s/run", base) > 0); /* made when missing */
    char newest[512];
    struct err err = {0};
    assert_int_equal(train_state_newest(dir, newest, sizeof newest, &err), STATUS_NOT_FOUND);
    assert_contains(err.message, dir);
    for (int step = 10; step <= 50; step += 10)
        save(dir, 2, (uint64_t)step);
    for (int step = 10; step <= 50; step += 10) {
        char *path = state_path(dir, step);
        assert_int_equal(access(path, F_OK), step >= 40 ? 0 : -1);
        free(path);
    }
    /* A later step of another run stays, and never pushes the new file out. */
    save(dir, 2, 2000000000);
    save(dir, 1, 45);
    char *written = state_path(dir, 45), *later = state_path(dir, 50);
    assert_int_equal(access(written, F_OK), 0);
    assert_int_equal(access(later, F_OK), 0);
    free(written);
    free(later);
    assert_int_equal(train_state_newest(dir, newest, sizeof newest, &err), STATUS_OK);
    assert_contains(newest, "state-2000000000.safetensors"); /* ten digits, by number */
    assert_int_equal(train_state_newest(dir, newest, 10, &err), STATUS_INVALID);
    model_files_remove(dir);
    assert_int_equal(train_state_newest(base, newest, sizeof newest, &err), STATUS_NOT_FOUND);
    assert_contains(err.message, "no state file");
    model_files_remove(base);
}

/* The bytes of a good file, damaged at one place; nothing of it may be taken over. */
static void test_train_state_any_damaged_byte_is_seen(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = state_path(dir, 20), *older = state_path(dir, 10);
    struct run r, before;
    size_t n;
    const struct model_config config = make_config();
    save(dir, 2, 10);
    save(dir, 2, 20);
    unsigned char *bytes = read_all(path, &n);
    run_create(&r, &config);
    run_create(&before, &config);
    assert_true(n > 4000);
    for (size_t at = 0; at < n; at += at < 40 || at + 4 > n ? 1 : 61) {
        struct err err = {0};
        bytes[at] ^= (unsigned char)(1 << at % 8);
        write_all(path, bytes, n);
        bytes[at] ^= (unsigned char)(1 << at % 8);
        enum status status = load(path, &r, &err);
        if (status != STATUS_CORRUPT)
            fail_msg("byte %zu: %s %s", at, status_name(status), err.message);
        assert_contains(err.message, path);
        assert_contains(err.message, "; resume from ");
        assert_contains(err.message, older);
    }
    assert_runs_equal(&r, &before);
    write_all(path, bytes, n);
    assert_int_equal(load(path, &r, NULL), STATUS_OK);
    free(bytes);
    free(path);
    free(older);
    run_free(&r);
    run_free(&before);
    model_files_remove(dir);
}

static void test_train_state_cut_short_is_seen(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = state_path(dir, 20);
    struct run r;
    size_t n;
    const struct model_config config = make_config();
    save(dir, 1, 20);
    unsigned char *bytes = read_all(path, &n);
    run_create(&r, &config);
    for (size_t cut = 0; cut < n; cut += cut < 10 ? 1 : 1021) {
        struct err err = {0};
        write_all(path, bytes, cut);
        assert_int_equal(load(path, &r, &err), STATUS_CORRUPT);
        assert_contains(err.message, path);
        assert_contains(err.message, "there is no other good state");
    }
    free(bytes);
    free(path);
    run_free(&r);
    model_files_remove(dir);
}

static void test_train_state_of_another_run_is_refused(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = state_path(dir, 20);
    struct run r, before;
    struct err err = {0};
    struct model_config config = make_config();
    save(dir, 1, 20);
    run_create(&r, &config);
    run_create(&before, &config);
    assert_int_equal(train_state_load(path, SEED + 1, RECIPE, &r.head, r.p, &r.o, &err),
                     STATUS_MISMATCH);
    assert_contains(err.message, "from seed 11, this run has seed 12");
    assert_int_equal(train_state_load(path, SEED, RECIPE + 1, &r.head, r.p, &r.o, &err),
                     STATUS_MISMATCH);
    assert_contains(err.message, "another recipe (hash 0000000000001234");
    assert_runs_equal(&r, &before);
    run_free(&r);
    config.d_ffn = 8;
    run_create(&r, &config);
    assert_int_equal(load(path, &r, &err), STATUS_MISMATCH);
    assert_contains(err.message, "another model");
    run_free(&r);
    config = make_config();
    config.n_layers = 3;
    run_create(&r, &config);
    assert_int_equal(load(path, &r, &err), STATUS_MISMATCH);
    assert_contains(err.message, "model.layers.2.");
    run_free(&r);
    config.n_layers = 1;
    run_create(&r, &config);
    assert_int_equal(load(path, &r, &err), STATUS_MISMATCH);
    assert_contains(err.message, "another model");
    run_free(&r);
    run_free(&before);
    char *missing = state_path(dir, 21);
    assert_int_equal(load(missing, &r, &err), STATUS_NOT_FOUND);
    free(missing);
    free(path);
    model_files_remove(dir);
}

static void test_train_state_model_file_is_no_state(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = NULL;
    struct run r;
    struct err err = {0};
    const struct model_config config = make_config();
    run_create(&r, &config);
    run_fill(&r, 1);
    assert_int_equal(train_state_export(dir, r.p, NULL, &err), STATUS_OK);
    assert_true(asprintf(&path, "%s/model.safetensors", dir) > 0);
    assert_int_equal(load(path, &r, &err), STATUS_CORRUPT);
    assert_contains(err.message, "is not a training state");
    free(path);
    run_free(&r);
    model_files_remove(dir);
}

/* What a process leaves that is killed while it writes: a part of the next file. */
static void test_train_state_half_written_file_is_not_taken(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *path = state_path(dir, 20), *half = NULL, newest[512];
    struct run r;
    size_t n;
    const struct model_config config = make_config();
    run_create(&r, &config);
    save(dir, 2, 20);
    unsigned char *bytes = read_all(path, &n);
    assert_true(asprintf(&half, "%s/state-000000030.safetensors.tmp", dir) > 0);
    write_all(half, bytes, n / 2);
    assert_int_equal(train_state_newest(dir, newest, sizeof newest, NULL), STATUS_OK);
    assert_string_equal(newest, path);
    assert_int_equal(load(newest, &r, NULL), STATUS_OK);
    assert_int_equal(r.head.curriculum.step, 20);
    save(dir, 2, 40); /* the next save cleans up */
    assert_int_equal(access(half, F_OK), -1);
    free(half);
    free(bytes);
    free(path);
    run_free(&r);
    model_files_remove(dir);
}

/* Kills a process that saves one state after another, at ten different moments. */
static void test_train_state_survives_a_kill_at_any_moment(void **state)
{
    (void)state;
    const struct model_config config = make_config();
    struct run r, expected;
    run_create(&r, &config);
    run_create(&expected, &config);
    for (int round = 0; round < 10; round++) {
        char *dir = model_files_dir(), newest[512];
        struct err err = {0};
        save(dir, 2, 1);
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            for (uint64_t step = 2;; step++) {
                run_fill(&expected, step);
                if (train_state_save(dir, 2, &expected.head, expected.p, &expected.o, NULL) != 0)
                    _exit(1);
            }
        }
        const struct timespec pause = {0, 1000000 + 3331000L * round};
        nanosleep(&pause, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        assert_int_equal(train_state_newest(dir, newest, sizeof newest, &err), STATUS_OK);
        if (load(newest, &r, &err) != STATUS_OK)
            fail_msg("round %d: %s", round, err.message);
        run_fill(&expected, r.head.curriculum.step);
        assert_runs_equal(&r, &expected);
        model_files_remove(dir);
    }
    run_free(&r);
    run_free(&expected);
}

static void test_train_state_full_disk_changes_nothing(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *first = state_path(dir, 10), *second = state_path(dir, 20);
    struct run r, before;
    struct err err = {0};
    struct rlimit old, low;
    const struct model_config config = make_config();
    run_create(&r, &config);
    run_create(&before, &config);
    save(dir, 1, 10);
    run_fill(&r, 20);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = 5000; /* stands for a disk that is full */
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    enum status status = train_state_save(dir, 1, &r.head, r.p, &r.o, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, STATUS_IO);
    assert_contains(err.message, second);
    assert_contains(err.message, "after 5000 of ");
    assert_int_equal(access(second, F_OK), -1);
    run_fill(&before, 10);
    if (load(first, &r, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_runs_equal(&r, &before);
    free(first);
    free(second);
    run_free(&r);
    run_free(&before);
    model_files_remove(dir);
}

static void test_train_state_export_opens_as_a_checkpoint(void **state)
{
    (void)state;
    char *dir = model_files_dir(), *tokenizer = NULL, *again = NULL;
    struct run r, back;
    struct err err = {0};
    struct checkpoint *checkpoint = NULL;
    for (int is_tied = 0; is_tied < 2; is_tied++) {
        struct model_config config = make_config();
        config.is_tied = is_tied;
        run_create(&r, &config);
        run_fill(&r, 5);
        run_create(&back, &config);
        if (train_state_export(dir, r.p, "", &err) != STATUS_OK ||
            checkpoint_open(dir, 0, &checkpoint, &err) != STATUS_OK ||
            params_load(back.p, checkpoint, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        assert_memory_equal(&checkpoint->config, &config, sizeof config);
        assert_memory_equal(back.p->values, r.p->values, r.p->n_values * sizeof(float));
        checkpoint_close(checkpoint);
        run_free(&back);
        if (is_tied == 0)
            run_free(&r);
    }
    /* The files of a tokenizer travel with it. */
    assert_true(asprintf(&tokenizer, "%s/tokenizer.json", dir) > 0);
    assert_true(asprintf(&again, "%s/again", dir) > 0);
    if (train_state_export(again, r.p, tokenizer, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        char from[512], to[512];
        size_t n, n_copied;
        snprintf(from, sizeof from, "%s/%s", dir, names[i]);
        snprintf(to, sizeof to, "%s/%s", again, names[i]);
        unsigned char *bytes = read_all(from, &n), *copied = read_all(to, &n_copied);
        assert_int_equal(n, n_copied);
        assert_memory_equal(bytes, copied, n);
        free(bytes);
        free(copied);
    }
    assert_int_equal(train_state_export(again, r.p, "/nowhere/tokenizer.json", &err),
                     STATUS_NOT_FOUND);
    assert_contains(err.message, "/nowhere/tokenizer.json");
    assert_int_equal(train_state_export("/proc/no", r.p, NULL, &err), STATUS_IO);
    assert_contains(err.message, "/proc/no");
    run_free(&r);
    model_files_remove(again);
    free(tokenizer);
    model_files_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train_state_comes_back_bit_by_bit),
        cmocka_unit_test(test_train_state_keeps_the_newest),
        cmocka_unit_test(test_train_state_any_damaged_byte_is_seen),
        cmocka_unit_test(test_train_state_cut_short_is_seen),
        cmocka_unit_test(test_train_state_of_another_run_is_refused),
        cmocka_unit_test(test_train_state_model_file_is_no_state),
        cmocka_unit_test(test_train_state_half_written_file_is_not_taken),
        cmocka_unit_test(test_train_state_survives_a_kill_at_any_moment),
        cmocka_unit_test(test_train_state_full_disk_changes_nothing),
        cmocka_unit_test(test_train_state_export_opens_as_a_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
