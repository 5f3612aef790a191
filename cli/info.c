/* `carousel info`: what a model is, what it weighs, and how much of it fits here. */
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/session.h"
#include "cluster/host.h"
#include "coordinator/coordinator.h"
#include "model/checkpoint.h"
#include "worker/kv_sizing.h"
#include "worker/replica.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =

    "usage: carousel info [MODEL] [options]\n"
    "Prints dimensions, parameters, bytes, KV per token, and what fits in this host's\n"
    "memory.";

/* "2.869 GB", "453.6 kB": decimal units, as disks and links are sold. */
static const char *human_bytes(double bytes, char *out, size_t cap_bytes)
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    size_t unit = 0;
    for (; bytes >= 1000 && unit + 1 < sizeof units / sizeof units[0]; unit++)
        bytes /= 1000;
    snprintf(out, cap_bytes, unit == 0 ? "%.0f %s" : "%.4g %s", bytes, units[unit]);
    return out;
}

enum { DEFAULT_SEQUENCES = 256, ANY_NUMBER = 1 << 20 };

/* How many positions (at all loops) the pools of n_workers on this host hold together, when they
 * are sized for n_sequences and for what memory allows. */
static uint64_t positions_that_fit(const struct checkpoint *cp, enum dtype kv, int n_workers,
                                   uint32_t n_sequences)
{
    uint64_t kv_bytes = coordinator_auto_kv_bytes(&cp->config, kv, host_memory_available_bytes(),
                                                  (uint32_t)n_workers, n_sequences);
    struct replica_config config = {
        .kv_dtype = kv, .kv_bytes = kv_bytes, .block_size = 16, .max_batch_rows = 256};
    struct replica_geometry geometry;
    if (replica_plan(&cp->config, &config, &geometry, NULL) != STATUS_OK)
        return 0;
    /* All workers of a ring together hold one loop of a position in each of their blocks. */
    return (uint64_t)geometry.n_blocks * geometry.block_size * (uint64_t)n_workers /
           (uint64_t)cp->config.n_loops;
}

/* The same for one worker with a GPU of its own, nobody else being there. */
static uint64_t positions_on_gpu(const struct checkpoint *cp, const struct kernels_device *gpu)
{
    struct replica_config config = {
        .kv_dtype = DTYPE_BF16, .kv_bytes = UINT64_MAX, .block_size = 16, .max_batch_rows = 1024};
    struct replica_geometry geometry;
    if (replica_plan(&cp->config, &config, &geometry, NULL) != STATUS_OK)
        return 0;
    const struct kv_sizing sizing = {
        .total_bytes = gpu->total_bytes,
        .free_bytes = gpu->total_bytes,
        .weight_bytes = config_count_parameters(&cp->config) * dtype_bytes(DTYPE_BF16),
        .workspace_bytes = geometry.workspace_bytes,
        .n_sharing = 1,
    };
    if (kv_sizing_choose(&sizing, &config.kv_bytes, NULL) != STATUS_OK ||
        replica_plan(&cp->config, &config, &geometry, NULL) != STATUS_OK)
        return 0;
    return (uint64_t)geometry.n_blocks * geometry.block_size / (uint64_t)cp->config.n_loops;
}

static json_t *gpus_json(const struct checkpoint *cp)
{
    json_t *list = json_array();
    struct kernels_device d;
    for (int i = 0; i < kernels_cuda_devices(); i++)
        if (kernels_cuda_device(i, &d, NULL) == STATUS_OK)
            json_array_append_new(
                list, json_pack("{s:s, s:i, s:i, s:I, s:I}", "name", d.name, "major", d.major,
                                "minor", d.minor, "memory_bytes", (json_int_t)d.total_bytes,
                                "positions_that_fit", (json_int_t)positions_on_gpu(cp, &d)));
    return list;
}

static void print_json(const struct checkpoint *cp, enum dtype kv)
{
    const struct model_config *c = &cp->config;
    char fingerprint[20];
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)cp->fingerprint);
    json_t *fits = json_object();
    static const char *const names[] = {"1", "2", "4", "8"};
    for (int i = 0; i < 4; i++)
        json_object_set_new(
            fits, names[i],
            json_integer((json_int_t)positions_that_fit(cp, kv, 1 << i, DEFAULT_SEQUENCES)));
    json_t *root = json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:b, s:I, s:I, s:s, s:s, s:I, "
        "s:I, "
        "s:I, s:o, s:o}",
        "architecture", c->architecture, "layers", c->n_layers, "d_model", c->d_model, "d_ffn",
        c->d_ffn, "heads", c->n_heads, "kv_heads", c->n_kv_heads, "head_dim", c->head_dim,
        "vocab_size", c->vocab_size, "loops", c->n_loops, "max_positions", c->max_positions, "gate",
        c->has_gate, "tied", c->is_tied, "parameters", (json_int_t)config_count_parameters(c),
        "bytes", (json_int_t)cp->len_bytes, "dtype", dtype_name(cp->dtype), "fingerprint",
        fingerprint, "kv_bytes_per_position_and_loop",
        (json_int_t)config_kv_bytes_per_position(c, kv), "kv_bytes_per_position",
        (json_int_t)((size_t)c->n_loops * config_kv_bytes_per_position(c, kv)),
        "memory_available_bytes", (json_int_t)host_memory_available_bytes(),
        "positions_that_fit_by_workers", fits, "gpus", gpus_json(cp));
    char *text = json_dumps(root, JSON_INDENT(1));
    puts(text != NULL ? text : "{}");
    free(text);
    json_decref(root);
}

