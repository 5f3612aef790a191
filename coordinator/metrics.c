/* Counts what the server does, for the page that monitoring reads. */
#include "coordinator/metrics_state.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const state_names[] = {"loading", "ready", "draining", "lost"};
static const char *const sequence_states[] = {"queued", "opening", "running", "closing"};
static const enum finish_reason successes[] = {FINISH_STOP, FINISH_LENGTH};
static const enum finish_reason failures[] = {FINISH_CANCELLED, FINISH_ERROR};
static const char *const idle_reasons[] = {"starved", "waiting"};

enum { N_STATES = 4, N_SEQUENCE_STATES = 4, N_IDLE_REASONS = 2 };

static struct series *at(struct metrics *m, enum metric_id id, size_t index)
{
    assert(index < m->families[id].n);
    return &m->families[id].series[index];
}

static void set(struct metrics *m, enum metric_id id, size_t index, double value)
{
    at(m, id, index)->value = value;
}

static void observe(struct metrics *m, enum metric_id id, size_t index, double value)
{
    series_observe(at(m, id, index), metrics_table[id].buckets, value);
}

/* ---- create ----------------------------------------------------------------------------------*/

/* The series that do not depend on the cluster. */
static bool add_own_series(struct metrics *m, const char *version)
{
    bool is_good = true;
    for (int i = 0; i < METRIC_COUNT && is_good; i++) {
        enum metric_id id = (enum metric_id)i;
        if (metrics_table[id].shape == METRIC_PLAIN)
            is_good = metrics_family_reserve(m, id, 1);
        else if (metrics_table[id].shape == METRIC_GROWING)
            is_good = metrics_family_reserve(m, id, METRICS_MAX_GROWING);
    }
    is_good = is_good && metrics_family_reserve(m, METRIC_BUILD_INFO, 1) &&
              metrics_family_add(m, METRIC_BUILD_INFO, version, NULL);
    is_good = is_good && metrics_family_reserve(m, METRIC_SERVER_STATE, N_STATES) &&
              metrics_family_reserve(m, METRIC_SEQUENCES, N_SEQUENCE_STATES) &&
              metrics_family_reserve(m, METRIC_SUCCESS, 2) &&
              metrics_family_reserve(m, METRIC_FAILED, 2);
    for (int i = 0; i < N_STATES && is_good; i++)
        is_good = metrics_family_add(m, METRIC_SERVER_STATE, state_names[i], NULL);
    for (int i = 0; i < N_SEQUENCE_STATES && is_good; i++)
        is_good = metrics_family_add(m, METRIC_SEQUENCES, sequence_states[i], NULL);
    for (int i = 0; i < 2 && is_good; i++)
        is_good = metrics_family_add(m, METRIC_SUCCESS, finish_reason_name(successes[i]), NULL) &&
                  metrics_family_add(m, METRIC_FAILED, finish_reason_name(failures[i]), NULL);
    return is_good;
}

static bool add_worker(struct metrics *m, uint32_t worker, const char *host)
{
    char rank[16];
    bool is_good = true;
    snprintf(rank, sizeof rank, "%u", worker + 1);
    for (int i = 0; i < METRIC_COUNT && is_good; i++) {
        enum metric_id id = (enum metric_id)i;
        enum metric_shape shape = metrics_table[id].shape;
        if (shape == METRIC_WORKERS)
            is_good = metrics_family_add(m, id, rank, NULL);
        for (uint32_t loop = 1; shape == METRIC_LOOPS_WORKERS && loop <= m->n_loops; loop++) {
            char number[16];
            snprintf(number, sizeof number, "%u", loop);
            is_good = is_good && metrics_family_add(m, id, number, rank);
        }
    }
    for (int i = 0; i < N_IDLE_REASONS && is_good; i++)
        is_good = metrics_family_add(m, METRIC_WORKER_IDLE, rank, idle_reasons[i]);
    return is_good && metrics_family_add(m, METRIC_WORKER_UP, rank, host);
}

