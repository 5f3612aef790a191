/* `carousel doctor`: looks at this machine, and proves batch invariance on it with a model. */
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/session.h"
#include "cluster/host.h"
#include "cluster/launch.h"
#include "kernels/kernels.h"
#include "proto/fnv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static const char usage[] =

    "usage: carousel doctor [MODEL]\n"
    "Shows what this machine offers and runs a self-test: the same prompts, alone and\n"
    "together, in other chunks, on more workers and threads, at every instruction set\n"
    "level and on a GPU (--deterministic), must give the same bits.";

/* One way to run the same prompts. */
struct doctor_run {
    const char *name;
    int n_workers, n_threads, prefill_chunk, block_size, prefill, batching;
    bool one_by_one;
};

static const struct doctor_run runs[] = {
    {"alone, one worker", 1, 1, 4096, 16, PREFILL_EAGER, BATCHING_GREEDY, true},
    {"together", 1, 1, 64, 16, PREFILL_EAGER, BATCHING_KNEE, false},
    {"together, two threads", 1, 2, 64, 16, PREFILL_EAGER, BATCHING_KNEE, false},
    {"together, chunks of 3, blocks of 5", 1, 1, 3, 5, PREFILL_LAZY, BATCHING_KNEE, false},
    {"together, three workers", 3, 1, 7, 16, PREFILL_LAZY, BATCHING_TICK, false},
};

enum { DOCTOR_PROMPTS = 12, DOCTOR_OUTPUT = 6, DOCTOR_MAX_PROMPT = 40, DOCTOR_MAX_BLOCK = 16 };

struct doctor_result {
    uint64_t hash; /* of all logits seen and all tokens: a sum, so independent of their order */
    uint32_t n_ended;
    enum status status;
    struct err err;
};

struct doctor_prompt {
    struct doctor_result *result;
    uint32_t index;
};

static void doctor_on_token(void *user, const struct completion_token *t)
{
    struct doctor_prompt *p = user;
    uint32_t words[4] = {p->index, t->index, (uint32_t)t->token->id, t->token->exit_loop};
    p->result->hash += fnv_bytes(FNV_START, words, sizeof words);
}

static void doctor_on_observation(void *user, const struct control_observation *row)
{
    struct doctor_prompt *p = user;
    uint32_t words[3] = {p->index, row->position, row->loop};
    uint64_t hash = fnv_bytes(FNV_START, words, sizeof words);
    hash = fnv_bytes(hash, &row->lambda, sizeof row->lambda);
    hash = fnv_bytes(hash, row->top_ids, row->n_top * sizeof *row->top_ids);
    p->result->hash += fnv_bytes(hash, row->top_logits, row->n_top * sizeof *row->top_logits);
}

static void doctor_on_end(void *user, const struct completion_end *end)
{
    struct doctor_prompt *p = user;
    p->result->n_ended++;
    if (end->reason == FINISH_ERROR)
        p->result->status = err_set(&p->result->err, end->failure, "%s", end->message);
}

static enum status doctor_submit(struct session *s, struct doctor_prompt *p, struct err *err)
{
    const struct model_config *config = &s->checkpoint->config;
    int32_t ids[DOCTOR_MAX_PROMPT];
    uint32_t n = 1 + (p->index * 7) % DOCTOR_MAX_PROMPT;
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)((p->index * 7919u + i * 104729u) % (uint32_t)config->vocab_size);
    struct completion_request request = {
        .prompt_ids = ids,
        .n_prompt = n,
        .user = p,
        .on_token = doctor_on_token,
        .on_observation = doctor_on_observation,
        .on_end = doctor_on_end,
    };
    sequence_params_init(&request.params);
    request.params.prompt_tokens = n;
    request.params.max_tokens = DOCTOR_OUTPUT;
    request.params.max_loops = (uint32_t)config->n_loops;
    request.params.prefill = (enum prefill_policy)s->options.prefill;
    /* Half of them all loops with every logit looked at, half with early exits. */
    if (p->index % 2 == 0) {
        request.params.observe_top = config->vocab_size < 64 ? (uint32_t)config->vocab_size : 64;
    } else {
        request.params.exit_mode = EXIT_MODE_EXACT;
        request.params.exit_threshold = 0.5f;
    }
    uint64_t id;
    return coordinator_submit(s->coordinator, &request, &id, err);
}

