/* Measures what the drivers and links cost around the batches, by running the other benchmarks of
 * this program and taking away what is known. */
#include "cli/calibrate.h"
#include "cli/child.h"
#include "cli/sorted.h"
#include "model/json_input.h"
#include "proto/frame.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_ARGS = 48,
    NUMBER_BYTES = 24,
    N_RUNS = 3,
    OUTPUT_TOKENS = 64,
    OVERHEAD_ROWS = 8, /* of the batches whose overhead is taken */
    CHECK_PROMPT = 8,
    RUN_LIMIT_S = 900, /* the slowest model's check takes some minutes */
    CHECK_OUTPUT = 64
};
/* Batches shorter than the first are run by the driver thread itself (worker/worker_output.c), so
 * hand-over is measured on the side of it that the model's are on. */
static const double INLINE_NS = 400e3, SHORT_US = 200, LONG_US = 1000;

/* ---- running ourselves ---------------------------------------------------------------------- */

struct command {
    const char *args[MAX_ARGS];
    char numbers[MAX_ARGS][NUMBER_BYTES];
    int n;
};

static void add(struct command *k, const char *arg)
{
    if (k->n < MAX_ARGS - 1)
        k->args[k->n++] = arg;
}

static void add_number(struct command *k, const char *option, int value)
{
    snprintf(k->numbers[k->n], NUMBER_BYTES, "%d", value);
    const char *text = k->numbers[k->n];
    add(k, option);
    add(k, text);
}

static void show_command(const struct command *k, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < k->n && at < cap; i++)
        at += (size_t)snprintf(out + at, cap - at, "%s%s", i > 0 ? " " : "", k->args[i]);
}

