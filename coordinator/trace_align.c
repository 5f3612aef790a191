/* Makes one trace of the traces of many ranks: one clock, one order, every idle time with its
 * reason. */
#include "coordinator/trace_set.h"

#include <stdlib.h>

/* at - offset_ns, within what a uint64_t holds. */
static uint64_t shift(uint64_t at_ns, int64_t offset_ns)
{
    uint64_t by = offset_ns < 0 ? -(uint64_t)offset_ns : (uint64_t)offset_ns;
    if (offset_ns < 0)
        return at_ns > UINT64_MAX - by ? UINT64_MAX : at_ns + by;
    return at_ns > by ? at_ns - by : 0;
}

/* A hop was measured as arrival by our clock less departure by the peer's. */
static int64_t correct_hop(int64_t hop_ns, int64_t our_offset_ns, int64_t peer_offset_ns)
{
    int64_t between, hop;
    if (__builtin_sub_overflow(our_offset_ns, peer_offset_ns, &between) ||
        __builtin_sub_overflow(hop_ns, between, &hop))
        return 0;
    return hop > 0 ? hop : 0;
}

/* Of a rank's clock less the coordinator's, at a time of the coordinator's. */
static int64_t offset_at(const struct trace_rank *r, uint64_t at_ns, uint64_t *error_ns)
{
    if (r->n_clocks > 0)
        return trace_clock_offset(r->clocks, r->n_clocks, at_ns, error_ns);
    *error_ns = r->clock_error_ns;
    return r->clock_offset_ns;
}

/* A time of the rank as the coordinator's. Which offset holds depends on the result: the second
 * guess is off by the drift of the first one's drift. */
static uint64_t to_ours(const struct trace_rank *r, uint64_t at_ns, uint64_t *error_ns)
{
    uint64_t ours = shift(at_ns, offset_at(r, shift(at_ns, r->clock_offset_ns), error_ns));
    if (r->n_clocks > 0)
        ours = shift(at_ns, offset_at(r, ours, error_ns));
    return ours;
}

static void use_one_clock(const struct trace_set *set, uint32_t rank)
{
    struct trace_rank *r = &set->ranks[rank];
    uint64_t most_ns = r->clock_error_ns, error_ns, ignored_ns;
    for (size_t i = 0; i < r->n_records; i++) {
        struct trace_record *a = &r->records[i];
        uint64_t end_ns = to_ours(r, a->at_ns + a->lasted_ns, &error_ns);
        a->at_ns = to_ours(r, a->at_ns, &error_ns);
        a->lasted_ns = end_ns > a->at_ns ? end_ns - a->at_ns : 0;
        most_ns = error_ns > most_ns ? error_ns : most_ns;
        if (a->kind == TRACE_BATCH && a->batch.head_ns > a->lasted_ns)
            a->batch.head_ns = (uint32_t)a->lasted_ns;
        /* Rows that stayed have no hop, and a peer that is no rank has no clock. */
        if (a->kind == TRACE_ROWS && a->rows.hop_ns != 0)
            a->rows.hop_ns =
                a->peer == rank || a->peer >= set->n_ranks
                    ? correct_hop(a->rows.hop_ns, 0, 0)
                    : correct_hop(a->rows.hop_ns, offset_at(r, a->at_ns, &ignored_ns),
                                  offset_at(&set->ranks[a->peer], a->at_ns, &ignored_ns));
    }
    r->clock_error_ns = most_ns;
}

/* ---- order ---------------------------------------------------------------------------------- */

struct place {
    uint64_t at_ns;
    size_t index;
};

/* Records of one time keep the order in which they were made. */
static int compare_places(const void *left, const void *right)
{
    const struct place *a = left, *b = right;
    if (a->at_ns != b->at_ns)
        return a->at_ns < b->at_ns ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static enum status no_memory(size_t n, struct err *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory to align %zu trace records", n);
}

static enum status sort_rank(struct trace_rank *r, struct err *err)
{
    bool is_sorted = true;
    for (size_t i = 1; i < r->n_records && is_sorted; i++)
        is_sorted = r->records[i - 1].at_ns <= r->records[i].at_ns;
    if (is_sorted)
        return STATUS_OK;
    struct place *places = malloc(r->n_records * sizeof *places);
    if (places == NULL)
        return no_memory(r->n_records, err);
    for (size_t i = 0; i < r->n_records; i++)
        places[i] = (struct place){r->records[i].at_ns, i};
    qsort(places, r->n_records, sizeof *places, compare_places);
    /* In place, one cycle of the permutation after the other: records are four times their places.
     */
    for (size_t i = 0; i < r->n_records; i++) {
        struct trace_record first = r->records[i];
        size_t to = i;
        while (places[to].index != to) {
            size_t from = places[to].index;
            places[to].index = to;
            r->records[to] = from == i ? first : r->records[from];
            to = from;
        }
    }
    free(places);
    return STATUS_OK;
}

/* ---- why a worker starved ------------------------------------------------------------------- */

struct window {
    uint64_t from_ns, to_ns;
};
/* Ascending, apart from each other. */
struct windows {
    struct window *at;
    size_t n;
};

/* The coordinator's records are sorted by now. */
static enum status collect_windows(const struct trace_rank *coordinator, enum trace_kind kind,
                                   struct windows *out, struct err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < coordinator->n_records; i++)
        n += coordinator->records[i].kind == kind;
    struct windows found = {.at = malloc((n > 0 ? n : 1) * sizeof *found.at)};
    if (found.at == NULL)
        return no_memory(n, err);
    for (size_t i = 0; i < coordinator->n_records; i++) {
        const struct trace_record *r = &coordinator->records[i];
        if (r->kind != kind)
            continue;
        struct window w = {r->at_ns, r->at_ns + r->lasted_ns};
        if (found.n > 0 && w.from_ns <= found.at[found.n - 1].to_ns) {
            if (w.to_ns > found.at[found.n - 1].to_ns)
                found.at[found.n - 1].to_ns = w.to_ns;
        } else {
            found.at[found.n++] = w;
        }
    }
    *out = found;
    return STATUS_OK;
}

