/* `carousel bench tokenizer`: how fast a text becomes ids and ids become text. */
#include "cli/bench_tokenizer.h"

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/sorted.h"
#include "cluster/host.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { RUNS = 5 };

static const char usage[] =
    "usage: carousel bench tokenizer MODEL -i FILE [--json]\n"
    "Encodes the text in FILE and decodes it again, one thread; MODEL is a directory\n"
    "with tokenizer.json, or that file itself.";

struct tokenizer_figures {
    size_t n_bytes, n_ids, n_dropped;
    double encode_mb_s, decode_mb_s; /* medians */
};

static enum status read_file(const char *path, char **out, size_t *n, struct err *err)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return err_set(err, STATUS_NOT_FOUND, "cannot read %s: %m", path);
    struct stat st;
    char *text = fstat(fileno(file), &st) == 0 ? malloc((size_t)st.st_size + 1) : NULL;
    if (text != NULL)
        *n = fread(text, 1, (size_t)st.st_size, file);
    fclose(file);
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the text of %s", path);
    if (*n == 0) {
        free(text);
        return err_set(err, STATUS_INVALID, "%s is empty", path);
    }
    *out = text;
    return STATUS_OK;
}

static double median(double *seconds)
{
    sorted_doubles(seconds, RUNS);
    return seconds[RUNS / 2];
}

static enum status measure(const struct tokenizer *t, const char *text, size_t n,
                           struct tokenizer_figures *out, struct err *err)
{
    double encode[RUNS], decode[RUNS];
    for (int run = 0; run < RUNS; run++) {
        int32_t *ids;
        size_t n_ids;
        uint64_t began_ns = host_now_ns();
        enum status status = tokenizer_encode(t, text, n, 0, &ids, &n_ids, &out->n_dropped, err);
        if (status != STATUS_OK)
            return status;
        uint64_t encoded_ns = host_now_ns();
        struct detokenizer d;
        detokenizer_init(&d, t, false);
        char piece[DETOKENIZER_MAX_BYTES];
        for (size_t i = 0; i < n_ids; i++)
            detokenizer_push(&d, ids[i], piece, sizeof piece);
        decode[run] = (double)(host_now_ns() - encoded_ns) / 1e9;
        encode[run] = (double)(encoded_ns - began_ns) / 1e9;
        out->n_ids = n_ids;
        free(ids);
    }
    out->n_bytes = n;
    out->encode_mb_s = (double)n / 1e6 / median(encode);
    out->decode_mb_s = (double)n / 1e6 / median(decode);
    return STATUS_OK;
}

static enum status run(const char *model, const char *path, struct tokenizer_figures *out,
                       struct err *err)
{
    char file[4096];
    struct stat st;
    bool is_dir = stat(model, &st) == 0 && S_ISDIR(st.st_mode);
    snprintf(file, sizeof file, "%s%s", model, is_dir ? "/tokenizer.json" : "");
    struct tokenizer *t;
    enum status status = tokenizer_load(file, &t, err);
    if (status != STATUS_OK)
        return status;
    char *text = NULL;
    size_t n = 0;
    status = read_file(path, &text, &n, err);
    if (status == STATUS_OK)
        status = measure(t, text, n, out, err);
    free(text);
    tokenizer_free(t);
    return status;
}

int cli_bench_tokenizer(int argc, char **argv)
{
    const char *path = NULL;
    bool as_json = false;
    const struct option_spec own[] = {
        {"input", 'i', OPTION_STRING, &path, "FILE", NULL, 0, 0, "the text", NULL},
        {"json", 0, OPTION_FLAG, &as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
    };
    struct option_group group = {own, sizeof own / sizeof own[0]};
    struct options_result args;
    struct err err = {0};
    enum status status = options_parse(&group, 1, argc, argv, &args, &err);
    if (status == STATUS_OK && args.wants_help) {
        options_print_help(usage, &group, 1, &args);
        return CLI_OK;
    }
    if (status == STATUS_OK && (args.n_positionals != 1 || path == NULL))
        status = err_set(&err, STATUS_INVALID, "it needs one MODEL and a text: MODEL -i FILE");
    if (status != STATUS_OK)
        return cli_fail_usage("bench tokenizer", &err);
    struct tokenizer_figures f = {0};
    if (run(args.positionals[0], path, &f, &err) != STATUS_OK)
        return cli_fail("bench tokenizer", &err);
    if (as_json)
        printf("{\"bytes\": %zu, \"tokens\": %zu, \"dropped_bytes\": %zu, \"encode_mb_s\": %.3f, "
               "\"decode_mb_s\": %.3f}\n",
               f.n_bytes, f.n_ids, f.n_dropped, f.encode_mb_s, f.decode_mb_s);
    else
        printf("%zu bytes, %zu tokens, %zu bytes without a token; medians of %d runs: encode %.1f "
               "MB/s, decode %.1f MB/s\n",
               f.n_bytes, f.n_ids, f.n_dropped, RUNS, f.encode_mb_s, f.decode_mb_s);
    return CLI_OK;
}
