/* Prints a trace's report as one JSON object. */
#include "cli/trace_report.h"

#include "coordinator/json_writer.h"
#include "coordinator/trace_events.h"

static void write_quantiles(struct json_writer *w, const char *key, const struct trace_quantiles *q)
{
    json_write_key(w, key);
    json_write_begin_object(w);
    json_write_integer_at(w, "n", q->n);
    json_write_number_at(w, "mean_s", q->mean_s);
    json_write_number_at(w, "p50_s", q->p50_s);
    json_write_number_at(w, "p90_s", q->p90_s);
    json_write_number_at(w, "p99_s", q->p99_s);
    json_write_number_at(w, "max_s", q->max_s);
    json_write_end_object(w);
}

static void write_loops(struct json_writer *w, const struct trace_report *r)
{
    json_write_key(w, "by_loop");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < r->n_loops; i++) {
        const struct trace_loop_report *l = &r->loops[i];
        json_write_begin_object(w);
        json_write_integer_at(w, "loop", i + 1);
        json_write_integer_at(w, "exits", l->n_exits);
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
    json_write_integer_at(w, "rank", number);
    json_write_key(w, "host");
    json_write_string(w, rank->host);
    json_write_number_at(w, "elapsed_s", worker->elapsed_s);
    json_write_number_at(w, "busy_s", worker->busy_s);
    json_write_key(w, "idle_s");
    json_write_begin_object(w);
    for (int i = 0; i < TRACE_IDLE_REASONS; i++)
        json_write_number_at(w, trace_idle_name((enum trace_idle)i), worker->idle_s[i]);
    json_write_end_object(w);
    json_write_number_at(w, "driver_s", worker->driver_s);
    json_write_number_at(w, "rest_s", worker->rest_s);
    json_write_number_at(w, "receive_s", worker->receive_s);
    json_write_number_at(w, "send_s", worker->send_s);
    json_write_integer_at(w, "batches", worker->n_batches);
    json_write_integer_at(w, "rows", worker->n_rows);
    json_write_key(w, "rows_by_loop");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < n_loops; i++)
        json_write_integer(w, (int64_t)worker->rows_by_loop[i]);
    json_write_end_array(w);
    json_write_integer_at(w, "parked", worker->n_parked);
    json_write_integer_at(w, "revived", worker->n_revived);
    json_write_integer_at(w, "lost_records", rank->n_lost);
    json_write_key(w, "missing");
    json_write_bool(w, rank->is_missing);
    json_write_number_at(w, "clock_error_s", (double)rank->clock_error_ns * 1e-9);
    json_write_end_object(w);
}

static void write_slow_token(struct json_writer *w, const struct trace_slow_token *t)
{
    json_write_begin_object(w);
    json_write_integer_at(w, "sequence", t->sequence);
    json_write_integer_at(w, "position", t->position);
    json_write_number_at(w, "at_s", t->at_s);
    json_write_number_at(w, "total_s", t->total_s);
    json_write_key(w, "steps");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < t->n_steps; i++) {
        const struct trace_step *s = &t->steps[i];
        json_write_begin_object(w);
        json_write_integer_at(w, "loop", s->loop);
        json_write_integer_at(w, "rank", s->rank);
        json_write_number_at(w, "hop_s", s->hop_s);
        json_write_number_at(w, "wait_s", s->wait_s);
        json_write_number_at(w, "compute_s", s->compute_s);
        json_write_end_object(w);
    }
    json_write_end_array(w);
    json_write_end_object(w);
}

static void write_slow(struct json_writer *w, const struct trace_report *r)
{
    json_write_key(w, "slowest");
    json_write_begin_object(w);
    json_write_integer_at(w, "tokens", r->n_slow);
    json_write_number_at(w, "total_s", r->slow_total_s);
    json_write_number_at(w, "hop_s", r->slow_hop_s);
    json_write_number_at(w, "wait_s", r->slow_wait_s);
    json_write_number_at(w, "compute_s", r->slow_compute_s);
    json_write_number_at(w, "deliver_s", r->slow_deliver_s);
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
    json_write_integer_at(&w, "n_workers", r->n_workers);
    json_write_integer_at(&w, "ring_size", set->ring_size);
    json_write_integer_at(&w, "loops", r->n_loops);
    json_write_number_at(&w, "elapsed_s", r->elapsed_s);
    json_write_integer_at(&w, "requests", r->n_requests);
    json_write_integer_at(&w, "tokens", r->n_tokens);
    json_write_number_at(&w, "tokens_per_s", r->tokens_per_s);
    json_write_integer_at(&w, "incomplete_tokens", r->n_incomplete);
    json_write_integer_at(&w, "lost_records", r->n_lost);
    json_write_number_at(&w, "clock_error_s", r->clock_error_s);
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