/* How many series of a metric a cluster makes. */
static size_t n_cluster_series(const struct metrics *m, enum metric_id id)
{
    switch (metrics_table[id].shape) {
    case METRIC_LOOPS:
        return m->n_loops;
    case METRIC_WORKERS:
        return m->n_workers;
    case METRIC_LOOPS_WORKERS:
        return (size_t)m->n_workers * m->n_loops;
    case METRIC_WORKERS_LABEL:
        return (size_t)m->n_workers * (id == METRIC_WORKER_IDLE ? N_IDLE_REASONS : 1);
    default:
        return id == METRIC_MODEL_INFO ? 1 : 0;
    }
}

enum status metrics_set_cluster(struct metrics *m, const struct metrics_config *config,
                                struct err *err)
{
    char number[16];
    bool is_good = true;
    assert(m->n_workers == 0 && config->n_workers > 0 && config->n_loops > 0);
    m->n_workers = config->n_workers;
    m->n_loops = config->n_loops;
    m->last_batches = calloc(m->n_workers, sizeof *m->last_batches);
    m->last_rows = calloc(m->n_workers, sizeof *m->last_rows);
    is_good = m->last_batches != NULL && m->last_rows != NULL;
    for (int i = 0; i < METRIC_COUNT && is_good; i++) {
        size_t n = n_cluster_series(m, (enum metric_id)i);
        is_good = n == 0 || metrics_family_reserve(m, (enum metric_id)i, n);
    }
    for (uint32_t i = 0; i < m->n_workers && is_good; i++)
        is_good = add_worker(m, i, config->hosts[i]);
    for (uint32_t loop = 1; loop <= m->n_loops && is_good; loop++) {
        snprintf(number, sizeof number, "%u", loop);
        is_good = metrics_family_add(m, METRIC_EXITS, number, NULL);
    }
    snprintf(number, sizeof number, "%u", m->n_loops);
    is_good = is_good && metrics_family_add(m, METRIC_MODEL_INFO,
                                            config->model != NULL ? config->model : "", number);
    if (!is_good) {
        m->n_workers = m->n_loops = 0; /* nothing is counted for them */
        return err_set(err, STATUS_NO_MEMORY, "no memory for the metrics of %u workers",
                       config->n_workers);
    }
    set(m, METRIC_MODEL_INFO, 0, 1);
    for (uint32_t i = 0; i < m->n_workers; i++)
        set(m, METRIC_WORKER_UP, i, 1);
    return STATUS_OK;
}

enum status metrics_create(const struct metrics_config *config, struct metrics **out,
                           struct err *err)
{
    struct metrics *m = calloc(1, sizeof *m);
    enum status status = STATUS_OK;
    if (m == NULL || !add_own_series(m, config->version))
        status = err_set(err, STATUS_NO_MEMORY, "no memory for the metrics");
    if (status == STATUS_OK && config->n_workers > 0)
        status = metrics_set_cluster(m, config, err);
    if (status != STATUS_OK) {
        metrics_destroy(m);
        return status;
    }
    set(m, METRIC_BUILD_INFO, 0, 1);
    set(m, METRIC_SERVER_STATE, METRICS_LOADING, 1);
    *out = m;
    return STATUS_OK;
}

void metrics_destroy(struct metrics *m)
{
    if (m == NULL)
        return;
    metrics_families_free(m);
    free(m->last_batches);
    free(m->last_rows);
    free(m);
}

/* ---- the server ------------------------------------------------------------------------------*/

void metrics_set_state(struct metrics *m, enum metrics_state state)
{
    for (int i = 0; i < N_STATES; i++)
        set(m, METRIC_SERVER_STATE, (size_t)i, i == (int)state ? 1 : 0);
    for (uint32_t i = 0; i < m->n_workers; i++)
        set(m, METRIC_WORKER_UP, i, state == METRICS_LOST ? 0 : 1);
}

