/* Prints what a batch did. */
#include "cli/batch_summary.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BAR_CELLS = 24 };

static double per_s(uint64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0.0;
}

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0.0;
}

static int n_loops_of(const struct batch *b)
{
    int n = b->session->checkpoint->config.n_loops;
    return n < SEQUENCE_MAX_LOOPS ? n : SEQUENCE_MAX_LOOPS;
}

static void print_bar(double value, const struct terminal *t, FILE *out)
{
    int filled = (int)(value * BAR_CELLS + 0.5);
    fputs(t->has_colour ? "\033[36m" : "", out);
    for (int i = 0; i < filled; i++)
        fputs(t->has_utf8 ? "\u2588" : "#", out);
    fputs(t->has_colour ? "\033[0m" : "", out);
    for (int i = filled; i < BAR_CELLS; i++)
        fputc(' ', out);
}

static void print_workers(const struct control_stats *stats, uint32_t n_workers, FILE *out)
{
    fprintf(out, "worker     busy  waiting  starved   batches  rows/batch    rows by loop\n");
    for (uint32_t w = 0; w < n_workers; w++) {
        const struct control_stats *s = &stats[w];
        uint64_t whole = s->elapsed_ns;
        fprintf(out, "  %-6u %5.1f %%  %5.1f %%  %5.1f %%  %8llu  %10.1f   ", w + 1,
                100 * share(s->busy_ns, whole), 100 * share(s->idle_waiting_ns, whole),
                100 * share(s->idle_starved_ns, whole), (unsigned long long)s->n_batches,
                share(s->n_rows, s->n_batches));
        int deepest = SEQUENCE_MAX_LOOPS;
        while (deepest > 1 && s->rows_by_loop[deepest - 1] == 0)
            deepest--;
        for (int t = 0; t < deepest; t++)
            fprintf(out, " %llu", (unsigned long long)s->rows_by_loop[t]);
        fputc('\n', out);
    }
}

void batch_summary_print(const struct batch *b, const struct control_stats *stats,
                         uint32_t n_workers, FILE *out)
{
    const struct batch_totals *t = &b->totals;
    struct terminal terminal;
    terminal_look(fileno(out), &terminal);
    fprintf(out, "lines      %llu: %llu answered, %llu failed, %llu done before, in %.2f s\n",
            (unsigned long long)t->n_done,
            (unsigned long long)(t->n_done - t->n_skipped - t->n_errors),
            (unsigned long long)t->n_errors, (unsigned long long)t->n_skipped, t->wall_s);
    fprintf(out, "tokens     %llu in, %llu out, %.1f tokens/s\n",
            (unsigned long long)t->prompt_tokens, (unsigned long long)t->tokens,
            per_s(t->tokens, t->wall_s));
    if (t->tokens > 0)
        fprintf(out, "exit loop  %.2f on average\n", share(t->sum_exit_loops, t->tokens));
    for (int i = 0; i < n_loops_of(b) && t->tokens > 0; i++) {
        double value = share(t->exits[i], t->tokens);
        fprintf(out, "  loop %d   ", i + 1);
        print_bar(value, &terminal, out);
        fprintf(out, " %5.1f %%\n", 100 * value);
    }
    if (stats != NULL)
        print_workers(stats, n_workers, out);
}

static json_t *worker_object(const struct control_stats *s, uint32_t rank)
{
    json_t *rows = json_array();
    for (int t = 0; t < SEQUENCE_MAX_LOOPS; t++)
        json_array_append_new(rows, json_integer((json_int_t)s->rows_by_loop[t]));
    return json_pack("{s:i, s:f, s:f, s:f, s:I, s:I, s:o, s:I, s:I}", "rank", (int)rank, "busy",
                     share(s->busy_ns, s->elapsed_ns), "waiting",
                     share(s->idle_waiting_ns, s->elapsed_ns), "starved",
                     share(s->idle_starved_ns, s->elapsed_ns), "batches", (json_int_t)s->n_batches,
                     "rows", (json_int_t)s->n_rows, "rows_by_loop", rows, "messages_sent",
                     (json_int_t)s->n_messages_sent, "bytes_sent", (json_int_t)s->n_bytes_sent);
}

void batch_summary_print_json(const struct batch *b, const struct control_stats *stats,
                              uint32_t n_workers, FILE *out)
{
    const struct batch_totals *t = &b->totals;
    json_t *exits = json_array();
    for (int i = 0; i < n_loops_of(b); i++)
        json_array_append_new(exits, json_integer((json_int_t)t->exits[i]));
    json_t *root = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:f}", "requests", (json_int_t)t->n_done,
        "answered", (json_int_t)(t->n_done - t->n_skipped - t->n_errors), "errors",
        (json_int_t)t->n_errors, "skipped", (json_int_t)t->n_skipped, "prompt_tokens",
        (json_int_t)t->prompt_tokens, "completion_tokens", (json_int_t)t->tokens, "tokens_per_s",
        per_s(t->tokens, t->wall_s), "mean_exit_loop", share(t->sum_exit_loops, t->tokens),
        "exit_histogram", exits, "wall_s", t->wall_s);
    if (stats != NULL) {
        json_t *workers = json_array();
        for (uint32_t w = 0; w < n_workers; w++)
            json_array_append_new(workers, worker_object(&stats[w], w + 1));
        json_object_set_new(root, "workers", workers);
    }
    char *text = json_dumps(root, JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
    fprintf(out, "%s\n", text != NULL ? text : "{}");
    free(text);
    json_decref(root);
}
