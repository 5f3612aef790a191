/* `carousel bench calibrate`: measures this machine's cost model and writes it as a cost file. */
#include "cli/bench_calibrate.h"

#include "cli/calibrate.h"
#include "cli/cli.h"
#include "cli/cost_file.h"
#include "cli/options.h"
#include "cli/session.h"
#include "cluster/host.h"
#include "kernels/kernels.h"
#include "model/atomic_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =

    "usage: carousel bench calibrate [MODEL] -o FILE [options]\n"
    "Measures what work costs on this machine: a batch by its rows and their KV, the\n"
    "head, hand-over, messages, links, coordinator. FILE is for carousel simulate and\n"
    "for --backend timed --cost FILE. Ends with real runs beside what FILE says of them.";

static const char *const transports[] = {"mpi", "inproc"};

struct calibrate_options {
    const char *output, *model, *blocks;
    char blocks_path[4096];
    bool as_json;
    int kv_dtype, transport;
    struct calibrate c;
};

static enum status take_options(int argc, char **argv, struct calibrate_options *o, bool *is_help,
                                struct err *err)
{
    struct calibrate *c = &o->c;
    const struct option_spec own[] = {
        {"output", 'o', OPTION_STRING, &o->output, "FILE", NULL, 0, 0, "the cost file", NULL},
        {"max-rows", 0, OPTION_INT, &c->max_rows, "N", NULL, 1, 4096, "largest batch (default 256)",
         NULL},
        {"seconds", 0, OPTION_FLOAT, &c->seconds, "S", NULL, 0, 3600,
         "for the batches, at least 5 of each (default 3)", NULL},
        {"threads", 0, OPTION_INT, &c->n_threads, "N", NULL, 1, 1024,
         "compute threads a worker (default: all cores)", NULL},
        {"isa", 0, OPTION_STRING, &c->isa, "LEVEL", NULL, 0, 0,
         "portable, avx2, avx512, amx (default: best)", NULL},
        {"backend", 0, OPTION_STRING, &c->backend, "NAME", NULL, 0, 0, "cpu or cuda", NULL},
        {"kv-dtype", 0, OPTION_CHOICE, &o->kv_dtype, NULL, "auto|f32|bf16", 0, 0,
         "auto: f32 for f32 checkpoints, else bf16", NULL},
        {"transport", 0, OPTION_CHOICE, &o->transport, NULL, "mpi|inproc", 0, 0,
         "of the runs that measure drivers and links", NULL},
        {"blocks", 0, OPTION_STRING, &o->blocks, "FILE", NULL, 0, 0,
         "take batches from that cost file: only the rest is measured", NULL},
        {"json", 0, OPTION_FLAG, &o->as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
    };
    const struct option_group group = {own, sizeof own / sizeof own[0]};
    struct options_result args;
    enum status status = options_parse(&group, 1, argc, argv, &args, err);
    *is_help = status == STATUS_OK && args.wants_help;
    if (*is_help)
        options_print_help(usage, &group, 1, &args);
    if (status == STATUS_OK && !*is_help)
        status = session_take_model(&args, &o->model, err);
    if (status == STATUS_OK && !*is_help && o->output == NULL)
        status = err_set(err, STATUS_INVALID, "no --output FILE to write the costs to");
    if (status == STATUS_OK && strcmp(c->backend, "timed") == 0)
        status =
            err_set(err, STATUS_INVALID,
                    "--backend timed takes its costs from a file; there is nothing to measure");
    if (status == STATUS_OK && strcmp(c->backend, "auto") == 0)
        c->backend = "cpu";
    if (status == STATUS_OK && o->blocks != NULL) {
        status = cost_file_find(o->blocks, o->blocks_path, sizeof o->blocks_path, err);
        o->c.blocks = o->blocks_path;
    }
    return status;
}

/* Found out before minutes of measuring. */
static enum status check_output(const char *path, struct err *err)
{
    struct atomic_file file;
    enum status status = atomic_file_create(&file, path, 0, err);
    if (status == STATUS_OK)
        atomic_file_discard(&file);
    return status;
}

/* The directory's own name, at most cap_bytes - 1 bytes of it, cut between characters. */
static void name_model(const char *path, char *out, size_t cap_bytes)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    size_t n = end - begin;
    if (n >= cap_bytes) {
        n = cap_bytes - 1;
        while (n > 0 && ((unsigned char)path[begin + n] & 0xc0) == 0x80)
            n--;
    }
    memcpy(out, path + begin, n);
    out[n] = '\0';
}

static void name_costs(const struct calibrate *c, struct cost_model *m)
{
    char host[128];
    host_name(host, sizeof host);
    char model[61];
    name_model(c->model, model, sizeof model);
    if (c->blocks != NULL) {
        char blocks[sizeof m->name];
        snprintf(blocks, sizeof blocks, "%s", m->name);
        snprintf(m->name, sizeof m->name, "%.70s; drivers of %.40s", blocks, host);
        snprintf(m->source, sizeof m->source,
                 "carousel %s bench calibrate --blocks %.200s --transport %s; remote links are "
                 "copies of local ones",
                 CAROUSEL_VERSION, c->blocks, c->transport);
        return;
    }
    snprintf(m->name, sizeof m->name, "%s on %.50s", model, host);
    snprintf(m->source, sizeof m->source,
             "carousel %s bench calibrate --threads %d --max-rows %d --kv-dtype %s --transport %s; "
             "instruction set %s; remote links are copies of local ones",
             CAROUSEL_VERSION, c->n_threads, c->max_rows,
             c->kv_dtype == DTYPE_BF16 ? "bf16" : "f32", c->transport,
             strcmp(c->backend, "cuda") == 0 ? "of a GPU"
             : c->isa != NULL                ? c->isa
                                             : kernels_cpu_best_isa());
    snprintf(m->backend, sizeof m->backend, "%s", c->backend);
    m->ranks_per_host = 1;
}