void metrics_http_answer(struct metrics *m, const char *endpoint, int status, double seconds)
{
    char code[16];
    snprintf(code, sizeof code, "%d", status);
    metrics_family_find(m, METRIC_HTTP_REQUESTS, endpoint, code)->value += 1;
    series_observe(metrics_family_find(m, METRIC_HTTP_SECONDS, endpoint, NULL),
                   metrics_table[METRIC_HTTP_SECONDS].buckets, seconds);
}

void metrics_set_connections(struct metrics *m, uint32_t n_connections, uint64_t unsent_bytes,
                             uint64_t receiving_bytes)
{
    set(m, METRIC_HTTP_CONNECTIONS, 0, n_connections);
    set(m, METRIC_HTTP_UNSENT, 0, (double)unsent_bytes);
    set(m, METRIC_HTTP_RECEIVING, 0, (double)receiving_bytes);
}

void metrics_refused(struct metrics *m, const char *reason)
{
    metrics_family_find(m, METRIC_REFUSED, reason, NULL)->value += 1;
}

void metrics_cancelled(struct metrics *m, const char *reason)
{
    metrics_family_find(m, METRIC_CANCELLED, reason, NULL)->value += 1;
}

/* ---- choices ---------------------------------------------------------------------------------*/

static void show_choices(struct metrics *m)
{
    set(m, METRIC_WAITING, 0, m->n_waiting);
    set(m, METRIC_RUNNING, 0, m->n_running);
    set(m, METRIC_HELD_TOKENS, 0, (double)m->n_held_tokens);
}

void metrics_choice_queued(struct metrics *m, uint32_t n_prompt_tokens)
{
    m->n_waiting++;
    m->n_held_tokens += n_prompt_tokens;
    show_choices(m);
}

void metrics_choice_started(struct metrics *m, double queue_s)
{
    m->n_waiting -= m->n_waiting > 0;
    m->n_running++;
    show_choices(m);
    observe(m, METRIC_QUEUE_TIME, 0, queue_s);
}

void metrics_token(struct metrics *m, const struct delivery *d, double gap_s)
{
    const struct control_token *token = &d->token;
    at(m, METRIC_GENERATION_TOKENS, 0)->value += 1;
    if (d->index == 0) {
        at(m, METRIC_PROMPT_TOKENS, 0)->value += token->position; /* = the prompt's length */
        observe(m, METRIC_TTFT, 0, gap_s);
    } else {
        observe(m, METRIC_ITL, 0, gap_s);
    }
    if (token->exit_loop >= 1 && token->exit_loop <= m->n_loops)
        at(m, METRIC_EXITS, token->exit_loop - 1)->value += 1;
    for (uint32_t t = 0; t < token->exit_loop && t < m->n_loops; t++) {
        const struct loop_timing *timing = &token->timings[t];
        size_t index = (size_t)d->workers[t] * m->n_loops + t;
        if (d->workers[t] >= m->n_workers)
            continue;
        observe(m, METRIC_LOOP_COMPUTE, index, timing->compute_s);
        observe(m, METRIC_LOOP_WAIT, index, timing->wait_s);
        observe(m, METRIC_HOP, d->workers[t], timing->hop_s);
    }
}

void metrics_token_sent(struct metrics *m, double seconds)
{
    observe(m, METRIC_TOKEN_TO_SOCKET, 0, seconds);
}