/* KV memory of a worker on a GPU: all prompts side by side, and half of that again. By default it
 * would take what the GPU has, which somebody else may be using. */
static enum status doctor_gpu_kv_bytes(const char *model, uint64_t *kv_bytes, struct err *err)
{
    char demo[4096];
    struct checkpoint *cp;
    enum status status = model == NULL ? session_find_demo(demo, sizeof demo, err) : STATUS_OK;
    if (status == STATUS_OK)
        status = checkpoint_open(model != NULL ? model : demo, 0, &cp, err);
    if (status != STATUS_OK)
        return status;
    const struct model_config *m = &cp->config;
    uint64_t position = config_kv_bytes_per_position(m, DTYPE_BF16) +
                        (uint64_t)m->d_model * sizeof(float); /* a parked row */
    uint64_t n_positions = (DOCTOR_MAX_PROMPT + DOCTOR_OUTPUT + DOCTOR_MAX_BLOCK) *
                           (uint64_t)DOCTOR_PROMPTS * (uint64_t)m->n_loops;
    *kv_bytes = n_positions * position / 2 * 3;
    checkpoint_close(cp);
    return STATUS_OK;
}

/* isa NULL: on a GPU, with kv_bytes; 0: automatic */
static enum status doctor_do_run(const char *model, const char *isa, uint64_t kv_bytes,
                                 const struct doctor_run *run, char **program_argv,
                                 struct doctor_result *result, struct err *err)
{
    struct session_options so;
    session_options_init(&so);
    so.model = model;
    so.isa = isa;
    so.backend = isa != NULL ? BACKEND_CPU : BACKEND_CUDA;
    so.is_deterministic = true;
    so.is_quiet = true;
    so.n_workers = run->n_workers;
    so.n_threads = run->n_threads;
    so.prefill_chunk = run->prefill_chunk;
    so.block_size = run->block_size;
    so.prefill = run->prefill;
    so.batching = run->batching;
    so.kv_bytes = kv_bytes;
    struct session *s;
    int exit_code;
    enum status status = session_open(&so, program_argv, &s, &exit_code, err);
    if (status != STATUS_OK)
        return status;
    *result = (struct doctor_result){0};
    struct doctor_prompt prompts[DOCTOR_PROMPTS];
    for (uint32_t i = 0; i < DOCTOR_PROMPTS && status == STATUS_OK; i++) {
        prompts[i] = (struct doctor_prompt){result, i};
        status = doctor_submit(s, &prompts[i], err);
        if (status == STATUS_OK && run->one_by_one)
            status = session_run(s, NULL, err);
    }
    if (status == STATUS_OK)
        status = session_run(s, NULL, err);
    session_close(s);
    if (status == STATUS_OK && result->status != STATUS_OK) {
        *err = result->err;
        status = result->status;
    }
    return status;
}

/* True when all runs gave the same hash at this level; isa NULL: on a GPU. */
static bool doctor_check_level(const char *model, const char *isa, char **program_argv)
{
    const char *name = isa != NULL ? isa : "cuda";
    uint64_t first = 0, kv_bytes = 0;
    bool all_same = true;
    struct err kv_err = {0};
    if (isa == NULL && doctor_gpu_kv_bytes(model, &kv_bytes, &kv_err) != STATUS_OK) {
        printf("  FAIL  %-9s %s\n", name, kv_err.message);
        return false;
    }
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        struct doctor_result result;
        struct err err = {0};
        if (doctor_do_run(model, isa, kv_bytes, &runs[i], program_argv, &result, &err) !=
            STATUS_OK) {
            printf("  FAIL  %-9s %-36s %s\n", name, runs[i].name, err.message);
            return false;
        }
        if (i == 0)
            first = result.hash;
        bool is_same = result.hash == first;
        all_same = all_same && is_same;
        printf("  %s  %-9s %-36s %016llx\n", is_same ? "ok  " : "FAIL", name, runs[i].name,
               (unsigned long long)result.hash);
    }
    return all_same;
}

