/* Says early whether --trace can be kept, and late where the trace of a session lies. */
#include "cli/session.h"

#include "model/atomic_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

enum status session_check_trace(const struct session_options *o, struct err *err)
{
    struct stat st;
    struct atomic_file file;
    if (o->trace == NULL)
        return STATUS_OK;
    if (o->trace_bytes == 0)
        return err_set(err, STATUS_INVALID,
                       "--trace %s would be empty: --trace-buffer 0 turns recording off", o->trace);
    if (stat(o->trace, &st) == 0 && !S_ISREG(st.st_mode))
        return err_set(err, STATUS_INVALID, "--trace %s is no regular file; give the name of one",
                       o->trace);
    enum status status = atomic_file_create(&file, o->trace, 0, err);
    if (status != STATUS_OK)
        err_wrap(err, "--trace");
    else
        atomic_file_discard(&file);
    return status;
}

enum status session_write_trace(struct trace_set *set, const char *path,
                                struct session_trace_summary *out, struct err *err)
{
    *out = (struct session_trace_summary){.n_ranks = set->n_ranks};
    for (uint32_t r = 0; r < set->n_ranks; r++) {
        const struct trace_rank *rank = &set->ranks[r];
        out->n_records += rank->n_records;
        out->n_lost += rank->n_lost;
        out->n_missing += rank->is_missing;
        if (rank->n_records + rank->n_lost > out->n_most)
            out->n_most = rank->n_records + rank->n_lost;
    }
    enum status status = trace_set_align(set, err);
    return status == STATUS_OK ? trace_set_write(set, path, err) : status;
}

static void tell(const char *path, const struct session_trace_summary *sum)
{
    const uint32_t n_there = sum->n_ranks - sum->n_missing;
    fprintf(stderr, "carousel: trace %s: %" PRIu64 " records of %u rank%s", path, sum->n_records,
            n_there, n_there == 1 ? "" : "s");
    if (sum->n_missing > 0)
        fprintf(stderr, "; the run failed: those of %u worker%s are missing", sum->n_missing,
                sum->n_missing == 1 ? "" : "s");
    if (sum->n_lost > 0) {
        uint64_t mib = (sum->n_most * sizeof(struct trace_record) >> 20) + 1;
        fprintf(stderr,
                "; %" PRIu64 " older ones were overwritten: --trace-buffer %" PRIu64
                "M keeps all of such a run",
                sum->n_lost, mib);
    }
    fprintf(stderr, "\n");
}

/* Takes the set over. */
static enum status write_and_tell(struct trace_set *set, const char *path, struct err *err)
{
    struct session_trace_summary sum;
    enum status status = session_write_trace(set, path, &sum, err);
    if (status == STATUS_OK)
        tell(path, &sum);
    trace_set_destroy(set);
    return status;
}

/* What rank 0 has is better than nothing, unless that is nothing. */
static void save_own(struct session *s)
{
    struct trace_set *set = NULL;
    struct err err = {0};
    enum status status = coordinator_own_trace(s->coordinator, &set, &err);
    if (status == STATUS_OK && set->ranks[0].n_records > 0)
        status = write_and_tell(set, s->options.trace, &err);
    else
        trace_set_destroy(set);
    if (status != STATUS_OK)
        fprintf(stderr, "carousel: trace %s: %s\n", s->options.trace, err.message);
}

static enum status save_all(struct session *s, struct err *err)
{
    struct trace_set *set = NULL;
    enum status status = coordinator_collect_trace(s->coordinator, 0, &set, err);
    if (status == STATUS_OK)
        status = write_and_tell(set, s->options.trace, err);
    else
        save_own(s);
    if (status != STATUS_OK)
        err_wrap(err, "trace %s", s->options.trace);
    return status;
}

enum status session_save_trace(struct session *s, enum status outcome, struct err *err)
{
    struct err why = {0};
    if (s->options.trace == NULL)
        return outcome;
    /* Of a run that failed the requests are in no state to go on, which asking would make them. */
    if (outcome != STATUS_OK && outcome != STATUS_CANCELLED) {
        save_own(s);
        return outcome;
    }
    enum status status = save_all(s, &why);
    if (outcome == STATUS_OK && status != STATUS_OK)
        *err = why;
    else if (status != STATUS_OK)
        fprintf(stderr, "carousel: %s\n", why.message);
    return outcome == STATUS_OK ? status : outcome;
}
