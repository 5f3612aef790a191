/* Turns events into turns of ranks, in virtual time, until every request has ended. */
#include "cli/simulate_parts.h"

#include "cluster/ring.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- links ---------------------------------------------------------------------------------- */

enum status simulate_post(struct simulate_world *w, uint32_t from, uint32_t to,
                          struct simulate_message *m, uint64_t now_ns, struct err *err)
{
    struct simulate_rank *rank = &w->ranks[from];
    /* The sender's link is one: what it sends goes out one after the other, so that messages
     * between two ranks keep their order; under way they overlap. */
    double empty_ns = cost_model_link_ns(&w->config.cost, from, to, 0);
    uint64_t bytes_ns =
        simulate_ns(cost_model_link_ns(&w->config.cost, from, to, m->n_bytes) - empty_ns);
    uint64_t left_ns = now_ns > rank->link_free_ns ? now_ns : rank->link_free_ns;
    rank->link_free_ns = left_ns + bytes_ns;
    rank->link_busy_ns += bytes_ns;
    rank->n_messages_sent++;
    rank->n_bytes_sent += m->n_bytes;
    m->source = from;
    enum status status = event_queue_push(&w->queue, rank->link_free_ns + simulate_ns(empty_ns),
                                          SIMULATE_ARRIVAL, to, m, err);
    if (status != STATUS_OK)
        free(m);
    return status;
}

static void put(struct simulate_rank *rank, struct simulate_message *m)
{
    m->next = NULL;
    if (rank->first == NULL)
        rank->first = m;
    else
        rank->last->next = m;
    rank->last = m;
    if (++rank->n_waiting > rank->n_waiting_most)
        rank->n_waiting_most = rank->n_waiting;
}

struct simulate_message *simulate_take(struct simulate_rank *rank)
{
    struct simulate_message *m = rank->first;
    if (m == NULL)
        return NULL;
    rank->first = m->next;
    rank->n_waiting--;
    return m;
}

static enum status check_time(uint64_t now_ns, struct err *err)
{
    if (now_ns <= SIMULATE_LAST_NS)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID,
                   "the run takes more than 146 simulated years: look at the times of the cost "
                   "file, and at when requests arrive");
}

enum status simulate_yield(struct simulate_world *w, uint32_t rank, uint64_t now_ns,
                           bool *must_return, struct err *err)
{
    enum status status = check_time(now_ns, err);
    *must_return = event_queue_next_ns(&w->queue) <= now_ns;
    if (status != STATUS_OK || !*must_return)
        return status;
    return event_queue_push(&w->queue, now_ns, SIMULATE_TURN, rank, NULL, err);
}

/* ---- events --------------------------------------------------------------------------------- */

static enum status turn(struct simulate_world *w, uint32_t rank, uint64_t now_ns, struct err *err)
{
    if (rank == 0)
        return simulate_rank0_turn(w, now_ns, err);
    return simulate_worker_turn(w, &w->workers[rank - 1], now_ns, err);
}

static enum status handle(struct simulate_world *w, const struct event *e, struct err *err)
{
    struct simulate_rank *rank = &w->ranks[e->target];
    struct simulate_worker *k = e->target > 0 ? &w->workers[e->target - 1] : NULL;
    switch ((enum simulate_event)e->kind) {
    case SIMULATE_REQUEST:
        return simulate_rank0_arrival(w, e->at_ns, err);
    case SIMULATE_TURN:
        return turn(w, e->target, e->at_ns, err);
    case SIMULATE_ARRIVAL:
        put(rank, e->attachment);
        break;
    case SIMULATE_BATCH:
        k->n_done++;
        break;
    case SIMULATE_WAKE:
        /* The stage may have changed its mind: a turn without work only goes back to sleep. */
        if (k->timer_ns == e->at_ns)
            k->timer_ns = 0;
        break;
    }
    if (rank->is_awake)
        return STATUS_OK;
    rank->is_awake = true;
    return turn(w, e->target, e->at_ns, err);
}

/* Requests [first, limit) from their arrival until nothing is under way any more. */
static enum status run_phase(struct simulate_world *w, uint32_t first, uint32_t limit,
                             uint64_t *now_ns, struct err *err)
{
    enum status status = simulate_rank0_begin(w, first, limit, *now_ns, err);
    struct event e;
    while (status == STATUS_OK && event_queue_pop(&w->queue, &e)) {
        w->n_events++;
        *now_ns = e.at_ns;
        status = check_time(e.at_ns, err);
        if (status == STATUS_OK)
            status = handle(w, &e, err);
        else
            free(e.attachment);
    }
    if (status == STATUS_OK && (w->rank0.n_unended > 0 || w->rank0.n_open_sequences > 0))
        return err_set(err, STATUS_INTERNAL,
                       "nothing happens any more, and %" PRIu32 " requests have not ended, %" PRIu32
                       " sequences are open",
                       w->rank0.n_unended, w->rank0.n_open_sequences);
    return status;
}

/* ---- life ----------------------------------------------------------------------------------- */

static void measure_sizes(struct simulate_world *w)
{
    struct control_message m = {.kind = CONTROL_OPEN, .open = w->load->base};
    m.open.sequence = 1u << 20;
    m.open.max_tokens = m.open.prompt_tokens = 1000;
    m.open.max_loops = (uint32_t)w->config.model.n_loops;
    struct simulate_sizes *sizes = &w->sizes;
    sizes->open = control_size(&m);
    m = (struct control_message){.kind = CONTROL_CLOSED};
    m.sequence.sequence = 1u << 20;
    sizes->notice = control_size(&m);
    m.kind = CONTROL_CLOSE;
    sizes->close = control_size(&m);
    m = (struct control_message){.kind = CONTROL_TOKENS};
    sizes->tokens_head = control_size(&m);
    struct control_token token = {.sequence = 1u << 20,
                                  .position = 1000,
                                  .id = w->config.model.vocab_size / 2,
                                  .cdf = 1.0f,
                                  .logprob = -1.0f};
    m.tokens.n = 1;
    m.tokens.items = &token;
    for (uint32_t t = 1; t <= SEQUENCE_MAX_LOOPS; t++) {
        token.exit_loop = t;
        token.timings[t - 1] = (struct loop_timing){1e-5, 1e-4f, 1e-3f};
        sizes->token[t] = control_size(&m) - sizes->tokens_head;
    }
}

