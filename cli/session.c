/* Opens a cluster for one command: inproc threads, a local mpirun, or the job that started us. */
#include "cli/session.h"

#include "cli/cost_file.h"
#include "cluster/cost_model.h"
#include "cluster/launch.h"
#include "cluster/transport.h"
#include "model/chat.h"
#include "worker/worker.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRANSPORT_AUTO = 0, TRANSPORT_INPROC = 1, TRANSPORT_MPI = 2 };

struct session_worker_thread {
    pthread_t thread;
    bool is_started;
    struct transport *transport;
    struct worker_config config;
};

enum status session_find_demo(char *out, size_t cap_bytes, struct err *err)
{
    static const char *const places[] = {"/../model/demo", "/../../model/demo",
                                         "/../share/carousel/demo"};
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return err_set(err, STATUS_IO, "cannot find this program's own path; give a MODEL");
    exe[n] = '\0';
    *strrchr(exe, '/') = '\0';
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char path[PATH_MAX + 64], real[PATH_MAX], probe[PATH_MAX + 16];
        snprintf(path, sizeof path, "%s%s", exe, places[i]);
        if (realpath(path, real) == NULL || strlen(real) >= cap_bytes)
            continue;
        snprintf(probe, sizeof probe, "%s/config.json", real);
        if (access(probe, R_OK) == 0) {
            strcpy(out, real);
            return STATUS_OK;
        }
    }
    return err_set(err, STATUS_NOT_FOUND, "no bundled demo model near %s; give a MODEL directory",
                   exe);
}

static enum status session_find_model(struct session *s, struct err *err)
{
    const char *model = s->options.model;
    if (model == NULL)
        return session_find_demo(s->model_dir, sizeof s->model_dir, err);
    if (strlen(model) >= sizeof s->model_dir)
        return err_set(err, STATUS_INVALID, "the MODEL path has %zu bytes, accepted are %zu",
                       strlen(model), sizeof s->model_dir - 1);
    strcpy(s->model_dir, model);
    return STATUS_OK;
}

static bool session_is_timed(const struct session *s)
{
    return s->options.backend == BACKEND_TIMED;
}

/* Every rank finds its own host's file. */
static enum status session_find_cost(struct session *s, struct err *err)
{
    const char *name = s->options.cost_file;
    if (session_is_timed(s) && name == NULL)
        return err_set(err, STATUS_INVALID,
                       "--backend timed waits instead of computing; say how long with --cost FILE");
    if (!session_is_timed(s) && name != NULL)
        return err_set(err, STATUS_INVALID,
                       "--cost %s does nothing with --backend %s; give --backend timed, too", name,
                       session_backend_name(&s->options));
    return name == NULL ? STATUS_OK : cost_file_find(name, s->cost_file, sizeof s->cost_file, err);
}

static enum status session_check_cost(const struct session *s, struct err *err)
{
    struct cost_model cost;
    return session_is_timed(s) ? cost_model_load(s->cost_file, &cost, err) : STATUS_OK;
}

static enum status session_open_model(struct session *s, struct err *err)
{
    enum status status = checkpoint_open(s->model_dir, s->options.n_loops, &s->checkpoint, err);
    if (status != STATUS_OK)
        return status;
    char path[sizeof s->model_dir + 32];
    snprintf(path, sizeof path, "%s/tokenizer.json", s->model_dir);
    if (access(path, F_OK) == 0)
        return tokenizer_load(path, &s->tokenizer, err);
    if (s->options.needs_tokenizer)
        return err_set(err, STATUS_NOT_FOUND,
                       "%s does not exist, so text cannot be encoded; give token ids (--ids 1,2,3)",
                       path);
    return STATUS_OK;
}

