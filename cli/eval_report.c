/* Prints a score: accuracy by difficulty and loops, then what every exit threshold gives. */
#include "cli/eval_report.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

static void print_by_loop(const struct eval_score *s, FILE *out)
{
    fprintf(out, "Exact answers in %% by difficulty, every token at the same loop\n\n%-14s %8s", "",
            "answers");
    for (uint32_t t = 1; t <= s->n_loops; t++)
        fprintf(out, "  loop %-2u", t);
    fputc('\n', out);
    for (int i = 0; i <= s->n_levels; i++) {
        const struct eval_level *l = &s->levels[i];
        fprintf(out, "%-14s %8llu", l->name, (unsigned long long)l->n_answers);
        for (uint32_t t = 0; t < s->n_loops; t++)
            fprintf(out, "  %7.2f", 100 * share(l->right_at_loop[t], l->n_answers));
        fputc('\n', out);
    }
}

static void print_by_threshold(const struct eval_score *s, FILE *out)
{
    const struct eval_level *all = &s->levels[s->n_levels];
    fprintf(out,
            "\nWhat the exit threshold gives, over all difficulties\n\n"
            "     q    exact %%  loss/token  mean loops   exits at loop 1..%u in %%\n",
            s->n_loops);
    for (size_t i = 0; i < s->n_thresholds; i++) {
        fprintf(out, "%6.3g   %8.2f  %10.4f  %10.3f  ", (double)s->thresholds[i],
                100 * share(all->right_at_threshold[i], all->n_answers),
                all->n_tokens > 0 ? all->ce_at_threshold[i] / (double)all->n_tokens : 0,
                eval_level_mean_exit(all, i, s->n_loops));
        for (uint32_t t = 0; t < s->n_loops; t++)
            fprintf(out, " %6.2f", 100 * share(all->exit_counts[i][t], all->n_tokens));
        fputc('\n', out);
    }
}

static void print_exits(const struct eval_score *s, FILE *out)
{
    fprintf(out, "\nMean exit loop by difficulty and threshold\n\n%-14s", "");
    for (size_t i = 0; i < s->n_thresholds; i++)
        fprintf(out, " %6.3g", (double)s->thresholds[i]);
    fputc('\n', out);
    for (int l = 0; l <= s->n_levels; l++) {
        fprintf(out, "%-14s", s->levels[l].name);
        for (size_t i = 0; i < s->n_thresholds; i++)
            fprintf(out, " %6.2f", eval_level_mean_exit(&s->levels[l], i, s->n_loops));
        fputc('\n', out);
    }
}

void eval_report_tables(const struct eval_score *score, FILE *out)
{
    print_by_loop(score, out);
    if (score->n_thresholds == 0)
        return;
    print_by_threshold(score, out);
    print_exits(score, out);
}

/* An array of part[i] / whole. */
static json_t *shares(const uint64_t *parts, size_t n, uint64_t whole)
{
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(array, json_real(share(parts[i], whole)));
    return array;
}

static json_t *means(const double *sums, size_t n, uint64_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(array, json_real(count > 0 ? sums[i] / (double)count : 0));
    return array;
}

static json_t *level_json(const struct eval_score *s, const struct eval_level *l)
{
    json_t *exits = json_array(), *histograms = json_array();
    for (size_t i = 0; i < s->n_thresholds; i++) {
        json_array_append_new(exits, json_real(eval_level_mean_exit(l, i, s->n_loops)));
        json_array_append_new(histograms, shares(l->exit_counts[i], s->n_loops, l->n_tokens));
    }
    return json_pack("{s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "level", l->name, "answers",
                     (json_int_t)l->n_answers, "tokens", (json_int_t)l->n_tokens, "exact_by_loop",
                     shares(l->right_at_loop, s->n_loops, l->n_answers), "loss_by_loop",
                     means(l->ce_at_loop, s->n_loops, l->n_tokens), "exact_by_q",
                     shares(l->right_at_threshold, s->n_thresholds, l->n_answers), "loss_by_q",
                     means(l->ce_at_threshold, s->n_thresholds, l->n_tokens), "mean_exit_by_q",
                     exits, "exit_histogram_by_q", histograms);
}

enum status eval_report_json(const struct eval_score *score, const char *model, const char *split,
                             uint64_t seed, FILE *out, struct err *err)
{
    json_t *levels = json_array(), *q = json_array();
    for (int i = 0; i < score->n_levels; i++)
        json_array_append_new(levels, level_json(score, &score->levels[i]));
    for (size_t i = 0; i < score->n_thresholds; i++)
        json_array_append_new(q, json_real(round((double)score->thresholds[i] * 1e6) / 1e6));
    json_t *all =
        json_pack("{s:s, s:s, s:I, s:i, s:o, s:o, s:o}", "model", model, "split", split, "seed",
                  (json_int_t)seed, "loops", (int)score->n_loops, "q", q, "levels", levels, "all",
                  level_json(score, &score->levels[score->n_levels]));
    if (all == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the report");
    json_dumpf(all, out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(all);
    return STATUS_OK;
}
