/* Writes a running server's traces without holding it up. */
#include "cli/serve_trace.h"

#include "cli/session.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WINDOW_S 10
/* Of the thread that writes: whoever computes or carries tokens goes first. */
enum { WRITER_NICE = 10 };
enum { AT_REST = 0, ASKED, WRITING, WRITTEN };

struct serve_trace {
    const struct server_log *log;
    const char *path;
    _Atomic(bool) is_wanted;
    _Atomic(int) state;
    struct trace_set *set; /* ASKED to WRITTEN */
    unsigned n_made;
    pthread_t writer;
    bool has_writer;
};

enum status serve_trace_create(const struct server_log *log, const char *path,
                               struct serve_trace **out, struct err *err)
{
    struct serve_trace *t = calloc(1, sizeof *t);
    if (t == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the server's traces");
    t->log = log;
    t->path = path;
    *out = t;
    return STATUS_OK;
}

static void join_writer(struct serve_trace *t)
{
    if (t->has_writer)
        pthread_join(t->writer, NULL);
    t->has_writer = false;
}

void serve_trace_destroy(struct serve_trace *t)
{
    if (t == NULL)
        return;
    join_writer(t);
    free(t);
}

enum status serve_trace_path(const char *path, long pid, unsigned n, char *out, size_t cap_bytes,
                             struct err *err)
{
    int len;
    if (path == NULL) {
        len = snprintf(out, cap_bytes, "carousel-trace-%ld-%u.json", pid, n);
    } else {
        const char *slash = strrchr(path, '/'), *base = slash != NULL ? slash + 1 : path;
        const char *dot = strrchr(base, '.');
        size_t stem = dot != NULL && dot != base ? (size_t)(dot - path) : strlen(path);
        len = snprintf(out, cap_bytes, "%.*s.%u%s", (int)stem, path, n, path + stem);
    }
    if (len < 0 || (size_t)len >= cap_bytes)
        return err_set(err, STATUS_INVALID, "the name of trace %u would have %d bytes", n, len);
    return STATUS_OK;
}

/* ---- telling -------------------------------------------------------------------------------- */

static void tell_refusal(const struct serve_trace *t, const char *message)
{
    struct log_field field = LOG_S("message", message);
    server_log(t->log, LOG_LEVEL_ERROR, "trace_failed", &field, 1);
}

static void tell_written(const struct serve_trace *t, const char *path,
                         const struct session_trace_summary *sum)
{
    char real[PATH_MAX];
    struct log_field fields[] = {LOG_S("path", realpath(path, real) != NULL ? real : path),
                                 LOG_I("ranks", sum->n_ranks), LOG_I("records", sum->n_records),
                                 LOG_I("overwritten", sum->n_lost),
                                 LOG_I("missing", sum->n_missing)};
    server_log(t->log, LOG_LEVEL_INFO, "trace", fields, sum->n_missing > 0 ? 5 : 4);
}

static enum status write_set(const struct serve_trace *t, struct trace_set *set, const char *path,
                             struct err *err)
{
    struct session_trace_summary sum;
    enum status status = session_write_trace(set, path, &sum, err);
    if (status == STATUS_OK)
        tell_written(t, path, &sum);
    return status;
}

/* ---- the last seconds ----------------------------------------------------------------------- */

void serve_trace_want(struct serve_trace *t)
{
    bool was_wanted = atomic_exchange(&t->is_wanted, true);
    int state = atomic_load(&t->state);
    if (was_wanted || state == ASKED || state == WRITING) {
        struct log_field why = LOG_S("why", "an earlier one is still being written");
        server_log(t->log, LOG_LEVEL_WARN, "trace_left_out", &why, 1);
        atomic_store(&t->is_wanted, was_wanted);
    }
}

/* Files of an earlier server with this --trace stay. */
static enum status choose_path(struct serve_trace *t, char *out, size_t cap_bytes, struct err *err)
{
    enum status status;
    do {
        status = serve_trace_path(t->path, (long)getpid(), ++t->n_made, out, cap_bytes, err);
    } while (status == STATUS_OK && access(out, F_OK) == 0 && t->n_made < UINT_MAX);
    return status;
}

static void *writer_main(void *arg)
{
    struct serve_trace *t = arg;
    char path[PATH_MAX];
    struct err err = {0};
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), WRITER_NICE); /* as it comes, if not */
    enum status status = choose_path(t, path, sizeof path, &err);
    if (status == STATUS_OK)
        status = write_set(t, t->set, path, &err);
    if (status != STATUS_OK)
        tell_refusal(t, err.message);
    trace_set_destroy(t->set);
    t->set = NULL;
    atomic_store(&t->state, WRITTEN);
    return NULL;
}

static void on_trace(void *user, struct trace_set *set)
{
    struct serve_trace *t = user;
    t->set = set;
    atomic_store(&t->state, WRITING);
    if (pthread_create(&t->writer, NULL, writer_main, t) == 0) {
        t->has_writer = true;
        return;
    }
    tell_refusal(t, "no thread to write the trace");
    trace_set_destroy(set);
    t->set = NULL;
    atomic_store(&t->state, AT_REST);
}

void serve_trace_step(struct serve_trace *t, struct coordinator *c)
{
    struct err err = {0};
    if (atomic_load(&t->state) == WRITTEN) {
        join_writer(t);
        atomic_store(&t->state, AT_REST);
    }
    if (atomic_load(&t->state) != AT_REST || !atomic_load(&t->is_wanted))
        return;
    /* In this order: a signal in between finds one of them set, and is told. */
    atomic_store(&t->state, ASKED);
    atomic_store(&t->is_wanted, false);
    if (coordinator_request_trace(c, WINDOW_S * UINT64_C(1000000000), on_trace, t, &err) !=
        STATUS_OK) {
        tell_refusal(t, err.message);
        atomic_store(&t->state, AT_REST);
    }
}

/* ---- the end -------------------------------------------------------------------------------- */

/* Of a lost cluster: what rank 0 has. */
static void finish_alone(struct serve_trace *t, struct coordinator *c)
{
    struct trace_set *set = NULL;
    struct err err = {0};
    if (coordinator_own_trace(c, &set, &err) != STATUS_OK ||
        write_set(t, set, t->path, &err) != STATUS_OK)
        tell_refusal(t, err.message);
    trace_set_destroy(set);
}

enum status serve_trace_finish(struct serve_trace *t, struct coordinator *c, struct err *err)
{
    struct trace_set *set = NULL;
    if (t->path == NULL)
        return STATUS_OK;
    enum status status = coordinator_collect_trace(c, 0, &set, err);
    if (status == STATUS_OK)
        status = write_set(t, set, t->path, err);
    else
        finish_alone(t, c);
    if (status != STATUS_OK)
        tell_refusal(t, err->message);
    trace_set_destroy(set);
    return status;
}
