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
        if (rank->n_records + rank->n_lost > out->n_most)
            out->n_most = rank->n_records + rank->n_lost;
    }
    enum status status = trace_set_align(set, err);
    return status == STATUS_OK ? trace_set_write(set, path, err) : status;
}

static void tell(const char *path, const struct session_trace_summary *sum)
{
    fprintf(stderr, "carousel: trace %s: %" PRIu64 " records of %u ranks", path, sum->n_records,
            sum->n_ranks);
    if (sum->n_lost > 0) {
        uint64_t mib = (sum->n_most * sizeof(struct trace_record) >> 20) + 1;
        fprintf(stderr,
                "; %" PRIu64 " older ones were overwritten: --trace-buffer %" PRIu64
                "M keeps all of such a run",
                sum->n_lost, mib);
    }
    fprintf(stderr, "\n");
}

enum status session_save_trace(struct session *s, struct err *err)
{
    const char *path = s->options.trace;
    struct session_trace_summary sum;
    struct trace_set *set = NULL;
    if (path == NULL || s->coordinator == NULL)
        return STATUS_OK;
    enum status status = coordinator_collect_trace(s->coordinator, 0, &set, err);
    if (status == STATUS_OK)
        status = session_write_trace(set, path, &sum, err);
    if (status == STATUS_OK)
        tell(path, &sum);
    else
        err_wrap(err, "trace %s", path);
    trace_set_destroy(set);
    return status;
}