static enum status run_self(const struct calibrate *c, struct command *k, json_t **out,
                            struct err *err)
{
    char line[256];
    add(k, "--json");
    k->args[k->n] = NULL;
    show_command(k, line, sizeof line);
    if (!c->is_quiet)
        fprintf(stderr, "  %s\n", line);
    struct child *child = malloc(sizeof *child);
    if (child == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for what '%s' prints", line);
    k->args[0] = "/proc/self/exe";
    enum status status = child_run(k->args, NULL, RUN_LIMIT_S, child, err);
    if (status == STATUS_OK && child->code != 0)
        status = err_set(err, STATUS_IO, "'%s' failed: %s", line, child->errors);
    if (status == STATUS_OK)
        status = json_input_parse(child->out, strlen(child->out), line, out, err);
    free(child);
    return status;
}

/* ---- figures -------------------------------------------------------------------------------- */

static double number_at(const json_t *object, const char *key, const char *part)
{
    const json_t *value = json_object_get(object, key);
    return json_number_value(part != NULL ? json_object_get(value, part) : value);
}

/* A model with batches of block_us whatever their rows, for the timed backend. */
static enum status save_flat(const struct calibrate *c, double block_us, const char *path,
                             struct err *err)
{
    struct cost_model flat = *c->cost;
    flat.block = (struct cost_curve){1, {1}, {block_us * 1e3}};
    flat.head = (struct cost_curve){1, {1}, {0}};
    flat.kv_position_ns = flat.jitter = 0;
    return cost_model_save(&flat, path, err);
}

struct run {
    const char *cost_file; /* NULL: the real backend */
    int n_workers, n_requests, concurrency, n_prompt, n_output;
};

static enum status run_once(const struct calibrate *c, const struct run *r, json_t **out,
                            struct err *err)
{
    struct command k = {0};
    add(&k, "carousel");
    add(&k, "bench");
    add(&k, "engine");
    add(&k, c->model);
    if (r->cost_file != NULL) {
        add(&k, "--backend");
        add(&k, "timed");
        add(&k, "--cost");
        add(&k, r->cost_file);
    } else {
        add(&k, "--backend");
        add(&k, c->backend);
        add(&k, "--kv-dtype");
        add(&k, c->kv_dtype == DTYPE_BF16 ? "bf16" : "f32");
        add(&k, "--no-verify");
        add_number(&k, "--threads", c->n_threads);
        if (c->isa != NULL) {
            add(&k, "--isa");
            add(&k, c->isa);
        }
    }
    add(&k, "--transport");
    add(&k, c->transport);
    add_number(&k, "--workers", r->n_workers);
    add_number(&k, "-r", r->n_requests);
    add_number(&k, "-c", r->concurrency);
    add_number(&k, "-p", r->n_prompt);
    add_number(&k, "-o", r->n_output);
    return run_self(c, &k, out, err);
}

/* The median over repeated runs of the time of a token. */
static enum status measure_tpot(const struct calibrate *c, const struct run *r, int n_runs,
                                double *tpot_ms, struct err *err)
{
    double all[N_RUNS];
    for (int i = 0; i < n_runs; i++) {
        json_t *result;
        enum status status = run_once(c, r, &result, err);
        if (status != STATUS_OK)
            return status;
        all[i] = number_at(result, "tpot_ms", "p50");
        json_decref(result);
    }
    sorted_doubles(all, (size_t)n_runs);
    *tpot_ms = all[n_runs / 2];
    return STATUS_OK;
}

/* What a batch of a known length took beyond it, from the time of a token through all loops. */
static enum status measure_beyond(const struct calibrate *c, const struct run *r, double block_us,
                                  double *beyond_us, struct err *err)
{
    double tpot_ms;
    enum status status = measure_tpot(c, r, N_RUNS, &tpot_ms, err);
    if (status == STATUS_OK)
        *beyond_us = 1e3 * tpot_ms / c->checkpoint->config.n_loops - block_us;
    return status;
}

static double at_least_zero(double x)
{
    return x > 0 ? x : 0;
}

/* A receiver that slept: drivers do between messages, while their batches run. */
static enum status measure_link(const struct calibrate *c, struct err *err)
{
    struct command k = {0};
    json_t *result;
    add(&k, "carousel");
    add(&k, "bench");
    add(&k, "net");
    add(&k, "--transport");
    add(&k, c->transport);
    add(&k, "--sizes");
    add(&k, "64,1m");
    add(&k, "--iterations");
    add(&k, "200");
    enum status status = run_self(c, &k, &result, err);
    if (status != STATUS_OK)
        return status;
    const json_t *results = json_object_get(result, "results");
    const json_t *small = json_array_get(results, 0), *large = json_array_get(results, 1);
    double bytes = number_at(large, "bytes", NULL) - number_at(small, "bytes", NULL);
    double us = number_at(large, "hop_p50_us", NULL) - number_at(small, "hop_p50_us", NULL);
    /* Threads hand a message over without a copy: as good as infinitely fast, and the file wants a
     * number. */
    double ns_per_byte = us > 0 && bytes > 0 ? us * 1e3 / bytes : 0;
    c->cost->local.latency_ns = 1e3 * number_at(small, "cold_p50_us", NULL);
    c->cost->local.ns_per_byte = ns_per_byte > 1e-3 ? ns_per_byte : 1e-3;
    c->cost->remote = c->cost->local;
    json_decref(result);
    return STATUS_OK;
}

/* Rank 0's processor time for many short requests and for few long ones: two equations. */
static enum status measure_coordinator(const struct calibrate *c, const char *path, struct err *err)
{
    /* Many in flight: where rank 0 is busy, a message brings many tokens. */
    const struct run runs[] = {{path, 2, 512, 256, 4, 1}, {path, 2, 512, 256, 4, 64}};
    double requests[2], tokens[2], cpu_ns[2];
    for (int i = 0; i < 2; i++) {
        json_t *result;
        enum status status = run_once(c, &runs[i], &result, err);
        if (status != STATUS_OK)
            return status;
        requests[i] = runs[i].n_requests;
        tokens[i] = number_at(result, "tokens", NULL);
        cpu_ns[i] = 1e9 * number_at(result, "coordinator_cpu_s", NULL);
        json_decref(result);
    }
    double det = requests[0] * tokens[1] - requests[1] * tokens[0];
    c->cost->coordinator_request_ns =
        at_least_zero((cpu_ns[0] * tokens[1] - cpu_ns[1] * tokens[0]) / det);
    c->cost->coordinator_token_ns =
        at_least_zero((cpu_ns[1] * requests[0] - cpu_ns[0] * requests[1]) / det);
    return STATUS_OK;
}

static enum status measure_overheads(const struct calibrate *c, const char *path, double block_us,
                                     struct err *err)
{
    struct cost_model *m = c->cost;
    const struct run rows = {path, 1, OVERHEAD_ROWS, OVERHEAD_ROWS, 1, OUTPUT_TOKENS};
    const struct run alone = {path, 1, 1, 1, 1, OUTPUT_TOKENS};
    const struct run hops = {path, 2, 1, 1, 1, OUTPUT_TOKENS};
    double overhead_us, alone_us, hop_us;
    enum status status = measure_beyond(c, &rows, block_us, &overhead_us, err);
    if (status == STATUS_OK)
        status = measure_beyond(c, &alone, block_us, &alone_us, err);
    if (status == STATUS_OK)
        status = measure_beyond(c, &hops, block_us, &hop_us, err);
    if (status != STATUS_OK)
        return status;
    m->batch_overhead_ns = 1e3 * at_least_zero(overhead_us);
    /* A hop beyond what a batch costs anyway is the link, and a message with its row out and in. */
    size_t bytes = bundle_header_bytes() +
                   frame_bytes(2, 1, FRAME_LIVE, (uint32_t)c->checkpoint->config.d_model);
    double message_ns = 1e3 * (hop_us - alone_us) - cost_model_link_ns(m, 1, 2, bytes);
    m->worker_message_ns = at_least_zero(message_ns / 2 - m->worker_row_ns);
    return STATUS_OK;
}

enum status calibrate_drivers(const struct calibrate *c, struct err *err)
{
    const char *tmp = getenv("TMPDIR");
    char dir[256], path[300];
    if (snprintf(dir, sizeof dir, "%s/carousel-cost-XXXXXX", tmp != NULL ? tmp : "/tmp") >=
            (int)sizeof dir ||
        mkdtemp(dir) == NULL)
        return err_set(err, STATUS_IO, "cannot make a directory in %s: %s",
                       tmp != NULL ? tmp : "/tmp", strerror(errno));
    snprintf(path, sizeof path, "%s/flat.json", dir);
    double block_us =
        cost_curve_at(&c->cost->block, OVERHEAD_ROWS) < INLINE_NS ? SHORT_US : LONG_US;
    enum status status = measure_link(c, err);
    if (status == STATUS_OK)
        status = save_flat(c, block_us, path, err);
    if (status == STATUS_OK)
        status = measure_overheads(c, path, block_us, err);
    if (status == STATUS_OK)
        status = measure_coordinator(c, path, err);
    unlink(path);
    rmdir(dir);
    return status;
}

/* ---- the check ------------------------------------------------------------------------------ */

/* Full depth, all sequences side by side: a token is T batches of `concurrency` rows, the last of
 * which goes through the head. */
static double predict_tpot_ms(const struct calibrate *c, int concurrency, int n_output)
{
    const struct cost_model *m = c->cost;
    double kv = concurrency * (CHECK_PROMPT + n_output / 2.0),
           loops = c->checkpoint->config.n_loops;
    uint32_t n = (uint32_t)concurrency;
    double plain = cost_model_batch_ns(m, n, kv, 0, NULL) + m->batch_overhead_ns, head;
    cost_model_batch_ns(m, n, kv, n, &head);
    return (loops * plain + head) / 1e6;
}

enum status calibrate_check(const struct calibrate *c, struct calibrate_check *checks,
                            struct err *err)
{
    static const int concurrencies[CALIBRATE_N_CHECKS] = {1, 8};
    for (int i = 0; i < CALIBRATE_N_CHECKS; i++) {
        int n = concurrencies[i], n_output = CHECK_OUTPUT;
        double token_s = predict_tpot_ms(c, n, n_output) / 1e3;
        while (n_output > 4 && n_output * token_s > 4 * c->seconds)
            n_output /= 2;
        const struct run run = {c->blocks, 1, n, n, CHECK_PROMPT, n_output};
        double measured_ms;
        int n_runs = n_output * token_s < 1 ? N_RUNS : 1; /* a long run is its own average */
        enum status status = measure_tpot(c, &run, n_runs, &measured_ms, err);
        if (status != STATUS_OK)
            return status;
        checks[i] =
            (struct calibrate_check){n, n_output, predict_tpot_ms(c, n, n_output), measured_ms};
    }
    return STATUS_OK;
}
