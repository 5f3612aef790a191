/* The options every subcommand that runs the model shares. */
#include "cli/session.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SESSION_BACKENDS "auto|cpu|cuda|timed"

const char *session_backend_name(const struct session_options *o)
{
    static const char *const names[] = {"auto", "cpu", "cuda", "timed"};
    return names[o->backend];
}

/* What only a GPU knows is not passed over in silence on the CPU, and the other way round. */
enum status session_check_backend(const struct session_options *o, struct err *err)
{
    const char *name = session_backend_name(o);
    bool may_be_gpu = o->backend == BACKEND_AUTO || o->backend == BACKEND_CUDA;
    if (o->device >= 0 && !may_be_gpu)
        return err_set(err, STATUS_INVALID,
                       "--device %d chooses a GPU, and --backend %s uses none; leave one out",
                       o->device, name);
    if (o->has_fraction && !may_be_gpu)
        return err_set(err, STATUS_INVALID,
                       "--gpu-memory-fraction %g is a GPU's, and --backend %s uses none; leave one "
                       "out",
                       o->gpu_memory_fraction, name);
    if (o->has_fraction && o->kv_bytes > 0)
        return err_set(err, STATUS_INVALID,
                       "--gpu-memory-fraction and --kv-memory both say how much KV there is; give "
                       "one of them");
    if (o->is_deterministic && o->backend == BACKEND_TIMED)
        return err_set(err, STATUS_INVALID,
                       "--deterministic is about arithmetic, and --backend timed has none; leave "
                       "one out");
    if (o->cuda_aware == WORKER_CUDA_AWARE_YES && o->backend == BACKEND_TIMED)
        return err_set(err, STATUS_INVALID,
                       "--cuda-aware yes is about rows in memory, and --backend timed has none; "
                       "leave one out");
    if (o->isa != NULL && o->backend == BACKEND_CUDA)
        return err_set(err, STATUS_INVALID,
                       "--isa %s is a level of CPUs, and --backend cuda computes on a GPU; leave "
                       "one out",
                       o->isa);
    if (o->kv_dtype == 1 && o->backend == BACKEND_CUDA)
        return err_set(err, STATUS_UNSUPPORTED,
                       "--kv-dtype f32: KV on a GPU is bf16; leave it out, or give --backend cpu");
    return STATUS_OK;
}

void session_options_init(struct session_options *o)
{
    *o = (struct session_options){
        .n_workers = 1,
        .device = -1,
        .block_size = 16,
        .max_sequences = 256,
        .batching = BATCHING_ROUND,
        .prefill = PREFILL_EAGER,
        .trace_bytes = UINT64_C(8) << 20,
    };
}

