/* Times decoding steps and prompts on one replica beside the bandwidth and the rate of
 * multiplications measured in the same run. */
#include "cli/bench_replica.h"

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/replica_batches.h"
#include "cli/session.h"
#include "cli/sorted.h"
#include "cluster/host.h"
#include "kernels/kernels.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: carousel bench replica [MODEL] [options]\n"
    "Runs batches on one replica, without an engine around it: decoding steps of some numbers\n"
    "of sequences, and one long prompt, all through all loops. Each figure stands beside its\n"
    "bound: bytes of weights and KV over the measured bandwidth, or arithmetic over the\n"
    "measured rate of products.";

enum { BLOCK_SIZE = 16, MAX_CASES = 16, MAX_REPEATS = 256 };
#define HOST_KV_BYTES (UINT64_C(1) << 30)

struct decode_result {
    uint32_t n_sequences, context;
    double step_ms, least_ms, most_ms; /* median and range of a step: one token of each sequence */
    double ahead_ms;                   /* median, when the next batch is submitted ahead */
    double bytes, bound_ms;
};

struct bench {
    const char *model, *backend, *isa, *sequences;
    char model_dir[4096];
    int n_threads, device, kv_dtype, context, n_prefill, chunk, n_repeats;
    uint64_t kv_bytes;
    bool is_deterministic, as_json;

    struct checkpoint *checkpoint;
    struct kernels_machine machine;
    bool is_device;
    char name[32], level[32];
    enum dtype kv;
    struct replica *replica;
    struct replica_batches *batches;
    uint32_t counts[MAX_CASES];
    size_t n_counts;
    struct decode_result decode[MAX_CASES];
    double prefill_s, prefill_flops;
    uint32_t n_prefill_tokens;
    double load_s;
    struct replica_geometry geometry;
};

/* ---- what the work weighs ------------------------------------------------------------------- */

/* Elements of the block's matrices: read once a batch. */
static double block_elements(const struct model_config *m)
{
    double d = m->d_model, heads = (double)m->n_heads * m->head_dim;
    double kv = (double)m->n_kv_heads * m->head_dim;
    return m->n_layers * (2 * d * heads + 2 * d * kv + 3 * d * m->d_ffn);
}

static double element_bytes(const struct bench *b)
{
    return b->is_device ? 2 : (double)dtype_bytes(b->checkpoint->dtype);
}

/* A step: the block's weights once a loop, the head's once, and every sequence's K and V. */
static double step_bytes(const struct bench *b, uint32_t n_sequences, uint32_t context)
{
    const struct model_config *m = &b->checkpoint->config;
    double weights = m->n_loops * block_elements(m) + (double)m->vocab_size * m->d_model;
    double kv =
        (double)m->n_loops * n_sequences * context * (double)config_kv_bytes_per_position(m, b->kv);
    return weights * element_bytes(b) + kv;
}

/* Products of the linears, and of scores and values under the causal mask. */
static double prefill_flops(const struct model_config *m, double n)
{
    double attention = 4.0 * m->n_layers * m->n_heads * m->head_dim * (n * (n + 1) / 2);
    return m->n_loops * (2 * block_elements(m) * n + attention);
}

static double bandwidth(const struct bench *b)
{
    return 1e9 * (b->is_device ? b->machine.copy_gbytes_s : b->machine.read_gbytes_s);
}

static double product_rate(const struct bench *b)
{
    return b->is_device ? 1e12 * b->machine.matrix_tflops : 1e9 * b->machine.peak_gflops;
}

/* ---- options -------------------------------------------------------------------------------- */

static enum status take_counts(struct bench *b, struct err *err)
{
    int32_t *counts;
    size_t n;
    enum status status = options_parse_ids(b->sequences, &counts, &n, err);
    if (status != STATUS_OK)
        return err_wrap(err, "--sequences");
    if (n == 0 || n > MAX_CASES)
        status =
            err_set(err, STATUS_INVALID, "--sequences: %zu numbers; give 1 to %d", n, MAX_CASES);
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        if (counts[i] < 1 || counts[i] > 4096)
            status = err_set(err, STATUS_INVALID, "--sequences: %d is outside 1..4096", counts[i]);
        else
            b->counts[b->n_counts++] = (uint32_t)counts[i];
    }
    free(counts);
    return status;
}

