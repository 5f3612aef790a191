/* Keeps a window of requests under way and appends each answer as it is complete. */
#include "cli/batch_run.h"

#include "cli/batch_answer.h"
#include "cli/batch_hash.h"
#include "cli/batch_resume.h"
#include "cluster/host.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STEP_NS                     UINT64_C(100000000)
#define STEP_WHILE_INPUT_IS_LATE_NS UINT64_C(10000000)
/* mpirun kills its ranks one second after it has passed a signal on. */
#define CANCEL_NS UINT64_C(700000000)

/* ---- lists ---------------------------------------------------------------------------------- */

static void running_add(struct batch *b, struct batch_job *job)
{
    job->previous = NULL;
    job->next = b->running;
    if (b->running != NULL)
        b->running->previous = job;
    b->running = job;
}

static void running_remove(struct batch *b, struct batch_job *job)
{
    if (job->previous != NULL)
        job->previous->next = job->next;
    else
        b->running = job->next;
    if (job->next != NULL)
        job->next->previous = job->previous;
}

static void finished_add(struct batch *b, struct batch_job *job)
{
    job->next = NULL;
    if (b->finished_last != NULL)
        b->finished_last->next = job;
    else
        b->finished_first = job;
    b->finished_last = job;
}

static bool job_is_complete(const struct batch_job *job)
{
    return job->n_ended == job->n_submitted &&
           (job->n_submitted == job->n_choices || job->code != NULL);
}

void batch_choice_ended(struct batch_choice *choice)
{
    struct batch_job *job = choice->job;
    struct batch *b = job->batch;
    job->n_ended++;
    b->n_flying--;
    if (job != b->pending && job_is_complete(job)) {
        running_remove(b, job);
        finished_add(b, job);
    }
}

/* ---- output --------------------------------------------------------------------------------- */

/* b->line in one write, so that a kill hardly ever leaves a piece. */
static enum status write_line(struct batch *b, struct err *err)
{
    enum status status = STATUS_OK;
    size_t done = 0;
    /* After a failed write the file ends with a piece, which must stay the last thing in it. */
    if (b->is_output_broken)
        return err_set(err, STATUS_IO, "%s could not be written before", b->output_name);
    if (b->line.is_broken)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a line of %s", b->output_name);
    while (done < b->line.len_bytes && status == STATUS_OK) {
        ssize_t written = write(b->output_fd, b->line.bytes + done, b->line.len_bytes - done);
        if (written < 0 && errno != EINTR) {
            b->is_reader_gone = errno == EPIPE;
            status =
                err_set(err, STATUS_IO, "cannot write %s: %s", b->output_name, strerror(errno));
        } else if (written > 0)
            done += (size_t)written;
    }
    b->is_output_broken = status != STATUS_OK;
    return status;
}

static enum status write_error(struct batch *b, uint64_t number, const char *custom_id,
                               uint64_t input_hash, const char *code, const char *message,
                               struct err *err)
{
    text_reset(&b->line);
    batch_answer_error(b, number, custom_id, input_hash, code, message, &b->line);
    enum status status = write_line(b, err);
    if (status == STATUS_OK) {
        b->totals.n_errors++;
        b->totals.n_done++;
    }
    return status;
}

static void count_job(struct batch_totals *t, const struct batch_job *job)
{
    for (size_t i = 0; i < job->line.body.n_prompts; i++)
        t->prompt_tokens += job->line.body.prompts[i].n_ids;
    for (uint32_t c = 0; c < job->n_choices; c++) {
        const struct answer_choice *choice = &job->answers[c];
        t->n_choices++;
        t->tokens += choice->n_tokens;
        for (size_t i = 0; i < choice->n_exit_loops; i++) {
            uint32_t loop = choice->exit_loops[i];
            t->sum_exit_loops += loop;
            if (loop >= 1 && loop <= SEQUENCE_MAX_LOOPS)
                t->exits[loop - 1]++;
        }
    }
    t->n_done++;
}

static bool job_is_cancelled(const struct batch_job *job)
{
    for (uint32_t i = 0; i < job->n_choices; i++)
        if (job->answers[i].reason == FINISH_CANCELLED)
            return true;
    return false;
}

/* When the cluster is lost or stopped, failures and cancelled jobs are not the lines' own: they are
 * not written, so that a later run does them. */
