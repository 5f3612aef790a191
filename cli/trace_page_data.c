/* Writes the numbers that the page of a trace draws, as one JSON object. */
#include "cli/trace_page.h"

#include "coordinator/json_writer.h"

static void write_number(struct json_writer *w, const char *key, double value)
{
    json_write_key(w, key);
    json_write_float(w, (float)value);
}

static void write_quantiles(struct json_writer *w, const char *key, const struct trace_quantiles *q)
{
    json_write_key(w, key);
    json_write_begin_object(w);
    json_write_integer_at(w, "n", q->n);
    write_number(w, "mean", q->mean_s);
    write_number(w, "p50", q->p50_s);
    write_number(w, "p90", q->p90_s);
    write_number(w, "p99", q->p99_s);
    write_number(w, "max", q->max_s);
    json_write_end_object(w);
}

static void write_summary(struct json_writer *w, const struct trace_report *r,
                          const struct trace_set *set)
{
    json_write_key(w, "model");
    json_write_string(w, set->model);
    json_write_key(w, "version");
    json_write_string(w, set->version);
    json_write_key(w, "is_simulated");
    json_write_bool(w, set->is_simulated);
    json_write_integer_at(w, "n_workers", r->n_workers);
    json_write_integer_at(w, "n_loops", r->n_loops);
    json_write_integer_at(w, "ring_size", set->ring_size);
    write_number(w, "elapsed_s", r->elapsed_s);
    json_write_integer_at(w, "n_tokens", r->n_tokens);
    json_write_integer_at(w, "n_requests", r->n_requests);
    json_write_integer_at(w, "n_lost", r->n_lost);
    write_number(w, "tokens_per_s", r->tokens_per_s);
    write_number(w, "clock_error_s", r->clock_error_s);
    write_quantiles(w, "queue", &r->queue);
    write_quantiles(w, "ttft", &r->ttft);
    write_quantiles(w, "tpot", &r->tpot);
}

static void write_loops(struct json_writer *w, const struct trace_report *r)
{
    json_write_key(w, "loops");
    json_write_begin_array(w);
    for (uint32_t t = 0; t < r->n_loops; t++) {
        const struct trace_loop_report *loop = &r->loops[t];
        json_write_begin_object(w);
        write_quantiles(w, "hop", &loop->hop);
        write_quantiles(w, "wait", &loop->wait);
        write_quantiles(w, "compute", &loop->compute);
        json_write_integer_at(w, "n_exits", loop->n_exits);
        json_write_end_object(w);
    }
    json_write_end_array(w);
}

static void write_workers(struct json_writer *w, const struct trace_report *r,
                          const struct trace_set *set)
{
    json_write_key(w, "workers");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < r->n_workers; i++) {
        const struct trace_worker_report *worker = &r->workers[i];
        json_write_begin_object(w);
        json_write_key(w, "host");
        json_write_string(w, i + 1 < set->n_ranks ? set->ranks[i + 1].host : "");
        write_number(w, "elapsed", worker->elapsed_s);
        write_number(w, "busy", worker->busy_s);
        json_write_key(w, "idle");
        json_write_begin_array(w);
        for (int k = 0; k < TRACE_IDLE_REASONS; k++)
            json_write_float(w, (float)worker->idle_s[k]);
        json_write_end_array(w);
        json_write_integer_at(w, "batches", worker->n_batches);
        json_write_key(w, "rows_by_loop");
        json_write_begin_array(w);
        for (uint32_t t = 0; t < r->n_loops; t++)
            json_write_integer(w, (int64_t)worker->rows_by_loop[t]);
        json_write_end_array(w);
        json_write_end_object(w);
    }
    json_write_end_array(w);
}

static void write_slow(struct json_writer *w, const struct trace_report *r)
{
    json_write_key(w, "slow");
    json_write_begin_object(w);
    json_write_integer_at(w, "n", r->n_slow);
    json_write_key(w, "tokens");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < r->n_slow_listed; i++) {
        const struct trace_slow_token *token = &r->slow[i];
        json_write_begin_object(w);
        json_write_integer_at(w, "sequence", token->sequence);
        json_write_integer_at(w, "position", token->position);
        json_write_key(w, "at");
        json_write_number(w, token->at_s);
        write_number(w, "total", token->total_s);
        json_write_key(w, "steps"); /* loop, rank, hop, wait, compute */
        json_write_begin_array(w);
        for (uint32_t k = 0; k < token->n_steps; k++) {
            const struct trace_step *step = &token->steps[k];
            json_write_begin_array(w);
            json_write_integer(w, step->loop);
            json_write_integer(w, step->rank);
            json_write_float(w, (float)step->hop_s);
            json_write_float(w, (float)step->wait_s);
            json_write_float(w, (float)step->compute_s);
            json_write_end_array(w);
        }
        json_write_end_array(w);
        json_write_end_object(w);
    }
    json_write_end_array(w);
    json_write_end_object(w);
}

/* Of interest is the slowest token; without one the middle. */
static struct trace_page_span find_span(const struct trace_report *r, const struct trace_set *set)
{
    uint64_t begin = UINT64_MAX, end = 0;
    for (uint32_t rank = 0; rank < set->n_ranks; rank++) {
        const struct trace_rank *t = &set->ranks[rank];
        for (size_t i = 0; i < t->n_records; i++) {
            uint64_t at = t->records[i].at_ns, to = at + t->records[i].lasted_ns;
            begin = at < begin ? at : begin;
            end = to > end ? to : end;
        }
    }
    if (begin > end)
        begin = end;
    double interest_s = r->n_slow_listed > 0 ? r->slow[0].at_s + r->slow[0].total_s / 2
                                             : (double)(end - begin) / 2e9;
    return (struct trace_page_span){begin, end, begin + (uint64_t)(interest_s * 1e9)};
}

enum status trace_page_add_data(const struct trace_report *r, const struct trace_set *set,
                                struct text *out, struct err *err)
{
    struct text json = {0};
    struct json_writer w;
    struct trace_page_span span = find_span(r, set);
    json_writer_init(&w, &json);
    json_write_begin_object(&w);
    write_summary(&w, r, set);
    write_loops(&w, r);
    write_workers(&w, r, set);
    write_slow(&w, r);
    enum status status = trace_page_write_timeline(set, &span, &w, err);
    if (status == STATUS_OK)
        status = trace_page_write_paths(r, set, span.begin_ns, &w, err);
    if (status == STATUS_OK) {
        json_write_end_object(&w);
        /* In JSON a '<' is inside a string; in HTML it might end the script. */
        size_t from = 0;
        for (size_t i = 0; i < json.len_bytes; i++)
            if (json.bytes[i] == '<') {
                text_add(out, json.bytes + from, i - from);
                text_adds(out, "\\u003c");
                from = i + 1;
            }
        text_add(out, json.bytes + from, json.len_bytes - from);
        out->is_broken = out->is_broken || json.is_broken;
    }
    text_free(&json);
    return status;
}