/* Whether at_ns lies in a window; *until_ns is lowered to where that answer changes. *next goes up
 * with the times that are asked for. */
static bool is_within(const struct windows *w, size_t *next, uint64_t at_ns, uint64_t *until_ns)
{
    while (*next < w->n && w->at[*next].to_ns <= at_ns)
        ++*next;
    if (*next == w->n)
        return false;
    bool is_in = w->at[*next].from_ns <= at_ns;
    uint64_t change = is_in ? w->at[*next].to_ns : w->at[*next].from_ns;
    if (change < *until_ns)
        *until_ns = change;
    return is_in;
}

/* Where and why a worker starved from at_ns on; *until_ns is where the reason changes. Of the two
 * reasons KV wins: what waits for blocks would have run whether the server drains or not. */
struct reasons {
    struct windows blocked, draining;
    size_t next_blocked, next_draining;
};

static enum trace_idle find_reason(struct reasons *why, uint64_t at_ns, uint64_t end_ns,
                                   uint64_t *until_ns)
{
    *until_ns = end_ns;
    if (is_within(&why->blocked, &why->next_blocked, at_ns, until_ns))
        return TRACE_IDLE_KV;
    return is_within(&why->draining, &why->next_draining, at_ns, until_ns) ? TRACE_IDLE_DRAINING
                                                                           : TRACE_IDLE_STARVED;
}

/* Splits the starved spans of a worker where the reason changes. The later pieces go to the end of
 * its records. */
static enum status explain_idle(struct trace_set *set, uint32_t rank, struct reasons *why,
                                struct err *err)
{
    struct trace_rank *r = &set->ranks[rank];
    size_t n = r->n_records;
    enum status status = STATUS_OK;
    why->next_blocked = why->next_draining = 0;
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        if (r->records[i].kind != TRACE_IDLE || r->records[i].flags != TRACE_IDLE_STARVED)
            continue;
        struct trace_record piece = r->records[i];
        uint64_t end = piece.at_ns + piece.lasted_ns, until = piece.at_ns;
        for (bool is_first = true; until < end && status == STATUS_OK; is_first = false) {
            piece.at_ns = until;
            piece.flags = (uint16_t)find_reason(why, piece.at_ns, end, &until);
            piece.lasted_ns = until - piece.at_ns;
            if (is_first)
                r->records[i] = piece;
            else
                status = trace_set_append(set, rank, &piece, 1, err);
        }
    }
    return status;
}

enum status trace_set_align(struct trace_set *set, struct err *err)
{
    struct reasons why = {0};
    enum status status = STATUS_OK;
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        use_one_clock(set, rank);
    for (uint32_t rank = 0; rank < set->n_ranks; rank++) {
        set->ranks[rank].clock_removed_ns += set->ranks[rank].clock_offset_ns;
        set->ranks[rank].clock_offset_ns = 0;
    }
    for (uint32_t rank = 0; rank < set->n_ranks && status == STATUS_OK; rank++)
        status = sort_rank(&set->ranks[rank], err);
    if (status == STATUS_OK && set->n_ranks > 0)
        status = collect_windows(&set->ranks[0], TRACE_BLOCKED, &why.blocked, err);
    if (status == STATUS_OK && set->n_ranks > 0)
        status = collect_windows(&set->ranks[0], TRACE_DRAINING, &why.draining, err);
    for (uint32_t rank = 1; rank < set->n_ranks && status == STATUS_OK; rank++) {
        size_t n = set->ranks[rank].n_records;
        status = explain_idle(set, rank, &why, err);
        if (status == STATUS_OK && set->ranks[rank].n_records > n)
            status = sort_rank(&set->ranks[rank], err);
    }
    free(why.blocked.at);
    free(why.draining.at);
    return status;
}
