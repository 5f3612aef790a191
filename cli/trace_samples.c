/* Collects measured times and takes their quantiles. */
#include "cli/trace_samples.h"

#include "cli/sorted.h"

#include <stdlib.h>

void trace_samples_add(struct trace_samples *s, uint64_t ns)
{
    if (s->n == s->room && !s->is_broken) {
        size_t room = s->room > 0 ? 2 * s->room : 256;
        double *grown = realloc(s->at_s, room * sizeof *grown);
        s->is_broken = grown == NULL;
        if (grown != NULL) {
            s->at_s = grown;
            s->room = room;
        }
    }
    if (!s->is_broken)
        s->at_s[s->n++] = (double)ns * 1e-9;
}

void trace_samples_free(struct trace_samples *s)
{
    free(s->at_s);
    *s = (struct trace_samples){0};
}

/* Nearest rank: the least sample that at least `percent` of all do not exceed. */
static double quantile(const struct trace_samples *s, size_t percent)
{
    return s->at_s[(s->n * percent + 99) / 100 - 1];
}

enum status trace_samples_take(struct trace_samples *s, struct trace_quantiles *out,
                               struct err *err)
{
    struct trace_quantiles q = {.n = s->n};
    if (s->is_broken)
        return err_set(err, STATUS_NO_MEMORY, "no memory for more than %zu measured times", s->n);
    if (s->n > 0) {
        sorted_doubles(s->at_s, s->n);
        for (size_t i = 0; i < s->n; i++)
            q.mean_s += s->at_s[i];
        q.mean_s /= (double)s->n;
        q.p50_s = quantile(s, 50);
        q.p90_s = quantile(s, 90);
        q.p99_s = quantile(s, 99);
        q.max_s = s->at_s[s->n - 1];
    }
    *out = q;
    trace_samples_free(s);
    return STATUS_OK;
}
