/* Prints a trace's report as one JSON object. */
#include "cli/trace_report.h"

#include "coordinator/json_writer.h"
#include "coordinator/trace_events.h"

static void write_number(struct json_writer *w, const char *key, double value)
{
    json_write_key(w, key);
    json_write_number(w, value);
}

static void write_count(struct json_writer *w, const char *key, uint64_t value)
{
    json_write_key(w, key);
    json_write_integer(w, (int64_t)value);
}

static void write_quantiles(struct json_writer *w, const char *key, const struct trace_quantiles *q)
{
    json_write_key(w, key);
    json_write_begin_object(w);
    write_count(w, "n", q->n);
    write_number(w, "mean_s", q->mean_s);
    write_number(w, "p50_s", q->p50_s);
    write_number(w, "p90_s", q->p90_s);
    write_number(w, "p99_s", q->p99_s);
    write_number(w, "max_s", q->max_s);
    json_write_end_object(w);
}

static void write_loops(struct json_writer *w, const struct trace_report *r)
{
    json_write_key(w, "by_loop");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < r->n_loops; i++) {
        const struct trace_loop_report *l = &r->loops[i];
        json_write_begin_object(w);
        write_count(w, "loop", i + 1);
        write_count(w, "exits", l->n_exits);
        write_quantiles(w, "hop", &l->hop);
        write_quantiles(w, "wait", &l->wait);
        write_quantiles(w, "compute", &l->compute);
        write_quantiles(w, "head", &l->head);
        json_write_end_object(w);
    }
    json_write_end_array(w);
}

static void write_worker(struct json_writer *w, const struct trace_worker_report *worker,
                         const struct trace_rank *rank, uint32_t number, uint32_t n_loops)
{
    json_write_begin_object(w);
    write_count(w, "rank", number);
    json_write_key(w, "host");
    json_write_string(w, rank->host);
    write_number(w, "elapsed_s", worker->elapsed_s);
    write_number(w, "busy_s", worker->busy_s);
    json_write_key(w, "idle_s");
    json_write_begin_object(w);
    for (int i = 0; i < TRACE_IDLE_REASONS; i++)
        write_number(w, trace_idle_name((enum trace_idle)i), worker->idle_s[i]);
    json_write_end_object(w);
    write_number(w, "driver_s", worker->driver_s);
    write_number(w, "rest_s", worker->rest_s);
    write_number(w, "receive_s", worker->receive_s);
    write_number(w, "send_s", worker->send_s);
    write_count(w, "batches", worker->n_batches);
    write_count(w, "rows", worker->n_rows);
    json_write_key(w, "rows_by_loop");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < n_loops; i++)
        json_write_integer(w, (int64_t)worker->rows_by_loop[i]);
    json_write_end_array(w);
    write_count(w, "parked", worker->n_parked);
    write_count(w, "revived", worker->n_revived);
    write_count(w, "lost_records", rank->n_lost);
    json_write_key(w, "missing");
    json_write_bool(w, rank->is_missing);
    write_number(w, "clock_error_s", (double)rank->clock_error_ns * 1e-9);
    json_write_end_object(w);
}

static void write_slow_token(struct json_writer *w, const struct trace_slow_token *t)
{
    json_write_begin_object(w);
    write_count(w, "sequence", t->sequence);
    write_count(w, "position", t->position);
    write_number(w, "at_s", t->at_s);
    write_number(w, "total_s", t->total_s);
    json_write_key(w, "steps");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < t->n_steps; i++) {
        const struct trace_step *s = &t->steps[i];
        json_write_begin_object(w);
        write_count(w, "loop", s->loop);
        write_count(w, "rank", s->rank);
        write_number(w, "hop_s", s->hop_s);
        write_number(w, "wait_s", s->wait_s);
        write_number(w, "compute_s", s->compute_s);
        json_write_end_object(w);
    }
    json_write_end_array(w);
    json_write_end_object(w);
}

static void write_slow(struct json_writer *w, const struct trace_report *r)
{
    json_write_key(w, "slowest");
    json_write_begin_object(w);
    write_count(w, "tokens", r->n_slow);
    write_number(w, "total_s", r->slow_total_s);
    write_number(w, "hop_s", r->slow_hop_s);
    write_number(w, "wait_s", r->slow_wait_s);
    write_number(w, "compute_s", r->slow_compute_s);
    write_number(w, "deliver_s", r->slow_deliver_s);
    json_write_key(w, "by_loop_s");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < r->n_loops; i++)
        json_write_number(w, r->slow_by_loop_s[i]);
    json_write_end_array(w);
    json_write_key(w, "listed");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < r->n_slow_listed; i++)
        write_slow_token(w, &r->slow[i]);
    json_write_end_array(w);
    json_write_end_object(w);
}

void trace_report_print_json(const struct trace_report *r, const struct trace_set *set)
{
    struct text text = {0};
    struct json_writer w;
    json_writer_init(&w, &text);
    json_write_begin_object(&w);
    json_write_key(&w, "model");
    json_write_string(&w, set->model);
    json_write_key(&w, "version");
    json_write_string(&w, set->version);
    json_write_key(&w, "simulated");
    json_write_bool(&w, set->is_simulated);
    write_count(&w, "n_workers", r->n_workers);
    write_count(&w, "ring_size", set->ring_size);
    write_count(&w, "loops", r->n_loops);
    write_number(&w, "elapsed_s", r->elapsed_s);
    write_count(&w, "requests", r->n_requests);
    write_count(&w, "tokens", r->n_tokens);
    write_number(&w, "tokens_per_s", r->tokens_per_s);
    write_count(&w, "incomplete_tokens", r->n_incomplete);
    write_count(&w, "lost_records", r->n_lost);
    write_number(&w, "clock_error_s", r->clock_error_s);
    write_quantiles(&w, "queue", &r->queue);
    write_quantiles(&w, "admission", &r->admission);
    write_quantiles(&w, "ttft", &r->ttft);
    write_quantiles(&w, "tpot", &r->tpot);
    write_loops(&w, r);
    json_write_key(&w, "workers");
    json_write_begin_array(&w);
    for (uint32_t i = 0; i < r->n_workers; i++)
        write_worker(&w, &r->workers[i], &set->ranks[i + 1], i + 1, r->n_loops);
    json_write_end_array(&w);
    write_slow(&w, r);
    json_write_end_object(&w);
    if (text.is_broken)
        printf("null\n");
    else
        printf("%.*s\n", (int)text.len_bytes, text.bytes);
    text_free(&text);
}