static void session_worker_config(const struct session *s, struct worker_config *config)
{
    const struct session_options *o = &s->options;
    *config = (struct worker_config){
        .model_dir = s->model_dir,
        .n_loops = o->n_loops,
        .backend = session_backend_name(o),
        .device = o->device,
        .gpu_memory_fraction = o->gpu_memory_fraction,
        .cuda_aware = (enum worker_cuda_aware)o->cuda_aware,
        .cost_file = session_is_timed(s) ? s->cost_file : NULL,
        .isa = o->isa,
        .kv_dtype = o->kv_dtype == 2 ? DTYPE_BF16 : DTYPE_F32,
        .kv_dtype_auto = o->kv_dtype == 0,
        .ring_size = (uint32_t)o->ring_size,
        .block_size = (uint32_t)o->block_size,
        .max_batch_rows = (uint32_t)o->max_batch_rows,
        .max_sequences = (uint32_t)o->max_sequences,
        .prefill_chunk = (uint32_t)o->prefill_chunk,
        .n_in_flight = (uint32_t)o->n_in_flight,
        .batching = (enum batching)o->batching,
        .wait_deadline_ns = (uint64_t)(o->wait_ms * 1e6),
        .trace_bytes = o->trace_bytes,
    };
}

/* A worker's own failure is told by the coordinator, which hears it in hello, ready or shutdown;
 * then the exit code is 0, because mpirun would end rank 0 before it has printed. Only what the
 * coordinator may not have heard is printed here. */
static int session_be_worker(struct session *s)
{
    struct worker_config config;
    session_worker_config(s, &config);
    struct err err = {0};
    enum status status = worker_run(s->transport, &config, &err);
    bool is_unheard = status == STATUS_TIMEOUT || status == STATUS_IO;
    if (is_unheard)
        fprintf(stderr, "carousel: %s\n", err.message);
    return is_unheard ? 1 : 0;
}

static void *session_thread_main(void *arg)
{
    struct session_worker_thread *t = arg;
    worker_run(t->transport, &t->config, NULL);
    return NULL;
}