static enum status write_finished(struct batch *b, bool only_successes, struct err *err)
{
    enum status status = STATUS_OK;
    struct batch_job *job;
    while (status == STATUS_OK && (job = b->finished_first) != NULL) {
        b->finished_first = job->next;
        if (b->finished_first == NULL)
            b->finished_last = NULL;
        if (job->code != NULL && !only_successes) {
            status = write_error(b, job->number, job->line.custom_id, job->input_hash, job->code,
                                 job->err.message, err);
        } else if (job->code == NULL && !job_is_cancelled(job)) {
            text_reset(&b->line);
            batch_answer_success(job, &b->line);
            status = write_line(b, err);
            if (status == STATUS_OK)
                count_job(&b->totals, job);
        }
        batch_job_destroy(job);
    }
    return status;
}

/* ---- input ---------------------------------------------------------------------------------- */

/* An answer of another run that is none of this line's must not pass for it. */
static enum status refuse_changed(const struct batch *b, uint64_t number, const char *custom_id,
                                  struct err *err)
{
    return err_set(err, STATUS_INVALID,
                   "%s line %llu: %s holds the answer of \"%s\" to another line or with other "
                   "options: choose another output file, or take that answer out; with a custom_id "
                   "in every line the input may be edited",
                   b->input.name, (unsigned long long)number, b->output_name, custom_id);
}

/* A line that wants an answer becomes b->pending; all others are dealt with here. */
static enum status take_line(struct batch *b, bool is_too_long, const char *text, size_t n,
                             struct err *err)
{
    struct batch_line line;
    struct fault why = {0};
    struct batch_id *id;
    uint64_t number = b->input.n_lines;
    if (is_too_long)
        n = 0;
    uint64_t input_hash = batch_hash_line(b->run_hash, text, n);
    enum status bad = batch_line_parse(text, n, number, &line, &why);
    if (is_too_long)
        fault_request(&why, STATUS_INVALID, NULL, NULL, "the line has more than %zu bytes",
                      b->input.max_line);
    char custom_id[sizeof line.custom_id];
    strcpy(custom_id, line.custom_id);
    enum status status = batch_ids_get(&b->ids, custom_id, &id, err);
    enum batch_verdict verdict = status == STATUS_OK ? batch_ids_judge(id, input_hash) : BATCH_SKIP;
    if (status == STATUS_OK && verdict == BATCH_RUN && bad == STATUS_OK) {
        status = batch_job_create(b, &line, number, &b->pending, err);
        if (status == STATUS_OK)
            b->pending->input_hash = input_hash;
        return status;
    }
    batch_line_clear(&line);
    if (status != STATUS_OK)
        return status;
    if (verdict == BATCH_CHANGED)
        return refuse_changed(b, number, custom_id, err);
    if (verdict == BATCH_SKIP) {
        b->totals.n_skipped++;
        b->totals.n_done++;
        return STATUS_OK;
    }
    if (verdict == BATCH_DUPLICATE) {
        return write_error(b, number, custom_id, input_hash, BATCH_CODE_DUPLICATE,
                           "custom_id: an earlier line of the input has the same one", err);
    }
    return write_error(b, number, custom_id, input_hash, batch_error_code(&why), why.err.message,
                       err);
}

/* Submits what the window has room for; *is_full: not everything of it. */
static enum status submit_pending(struct batch *b, bool *is_full, struct err *err)
{
    struct batch_job *job = b->pending;
    struct err why = {0};
    if (!job->is_encoded && job->code == NULL)
        batch_job_encode(job);
    while (job->code == NULL && job->n_submitted < job->n_choices && b->n_flying < b->window) {
        enum status status = batch_job_submit(job, &why);
        if (status == STATUS_FULL && b->n_flying == 0)
            return err_set(err, STATUS_INTERNAL, "the queue is full with nothing under way");
        if (status == STATUS_FULL) {
            *is_full = true;
            return STATUS_OK;
        }
        b->n_flying += status == STATUS_OK;
    }
    if (job->code == NULL && job->n_submitted < job->n_choices) {
        *is_full = true;
        return STATUS_OK;
    }
    b->pending = NULL;
    if (job_is_complete(job))
        finished_add(b, job);
    else
        running_add(b, job);
    return STATUS_OK;
}

