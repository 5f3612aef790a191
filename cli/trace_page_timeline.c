/* Writes what every worker did when, in bounded space: each batch by itself, or shares of equal
 * bins with the batches of a window. */
#include "cli/trace_page.h"
#include "coordinator/json_writer.h"

#include <stdlib.h>

/* A span takes some 25 bytes of the page. */
enum { MAX_LANES = 256, MAX_SPANS = 60000, MAX_WINDOW_SPANS = 20000, MAX_CELLS = 40000 };
enum { N_SHARES = SEQUENCE_MAX_LOOPS + TRACE_IDLE_REASONS };
/* Times on the page are in units of 100 ns. */
enum { UNIT_NS = 100 };

struct timeline {
    const struct trace_set *set;
    uint64_t begin_ns, end_ns;
    uint32_t n_lanes; /* lane i is worker i * n_workers / n_lanes, counted from 0 */
    struct json_writer *w;
};

static uint32_t lane_rank(const struct timeline *t, uint32_t lane)
{
    return 1 + (uint32_t)((uint64_t)lane * (t->set->n_ranks - 1) / t->n_lanes);
}

static bool is_span(const struct trace_record *a)
{
    return a->kind == TRACE_BATCH || a->kind == TRACE_IDLE;
}

/* Spans of all lanes that begin in [from, to). */
static uint64_t count_spans(const struct timeline *t, uint64_t from_ns, uint64_t to_ns)
{
    uint64_t n = 0;
    for (uint32_t lane = 0; lane < t->n_lanes; lane++) {
        const struct trace_rank *r = &t->set->ranks[lane_rank(t, lane)];
        for (size_t i = 0; i < r->n_records; i++) {
            const struct trace_record *a = &r->records[i];
            n += is_span(a) && a->at_ns >= from_ns && a->at_ns < to_ns;
        }
    }
    return n;
}

static void write_time(const struct timeline *t, uint64_t ns)
{
    json_write_integer(t->w, (int64_t)(ns / UNIT_NS));
}

/* One array a lane, flat: begin (since the span before began), length, rows of each loop. */
static void write_batches(const struct timeline *t, uint64_t from_ns, uint64_t to_ns)
{
    json_write_key(t->w, "batches");
    json_write_begin_array(t->w);
    for (uint32_t lane = 0; lane < t->n_lanes; lane++) {
        const struct trace_rank *r = &t->set->ranks[lane_rank(t, lane)];
        uint64_t last = 0;
        json_write_begin_array(t->w);
        for (size_t i = 0; i < r->n_records; i++) {
            const struct trace_record *a = &r->records[i];
            if (a->kind != TRACE_BATCH || a->at_ns < from_ns || a->at_ns >= to_ns)
                continue;
            uint64_t at = (a->at_ns - t->begin_ns) / UNIT_NS;
            json_write_integer(t->w, (int64_t)(at - last));
            last = at;
            write_time(t, a->lasted_ns);
            for (uint32_t k = 0; k < t->set->n_loops; k++)
                json_write_integer(t->w, a->batch.rows_by_loop[k]);
        }
        json_write_end_array(t->w);
    }
    json_write_end_array(t->w);
}

/* The same: begin, length, reason. */
static void write_idle(const struct timeline *t, uint64_t from_ns, uint64_t to_ns)
{
    json_write_key(t->w, "idle");
    json_write_begin_array(t->w);
    for (uint32_t lane = 0; lane < t->n_lanes; lane++) {
        const struct trace_rank *r = &t->set->ranks[lane_rank(t, lane)];
        uint64_t last = 0;
        json_write_begin_array(t->w);
        for (size_t i = 0; i < r->n_records; i++) {
            const struct trace_record *a = &r->records[i];
            if (a->kind != TRACE_IDLE || a->at_ns < from_ns || a->at_ns >= to_ns)
                continue;
            uint64_t at = (a->at_ns - t->begin_ns) / UNIT_NS;
            json_write_integer(t->w, (int64_t)(at - last));
            last = at;
            write_time(t, a->lasted_ns);
            json_write_integer(t->w, a->flags);
        }
        json_write_end_array(t->w);
    }
    json_write_end_array(t->w);
}