static enum status session_start_threads(struct session *s, struct err *err)
{
    int n_ranks = s->n_workers + 1;
    s->transports = calloc((size_t)n_ranks, sizeof(struct transport *));
    s->threads = calloc((size_t)s->n_workers, sizeof *s->threads);
    if (s->transports == NULL || s->threads == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d ranks", n_ranks);
    enum status status = transport_inproc_create(n_ranks, s->transports, err);
    if (status != STATUS_OK)
        return status;
    s->transport = s->transports[0];
    for (int i = 0; i < s->n_workers; i++) {
        struct session_worker_thread *t = &s->threads[i];
        t->transport = s->transports[i + 1];
        session_worker_config(s, &t->config);
        if (pthread_create(&t->thread, NULL, session_thread_main, t) != 0)
            return err_set(err, STATUS_NO_MEMORY, "cannot start the thread of worker %d", i);
        t->is_started = true;
    }
    return STATUS_OK;
}

enum dtype session_kv_dtype(const struct session *s)
{
    if (s->options.kv_dtype != 0)
        return s->options.kv_dtype == 2 ? DTYPE_BF16 : DTYPE_F32;
    bool is_gpu = s->coordinator != NULL &&
                  strcmp(coordinator_worker_hello(s->coordinator, 0)->backend, "cuda") == 0;
    return s->checkpoint->dtype != DTYPE_F32 || is_gpu ? DTYPE_BF16 : DTYPE_F32;
}

/* One line a GPU worker, for the log of a job: where it computes and what it has. */
static void session_tell_gpus(const struct session *s)
{
    for (uint32_t w = 0; w < coordinator_n_workers(s->coordinator); w++) {
        const struct control_hello *h = coordinator_worker_hello(s->coordinator, w);
        const struct control_ready *r = coordinator_worker_ready(s->coordinator, w);
        if (strcmp(h->backend, "cuda") == 0)
            fprintf(stderr,
                    "carousel: rank=%u host=%s device=%u gpu=\"%s\" isa=%s memory_gib=%.1f "
                    "kv_blocks=%u kv_positions=%llu\n",
                    w + 1, h->host, h->device, h->device_name, h->isa,
                    (double)h->device_memory_bytes / (double)(1 << 30), r->n_kv_blocks,
                    (unsigned long long)r->n_kv_blocks * r->block_size);
    }
}

static enum status session_start_coordinator(struct session *s, struct err *err)
{
    const struct session_options *o = &s->options;
    if (o->trace_bytes > 0) {
        enum status status = trace_create(o->trace_bytes, &s->trace, err);
        if (status != STATUS_OK)
            return status;
    }
    struct coordinator_config config = {
        .ring_size = (uint32_t)o->ring_size,
        .max_queue = o->max_queue,
        .max_running = (uint32_t)o->max_sequences,
        .kv_bytes = o->kv_bytes,
        .is_deterministic = o->is_deterministic,
        .block_size = (uint32_t)o->block_size,
        .kv_dtype = session_kv_dtype(s),
        .answer_timeout_ns = (uint64_t)(o->answer_timeout_s * 1e9),
        .n_threads = (uint32_t)o->n_threads,
        .trace = s->trace,
        .verify_weights = !o->no_verify && !session_is_timed(s),
    };
    enum status status = coordinator_create(s->transport, s->checkpoint, s->tokenizer, &config,
                                            &s->coordinator, err);
    if (status == STATUS_OK)
        status = coordinator_start(s->coordinator, err);
    if (status == STATUS_OK && !o->is_quiet)
        session_tell_gpus(s);
    return status;
}

/* This process is a rank already: a worker runs to its end in here, rank 0 comes back with its
 * transport. */
static enum status session_join_job(struct session *s, bool *was_worker, int *exit_code,
                                    struct err *err)
{
    enum status status = transport_mpi_create(&s->transport, err);
    if (status != STATUS_OK)
        return status;
    if (s->transport->n_ranks < 2)
        return err_set(err, STATUS_INVALID,
                       "started as 1 rank; a coordinator and W workers are W + 1 ranks: use "
                       "mpirun -n W+1 with at least 2");
    s->n_workers = s->transport->n_ranks - 1;
    *was_worker = s->transport->rank > 0;
    if (s->options.ring_size > 0 && s->n_workers % s->options.ring_size != 0)
        return err_set(err, STATUS_INVALID, "--ring-size %d does not divide %d workers",
                       s->options.ring_size, s->n_workers);
    *was_worker = s->transport->rank > 0;
    if (*was_worker)
        *exit_code = session_be_worker(s);
    return STATUS_OK;
}

enum session_place session_find_place(const struct session_options *options)
{
    if (launch_is_rank())
        return launch_rank() == 0 ? SESSION_FRONT : SESSION_WORKER;
    bool wants_mpi = options->transport == TRANSPORT_MPI ||
                     (options->transport == TRANSPORT_AUTO && options->has_workers);
    return wants_mpi ? SESSION_LAUNCHER : SESSION_FRONT;
}

enum status session_open(const struct session_options *options, char **argv, struct session **out,
                         int *exit_code, struct err *err)
{
    *out = NULL;
    *exit_code = 0;
    struct session *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the session");
    s->options = *options;
    bool was_worker = false, is_rank = launch_is_rank();
    enum status status = session_find_model(s, err);
    if (status == STATUS_OK)
        status = session_check_backend(options, err);
    if (status == STATUS_OK)
        status = session_find_cost(s, err);
    if (status == STATUS_OK && is_rank)
        status = session_join_job(s, &was_worker, exit_code, err);
    if (was_worker && status != STATUS_OK) {
        /* Rank 0 fails in the same way and says so once for all; a code other than 0 here would
         * make mpirun end it before it has. */
        *exit_code = 0;
        status = STATUS_OK;
    }
    if (status == STATUS_OK && !was_worker && options->refusal != NULL)
        status = err_set(err, options->refusal->code, "%s", options->refusal->message);
    if (status == STATUS_OK && !was_worker)
        status = session_check_trace(options, err);
    if (status != STATUS_OK || was_worker)
        goto out;
    if (!is_rank && options->ring_size > 0 && options->n_workers % options->ring_size != 0) {
        status = err_set(err, STATUS_INVALID, "--ring-size %d does not divide %d workers",
                         options->ring_size, options->n_workers);
        goto out;
    }
    status = session_open_model(s, err);
    if (status == STATUS_OK)
        status = session_check_cost(s, err);
    if (status != STATUS_OK)
        goto out;
    if (session_find_place(options) == SESSION_LAUNCHER) {
        /* The model is known to be good: become mpirun. Comes back on failure only. */
        status = options->is_server ? launch_mpirun_server(options->n_workers + 1, argv, err)
                                    : launch_mpirun(options->n_workers + 1, argv, err);
        goto out;
    }
    if (!is_rank) {
        s->n_workers = options->n_workers;
        status = session_start_threads(s, err);
    }
    if (status == STATUS_OK)
        status = session_start_coordinator(s, err);
    if (status == STATUS_OK) {
        *out = s;
        return STATUS_OK;
    }
out:
    session_close(s);
    return status;
}

/* Without a coordinator nobody else tells the workers that there will be no work. */
static void session_dismiss_workers(struct session *s)
{
    struct control_message m = {.kind = CONTROL_SHUTDOWN};
    if (s->transport == NULL || s->transport->rank != 0)
        return;
    for (int rank = 1; rank < s->transport->n_ranks; rank++) {
        struct transport_message *message;
        if (transport_acquire(s->transport, control_size(&m), &message, NULL) != STATUS_OK)
            return;
        message->len_bytes = control_encode(&m, message->bytes, message->cap_bytes);
        transport_post(s->transport, rank, message, NULL);
    }
}

void session_close(struct session *s)
{
    if (s == NULL)
        return;
    if (s->coordinator != NULL)
        coordinator_shutdown(s->coordinator);
    else
        session_dismiss_workers(s);
    coordinator_destroy(s->coordinator);
    trace_destroy(s->trace);
    for (int i = 0; s->threads != NULL && i < s->n_workers; i++)
        if (s->threads[i].is_started)
            pthread_join(s->threads[i].thread, NULL);
    if (s->transports == NULL)
        transport_destroy(s->transport);
    for (int i = 0; s->transports != NULL && i <= s->n_workers; i++)
        transport_destroy(s->transports[i]);
    free(s->transports);
    free(s->threads);
    tokenizer_free(s->tokenizer);
    checkpoint_close(s->checkpoint);
    free(s);
}

enum status session_prompt_ids(const struct session *s, const char *ids_text, const char *text,
                               bool chat, bool thinking, int32_t **ids, size_t *n_ids,
                               struct err *err)
{
    enum status status;
    *ids = NULL;
    *n_ids = 0;
    if (ids_text != NULL) {
        status = options_parse_ids(ids_text, ids, n_ids, err);
    } else if (s->tokenizer == NULL) {
        return err_set(err, STATUS_NOT_FOUND,
                       "%s has no tokenizer.json, so text cannot be encoded; give token ids "
                       "(--ids 1,2,3)",
                       s->model_dir);
    } else if (chat) {
        struct chat_message message = {
            .role = "user", .content = text, .content_bytes = strlen(text)};
        status = chat_encode(s->tokenizer, &message, 1, thinking, ids, n_ids, err);
    } else {
        size_t n_dropped = 0;
        status = tokenizer_encode(s->tokenizer, text, strlen(text),
                                  TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_BOS, ids, n_ids,
                                  &n_dropped, err);
        if (status == STATUS_OK && n_dropped > 0)
            fprintf(stderr, "carousel: %zu bytes of the prompt have no token and are left out\n",
                    n_dropped);
    }
    if (status != STATUS_OK)
        return status;
    if (*n_ids == 0) {
        free(*ids);
        *ids = NULL;
        return err_set(err, STATUS_INVALID, "the prompt is empty; there is nothing to continue");
    }
    for (size_t i = 0; i < *n_ids; i++)
        if ((*ids)[i] < 0 || (*ids)[i] >= s->checkpoint->config.vocab_size) {
            err_set(err, STATUS_INVALID, "token id %d at place %zu is outside the vocabulary 0..%d",
                    (int)(*ids)[i], i, s->checkpoint->config.vocab_size - 1);
            free(*ids);
            *ids = NULL;
            return STATUS_INVALID;
        }
    return STATUS_OK;
}

enum status session_run(struct session *s, const bool *is_done, struct err *err)
{
    enum status status = STATUS_OK;
    while (status == STATUS_OK && !coordinator_is_idle(s->coordinator) &&
           (is_done == NULL || !*is_done))
        status = coordinator_step(s->coordinator, 200ull * 1000 * 1000, err);
    return status;
}
