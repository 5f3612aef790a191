/* text_source: a JSONL text as windows of ids, walked in an order that only seed and index decide.
 */
#include "tests/unit.h"

#include "train/task.h"
#include "train/text_source.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* A directory of its own a test: text.jsonl, and ids for the cache. */
struct fixture {
    char dir[32], jsonl[64], cache[64];
    struct text_source_options options;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->dir, "/tmp/carousel_test_XXXXXX");
    if (mkdtemp(f->dir) == NULL)
        return -1;
    snprintf(f->jsonl, sizeof f->jsonl, "%s/text.jsonl", f->dir);
    snprintf(f->cache, sizeof f->cache, "%s/ids", f->dir);
    f->options = (struct text_source_options){
        .jsonl = f->jsonl, .eos_id = TASK_EOS, .vocab_size = TASK_VOCABULARY, .cache = f->cache};
    *state = f;
    return 0;
}

/* Fails when anything else was left behind. */
static int teardown(void **state)
{
    struct fixture *f = *state;
    unlink(f->jsonl);
    unlink(f->cache);
    int failed = rmdir(f->dir);
    free(f);
    return failed;
}

static void write_text(const struct fixture *f, const char *text, size_t len)
{
    FILE *file = fopen(f->jsonl, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

static struct text_source *open_text(const struct fixture *f, const char *text)
{
    struct text_source *source = NULL;
    struct err err = {0};
    if (text != NULL)
        write_text(f, text, strlen(text));
    if (text_source_open(&f->options, &source, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return source;
}

static void take(const struct text_source *source, int seq_length, uint64_t seed, uint64_t index,
                 struct sequence_rows *s)
{
    struct err err = {0};
    if (text_source_take(source, seq_length, seed, index, 3, s, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void test_text_source_packs_documents_with_bos_and_eos(void **state)
{
    struct fixture *f = *state;
    const int32_t wanted[] = {0, 3, 4, 1, 0, 5, 1, 0, 6, 1}; /* <s> a b \n <s> c \n <s> d \n */
    struct text_source *source =
        open_text(f, "{\"text\": \"ab\"}\r\n{\"id\": 1, \"text\": \"c\"}\n\n{\"text\": \"\"}\n"
                     "  \n{\"text\": \"d\"}");
    struct sequence_rows s;
    assert_int_equal(text_source_n_ids(source), 10);
    assert_int_equal(text_source_n_documents(source), 3);
    assert_int_equal(text_source_n_sequences(source, 9), 1);
    assert_int_equal(text_source_n_sequences(source, 10), 0);
    assert_int_equal(text_source_n_sequences(source, 4), 2);
    assert_int_equal(sequence_rows_create(9, &s, NULL), STATUS_OK);
    take(source, 9, 1, 0, &s);
    assert_int_equal(s.n, 9);
    assert_int_equal(s.n_prefix, 9);
    for (int i = 0; i < 9; i++) {
        assert_int_equal(s.ids[i], wanted[i]);
        assert_int_equal(s.targets[i], wanted[i + 1]);
        assert_int_equal(s.positions[i], i);
        assert_int_equal(s.branch_start[i], 0);
        assert_int_equal(s.levels[i], 3);
        assert_true(s.weights[i] == 1.0f);
    }
    sequence_rows_free(&s);
    text_source_close(source);
}

/* One document of 26 * 26 two-letter words, each of which says where it stands. */
static void write_counted_text(const struct fixture *f)
{
    char text[26 * 26 * 2 + 32];
    int n = sprintf(text, "{\"text\": \"");
    for (int i = 0; i < 26 * 26; i++)
        n += sprintf(text + n, "%c%c", 'a' + i / 26, 'a' + i % 26);
    n += sprintf(text + n, "\"}\n");
    write_text(f, text, (size_t)n);
}

/* Where the window begins, from the words in it. */
static int place_of(const struct sequence_rows *s)
{
    for (int parity = 0; parity < 2; parity++) {
        int word = (s->ids[parity] - 3) * 26 + s->ids[parity + 1] - 3;
        int next = (s->ids[parity + 2] - 3) * 26 + s->ids[parity + 3] - 3;
        int third = (s->ids[parity + 4] - 3) * 26 + s->ids[parity + 5] - 3;
        if (next == word + 1 && third == word + 2)
            return 1 + 2 * word - parity;
    }
    return 0; /* <s> in front */
}

static void test_text_source_takes_every_window_once_an_epoch(void **state)
{
    struct fixture *f = *state;
    struct sequence_rows s;
    enum { LENGTH = 23, N = (26 * 26 * 2 + 1) / LENGTH };
    int order[4][N], n_same = 0;
    write_counted_text(f);
    struct text_source *source = open_text(f, NULL);
    assert_int_equal(text_source_n_ids(source), 26 * 26 * 2 + 2);
    assert_int_equal(text_source_n_sequences(source, LENGTH), N);
    assert_int_equal(sequence_rows_create(LENGTH, &s, NULL), STATUS_OK);
    for (int epoch = 0; epoch < 4; epoch++) {
        bool is_seen[N] = {false};
        int offset = -1;
        for (int i = 0; i < N; i++) {
            take(source, LENGTH, 5, (uint64_t)(epoch * N + i), &s);
            int place = place_of(&s);
            if (offset < 0)
                offset = place % LENGTH;
            assert_int_equal(place % LENGTH, offset);
            order[epoch][i] = place / LENGTH;
            assert_false(is_seen[place / LENGTH]);
            is_seen[place / LENGTH] = true;
        }
    }
    for (int i = 0; i < N; i++)
        n_same += order[0][i] == order[1][i];
    assert_true(n_same < N / 4); /* another order: about one in N stays by chance */
    n_same = 0;
    for (int i = 0; i < N; i++) {
        take(source, LENGTH, 6, (uint64_t)i, &s);
        n_same += place_of(&s) / LENGTH == order[0][i];
    }
    assert_true(n_same < N / 4);
    sequence_rows_free(&s);
    text_source_close(source);
}

static void test_text_source_is_the_same_from_its_cache(void **state)
{
    struct fixture *f = *state;
    struct sequence_rows a, b;
    struct stat before, after;
    assert_int_equal(sequence_rows_create(16, &a, NULL), STATUS_OK);
    assert_int_equal(sequence_rows_create(16, &b, NULL), STATUS_OK);
    write_counted_text(f);
    struct text_source *source = open_text(f, NULL);
    uint64_t fingerprint = text_source_fingerprint(source);
    take(source, 16, 2, 1000003, &a);
    text_source_close(source);
    assert_int_equal(stat(f->cache, &before), 0);

    source = open_text(f, NULL);
    assert_int_equal(stat(f->cache, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino); /* not made anew */
    assert_int_equal(text_source_fingerprint(source), fingerprint);
    take(source, 16, 2, 1000003, &b);
    assert_memory_equal(a.ids, b.ids, 16 * sizeof *a.ids);
    text_source_close(source);

    /* Cut short, as by a full disk of somebody who copied it. */
    assert_int_equal(truncate(f->cache, after.st_size / 2), 0);
    source = open_text(f, NULL);
    take(source, 16, 2, 1000003, &b);
    assert_memory_equal(a.ids, b.ids, 16 * sizeof *a.ids);
    text_source_close(source);
    sequence_rows_free(&a);
    sequence_rows_free(&b);
}

static void test_text_source_sees_another_text_tokenizer_or_eos(void **state)
{
    struct fixture *f = *state;
    uint64_t prints[4];
    struct text_source *source = open_text(f, "{\"text\": \"abcd\"}\n");
    prints[0] = text_source_fingerprint(source);
    text_source_close(source);
    source = open_text(f, "{\"text\": \"abce\"}\n");
    prints[1] = text_source_fingerprint(source);
    text_source_close(source);
    f->options.eos_id = 2;
    source = open_text(f, NULL);
    prints[2] = text_source_fingerprint(source);
    text_source_close(source);
    f->options.tokenizer = "model/demo";
    source = open_text(f, NULL);
    prints[3] = text_source_fingerprint(source);
    assert_int_equal(text_source_n_ids(source), 6);
    text_source_close(source);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < i; j++)
            assert_int_not_equal(prints[i], prints[j]);
}

static void test_text_source_takes_a_tokenizers_ids(void **state)
{
    struct fixture *f = *state;
    const char *text = "{\"text\": \"g=0 v=g+8;v?\\nfor <s>\"}\n";
    struct sequence_rows s;
    struct err err = {0};
    struct text_source *source = NULL;
    write_text(f, text, strlen(text));
    f->options.tokenizer = "model/demo/tokenizer.json";
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "text.jsonl:1: byte 0x3C"));
    source = open_text(f, "{\"text\": \"g=0 v=g+8;v?\\nfor\"}\n");
    assert_int_equal(sequence_rows_create(17, &s, NULL), STATUS_OK);
    take(source, 17, 0, 0, &s);
    for (int i = 1; i < 17; i++)
        assert_int_equal(s.ids[i], task_symbol_id("g=0 v=g+8;v?\nfor"[i - 1]));
    assert_int_equal(s.ids[0], TASK_BOS);
    assert_int_equal(s.targets[16], TASK_EOS);
    sequence_rows_free(&s);
    text_source_close(source);
}

static void test_text_source_reads_a_line_of_a_megabyte(void **state)
{
    enum { LEN = 1 << 20 };
    struct fixture *f = *state;
    char *text = malloc(LEN + 64);
    int n = sprintf(text, "{\"text\": \"");
    memset(text + n, 'q', LEN);
    strcpy(text + n + LEN, "\"}\n{\"text\": \"z\"}\n");
    struct text_source *source = open_text(f, text);
    assert_int_equal(text_source_n_ids(source), LEN + 2 + 3);
    text_source_close(source);
    free(text);
}

static void test_text_source_names_the_line_that_is_wrong(void **state)
{
    static const struct {
        const char *line;
        enum status status;
        const char *message;
    } cases[] = {
        {"{\"text\": \"a\"", STATUS_CORRUPT, "text.jsonl:3 is not valid JSON: line 1, column"},
        {"text", STATUS_CORRUPT, "text.jsonl:3 is not valid JSON"},
        {"[\"text\"]", STATUS_CORRUPT, "text.jsonl:3 holds a JSON array"},
        {"{\"texts\": \"a\"}", STATUS_CORRUPT,
         "text.jsonl:3: expected a string in the field \"text\", found nothing"},
        {"{\"text\": 7}", STATUS_CORRUPT,
         "text.jsonl:3: expected a string in the field \"text\", found 7"},
        {"{\"text\": \"\xc3(\"}", STATUS_CORRUPT, "text.jsonl:3 is not valid JSON: line 1"},
        {"{\"text\": \"\\ud800\"}", STATUS_CORRUPT, "text.jsonl:3 is not valid JSON: line 1"},
        {"{\"text\": \"a\\u0000b\"}", STATUS_CORRUPT, "text.jsonl:3 is not valid JSON: line 1"},
        {"{\"text\": \"a\", \"text\": \"b\"}", STATUS_CORRUPT, "text.jsonl:3 is not valid JSON"},
        {"{\"text\": \"a\"} x", STATUS_CORRUPT, "text.jsonl:3 is not valid JSON"},
        {"{\"text\": \"aB\"}", STATUS_INVALID,
         "text.jsonl:3: byte 0x42 at place 1 of \"text\" is not among the 49 symbols"},
    };
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[256];
        struct err err = {0};
        struct text_source *source = NULL;
        int n = snprintf(text, sizeof text, "{\"text\": \"a\"}\n\n%s\n{\"text\": \"b\"}\n",
                         cases[i].line);
        write_text(f, text, (size_t)n);
        assert_int_equal(text_source_open(&f->options, &source, &err), cases[i].status);
        if (strstr(err.message, cases[i].message) == NULL)
            fail_msg("case %zu: %s", i, err.message);
        assert_null(source);
        assert_int_equal(access(f->cache, F_OK), -1);
    }
}

static void test_text_source_refuses_what_cannot_be_opened(void **state)
{
    struct fixture *f = *state;
    struct text_source *source = NULL;
    struct err err = {0};
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "text.jsonl does not exist"));
    write_text(f, "", 0);
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "text.jsonl has no text"));
    write_text(f, "{\"text\": \"ab\"}", 14);
    f->options.vocab_size = 48;
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_MISMATCH);
    assert_non_null(strstr(err.message, "ids up to 48, the model's vocabulary ends at 47"));
    f->options.vocab_size = 49;
    f->options.eos_id = 49;
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_MISMATCH);
    assert_non_null(strstr(err.message, "eos id 49"));
    f->options.eos_id = 1;
    f->options.tokenizer = "/no/such/tokenizer.json";
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_NOT_FOUND);
    f->options.tokenizer = "";
    f->options.cache = "/no/such/dir/ids";
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/no/such/dir/ids: No such file"));
    f->options.cache = "/tmp";
    assert_int_equal(text_source_open(&f->options, &source, &err), STATUS_IO);
    assert_null(source);
}