/* Adds a span to the bins it covers, split by its parts. */
static void add_to_bins(const struct timeline *t, const struct trace_record *a, double bin_ns,
                        uint32_t n_bins, float (*bins)[N_SHARES])
{
    double from = (double)(a->at_ns - t->begin_ns), to = from + (double)a->lasted_ns;
    double parts[N_SHARES] = {0}, n_rows = 0;
    if (a->kind == TRACE_IDLE && a->flags < TRACE_IDLE_REASONS) {
        parts[SEQUENCE_MAX_LOOPS + a->flags] = 1;
    } else if (a->kind == TRACE_BATCH) {
        for (int k = 0; k < SEQUENCE_MAX_LOOPS; k++)
            n_rows += a->batch.rows_by_loop[k];
        for (int k = 0; k < SEQUENCE_MAX_LOOPS && n_rows > 0; k++)
            parts[k] = a->batch.rows_by_loop[k] / n_rows;
    }
    for (uint32_t bin = (uint32_t)(from / bin_ns); bin < n_bins && bin * bin_ns < to; bin++) {
        double left = bin * bin_ns > from ? bin * bin_ns : from;
        double right = (bin + 1) * bin_ns < to ? (bin + 1) * bin_ns : to;
        for (int k = 0; k < N_SHARES && right > left; k++)
            bins[bin][k] += (float)(parts[k] * (right - left) / bin_ns);
    }
}

/* One array a lane, flat: thousandths of each bin that went to each loop and each idle reason. */
static enum status write_bins(const struct timeline *t, struct err *err)
{
    const uint32_t n_bins = MAX_CELLS / t->n_lanes;
    double bin_ns = (double)(t->end_ns - t->begin_ns) / n_bins;
    float(*bins)[N_SHARES] = malloc(n_bins * sizeof *bins);
    if (bins == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u bins of a timeline", n_bins);
    json_write_key(t->w, "n_bins");
    json_write_integer(t->w, n_bins);
    json_write_key(t->w, "bins");
    json_write_begin_array(t->w);
    for (uint32_t lane = 0; lane < t->n_lanes; lane++) {
        const struct trace_rank *r = &t->set->ranks[lane_rank(t, lane)];
        for (uint32_t i = 0; i < n_bins; i++)
            for (int k = 0; k < N_SHARES; k++)
                bins[i][k] = 0;
        for (size_t i = 0; i < r->n_records; i++)
            if (is_span(&r->records[i]))
                add_to_bins(t, &r->records[i], bin_ns, n_bins, bins);
        json_write_begin_array(t->w);
        for (uint32_t i = 0; i < n_bins; i++) {
            for (uint32_t k = 0; k < t->set->n_loops; k++)
                json_write_integer(t->w, (int64_t)(1000 * bins[i][k] + 0.5f));
            for (int k = SEQUENCE_MAX_LOOPS; k < N_SHARES; k++)
                json_write_integer(t->w, (int64_t)(1000 * bins[i][k] + 0.5f));
        }
        json_write_end_array(t->w);
    }
    json_write_end_array(t->w);
    free(bins);
    return STATUS_OK;
}

/* The longest window around a time whose spans may be written one by one. */
static void find_window(const struct timeline *t, uint64_t middle, uint64_t *from_ns,
                        uint64_t *to_ns)
{
    uint64_t half = t->end_ns - t->begin_ns;
    while (half > 1 && count_spans(t, middle - half < middle ? middle - half : 0, middle + half) >
                           MAX_WINDOW_SPANS)
        half -= half / 4 > 0 ? half / 4 : 1;
    *from_ns = half < middle - t->begin_ns ? middle - half : t->begin_ns;
    *to_ns = middle + half < t->end_ns ? middle + half : t->end_ns;
}

enum status trace_page_write_timeline(const struct trace_set *set,
                                      const struct trace_page_span *span, struct json_writer *w,
                                      struct err *err)
{
    uint64_t begin_ns = span->begin_ns, end_ns = span->end_ns;
    uint32_t n_workers = set->n_ranks > 0 ? set->n_ranks - 1 : 0;
    struct timeline t = {.set = set,
                         .begin_ns = begin_ns,
                         .end_ns = end_ns > begin_ns ? end_ns : begin_ns + 1,
                         .n_lanes = n_workers < MAX_LANES ? n_workers : MAX_LANES,
                         .w = w};
    uint64_t from_ns = begin_ns, to_ns = UINT64_MAX;
    bool is_binned = count_spans(&t, 0, UINT64_MAX) > MAX_SPANS;
    enum status status = STATUS_OK;
    if (is_binned)
        find_window(&t, span->interest_ns, &from_ns, &to_ns);
    json_write_key(w, "timeline");
    json_write_begin_object(w);
    json_write_key(w, "end");
    write_time(&t, t.end_ns - begin_ns);
    json_write_key(w, "ranks");
    json_write_begin_array(w);
    for (uint32_t lane = 0; lane < t.n_lanes; lane++)
        json_write_integer(w, lane_rank(&t, lane));
    json_write_end_array(w);
    json_write_key(w, "window"); /* in which spans are one by one */
    json_write_begin_array(w);
    write_time(&t, from_ns - begin_ns);
    write_time(&t, (is_binned ? to_ns : t.end_ns) - begin_ns);
    json_write_end_array(w);
    write_batches(&t, from_ns, to_ns);
    write_idle(&t, from_ns, to_ns);
    if (is_binned)
        status = write_bins(&t, err);
    json_write_end_object(w);
    return status;
}