void metrics_choice_ended(struct metrics *m, enum finish_reason reason, bool was_started,
                          uint32_t n_prompt_tokens, uint32_t n_tokens, double e2e_s)
{
    uint32_t *n_left = was_started ? &m->n_running : &m->n_waiting;
    *n_left -= *n_left > 0;
    m->n_held_tokens -= n_prompt_tokens < m->n_held_tokens ? n_prompt_tokens : m->n_held_tokens;
    show_choices(m);
    for (size_t i = 0; i < 2; i++) {
        at(m, METRIC_SUCCESS, i)->value += reason == successes[i] ? 1 : 0;
        at(m, METRIC_FAILED, i)->value += reason == failures[i] ? 1 : 0;
    }
    if (reason == FINISH_STOP || reason == FINISH_LENGTH)
        observe(m, METRIC_E2E, 0, e2e_s);
    if (was_started) {
        observe(m, METRIC_REQUEST_PROMPT, 0, n_prompt_tokens);
        observe(m, METRIC_REQUEST_GENERATION, 0, n_tokens);
    }
}

/* ---- the engine ------------------------------------------------------------------------------*/

static void take_worker(struct metrics *m, uint32_t w, const struct control_stats *stats)
{
    const struct {
        enum metric_id id;
        double value;
    } values[] = {
        {METRIC_WORKER_BUSY, (double)stats->busy_ns * 1e-9},
        {METRIC_BATCHES, (double)stats->n_batches},
        {METRIC_ROWS, (double)stats->n_rows},
        {METRIC_HEAD_ROWS, (double)stats->n_heads},
        {METRIC_BATCH_COST, (double)stats->batch_ns * 1e-9},
        {METRIC_ROW_COST, (double)stats->row_ns * 1e-9},
        {METRIC_KV_BLOCKS_USED, stats->kv_blocks_used},
        {METRIC_KV_BLOCKS, stats->kv_blocks_total},
        {METRIC_PARKED, stats->parked_rows},
        {METRIC_PARKED_TOTAL, (double)stats->n_parked_total},
        {METRIC_REVIVED_TOTAL, (double)stats->n_revived_total},
        {METRIC_ROW_SLOTS_USED, stats->row_slots_used},
        {METRIC_ROW_SLOTS, stats->row_slots_total},
        {METRIC_WORKER_SEQUENCES, stats->n_sequences},
        {METRIC_MESSAGES_SENT, (double)stats->n_messages_sent},
        {METRIC_BYTES_SENT, (double)stats->n_bytes_sent},
        {METRIC_STALE_FRAMES, (double)stats->n_stale_frames},
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        set(m, values[i].id, w, values[i].value);
    set(m, METRIC_WORKER_IDLE, (size_t)w * N_IDLE_REASONS, (double)stats->idle_starved_ns * 1e-9);
    set(m, METRIC_WORKER_IDLE, (size_t)w * N_IDLE_REASONS + 1,
        (double)stats->idle_waiting_ns * 1e-9);
    for (uint32_t t = 0; t < m->n_loops; t++)
        set(m, METRIC_LOOP_ROWS, (size_t)w * m->n_loops + t, (double)stats->rows_by_loop[t]);
    uint64_t n_batches = stats->n_batches - m->last_batches[w];
    uint64_t n_rows = stats->n_rows - m->last_rows[w];
    set(m, METRIC_BATCH_ROWS, w, n_batches > 0 ? (double)n_rows / (double)n_batches : 0);
    m->last_batches[w] = stats->n_batches;
    m->last_rows[w] = stats->n_rows;
}

void metrics_snapshot(struct metrics *m, const struct service_snapshot *snapshot)
{
    const uint32_t loads[N_SEQUENCE_STATES] = {snapshot->load.n_queued, snapshot->load.n_opening,
                                               snapshot->load.n_running, snapshot->load.n_closing};
    for (size_t i = 0; i < N_SEQUENCE_STATES; i++)
        set(m, METRIC_SEQUENCES, i, loads[i]);
    set(m, METRIC_KV_USAGE, 0, snapshot->kv_usage);
    for (uint32_t i = 0; i < m->n_workers && i < snapshot->n_workers; i++)
        take_worker(m, i, &snapshot->workers[i]);
}

uint32_t metrics_n_waiting(const struct metrics *m)
{
    return m->n_waiting;
}

uint32_t metrics_n_running(const struct metrics *m)
{
    return m->n_running;
}
