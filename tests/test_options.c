/* options: one table gives parsing, ranges, environment variables and errors that name the option,
 * what was found and what is accepted. */
#include "tests/unit.h"

#include "cli/options.h"

struct values {
    bool flag, is_int_given, is_text_given;
    int number, choice;
    uint64_t seed, bytes;
    double ratio;
    const char *text;
};

enum { N_SPECS = 10 };

static void make_specs(struct values *v, struct option_spec *specs)
{
    const struct option_spec table[N_SPECS] = {
        {.type = OPTION_HEADING, .help = "Things:"},
        {"some-flag", 'f', OPTION_FLAG, &v->flag, NULL, NULL, 0, 0, "a flag", NULL},
        {"number", 'n', OPTION_INT, &v->number, "N", NULL, 1, 100, "a number", &v->is_int_given},
        {"any-number", 0, OPTION_INT, &v->number, "N", NULL, 0, 0, "without limits", NULL},
        {"big-number", 0, OPTION_INT, &v->number, "N", NULL, 1, INT32_MAX, "large", NULL},
        {"seed", 's', OPTION_U64, &v->seed, "S", NULL, 0, 0, "a seed", NULL},
        {"ratio", 'r', OPTION_FLOAT, &v->ratio, "R", NULL, -2, 2, "a ratio", NULL},
        {"kv-memory", 0, OPTION_BYTES, &v->bytes, "SIZE", NULL, 0, 0, "a size", NULL},
        {"text", 't', OPTION_STRING, &v->text, "TEXT", NULL, 0, 0, "a text", &v->is_text_given},
        {"mode", 0, OPTION_CHOICE, &v->choice, NULL, "full|exact|exactly", 0, 0, "a mode", NULL},
    };
    memcpy(specs, table, sizeof table);
}

/* Splits the line at spaces and parses it; '~' stands for a space inside a word, "''" for an empty
 * word. */
static enum status parse(const char *line, struct values *v, struct options_result *out,
                         struct err *err)
{
    static char text[256]; /* positionals and strings are borrowed from it */
    char *argv[16] = {(char *)"program"};
    int argc = 1;
    assert_true(strlen(line) < sizeof text);
    strcpy(text, line);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) {
        for (char *at = word; *at != '\0'; at++)
            if (*at == '~')
                *at = ' ';
        argv[argc++] = strcmp(word, "''") == 0 ? (char *)"" : word;
    }
    struct option_spec specs[N_SPECS];
    make_specs(v, specs);
    const struct option_group groups[] = {{specs, 5}, {specs + 5, N_SPECS - 5}};
    return options_parse(groups, 2, argc, argv, out, err);
}

static void test_options_read_every_type(void **state)
{
    (void)state;
    struct values v = {0};
    struct options_result r;
    struct err err = {0};
    assert_int_equal(parse("--some-flag --number 7 --seed=0x10 -r -1.5 --kv-memory 2G --text a=b "
                           "--mode exact",
                           &v, &r, &err),
                     STATUS_OK);
    assert_true(v.flag && v.is_int_given && v.is_text_given);
    assert_int_equal(v.number, 7);
    assert_int_equal(v.seed, 16);
    assert_true(v.ratio == -1.5);
    assert_int_equal(v.bytes, 2ull << 30);
    assert_string_equal(v.text, "a=b");
    assert_int_equal(v.choice, 1);
    assert_int_equal(r.n_positionals, 0);
    assert_false(r.wants_help);
}

static void test_options_take_values_in_each_spelling(void **state)
{
    (void)state;
    static const char *const lines[] = {"--number 42", "--number=42", "-n 42", "-n42",
                                        "--number 7 --number 42" /* the last one counts */};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        struct values v = {0};
        struct options_result r;
        assert_int_equal(parse(lines[i], &v, &r, NULL), STATUS_OK);
        assert_int_equal(v.number, 42);
    }
}

static void test_options_take_sizes_with_units(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        uint64_t bytes;
    } rows[] = {
        {"--kv-memory 0", 0},
        {"--kv-memory 4096", 4096},
        {"--kv-memory 512M", 512ull << 20},
        {"--kv-memory 3k", 3 << 10},
        {"--kv-memory 1.5GiB", 3ull << 29},
        {"--kv-memory 2gb", 2ull << 30},
        {"--kv-memory 1T", 1ull << 40},
        {"--kv-memory 7B", 7},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct values v = {0};
        struct options_result r;
        assert_int_equal(parse(rows[i].line, &v, &r, NULL), STATUS_OK);
        assert_int_equal(v.bytes, rows[i].bytes);
    }
}

