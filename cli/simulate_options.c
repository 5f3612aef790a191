/* Reads the options of `carousel simulate` and checks them against the model and each other. */
#include "cli/simulate_options.h"

#include "cli/cost_file.h"
#include "cli/session.h"
#include "cluster/ring.h"
#include "coordinator/coordinator.h"
#include "worker/replica.h"

#include <assert.h>
#include <limits.h>
#include <string.h>

/* Dimensions of config.json of the published checkpoints (arXiv 2510.25741). */
enum simulate_shape { SHAPE_OURO_1_4B = 0, SHAPE_OURO_2_6B };

/* What a worker's machine has for KV and parked rows before its share is taken, as automatic
 * --kv-memory would see it. */
#define MACHINE_BYTES (UINT64_C(128) << 30)
/* Ring buffers of all ranks together, unless --trace-buffer says otherwise. */
#define TRACE_BYTES_ALL  (UINT64_C(256) << 20)
#define TRACE_BYTES_MOST (UINT64_C(8) << 20)

void simulate_options_init(struct simulate_options *o)
{
    *o = (struct simulate_options){
        .cost_file = "h200_ib",
        .n_workers = 1,
        .block_size = 16,
        .max_batch_rows = 256,
        .prefill_chunk = 64,
        .n_in_flight = 1,
        .max_sequences = 256,
        .batching = BATCHING_ROUND,
        .prefill = PREFILL_EAGER,
        .n_burst = 16,
        .period_ms = 1000,
    };
    bench_workload_init(&o->workload);
}