static enum status take_options(int argc, char **argv, struct bench *b, bool *is_help,
                                struct err *err)
{
    const struct option_spec own[] = {
        {"sequences", 0, OPTION_STRING, &b->sequences, "N,N,..", NULL, 0, 0,
         "decoding at the same time (default 1,64)", NULL},
        {"context", 0, OPTION_INT, &b->context, "N", NULL, 1, 1 << 20,
         "positions of each when it decodes; less where KV memory ends (default 2048)", NULL},
        {"prefill", 0, OPTION_INT, &b->n_prefill, "N", NULL, 0, 1 << 20,
         "tokens of the prompt; 0: none (default 8192)", NULL},
        {"chunk", 0, OPTION_INT, &b->chunk, "N", NULL, 1, 65536,
         "rows of a prompt in one batch (default 2048)", NULL},
        {"repeats", 0, OPTION_INT, &b->n_repeats, "N", NULL, 1, MAX_REPEATS,
         "steps of each kind; medians are shown (default 20)", NULL},
        {"backend", 0, OPTION_STRING, &b->backend, "NAME", NULL, 0, 0, "auto, cpu or cuda", NULL},
        {"device", 0, OPTION_INT, &b->device, "N", NULL, 0, 1023, "GPU by its number (default 0)",
         NULL},
        {"deterministic", 0, OPTION_FLAG, &b->is_deterministic, NULL, NULL, 0, 0,
         "GPU: one order of additions for any batch", NULL},
        {"threads", 0, OPTION_INT, &b->n_threads, "N", NULL, 1, 1024,
         "CPU: compute threads (default: all cores)", NULL},
        {"isa", 0, OPTION_STRING, &b->isa, "LEVEL", NULL, 0, 0,
         "CPU: portable, avx2, avx512, amx (default: best)", NULL},
        {"kv-dtype", 0, OPTION_CHOICE, &b->kv_dtype, NULL, "auto|f32|bf16", 0, 0,
         "auto: f32 for f32 checkpoints on the CPU, else bf16", NULL},
        {"kv-memory", 0, OPTION_BYTES, &b->kv_bytes, "BYTES", NULL, 0, 0,
         "for KV and rows (default: what the largest case needs, at most 1 GiB on the CPU)", NULL},
        {"json", 0, OPTION_FLAG, &b->as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
    };
    const struct option_group group = {own, sizeof own / sizeof own[0]};
    struct options_result args;
    enum status status = options_parse(&group, 1, argc, argv, &args, err);
    *is_help = status == STATUS_OK && args.wants_help;
    if (*is_help) {
        options_print_help(usage, &group, 1, &args);
        return STATUS_OK;
    }
    if (status == STATUS_OK)
        status = session_take_model(&args, &b->model, err);
    if (status == STATUS_OK && strcmp(b->backend, "timed") == 0)
        status = err_set(err, STATUS_INVALID,
                         "--backend timed waits instead of computing; there is nothing to measure");
    if (status == STATUS_OK)
        status = take_counts(b, err);
    return status;
}

/* ---- measuring ------------------------------------------------------------------------------ */

/* Before the replica takes the memory. */
static enum status measure_machine(struct bench *b, struct kernels_memory *memory, struct err *err)
{
    struct kernels_options options = {.isa = b->isa,
                                      .n_threads = b->n_threads,
                                      .device = b->device,
                                      .is_deterministic = b->is_deterministic};
    struct kernels *k;
    enum status status = kernels_create(b->backend, &options, &k, err);
    if (status != STATUS_OK)
        return status;
    snprintf(b->name, sizeof b->name, "%s", kernels_name(k));
    snprintf(b->level, sizeof b->level, "%s", kernels_isa(k));
    b->is_device = strcmp(b->name, "cpu") != 0;
    status = kernels_measure_machine(k, &b->machine, err);
    if (status == STATUS_OK)
        status = kernels_device_memory(k, memory, err);
    kernels_destroy(k);
    return status;
}

/* KV memory for the largest case, within what there is. */
static uint64_t plan_kv_bytes(const struct bench *b, const struct kernels_memory *memory)
{
    const struct model_config *m = &b->checkpoint->config;
    uint64_t position = config_kv_bytes_per_position(m, b->kv) + (uint64_t)m->d_model * 4;
    uint64_t context = (uint64_t)(b->context < m->max_positions ? b->context : m->max_positions);
    context = (context + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE; /* a lane has whole blocks */
    uint64_t positions = (uint64_t)b->n_prefill;
    for (size_t i = 0; i < b->n_counts; i++)
        if (b->counts[i] * context > positions)
            positions = b->counts[i] * context;
    uint64_t need = (positions + BLOCK_SIZE) * (uint64_t)m->n_loops * position;
    uint64_t most = HOST_KV_BYTES;
    if (b->is_device) {
        /* Weights in bf16, activations of the largest batch, and what the driver keeps. */
        uint64_t weights = 2 * config_count_parameters(m), spare = UINT64_C(2) << 30;
        uint64_t room = memory->free_bytes / 100 * 97;
        most = room > weights + spare ? room - weights - spare : memory->free_bytes / 4;
    }
    return need < most ? need : most;
}

static enum status open_replica(struct bench *b, struct err *err)
{
    struct kernels_memory memory = {0};
    enum status status = measure_machine(b, &memory, err);
    if (status != STATUS_OK)
        return status;
    b->kv = b->kv_dtype == 1                    ? DTYPE_F32
            : b->kv_dtype == 2                  ? DTYPE_BF16
            : b->is_device                      ? DTYPE_BF16
            : b->checkpoint->dtype == DTYPE_F32 ? DTYPE_F32
                                                : DTYPE_BF16;
    if (b->n_prefill > b->checkpoint->config.max_positions)
        b->n_prefill = b->checkpoint->config.max_positions;
    uint32_t max_rows = (uint32_t)(b->chunk < b->n_prefill ? b->chunk : b->n_prefill);
    uint32_t most = 1;
    for (size_t i = 0; i < b->n_counts; i++)
        most = b->counts[i] > most ? b->counts[i] : most;
    if (max_rows < most)
        max_rows = most;
    int n_threads = b->n_threads > 0 ? b->n_threads : host_n_cores();
    struct replica_config config = {.backend = b->backend,
                                    .isa = b->isa,
                                    .device = b->device,
                                    .is_deterministic = b->is_deterministic,
                                    .n_threads = n_threads,
                                    .may_spin = n_threads <= host_n_cores(),
                                    .kv_dtype = b->kv,
                                    .kv_bytes =
                                        b->kv_bytes != 0 ? b->kv_bytes : plan_kv_bytes(b, &memory),
                                    .block_size = BLOCK_SIZE,
                                    .max_batch_rows = max_rows,
                                    .max_sequences = most};
    uint64_t began_ns = host_now_ns();
    status = replica_create(b->checkpoint, &config, &b->replica, err);
    b->load_s = (double)(host_now_ns() - began_ns) * 1e-9;
    if (status == STATUS_OK)
        status = replica_fill_kv(b->replica, err);
    if (status != STATUS_OK)
        return status;
    b->geometry = *replica_get_geometry(b->replica);
    return replica_batches_create(b->replica, &b->checkpoint->config, max_rows, &b->batches, err);
}

/* Steps in both ways in turn: what slows the machine down for a while slows both. */
static enum status run_decode(struct bench *b, uint32_t n_sequences, struct decode_result *r,
                              struct err *err)
{
    uint32_t room = replica_batches_context(b->batches, n_sequences);
    uint32_t context = (uint32_t)b->context < room ? (uint32_t)b->context : room;
    if (context == 0)
        return err_set(err, STATUS_NO_MEMORY,
                       "%u sequences at %d loops have no KV block each: %u blocks; give more with "
                       "--kv-memory",
                       n_sequences, b->checkpoint->config.n_loops, b->geometry.n_blocks);
    double serial[MAX_REPEATS], ahead[MAX_REPEATS], ns;
    enum status status = STATUS_OK;
    for (int i = 0; i < 2 && status == STATUS_OK; i++) /* recorded and warm */
        status = replica_batches_decode(b->batches, n_sequences, context, i == 1, &ns, err);
    for (int i = 0; i < b->n_repeats && status == STATUS_OK; i++) {
        status = replica_batches_decode(b->batches, n_sequences, context, false, &serial[i], err);
        if (status == STATUS_OK)
            status = replica_batches_decode(b->batches, n_sequences, context, true, &ahead[i], err);
    }
    if (status != STATUS_OK)
        return status;
    size_t n = (size_t)b->n_repeats;
    sorted_doubles(serial, n);
    sorted_doubles(ahead, n);
    double bytes = step_bytes(b, n_sequences, context);
    *r = (struct decode_result){.n_sequences = n_sequences,
                                .context = context,
                                .step_ms = serial[n / 2] * 1e-6,
                                .least_ms = serial[0] * 1e-6,
                                .most_ms = serial[n - 1] * 1e-6,
                                .ahead_ms = ahead[n / 2] * 1e-6,
                                .bytes = bytes,
                                .bound_ms = bytes / bandwidth(b) * 1e3};
    return STATUS_OK;
}

static enum status run_prefill(struct bench *b, struct err *err)
{
    if (b->n_prefill == 0)
        return STATUS_OK;
    uint32_t room = replica_batches_context(b->batches, 1);
    uint32_t n = (uint32_t)b->n_prefill < room ? (uint32_t)b->n_prefill : room;
    uint32_t chunk = (uint32_t)b->chunk < n ? (uint32_t)b->chunk : n;
    int n_repeats = b->n_repeats < 3 ? b->n_repeats : 3;
    double took[3];
    enum status status = STATUS_OK;
    if (b->is_device) /* algorithms are chosen, buffers touched */
        status = replica_batches_prefill(b->batches, n, chunk, true, &took[0], err);
    for (int i = 0; i < n_repeats && status == STATUS_OK; i++)
        status = replica_batches_prefill(b->batches, n, chunk, true, &took[i], err);
    if (status != STATUS_OK)
        return status;
    sorted_doubles(took, (size_t)n_repeats);
    b->n_prefill_tokens = n;
    b->prefill_s = took[n_repeats / 2] * 1e-9;
    b->prefill_flops = prefill_flops(&b->checkpoint->config, n);
    return STATUS_OK;
}

/* ---- the report ----------------------------------------------------------------------------- */

static void print_text(const struct bench *b)
{
    const struct kernels_machine *m = &b->machine;
    int n_loops = b->checkpoint->config.n_loops;
    printf("%s, %s, %d loops; replica ready in %.2f s; %u KV blocks of %d\n", b->name, b->level,
           n_loops, b->load_s, b->geometry.n_blocks, BLOCK_SIZE);
    if (b->is_device)
        printf("copy %.0f GB/s, read %.0f GB/s, bf16 products %.0f TFLOP/s, upload %.1f GB/s, "
               "launch and back %.1f us\n",
               m->copy_gbytes_s, m->read_gbytes_s, m->matrix_tflops, m->upload_gbytes_s,
               m->launch_us);
    else
        printf("read %.1f GB/s, peak %.0f GFLOP/s\n", m->read_gbytes_s, m->peak_gflops);
    printf("%10s %8s %10s %19s %10s %9s %10s %9s %10s\n", "sequences", "context", "step ms",
           "range", "bound ms", "of bound", "ahead ms", "host gap", "tokens/s");
    for (size_t i = 0; i < b->n_counts; i++) {
        const struct decode_result *r = &b->decode[i];
        printf("%10u %8u %10.3f %8.3f .. %7.3f %10.3f %9.3f %10.3f %9.4f %10.1f\n", r->n_sequences,
               r->context, r->step_ms, r->least_ms, r->most_ms, r->bound_ms,
               r->bound_ms / r->step_ms, r->ahead_ms, 1 - r->ahead_ms / r->step_ms,
               r->n_sequences / r->step_ms * 1e3);
    }
    if (b->prefill_s > 0)
        printf("prefill %u tokens: %.3f s, %.1f tokens/s, %.2f TFLOP/s, %.3f of the rate of "
               "products\n",
               b->n_prefill_tokens, b->prefill_s, b->n_prefill_tokens / b->prefill_s,
               b->prefill_flops / b->prefill_s * 1e-12,
               b->prefill_flops / b->prefill_s / product_rate(b));
}

static int print_json(const struct bench *b)
{
    const struct kernels_machine *m = &b->machine;
    json_t *decode = json_array();
    for (size_t i = 0; i < b->n_counts; i++) {
        const struct decode_result *r = &b->decode[i];
        json_array_append_new(
            decode,
            json_pack("{s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "sequences",
                      (int)r->n_sequences, "context", (int)r->context, "step_ms", r->step_ms,
                      "step_ms_min", r->least_ms, "step_ms_max", r->most_ms, "ahead_ms",
                      r->ahead_ms, "bytes", r->bytes, "bound_ms", r->bound_ms, "of_bound",
                      r->bound_ms / r->step_ms, "host_gap", 1 - r->ahead_ms / r->step_ms,
                      "tokens_per_s", r->n_sequences / r->step_ms * 1e3));
    }
    json_t *machine = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "read_gbytes_s", m->read_gbytes_s,
                                "peak_gflops", m->peak_gflops, "copy_gbytes_s", m->copy_gbytes_s,
                                "matrix_tflops", m->matrix_tflops, "upload_gbytes_s",
                                m->upload_gbytes_s, "launch_us", m->launch_us);
    json_t *root =
        json_pack("{s:s, s:s, s:b, s:i, s:f, s:o, s:o}", "backend", b->name, "level", b->level,
                  "is_deterministic", b->is_deterministic, "loops", b->checkpoint->config.n_loops,
                  "ready_s", b->load_s, "machine", machine, "decode", decode);
    if (root != NULL && b->prefill_s > 0)
        json_object_set_new(root, "prefill",
                            json_pack("{s:i, s:i, s:f, s:f, s:f}", "tokens",
                                      (int)b->n_prefill_tokens, "chunk", b->chunk, "seconds",
                                      b->prefill_s, "tflops",
                                      b->prefill_flops / b->prefill_s * 1e-12, "of_rate",
                                      b->prefill_flops / b->prefill_s / product_rate(b)));
    if (root == NULL || json_dumpf(root, stdout, JSON_INDENT(1)) != 0) {
        json_decref(root);
        fprintf(stderr, "carousel bench replica: no memory for the report\n");
        return CLI_FAILURE;
    }
    putchar('\n');
    json_decref(root);
    return CLI_OK;
}

int cli_bench_replica(int argc, char **argv)
{
    struct bench b = {.backend = "auto",
                      .sequences = "1,64",
                      .context = 2048,
                      .n_prefill = 8192,
                      .chunk = 2048,
                      .n_repeats = 20};
    struct err err = {0};
    bool is_help = false;
    enum status status = take_options(argc, argv, &b, &is_help, &err);
    if (is_help)
        return CLI_OK;
    if (status != STATUS_OK) {
        fprintf(stderr, "carousel bench replica: %s\n", err.message);
        return CLI_USAGE;
    }
    if (b.model == NULL)
        status = session_find_demo(b.model_dir, sizeof b.model_dir, &err);
    if (status == STATUS_OK)
        status = checkpoint_open(b.model != NULL ? b.model : b.model_dir, 0, &b.checkpoint, &err);
    if (status == STATUS_OK)
        status = open_replica(&b, &err);
    for (size_t i = 0; i < b.n_counts && status == STATUS_OK; i++)
        status = run_decode(&b, b.counts[i], &b.decode[i], &err);
    if (status == STATUS_OK)
        status = run_prefill(&b, &err);
    int code = CLI_OK;
    if (status != STATUS_OK) {
        fprintf(stderr, "carousel bench replica: %s\n", err.message);
        code = CLI_FAILURE;
    } else if (b.as_json) {
        code = print_json(&b);
    } else {
        print_text(&b);
    }
    replica_batches_destroy(b.batches);
    replica_destroy(b.replica);
    checkpoint_close(b.checkpoint);
    return code;
}