static void print_table(const struct cost_model *m, const struct calibrate_check *checks,
                        const char *output)
{
    uint64_t batch_ns, row_ns;
    cost_model_knee(m, &batch_ns, &row_ns);
    printf("%s: %s\n  rows", output, m->name);
    for (uint32_t i = 0; i < m->block.n_points; i++)
        printf(" %8.0f", m->block.x[i]);
    printf("\n  us  ");
    for (uint32_t i = 0; i < m->block.n_points; i++)
        printf(" %8.1f", m->block.y[i] / 1e3);
    printf("\n  a batch %.1f us, a row %.2f us, knee %.0f rows, jitter %.3f\n",
           (double)batch_ns / 1e3, (double)row_ns / 1e3, (double)batch_ns / (double)row_ns,
           m->jitter);
    printf("  KV %.4f us a position, head %.1f us for one row, %.1f us for %.0f\n",
           m->kv_position_ns / 1e3, m->head.y[0] / 1e3, m->head.y[m->head.n_points - 1] / 1e3,
           m->head.x[m->head.n_points - 1]);
    printf("  overhead %.1f us a batch; worker %.1f us a message, %.2f us a row in it\n",
           m->batch_overhead_ns / 1e3, m->worker_message_ns / 1e3, m->worker_row_ns / 1e3);
    printf("  coordinator %.1f us a request, %.1f us a token; link %.1f us, %.1f GB/s\n",
           m->coordinator_request_ns / 1e3, m->coordinator_token_ns / 1e3,
           m->local.latency_ns / 1e3, 1 / m->local.ns_per_byte);
    for (int i = 0; i < CALIBRATE_N_CHECKS; i++)
        printf("  check, %d in flight: TPOT %.3f ms predicted, %.3f ms measured, ratio %.2f\n",
               checks[i].concurrency, checks[i].predicted_tpot_ms, checks[i].measured_tpot_ms,
               checks[i].predicted_tpot_ms / checks[i].measured_tpot_ms);
}

static void print_json(const struct cost_model *m, const struct calibrate_check *checks,
                       const char *output)
{
    uint64_t batch_ns, row_ns;
    cost_model_knee(m, &batch_ns, &row_ns);
    json_t *list = json_array();
    for (int i = 0; i < CALIBRATE_N_CHECKS; i++)
        json_array_append_new(list,
                              json_pack("{s:i, s:i, s:f, s:f, s:f}", "concurrency",
                                        checks[i].concurrency, "output_tokens", checks[i].n_output,
                                        "predicted_tpot_ms", checks[i].predicted_tpot_ms,
                                        "measured_tpot_ms", checks[i].measured_tpot_ms, "ratio",
                                        checks[i].predicted_tpot_ms / checks[i].measured_tpot_ms));
    json_t *root =
        json_pack("{s:s, s:f, s:f, s:o}", "file", output, "batch_us", (double)batch_ns / 1e3,
                  "row_us", (double)row_ns / 1e3, "checks", list);
    char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    puts(text != NULL ? text : "{}");
    free(text);
    json_decref(root);
}

int cli_bench_calibrate(int argc, char **argv)
{
    struct cost_model cost = {0};
    struct calibrate_check checks[CALIBRATE_N_CHECKS];
    struct calibrate_options o = {
        .c = {.backend = "cpu", .max_rows = 256, .seconds = 3, .cost = &cost}};
    struct calibrate *c = &o.c;
    struct err err = {0};
    bool is_help = false;
    if (take_options(argc, argv, &o, &is_help, &err) != STATUS_OK)
        return cli_fail_usage("bench calibrate", &err);
    if (is_help)
        return CLI_OK;
    char demo[4096];
    struct checkpoint *checkpoint = NULL;
    c->model = o.model;
    c->transport = transports[o.transport];
    c->is_quiet = o.as_json;
    if (c->n_threads == 0)
        c->n_threads = host_n_cores();
    enum status status = check_output(o.output, &err);
    if (status == STATUS_OK && o.model == NULL) {
        status = session_find_demo(demo, sizeof demo, &err);
        c->model = demo;
    }
    if (status == STATUS_OK)
        status = checkpoint_open(c->model, 0, &checkpoint, &err);
    if (status == STATUS_OK) {
        bool is_f32 = o.kv_dtype == 1 || (o.kv_dtype == 0 && checkpoint->dtype == DTYPE_F32);
        c->kv_dtype = is_f32 && strcmp(c->backend, "cuda") != 0 ? DTYPE_F32 : DTYPE_BF16;
        c->checkpoint = checkpoint;
        if (c->blocks != NULL)
            status = cost_model_load(c->blocks, &cost, &err);
    }
    if (status == STATUS_OK) {
        name_costs(c, &cost);
        status = calibrate_replica(c, &err);
    }
    if (status == STATUS_OK)
        status = calibrate_drivers(c, &err);
    if (status == STATUS_OK) /* before the check: the file is good if that fails */
        status = cost_model_save(&cost, o.output, &err);
    if (status == STATUS_OK)
        status = calibrate_check(c, checks, &err);
    checkpoint_close(checkpoint);
    if (status != STATUS_OK)
        return cli_fail("bench calibrate", &err);
    if (o.as_json)
        print_json(&cost, checks, o.output);
    else
        print_table(&cost, checks, o.output);
    return CLI_OK;
}
