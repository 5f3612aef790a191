/* Writes the report as HTML tables: what a reader without scripts sees of a trace. */
#include "cli/trace_page.h"

#include <inttypes.h>
#include <stdio.h>

/* Workers shown one by one, of more every n-th; and without being asked to unfold them. */
enum { MOST_WORKERS = 256, MOST_OPEN = 16 };

void trace_page_add_escaped(struct text *out, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&':
            text_adds(out, "&amp;");
            break;
        case '<':
            text_adds(out, "&lt;");
            break;
        case '>':
            text_adds(out, "&gt;");
            break;
        case '"':
            text_adds(out, "&quot;");
            break;
        default:
            text_add(out, text, 1);
        }
    }
}

static void add_seconds(struct text *out, double s)
{
    if (s >= 1)
        text_addf(out, "<td>%.3g s", s);
    else if (s >= 1e-3)
        text_addf(out, "<td>%.3g ms", s * 1e3);
    else
        text_addf(out, "<td>%.3g µs", s * 1e6);
}

static void add_row_of_quantiles(struct text *out, const char *name,
                                 const struct trace_quantiles *q)
{
    text_addf(out, "<tr><th>%s<td>%" PRIu64, name, q->n);
    const double values[] = {q->mean_s, q->p50_s, q->p90_s, q->p99_s, q->max_s};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        add_seconds(out, values[i]);
    text_adds(out, "\n");
}

static void add_run(const struct trace_report *r, const struct trace_set *set, struct text *out)
{
    text_adds(out, "<table class=\"key\"><caption>The run</caption>\n<tr><th>model<td>");
    trace_page_add_escaped(out, set->model);
    text_addf(out, "\n<tr><th>workers<td>%u, in rings of %u%s", r->n_workers, set->ring_size,
              set->is_simulated ? "; simulated" : "");
    text_addf(out, "\n<tr><th>loops<td>%u\n<tr><th>time<td>%.4g s", r->n_loops, r->elapsed_s);
    text_addf(out, "\n<tr><th>requests<td>%" PRIu64 "\n<tr><th>tokens<td>%" PRIu64, r->n_requests,
              r->n_tokens);
    text_addf(out, "\n<tr><th>tokens a second<td>%.4g", r->tokens_per_s);
    text_addf(out, "\n<tr><th>records overwritten<td>%" PRIu64, r->n_lost);
    if (r->n_missing > 0)
        text_addf(out, "\n<tr><th>workers whose records are missing<td>%" PRIu32, r->n_missing);
    text_adds(out, "\n<tr><th>clocks differ by at most");
    add_seconds(out, r->clock_error_s);
    text_adds(out, "\n<tr><th>version<td>");
    trace_page_add_escaped(out, set->version);
    text_adds(out, "\n</table>\n");
}

static void add_loops(const struct trace_report *r, struct text *out)
{
    static const char head[] = "<tr><th><th>n<th>mean<th>p50<th>p90<th>p99<th>max\n";
    text_addf(out, "<table><caption>Requests</caption>\n%s", head);
    add_row_of_quantiles(out, "queue", &r->queue);
    add_row_of_quantiles(out, "admission", &r->admission);
    add_row_of_quantiles(out, "first token", &r->ttft);
    add_row_of_quantiles(out, "next token", &r->tpot);
    text_addf(out, "</table>\n<table><caption>Loops</caption>\n%s", head);
    for (uint32_t t = 0; t < r->n_loops; t++) {
        const struct trace_loop_report *loop = &r->loops[t];
        char name[64];
        snprintf(name, sizeof name, "loop %u, hop", t + 1);
        add_row_of_quantiles(out, name, &loop->hop);
        add_row_of_quantiles(out, "wait", &loop->wait);
        add_row_of_quantiles(out, "compute", &loop->compute);
        add_row_of_quantiles(out, "head, of exits", &loop->head);
    }
    text_adds(out, "</table>\n<table><caption>Exits</caption>\n<tr><th>loop<th>tokens<th>share\n");
    for (uint32_t t = 0; t < r->n_loops; t++) {
        uint64_t n = r->loops[t].n_exits;
        text_addf(out, "<tr><th>%u<td>%" PRIu64 "<td>%.1f %%\n", t + 1, n,
                  r->n_tokens > 0 ? 100 * (double)n / (double)r->n_tokens : 0);
    }
    text_adds(out, "</table>\n");
}

static void add_workers(const struct trace_report *r, const struct trace_set *set, struct text *out)
{
    uint32_t step = r->n_workers / MOST_WORKERS + (r->n_workers % MOST_WORKERS > 0);
    text_addf(out,
              "<details%s><summary>Workers%s</"
              "summary>\n<table>\n<tr><th>worker<th>host<th>busy<th>nothing to "
              "do<th>waits for a peer<th>no KV blocks<th>draining<th>batches<th>rows a "
              "batch<th>parked<th>revived\n",
              r->n_workers <= MOST_OPEN ? " open" : "", step > 1 ? ", some of them" : "");
    for (uint32_t i = 0; i < r->n_workers; i += step) {
        const struct trace_worker_report *w = &r->workers[i];
        double percent = w->elapsed_s > 0 ? 100 / w->elapsed_s : 0;
        text_addf(out, "<tr><th>%u<td>", i + 1);
        trace_page_add_escaped(out, i + 1 < set->n_ranks ? set->ranks[i + 1].host : "");
        text_addf(out, "<td>%.1f %%<td>%.1f %%<td>%.1f %%<td>%.1f %%<td>%.1f %%",
                  percent * w->busy_s, percent * w->idle_s[TRACE_IDLE_STARVED],
                  percent * w->idle_s[TRACE_IDLE_PEER], percent * w->idle_s[TRACE_IDLE_KV],
                  percent * w->idle_s[TRACE_IDLE_DRAINING]);
        text_addf(out, "<td>%" PRIu64 "<td>%.2f<td>%" PRIu64 "<td>%" PRIu64 "\n", w->n_batches,
                  w->n_batches > 0 ? (double)w->n_rows / (double)w->n_batches : 0, w->n_parked,
                  w->n_revived);
    }
    text_adds(out, "</table></details>\n");
}

void trace_page_add_tables(const struct trace_report *r, const struct trace_set *set,
                           struct text *out)
{
    add_run(r, set, out);
    add_loops(r, out);
    add_workers(r, set, out);
}