static bool is_pending(int number)
{
    sigset_t pending;
    return sigpending(&pending) == 0 && sigismember(&pending, number) == 1;
}

/* Asked to take no further line. */
static bool is_draining(void)
{
    return is_pending(SIGUSR1);
}

/* *is_late: the input may have more in a moment. */
static enum status fill_window(struct batch *b, bool *is_late, struct err *err)
{
    enum status status = STATUS_OK;
    bool is_full = false;
    *is_late = false;
    while (status == STATUS_OK && !is_full && !*is_late) {
        if (b->pending != NULL) {
            status = submit_pending(b, &is_full, err);
            if (status == STATUS_OK)
                status = write_finished(b, false, err);
            continue;
        }
        if (b->is_input_ended || b->n_flying >= b->window || is_draining())
            break;
        enum batch_input_kind kind;
        const char *text = NULL;
        size_t n = 0;
        status = batch_input_next(&b->input, 0, &kind, &text, &n, err);
        if (status != STATUS_OK)
            break;
        *is_late = kind == BATCH_INPUT_LATER;
        b->is_input_ended = kind == BATCH_INPUT_END;
        if (kind == BATCH_INPUT_LINE || kind == BATCH_INPUT_TOO_LONG)
            status = take_line(b, kind == BATCH_INPUT_TOO_LONG, text, n, err);
    }
    return status;
}

/* ---- the run -------------------------------------------------------------------------------- */

/* Nothing is under way, and nothing more will be. */
static bool is_over(const struct batch *b)
{
    return (b->is_input_ended || is_draining()) && b->pending == NULL && b->running == NULL;
}

static void show_progress(struct batch *b)
{
    uint64_t now_ns = host_now_ns();
    const struct batch_totals *t = &b->totals;
    b->totals.wall_s = (double)(now_ns - b->started_ns) / 1e9;
    const struct progress_facts facts = {
        .n_done = t->n_done,
        .n_skipped = t->n_skipped,
        .n_total = t->n_total,
        .n_errors = t->n_errors,
        .n_tokens = b->n_tokens,
        .sum_exit_loops = b->sum_exit_loops,
        .elapsed_s = t->wall_s,
    };
    progress_update(&b->progress, &facts, now_ns);
}

/* Ends what is under way without writing it. The cluster may be lost: that is no news any more. */
static void abandon(struct batch *b)
{
    struct coordinator *c = b->session->coordinator;
    uint64_t deadline_ns = host_now_ns() + CANCEL_NS;
    if (b->pending != NULL) {
        struct batch_job *job = b->pending;
        b->pending = NULL;
        running_add(b, job);
    }
    for (struct batch_job *job = b->running; job != NULL; job = job->next)
        batch_job_cancel(job);
    while (!coordinator_is_idle(c) && host_now_ns() < deadline_ns &&
           coordinator_step(c, STEP_WHILE_INPUT_IS_LATE_NS, NULL) == STATUS_OK)
        continue;
    write_finished(b, true, NULL);
}

enum status batch_run(struct batch *b, struct err *err)
{
    enum status status = STATUS_OK;
    b->started_ns = host_now_ns();
    while (status == STATUS_OK) {
        bool is_late;
        if (is_pending(SIGINT) || is_pending(SIGTERM)) {
            status = err_set(err, STATUS_CANCELLED, "stopped by a signal");
            break;
        }
        status = fill_window(b, &is_late, err);
        if (status == STATUS_OK && is_over(b) && !b->is_input_ended)
            status = err_set(err, STATUS_CANCELLED,
                             "drained after SIGUSR1: what was under way is answered");
        if (status != STATUS_OK || is_over(b))
            break;
        status = coordinator_step(b->session->coordinator,
                                  is_late ? STEP_WHILE_INPUT_IS_LATE_NS : STEP_NS, err);
        enum status written =
            write_finished(b, status != STATUS_OK, status == STATUS_OK ? err : NULL);
        if (status == STATUS_OK)
            status = written;
        show_progress(b);
    }
    if (status != STATUS_OK)
        abandon(b);
    b->totals.wall_s = (double)(host_now_ns() - b->started_ns) / 1e9;
    progress_clear(&b->progress);
    return status;
}