static void print_limit(const char *name, int resource)
{
    struct rlimit limit;
    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0)
        return;
    if (limit.rlim_cur == RLIM_INFINITY)
        printf("  %-22s unlimited\n", name);
    else
        printf("  %-22s %llu%s\n", name, (unsigned long long)limit.rlim_cur,
               resource == RLIMIT_NOFILE ? "" : " bytes");
}

/* Each GPU, or why there is none; true when one can be used. */
static bool print_gpus(void)
{
    struct kernels_device d;
    struct kernels *k;
    struct err err = {0};
    int n = kernels_cuda_devices();
    for (int i = 0; i < n; i++)
        if (kernels_cuda_device(i, &d, &err) == STATUS_OK)
            printf("  GPU %-18d %s (sm_%d%d), %.1f GiB, CUDA %d.%d, its driver's %d.%d\n", i,
                   d.name, d.major, d.minor, (double)d.total_bytes / (double)(1 << 30),
                   d.runtime / 1000, d.runtime % 1000 / 10, d.driver / 1000, d.driver % 1000 / 10);
    if (kernels_create("cuda", NULL, &k, &err) != STATUS_OK) {
        printf("  GPU                    none: %s\n", err.message);
        return false;
    }
    kernels_destroy(k);
    return true;
}

/* True when there is a GPU to test, too. */
static bool print_machine(void)
{
    char host[256];
    host_name(host, sizeof host);
    printf("carousel %s on %s\n", CAROUSEL_VERSION, host);
    printf("  cores                  %d\n", host_n_cores());
    printf("  instruction set        %s\n", kernels_cpu_best_isa());
    printf("  memory available       %.2f GB\n", (double)host_memory_available_bytes() / 1e9);
    print_limit("address space limit", RLIMIT_AS);
    print_limit("locked memory limit", RLIMIT_MEMLOCK);
    print_limit("open files limit", RLIMIT_NOFILE);
    printf("  MPI                    %s, %s\n", transport_mpi_version(),
           transport_mpi_is_cuda_aware() ? "CUDA-aware" : "not CUDA-aware");
    struct kernels *k;
    struct kernels_machine machine;
    struct kernels_options options = {0};
    if (kernels_create("cpu", &options, &k, NULL) == STATUS_OK) {
        if (kernels_measure_machine(k, &machine, NULL) == STATUS_OK)
            printf("  fp32 peak, read        %.0f GFLOP/s, %.1f GB/s with %d threads\n",
                   machine.peak_gflops, machine.read_gbytes_s, kernels_threads(k));
        kernels_destroy(k);
    }
    return print_gpus();
}

int cli_doctor(int argc, char **argv, char **program_argv)
{
    struct options_result args;
    struct err err = {0};
    if (options_parse(NULL, 0, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("doctor", &err);
    if (args.wants_help) {
        options_print_help(usage, NULL, 0, &args);
        return CLI_OK;
    }
    const char *model;
    if (session_take_model(&args, &model, &err) != STATUS_OK)
        return cli_fail_usage("doctor", &err);
    if (launch_is_rank()) {
        err_set(&err, STATUS_INVALID, "it looks at one host: start it without mpirun or srun");
        return cli_fail_usage("doctor", &err);
    }
    bool has_gpu = print_machine();
    printf("self-test: one hash of all logits and tokens, whatever runs beside them\n");
    static const char *const levels[] = {"portable", "avx2", "avx512", "amx"};
    bool all_ok = true;
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        const char *lesser = kernels_cpu_lesser_isa(levels[i], kernels_cpu_best_isa());
        if (lesser == NULL || strcmp(lesser, levels[i]) != 0) {
            printf("  --    %-9s this machine does not have it\n", levels[i]);
            continue;
        }
        all_ok = doctor_check_level(model, levels[i], program_argv) && all_ok;
    }
    if (has_gpu)
        all_ok = doctor_check_level(model, NULL, program_argv) && all_ok;
    if (strcmp(kernels_cpu_best_isa(), "amx") == 0)
        printf("  (amx differs from avx512 for bf16 weights only: with f32 weights both hash "
               "alike)\n");
    printf("%s\n", all_ok ? "all well" : "FAILED: results depend on the batch; please report this");
    return all_ok ? CLI_OK : CLI_FAILURE;
}