static void test_text_source_says_when_a_sequence_is_longer_than_the_text(void **state)
{
    struct fixture *f = *state;
    struct text_source *source = open_text(f, "{\"text\": \"abc\"}\n");
    struct sequence_rows s;
    struct err err = {0};
    assert_int_equal(sequence_rows_create(4, &s, NULL), STATUS_OK);
    take(source, 4, 0, 7, &s);
    assert_int_equal(text_source_take(source, 5, 0, 0, 0, &s, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "has 5 ids; sequences of 5 need"));
    assert_int_equal(text_source_take(source, 0, 0, 0, 0, &s, NULL), STATUS_INVALID);
    sequence_rows_free(&s);
    text_source_close(source);
}

/* A limit on file sizes stands in for a full disk: nothing half-written stays. */
static void test_text_source_leaves_nothing_when_the_disk_is_full(void **state)
{
    struct fixture *f = *state;
    struct rlimit old, small;
    struct text_source *source = NULL;
    struct err err = {0};
    write_counted_text(f);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){2000, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum status status = text_source_open(&f->options, &source, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, STATUS_IO);
    assert_non_null(strstr(err.message, "ids: File too large"));
    assert_int_equal(access(f->cache, F_OK), -1);
}

#define UNIT(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        UNIT(test_text_source_packs_documents_with_bos_and_eos),
        UNIT(test_text_source_takes_every_window_once_an_epoch),
        UNIT(test_text_source_is_the_same_from_its_cache),
        UNIT(test_text_source_sees_another_text_tokenizer_or_eos),
        UNIT(test_text_source_takes_a_tokenizers_ids),
        UNIT(test_text_source_reads_a_line_of_a_megabyte),
        UNIT(test_text_source_names_the_line_that_is_wrong),
        UNIT(test_text_source_refuses_what_cannot_be_opened),
        UNIT(test_text_source_says_when_a_sequence_is_longer_than_the_text),
        UNIT(test_text_source_leaves_nothing_when_the_disk_is_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