static void test_options_keep_positionals_in_order(void **state)
{
    (void)state;
    struct values v = {0};
    struct options_result r;
    assert_int_equal(parse("model -n 3 - -- --some-flag", &v, &r, NULL), STATUS_OK);
    assert_int_equal(r.n_positionals, 3);
    assert_string_equal(r.positionals[0], "model");
    assert_string_equal(r.positionals[1], "-"); /* standard input, not an option */
    assert_string_equal(r.positionals[2], "--some-flag");
    assert_false(v.flag);
}

static void test_options_notice_a_wish_for_help(void **state)
{
    (void)state;
    struct values v = {0};
    struct options_result r;
    assert_int_equal(parse("--help", &v, &r, NULL), STATUS_OK);
    assert_true(r.wants_help);
    assert_int_equal(parse("model -h", &v, &r, NULL), STATUS_OK);
    assert_true(r.wants_help);
    assert_int_equal(parse("-- -h", &v, &r, NULL), STATUS_OK);
    assert_false(r.wants_help);
}

static void test_options_refuse_with_one_line_that_names_the_option(void **state)
{
    (void)state;
    static const struct {
        const char *line, *message;
    } rows[] = {
        {"--nothing", "unknown option '--nothing'; --help lists the options"},
        {"--numbe 3", "unknown option '--numbe'; --help lists the options"},
        {"-x", "unknown option '-x'; --help lists the options"},
        {"--number", "--number needs a value: N"},
        {"--mode", "--mode needs a value: full|exact|exactly"},
        {"--number x", "--number: 'x' is not a whole number"},
        {"--number ''", "--number: '' is not a whole number"},
        {"--number 3.5", "--number: '3.5' is not a whole number"},
        {"--number 3x", "--number: '3x' is not a whole number"},
        {"--number 1e10", "--number: '1e10' is not a whole number"},
        {"--number nan", "--number: 'nan' is not a whole number"},
        {"--number 0", "--number: 0 is out of range, accepted is 1 to 100"},
        {"-n 101", "--number: 101 is out of range, accepted is 1 to 100"},
        {"--big-number 0", "--big-number: 0 is out of range, accepted is 1 to 2147483647"},
        {"--ratio inf", "--ratio: 'inf' is not a number"},
        {"--ratio nan", "--ratio: 'nan' is not a number"},
        {"--ratio 2.5", "--ratio: 2.5 is out of range, accepted is -2 to 2"},
        {"--seed -1", "--seed: '-1' is not a whole number from 0 to 2^64-1"},
        {"--seed 18446744073709551616",
         "--seed: '18446744073709551616' is not a whole number from 0 to 2^64-1"},
        {"--kv-memory much", "--kv-memory: 'much' is not a size such as 512M or 2G"},
        {"--kv-memory -1G", "--kv-memory: '-1G' is not a size such as 512M or 2G"},
        {"--kv-memory 1GX", "--kv-memory: '1GX' is not a size such as 512M or 2G"},
        {"--kv-memory 1e30", "--kv-memory: '1e30' is not a size such as 512M or 2G"},
        {"--mode ful", "--mode: 'ful' is none of full|exact|exactly"},
        {"--mode full|exact", "--mode: 'full|exact' is none of full|exact|exactly"},
        {"--some-flag=maybe", "--some-flag: 'maybe' is not yes or no"},
        {"a b c d e", "too many arguments from 'e' on; quote a prompt that has spaces"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct values v = {.number = 5, .ratio = 5, .seed = 5, .bytes = 5, .choice = 5};
        struct options_result r;
        struct err err = {0};
        assert_int_equal(parse(rows[i].line, &v, &r, &err), STATUS_INVALID);
        assert_string_equal(err.message, rows[i].message);
        assert_true(v.number == 5 && v.ratio == 5 && v.seed == 5 && v.bytes == 5 && v.choice == 5);
        assert_false(v.is_int_given);
    }
}

static void test_options_limits_of_zero_are_no_limits(void **state)
{
    (void)state;
    struct values v = {0};
    struct options_result r;
    assert_int_equal(parse("--any-number -2147483647", &v, &r, NULL), STATUS_OK);
    assert_int_equal(v.number, -2147483647);
    assert_int_equal(parse("--seed 18446744073709551615", &v, &r, NULL), STATUS_OK);
    assert_true(v.seed == UINT64_MAX);
}

static void test_options_come_from_the_environment_unless_given(void **state)
{
    (void)state;
    struct values v = {0};
    struct options_result r;
    struct err err = {0};
    setenv("CAROUSEL_NUMBER", "11", 1);
    setenv("CAROUSEL_SOME_FLAG", "Yes", 1);
    setenv("CAROUSEL_KV_MEMORY", "1M", 1);
    assert_int_equal(parse("--kv-memory 2M", &v, &r, &err), STATUS_OK);
    assert_int_equal(v.number, 11);
    assert_true(v.flag && v.is_int_given);
    assert_int_equal(v.bytes, 2 << 20);

    setenv("CAROUSEL_SOME_FLAG", "off", 1);
    assert_int_equal(parse("", &v, &r, &err), STATUS_OK);
    assert_false(v.flag);
    assert_int_equal(parse("--some-flag", &v, &r, &err), STATUS_OK);
    assert_true(v.flag);
    unsetenv("CAROUSEL_SOME_FLAG");
    unsetenv("CAROUSEL_KV_MEMORY");

    setenv("CAROUSEL_NUMBER", "many", 1);
    assert_int_equal(parse("", &v, &r, &err), STATUS_INVALID);
    assert_string_equal(err.message, "CAROUSEL_NUMBER: 'many' is not a whole number");
    unsetenv("CAROUSEL_NUMBER");
}

static void test_options_read_lists_of_ids(void **state)
{
    (void)state;
    int32_t *ids;
    size_t n;
    struct err err = {0};
    assert_int_equal(options_parse_ids("3, 1,-2 ,2147483647", &ids, &n, &err), STATUS_OK);
    assert_int_equal(n, 4);
    assert_true(ids[0] == 3 && ids[1] == 1 && ids[2] == -2 && ids[3] == INT32_MAX);
    free(ids);
    assert_int_equal(options_parse_ids("5", &ids, &n, &err), STATUS_OK);
    assert_int_equal(n, 1);
    free(ids);

    static const char *const bad[][2] = {
        {"", "''"},
        {"1,", "''"},
        {"1,,2", "',2'"},
        {"1;2", "'1;2'"},
        {"1 2", "'1 2'"},
        {"x", "'x'"},
        {"1,0x10", "'0x10'"},
        {"1.5", "'1.5'"},
        {"2147483648", "'2147483648'"},
        {"99999999999999999999", "'99999999999999999999'"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char message[128];
        snprintf(message, sizeof message, "%s is not a token id; write ids as 1,2,3", bad[i][1]);
        assert_int_equal(options_parse_ids(bad[i][0], &ids, &n, &err), STATUS_INVALID);
        assert_string_equal(err.message, message);
    }
}

static void test_options_read_lists_of_floats(void **state)
{
    (void)state;
    float values[3];
    size_t n = 0;
    struct err err = {0};
    assert_int_equal(options_parse_floats("0.25,0.5,1e-1", values, 3, &n, &err), STATUS_OK);
    assert_int_equal(n, 3);
    assert_true(values[0] == 0.25f && values[1] == 0.5f && values[2] == 0.1f);
    assert_int_equal(options_parse_floats("1,2,3,4", values, 3, &n, &err), STATUS_INVALID);
    assert_string_equal(err.message, "'1,2,3,4' has more than 3 numbers");
    static const char *const bad[] = {"", "0.5,", "a", "0.1;0.2", "nan", "1,inf"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(options_parse_floats(bad[i], values, 3, &n, &err), STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_read_every_type),
        cmocka_unit_test(test_options_take_values_in_each_spelling),
        cmocka_unit_test(test_options_take_sizes_with_units),
        cmocka_unit_test(test_options_keep_positionals_in_order),
        cmocka_unit_test(test_options_notice_a_wish_for_help),
        cmocka_unit_test(test_options_refuse_with_one_line_that_names_the_option),
        cmocka_unit_test(test_options_limits_of_zero_are_no_limits),
        cmocka_unit_test(test_options_come_from_the_environment_unless_given),
        cmocka_unit_test(test_options_read_lists_of_ids),
        cmocka_unit_test(test_options_read_lists_of_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