static void print_text(const char *dir, const struct checkpoint *cp, enum dtype kv)
{
    const struct model_config *c = &cp->config;
    double per_loop = (double)config_kv_bytes_per_position(c, kv);
    char size[32];
    printf("%s: %s\n", dir, c->architecture);
    printf("  block        %d layers x %d loops, width %d, ffn %d, %d heads (%d kv) of %d\n",
           c->n_layers, c->n_loops, c->d_model, c->d_ffn, c->n_heads, c->n_kv_heads, c->head_dim);
    printf("  vocabulary   %d%s, context %d, rope theta %g\n", c->vocab_size,
           c->is_tied ? " (tied head)" : "", c->max_positions, c->rope_theta);
    printf("  exit         %s, threshold of the file %g\n",
           c->has_gate ? "gate after every loop" : "no gate: all loops always", c->exit_threshold);
    printf("  weights      %llu parameters, %s of %s\n  fingerprint  %016llx\n",
           (unsigned long long)config_count_parameters(c),
           human_bytes((double)cp->len_bytes, size, sizeof size), dtype_name(cp->dtype),
           (unsigned long long)cp->fingerprint);
    printf("  KV (%s)%*s%.0f bytes a position and loop, %.0f at %d loops; parked row %d\n",
           dtype_name(kv), (int)(8 - strlen(dtype_name(kv))), "", per_loop, per_loop * c->n_loops,
           c->n_loops, 4 * c->d_model);
    printf("  fits here    %llu positions in 3/4 of the %s that are free\n",
           (unsigned long long)positions_that_fit(cp, kv, 1, ANY_NUMBER),
           human_bytes((double)host_memory_available_bytes(), size, sizeof size));
    printf("  by default   ");
    for (int workers = 1; workers <= 8; workers *= 2)
        printf("%llu%s", (unsigned long long)positions_that_fit(cp, kv, workers, DEFAULT_SEQUENCES),
               workers < 8 ? ", " : " with 1, 2, 4, 8 workers;");
    printf("\n               --kv-memory and --max-sequences change it\n");
    struct kernels_device d;
    for (int i = 0; i < kernels_cuda_devices(); i++)
        if (kernels_cuda_device(i, &d, NULL) == STATUS_OK)
            printf("  GPU %-8d %llu positions on a %s of %s, for one worker\n", i,
                   (unsigned long long)positions_on_gpu(cp, &d), d.name,
                   human_bytes((double)d.total_bytes, size, sizeof size));
}

int cli_info(int argc, char **argv, char **program_argv)
{
    (void)program_argv;
    bool as_json = false;
    int n_loops = 0, kv_choice = 0;
    const struct option_spec own[] = {
        {"json", 0, OPTION_FLAG, &as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
        {"loops", 't', OPTION_INT, &n_loops, "T", NULL, 1, MODEL_MAX_LOOPS,
         "loops of the model (default: the checkpoint's)", NULL},
        {"kv-dtype", 0, OPTION_CHOICE, &kv_choice, NULL, "auto|f32|bf16", 0, 0,
         "auto: f32 for f32 checkpoints, else bf16", NULL},
    };
    struct option_group group = {own, sizeof own / sizeof own[0]};
    struct options_result args;
    struct err err = {0};
    if (options_parse(&group, 1, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("info", &err);
    if (args.wants_help) {
        options_print_help(usage, &group, 1, &args);
        return CLI_OK;
    }
    char demo[4096];
    const char *dir;
    if (session_take_model(&args, &dir, &err) != STATUS_OK)
        return cli_fail_usage("info", &err);
    if (dir == NULL) {
        if (session_find_demo(demo, sizeof demo, &err) != STATUS_OK)
            return cli_fail("info", &err);
        dir = demo;
    }
    struct checkpoint *cp;
    if (checkpoint_open(dir, n_loops, &cp, &err) != STATUS_OK)
        return cli_fail("info", &err);
    enum dtype kv = kv_choice == 2 ? DTYPE_BF16 : DTYPE_F32;
    if (kv_choice == 0 && cp->dtype != DTYPE_F32)
        kv = DTYPE_BF16;
    if (as_json)
        print_json(cp, kv);
    else
        print_text(dir, cp, kv);
    checkpoint_close(cp);
    return CLI_OK;
}