static enum status allocate(struct simulate_world *w, struct err *err)
{
    uint32_t n = w->config.n_workers;
    w->ranks = calloc((size_t)n + 1, sizeof *w->ranks);
    w->workers = calloc(n, sizeof *w->workers);
    w->result.stats = calloc(n, sizeof *w->result.stats);
    if (w->ranks == NULL || w->workers == NULL || w->result.stats == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %" PRIu32 " workers", n);
    for (uint32_t i = 0; w->config.trace_bytes > 0 && i <= n; i++) {
        enum status status = trace_create(w->config.trace_bytes, &w->ranks[i].trace, err);
        if (status != STATUS_OK)
            return status;
    }
    for (uint32_t i = 0; i < n; i++) {
        enum status status = simulate_worker_create(w, &w->workers[i], err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status simulate_world_create(const struct simulate_config *config,
                                  const struct simulate_load *load, struct simulate_world **out,
                                  struct err *err)
{
    int n_workers = (int)config->n_workers;
    uint32_t ring_size = config->ring_size != 0
                             ? config->ring_size
                             : (uint32_t)ring_default_size(n_workers, config->model.n_loops);
    if (!ring_size_is_valid(n_workers, (int)ring_size))
        return err_set(err, STATUS_INVALID,
                       "a ring of %" PRIu32 " workers does not divide the %d there are: choose a "
                       "divisor",
                       ring_size, n_workers);
    struct simulate_world *w = calloc(1, sizeof *w);
    if (w == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the simulated cluster");
    w->config = *config;
    w->load = load;
    w->ring_size = ring_size;
    measure_sizes(w);
    enum status status = allocate(w, err);
    if (status != STATUS_OK) {
        simulate_world_destroy(w);
        return status;
    }
    *out = w;
    return STATUS_OK;
}

void simulate_world_destroy(struct simulate_world *w)
{
    if (w == NULL)
        return;
    struct event e;
    while (event_queue_pop(&w->queue, &e))
        free(e.attachment);
    event_queue_free(&w->queue);
    for (uint32_t i = 0; w->ranks != NULL && i <= w->config.n_workers; i++) {
        struct simulate_message *m;
        while ((m = simulate_take(&w->ranks[i])) != NULL)
            free(m);
        trace_destroy(w->ranks[i].trace);
    }
    for (uint32_t i = 0; w->workers != NULL && i < w->config.n_workers; i++)
        simulate_worker_destroy(&w->workers[i]);
    simulate_rank0_destroy(w);
    simulate_count_destroy(w);
    free(w->ranks);
    free(w->workers);
    free(w);
}

static void reset(struct simulate_world *w, uint64_t now_ns)
{
    for (uint32_t i = 0; i <= w->config.n_workers; i++) {
        struct simulate_rank *rank = &w->ranks[i];
        rank->n_messages_sent = rank->n_bytes_sent = rank->link_busy_ns = 0;
        rank->n_waiting_most = 0;
        if (rank->trace != NULL)
            rank->trace->n_added = 0;
    }
    for (uint32_t i = 0; i < w->config.n_workers; i++)
        simulate_worker_reset(&w->workers[i], now_ns);
    w->result.rank0_busy_ns = 0;
    w->n_events = 0;
}

static void finish(struct simulate_world *w, struct simulate_result *out)
{
    struct simulate_result *r = &w->result;
    r->rank0_queue_most = w->ranks[0].n_waiting_most;
    r->n_events = w->n_events;
    r->link_busy_ns_most = 0;
    r->n_messages = 0;
    for (uint32_t i = 0; i <= w->config.n_workers; i++) {
        const struct simulate_rank *rank = &w->ranks[i];
        if (rank->link_busy_ns > r->link_busy_ns_most)
            r->link_busy_ns_most = rank->link_busy_ns;
        r->n_messages += rank->n_messages_sent;
    }
    for (uint32_t i = 0; i < w->config.n_workers; i++) {
        struct control_stats *stats = &r->stats[i];
        simulate_worker_stats(w, &w->workers[i], r->began_ns, r->ended_ns, stats);
        r->kv_blocks_left += stats->kv_blocks_used;
        r->sequences_left += stats->n_sequences;
    }
    simulate_count_finish(w, out);
}

enum status simulate_world_run(struct simulate_world *w, uint32_t n_warmup, uint32_t n_requests,
                               struct simulate_result *out, struct err *err)
{
    uint64_t now_ns = 0;
    enum status status = simulate_rank0_create(w, n_warmup + n_requests, err);
    if (status == STATUS_OK)
        status = simulate_count_create(w, n_requests, err);
    if (status == STATUS_OK && n_warmup > 0)
        status = run_phase(w, 0, n_warmup, &now_ns, err);
    if (status != STATUS_OK)
        return status;
    reset(w, now_ns);
    w->is_measuring = true;
    w->result.began_ns = now_ns;
    status = run_phase(w, n_warmup, n_warmup + n_requests, &now_ns, err);
    if (status != STATUS_OK)
        return status;
    w->result.ended_ns = w->rank0.idle_at_ns;
    w->result.n_requests = n_requests;
    finish(w, out);
    return STATUS_OK;
}