size_t simulate_options_groups(struct simulate_options *o, struct simulate_specs *specs,
                               struct option_group *groups)
{
    const struct option_spec table[] = {
        {"json", 0, OPTION_FLAG, &o->as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
        {"efficiency", 0, OPTION_FLAG, &o->with_efficiency, NULL, NULL, 0, 0,
         "run one worker, too: what is lost, and why", NULL},
        {"per-worker", 0, OPTION_FLAG, &o->with_workers, NULL, NULL, 0, 0, "a line for each worker",
         NULL},
        {.type = OPTION_HEADING, .help = "Cluster:"},
        {"workers", 'w', OPTION_INT, &o->n_workers, "W", NULL, 1, 4096, "workers (default 1)",
         NULL},
        {"cost", 0, OPTION_STRING, &o->cost_file, "FILE", NULL, 0, 0,
         "what work costs: a cost file or its name", NULL},
        {"shape", 0, OPTION_CHOICE, &o->shape, NULL, "ouro-1.4b|ouro-2.6b", 0, 0,
         "dimensions in the place of a MODEL", &o->has_shape},
        {"loops", 't', OPTION_INT, &o->n_loops, "T", NULL, 1, MODEL_MAX_LOOPS,
         "loops of the model (default: its own)", NULL},
        {"batching", 0, OPTION_CHOICE, &o->batching, NULL, BATCHING_NAMES, 0, 0,
         "when a batch starts (default round)", NULL},
        {"max-sequences", 0, OPTION_INT, &o->max_sequences, "N", NULL, 1, 65536,
         "open sequences a ring (default 256)", NULL},
        {"kv-memory", 0, OPTION_BYTES, &o->kv_bytes, "SIZE", NULL, 0, 0,
         "KV and parked rows a worker (default: automatic)", NULL},
        {.type = OPTION_HEADING, .help = "Arrivals:"},
        {"arrivals", 0, OPTION_CHOICE, &o->arrivals, NULL, "closed|poisson|burst", 0, 0,
         "closed: each end brings the next one", &o->has_arrivals},
        {"rate", 0, OPTION_FLOAT, &o->rate, "R", NULL, 1e-6, 1e9, "poisson: requests a second",
         &o->has_rate},
        {"burst", 0, OPTION_INT, &o->n_burst, "N", NULL, 1, 1e6,
         "burst: requests at once (default 16)", NULL},
        {"period", 0, OPTION_FLOAT, &o->period_ms, "MS", NULL, 1e-3, 1e9,
         "burst: from one to the next (default 1000)", NULL},
        {"replay", 0, OPTION_STRING, &o->replay, "TRACE", NULL, 0, 0,
         "arrivals, lengths and exits of a trace file", NULL},
        {"seed", 's', OPTION_U64, &o->seed, "S", NULL, 0, 0,
         "of exits, tokens and jitter (default 0)", NULL},
        {.type = OPTION_MORE},
        {"ring-size", 0, OPTION_INT, &o->ring_size, "G", NULL, 1, 4096,
         "workers of one ring (default: W up to 8)", NULL},
        {"kv-blocks", 0, OPTION_INT, &o->n_blocks, "N", NULL, 1, INT32_MAX,
         "KV blocks a worker, in the place of --kv-memory", &o->has_blocks},
        {"kv-dtype", 0, OPTION_CHOICE, &o->kv_dtype, NULL, "bf16|f32", 0, 0,
         "of the KV memory (default bf16)", NULL},
        {"block-size", 0, OPTION_INT, &o->block_size, "N", NULL, 1, 4096,
         "positions of a KV block (default 16)", NULL},
        {"max-batch-rows", 0, OPTION_INT, &o->max_batch_rows, "N", NULL, 1, 65536,
         "row budget of a batch (default 256)", NULL},
        {"prefill", 0, OPTION_CHOICE, &o->prefill, NULL, "eager|lazy", 0, 0,
         "prompt rows go deeper at once, or when needed", NULL},
        {"prefill-chunk", 0, OPTION_INT, &o->prefill_chunk, "N", NULL, 1, 65536,
         "a sequence's prompt rows a batch (default 64)", NULL},
        {"batches-in-flight", 0, OPTION_INT, &o->n_in_flight, "N", NULL, 1, 2,
         "a worker's, prepared while one runs (default 1)", NULL},
        {"wait-limit", 0, OPTION_FLOAT, &o->wait_ms, "MS", NULL, 0, 1e6,
         "longest wait for a fuller batch (0: by cost)", NULL},
        {"trace", 0, OPTION_STRING, &o->trace, "FILE", NULL, 0, 0, "write a trace file", NULL},
        {"trace-buffer", 0, OPTION_BYTES, &o->trace_bytes, "SIZE", NULL, 0, 0,
         "trace records kept a rank (default: 256M in all)", &o->has_trace_bytes},
        {"report", 0, OPTION_FLAG, &o->with_report, NULL, NULL, 0, 0,
         "print what the trace says, as trace report", NULL},
    };
    enum { N = sizeof table / sizeof table[0] };
    static_assert((int)N <= (int)SIMULATE_N_SPECS, "struct simulate_specs has room for as many");
    memcpy(specs->own, table, sizeof table);
    groups[0] = bench_workload_group(&o->workload, specs->workload);
    groups[1] = (struct option_group){specs->own, N};
    return 2;
}

/* ---- checks --------------------------------------------------------------------------------- */

enum status simulate_options_check(struct simulate_options *o, const struct options_result *args,
                                   struct err *err)
{
    enum status status = session_take_model(args, &o->model, err);
    if (status == STATUS_OK)
        status = bench_workload_parse(&o->workload, err);
    if (status != STATUS_OK)
        return status;
    if (o->model != NULL && o->has_shape)
        return err_set(err, STATUS_INVALID, "MODEL %s and --shape both give dimensions; give one",
                       o->model);
    if (o->ring_size > 0 && !ring_size_is_valid(o->n_workers, o->ring_size))
        return err_set(err, STATUS_INVALID, "--ring-size %d does not divide %d workers",
                       o->ring_size, o->n_workers);
    if (o->has_blocks && o->kv_bytes > 0)
        return err_set(err, STATUS_INVALID,
                       "--kv-blocks and --kv-memory both size the KV pool; give one");
    if (o->arrivals == ARRIVALS_POISSON && !o->has_rate)
        return err_set(err, STATUS_INVALID,
                       "--arrivals poisson needs --rate, the requests a second");
    if (o->arrivals != ARRIVALS_POISSON && o->has_rate)
        return err_set(err, STATUS_INVALID, "--rate is for --arrivals poisson");
    if ((o->trace != NULL || o->with_report) && o->has_trace_bytes && o->trace_bytes == 0)
        return err_set(err, STATUS_INVALID,
                       "--trace-buffer 0 records nothing, so there is nothing for %s",
                       o->trace != NULL ? "--trace" : "--report");
    if (o->replay != NULL && o->has_arrivals)
        return err_set(err, STATUS_INVALID,
                       "--replay and --arrivals both say when requests arrive; give one");
    if (o->replay != NULL && o->workload.force_exits_text != NULL)
        return err_set(err, STATUS_INVALID,
                       "--replay and --force-exits both say where tokens exit; give one");
    if (o->replay != NULL && (o->with_efficiency || o->workload.n_warmup > 0))
        return err_set(err, STATUS_INVALID, "--replay runs the trace's own requests: it has no %s",
                       o->with_efficiency ? "share of one worker for --efficiency" : "--warmup");
    return STATUS_OK;
}

/* ---- config --------------------------------------------------------------------------------- */

static void fill_shape(struct model_config *m, enum simulate_shape shape)
{
    *m = (struct model_config){
        .architecture = "OuroForCausalLM",
        .has_sandwich_norms = true,
        .has_gate = true,
        .n_layers = shape == SHAPE_OURO_2_6B ? 48 : 24,
        .d_model = 2048,
        .d_ffn = 5632,
        .n_heads = 16,
        .n_kv_heads = 16,
        .head_dim = 128,
        .vocab_size = 49152,
        .max_positions = 65536,
        .n_loops = 4,
        .rms_norm_eps = 1e-6f,
        .rope_theta = 1e6,
        .exit_threshold = 1.0f,
        .bos_id = -1,
    };
}

static enum status apply_model(const struct simulate_options *o, struct model_config *m,
                               struct err *err)
{
    enum status status = STATUS_OK;
    if (o->model != NULL)
        status = config_load(o->model, m, err);
    else
        fill_shape(m, (enum simulate_shape)o->shape);
    return status == STATUS_OK ? config_set_loops(m, o->n_loops, err) : status;
}

static enum status apply_kv(const struct simulate_options *o, struct simulate_config *c,
                            struct err *err)
{
    const struct replica_config replica = {
        .kv_dtype = o->kv_dtype == 1 ? DTYPE_F32 : DTYPE_BF16,
        .kv_bytes = o->kv_bytes > 0 ? o->kv_bytes
                                    : coordinator_auto_kv_bytes(
                                          &c->model, o->kv_dtype == 1 ? DTYPE_F32 : DTYPE_BF16,
                                          MACHINE_BYTES, 1, (uint32_t)o->max_sequences),
        .block_size = (uint32_t)o->block_size,
        .max_batch_rows = (uint32_t)o->max_batch_rows,
        .max_sequences = (uint32_t)o->max_sequences,
    };
    struct replica_geometry geometry;
    enum status status = replica_plan(&c->model, &replica, &geometry, err);
    if (status != STATUS_OK)
        return status;
    c->n_blocks = o->has_blocks ? (uint32_t)o->n_blocks : geometry.n_blocks;
    /* Blocks and slots are 32-bit indices. */
    if (c->n_blocks > (uint32_t)INT32_MAX / c->block_size)
        return err_set(err, STATUS_INVALID,
                       "--kv-blocks %d of %d positions are more than %d positions", o->n_blocks,
                       o->block_size, INT32_MAX);
    c->n_slots = c->n_blocks * c->block_size;
    return STATUS_OK;
}

static uint64_t trace_bytes(const struct simulate_options *o)
{
    if (o->trace == NULL && !o->with_report)
        return 0;
    if (o->has_trace_bytes)
        return o->trace_bytes;
    uint64_t each = TRACE_BYTES_ALL / (uint64_t)(o->n_workers + 1);
    return each < TRACE_BYTES_MOST ? each : TRACE_BYTES_MOST;
}

enum status simulate_options_apply(struct simulate_options *o, struct simulate_config *config,
                                   struct simulate_load *load, struct err *err)
{
    char path[PATH_MAX];
    *config = (struct simulate_config){
        .n_workers = (uint32_t)o->n_workers,
        .block_size = (uint32_t)o->block_size,
        .max_sequences = (uint32_t)o->max_sequences,
        .max_batch_rows = (uint32_t)o->max_batch_rows,
        .prefill_chunk = (uint32_t)o->prefill_chunk,
        .n_in_flight = (uint32_t)o->n_in_flight,
        .batching = (enum batching)o->batching,
        .wait_deadline_ns = (uint64_t)(o->wait_ms * 1e6),
        .jitter_seed = o->seed,
        .trace_bytes = trace_bytes(o),
    };
    *load = (struct simulate_load){
        .workload = &o->workload,
        .model = &config->model,
        .arrivals = (enum simulate_arrivals)o->arrivals,
        .rate_per_s = o->rate,
        .n_burst = (uint32_t)o->n_burst,
        .period_ns = (uint64_t)(o->period_ms * 1e6),
    };
    enum status status = apply_model(o, &config->model, err);
    if (status == STATUS_OK)
        status = cost_file_find(o->cost_file, path, sizeof path, err);
    if (status == STATUS_OK)
        status = cost_model_load(path, &config->cost, err);
    if (status == STATUS_OK)
        status = apply_kv(o, config, err);
    if (status != STATUS_OK)
        return status;
    config->ring_size = o->ring_size > 0
                            ? (uint32_t)o->ring_size
                            : (uint32_t)ring_default_size(o->n_workers, config->model.n_loops);
    sequence_params_init(&load->base);
    load->base.max_loops = (uint32_t)config->model.n_loops;
    load->base.prefill = (enum prefill_policy)o->prefill;
    load->base.sampling.seed = o->seed;
    if (o->replay == NULL)
        return bench_workload_check(&o->workload, &config->model, err);
    status = simulate_load_replay(load, o->replay, err);
    if (status == STATUS_OK)
        o->workload.n_requests = (int)load->n_recorded;
    return status;
}