struct option_group session_options_group(struct session_options *o, struct option_spec *specs)
{
    const struct option_spec table[] = {
        {.type = OPTION_HEADING, .help = "Cluster:"},
        {"workers", 'w', OPTION_INT, &o->n_workers, "W", NULL, 1, 4096,
         "starts mpirun here (default: 1, in this process)", &o->has_workers},
        {"transport", 0, OPTION_CHOICE, &o->transport, NULL, "auto|inproc|mpi", 0, 0,
         "auto: mpi when --workers is given", NULL},
        {"threads", 0, OPTION_INT, &o->n_threads, "N", NULL, 1, 1024,
         "compute threads a worker (default: its share)", NULL},
        {"kv-memory", 0, OPTION_BYTES, &o->kv_bytes, "SIZE", NULL, 0, 0,
         "KV and parked rows a worker (default: automatic)", NULL},
        {"batching", 0, OPTION_CHOICE, &o->batching, NULL, BATCHING_NAMES, 0, 0,
         "when a batch starts (default round)", NULL},
        {"loops", 't', OPTION_INT, &o->n_loops, "T", NULL, 1, MODEL_MAX_LOOPS,
         "loops of the model (default: the checkpoint's)", NULL},
        {"trace", 0, OPTION_STRING, &o->trace, "FILE", NULL, 0, 0,
         "where the time went, for Perfetto", NULL},
        {.type = OPTION_MORE},
        {"trace-buffer", 0, OPTION_BYTES, &o->trace_bytes, "SIZE", NULL, 0, 0,
         "records kept a rank (default 8M; 0: none)", NULL},
        {"ring-size", 0, OPTION_INT, &o->ring_size, "G", NULL, 1, 4096,
         "workers of one ring (default: W up to 8)", NULL},
        {"backend", 0, OPTION_CHOICE, &o->backend, NULL, SESSION_BACKENDS, 0, 0,
         "auto: a GPU where there is one; timed: waits", NULL},
        {"device", 0, OPTION_INT, &o->device, "N", NULL, 0, 1023,
         "GPU of every worker (default: one after the other)", NULL},
        {"gpu-memory-fraction", 0, OPTION_FLOAT, &o->gpu_memory_fraction, "F", NULL, 1e-6, 1,
         "of a GPU, for a worker (default: 0.9 by its workers)", &o->has_fraction},
        {"deterministic", 0, OPTION_FLAG, &o->is_deterministic, NULL, NULL, 0, 0,
         "GPU: the same bits in any batch, as on the CPU", NULL},
        {"cuda-aware", 0, OPTION_CHOICE, &o->cuda_aware, NULL, "auto|yes|no", 0, 0,
         "MPI takes rows from GPU memory (auto: as it says)", NULL},
        {"cost", 0, OPTION_STRING, &o->cost_file, "FILE", NULL, 0, 0,
         "how long timed waits: a cost file or its name", NULL},
        {"isa", 0, OPTION_STRING, &o->isa, "LEVEL", NULL, 0, 0,
         "portable, avx2, avx512, amx (default: best of all)", NULL},
        {"kv-dtype", 0, OPTION_CHOICE, &o->kv_dtype, NULL, "auto|f32|bf16", 0, 0,
         "auto: f32 for f32 checkpoints on a CPU, else bf16", NULL},
        {"block-size", 0, OPTION_INT, &o->block_size, "N", NULL, 1, 4096,
         "positions of a KV block (default 16)", NULL},
        {"max-batch-rows", 0, OPTION_INT, &o->max_batch_rows, "N", NULL, 0, 65536,
         "row budget of a batch (0: 256; 1024 on a GPU)", NULL},
        {"max-sequences", 0, OPTION_INT, &o->max_sequences, "N", NULL, 1, 65536,
         "open sequences a ring (default 256)", NULL},
        {"prefill", 0, OPTION_CHOICE, &o->prefill, NULL, "eager|lazy", 0, 0,
         "prompt rows go deeper at once, or when needed", NULL},
        {"prefill-chunk", 0, OPTION_INT, &o->prefill_chunk, "N", NULL, 0, 65536,
         "a sequence's prompt rows a batch (0: 64; 512 on a GPU)", NULL},
        {"batches-in-flight", 0, OPTION_INT, &o->n_in_flight, "N", NULL, 0, 2,
         "a worker's, prepared while one runs (0: by backend)", NULL},
        {"wait-limit", 0, OPTION_FLOAT, &o->wait_ms, "MS", NULL, 0, 1e6,
         "longest wait for a fuller batch (0: by cost)", NULL},
        {"no-verify", 0, OPTION_FLAG, &o->no_verify, NULL, NULL, 0, 0,
         "skip the check of all weights for NaN at start", NULL},
    };
    enum { N = sizeof table / sizeof table[0] };
    static_assert((int)N <= (int)SESSION_N_SPECS, "callers lend SESSION_N_SPECS");
    memcpy(specs, table, sizeof table);
    return (struct option_group){specs, N};
}

enum status session_split_arguments(const struct options_result *args, const char *ids_text,
                                    const char **model, const char **prompt, struct err *err)
{
    int n = args->n_positionals, at = 0;
    struct stat st;
    bool has_ids = ids_text != NULL;
    *model = *prompt = NULL;
    if (has_ids) {
        int32_t *ids;
        size_t n_ids;
        enum status status = options_parse_ids(ids_text, &ids, &n_ids, err);
        if (status != STATUS_OK)
            return status;
        free(ids);
    }
    bool is_first_model = n >= 2 || has_ids ||
                          (n == 1 && stat(args->positionals[0], &st) == 0 && S_ISDIR(st.st_mode));
    if (n > 0 && is_first_model)
        *model = args->positionals[at++];
    if (at < n && !has_ids)
        *prompt = args->positionals[at++];
    /* A path that leads nowhere is a typing error, and no prompt for the bundled model. */
    if (n == 1 && !is_first_model && *prompt != NULL && strchr(*prompt, '/') != NULL &&
        strpbrk(*prompt, " \t\n") == NULL)
        return err_set(
            err, STATUS_INVALID,
            "model directory %s does not exist; to have this text continued, give MODEL and "
            "PROMPT",
            *prompt);
    if (at < n)
        return err_set(err, STATUS_INVALID,
                       "unexpected argument '%s'; quote a prompt that has spaces",
                       args->positionals[at]);
    if (*prompt == NULL && !has_ids)
        return err_set(err, STATUS_INVALID,
                       "no prompt; give PROMPT, - for standard input, or --ids 1,2,3");
    return STATUS_OK;
}

enum status session_take_model(const struct options_result *args, const char **model,
                               struct err *err)
{
    if (args->n_positionals > 1)
        return err_set(err, STATUS_INVALID, "unexpected argument '%s'; there is one MODEL",
                       args->positionals[1]);
    *model = args->n_positionals > 0 ? args->positionals[0] : NULL;
    return STATUS_OK;
}
