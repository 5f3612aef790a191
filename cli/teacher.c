/* Feeds known texts to the ring and puts what the loops say of each row together again. */
#include "cli/teacher.h"

#include "kernels/exit_rule.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_TEXTS = 64, DEFAULT_ROWS = 16384, HIDDEN_BYTES = 256 * 1024 * 1024 };

/* A row some of whose loops are missing. */
struct teacher_cell {
    struct teacher_cell *next; /* free ones */
    uint32_t n_seen;
    bool is_seen[SEQUENCE_MAX_LOOPS], hits[SEQUENCE_MAX_LOOPS];
    float lambdas[SEQUENCE_MAX_LOOPS], logprobs[SEQUENCE_MAX_LOOPS];
    float hidden[]; /* [n_loops, d] where wanted */
};

struct teacher;

/* A text under way. */
struct teacher_job {
    struct teacher *teacher;
    uint64_t text, request;
    void *user;
    uint32_t first_position, n_rows, n_done;
    bool is_active;
    int32_t *targets;            /* [n_rows] */
    struct teacher_cell **cells; /* [n_rows] NULL: nothing has come, or all has */
};

struct teacher {
    struct session *session;
    const struct teacher_listener *listener;
    bool wants_hidden;
    uint32_t n_loops, d;
    uint32_t max_texts, n_active;
    uint64_t max_rows, n_rows, n_texts;
    struct teacher_job *jobs; /* [max_texts] */
    struct teacher_cell *free_cells;
    struct err err; /* the first thing that went wrong */
};

static bool has_failed(const struct teacher *t)
{
    return t->err.code != STATUS_OK;
}

/* ---- what the loops say --------------------------------------------------------------------- */

static struct teacher_cell *take_cell(struct teacher *t)
{
    struct teacher_cell *cell = t->free_cells;
    size_t n_hidden = t->wants_hidden ? (size_t)t->n_loops * t->d : 0;
    if (cell != NULL)
        t->free_cells = cell->next;
    else if ((cell = malloc(sizeof *cell + n_hidden * sizeof *cell->hidden)) == NULL)
        return NULL;
    memset(cell, 0, sizeof *cell);
    return cell;
}

static void give_back(struct teacher *t, struct teacher_cell *cell)
{
    cell->next = t->free_cells;
    t->free_cells = cell;
}

static void hand_out(struct teacher_job *job, uint32_t index)
{
    struct teacher *t = job->teacher;
    struct teacher_cell *cell = job->cells[index];
    const struct teacher_row row = {
        .text = job->text,
        .user = job->user,
        .index = index,
        .target = job->targets[index],
        .n_loops = t->n_loops,
        .lambdas = cell->lambdas,
        .logprobs = cell->logprobs,
        .hits = cell->hits,
        .hidden = t->wants_hidden ? cell->hidden : NULL,
    };
    if (t->listener->on_row(t->listener->user, &row, &t->err) != STATUS_OK)
        return;
    job->cells[index] = NULL;
    give_back(t, cell);
    job->n_done++;
}

static void on_observation(void *user, const struct control_observation *o)
{
    struct teacher_job *job = user;
    struct teacher *t = job->teacher;
    uint32_t index = o->position - job->first_position;
    bool is_wanted = o->has_target && index < job->n_rows && o->loop <= t->n_loops &&
                     o->n_hidden == (t->wants_hidden ? t->d : 0);
    if (has_failed(t))
        return;
    if (!is_wanted || (job->cells[index] != NULL && job->cells[index]->is_seen[o->loop - 1])) {
        err_set(&t->err, STATUS_INTERNAL,
                "text %" PRIu64 ": loop %" PRIu32 " of position %" PRIu32 " came unasked",
                job->text, o->loop, o->position);
        return;
    }
    struct teacher_cell *cell = job->cells[index];
    if (cell == NULL && (cell = job->cells[index] = take_cell(t)) == NULL) {
        err_set(&t->err, STATUS_NO_MEMORY,
                "no memory for %" PRIu64 " rows under way; give shorter texts", t->n_rows);
        return;
    }
    uint32_t loop = o->loop - 1;
    cell->is_seen[loop] = true;
    cell->lambdas[loop] = o->lambda;
    cell->logprobs[loop] = o->logprob;
    cell->hits[loop] = o->is_hit;
    if (t->wants_hidden)
        memcpy(cell->hidden + (size_t)loop * t->d, o->hidden, t->d * sizeof *o->hidden);
    if (++cell->n_seen == t->n_loops)
        hand_out(job, index);
}

/* ---- texts ---------------------------------------------------------------------------------- */

static void free_job(struct teacher_job *job)
{
    for (uint32_t i = 0; job->cells != NULL && i < job->n_rows; i++)
        if (job->cells[i] != NULL)
            give_back(job->teacher, job->cells[i]);
    free(job->cells);
    free(job->targets);
    if (job->is_active) {
        job->teacher->n_active--;
        job->teacher->n_rows -= job->n_rows;
    }
    *job = (struct teacher_job){.teacher = job->teacher};
}

static void on_end(void *user, const struct completion_end *end)
{
    struct teacher_job *job = user;
    struct teacher *t = job->teacher;
    if (!has_failed(t) && end->reason == FINISH_ERROR)
        err_set(&t->err, end->failure, "text %" PRIu64 ": %s", job->text, end->message);
    else if (!has_failed(t) && job->n_done < job->n_rows)
        err_set(&t->err, STATUS_INTERNAL,
                "text %" PRIu64 ": %" PRIu32 " of %" PRIu32 " rows were reported at every loop",
                job->text, job->n_done, job->n_rows);
    if (!has_failed(t) && t->listener->on_text != NULL)
        t->listener->on_text(t->listener->user, job->text, job->user, &t->err);
    free_job(job);
}

static enum status check_text(const struct teacher *t, const struct teacher_text *text,
                              struct err *err)
{
    const struct model_config *config = &t->session->checkpoint->config;
    if (text->first_target < 1 || text->first_target >= text->n_ids)
        return err_set(err, STATUS_INVALID,
                       "%" PRIu32 " tokens, %" PRIu32 " of them given: nothing is left to predict",
                       text->n_ids, text->first_target);
    if (text->n_ids > (uint32_t)config->max_positions)
        return err_set(err, STATUS_INVALID,
                       "%" PRIu32 " tokens; the model has %d positions: cut the text", text->n_ids,
                       config->max_positions);
    for (uint32_t i = 0; i < text->n_ids; i++)
        if (text->ids[i] < 0 || text->ids[i] >= config->vocab_size)
            return err_set(err, STATUS_INVALID,
                           "token %" PRIu32 " is %" PRId32 "; the vocabulary has ids 0..%d", i,
                           text->ids[i], config->vocab_size - 1);
    return STATUS_OK;
}

/* The last token is predicted, never fed. */
static enum status submit(struct teacher *t, struct teacher_job *job,
                          const struct teacher_text *text, struct err *err)
{
    enum status st = check_text(t, text, err);
    if (st != STATUS_OK)
        return st;
    uint32_t n_rows = text->n_ids - text->first_target;
    job->targets = malloc(n_rows * sizeof *job->targets);
    job->cells = calloc(n_rows, sizeof(struct teacher_cell *));
    if (job->targets == NULL || job->cells == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %" PRIu32 " rows", n_rows);
    job->text = t->n_texts;
    job->user = text->user;
    job->first_position = text->first_target - 1;
    job->n_rows = n_rows;
    memcpy(job->targets, text->ids + text->first_target, n_rows * sizeof *job->targets);
    struct completion_request request = {
        .prompt_ids = text->ids,
        .n_prompt = text->n_ids - 1,
        .observe_targets = job->targets,
        .user = job,
        .on_observation = on_observation,
        .on_end = on_end,
    };
    sequence_params_init(&request.params);
    request.params.max_tokens = 1; /* a sequence makes a token or it is none; nobody reads it */
    request.params.max_loops = t->n_loops;
    request.params.prefill = (enum prefill_policy)t->session->options.prefill;
    request.params.observe_first = job->first_position;
    request.params.n_observe_targets = n_rows;
    request.params.observe_hidden = t->wants_hidden;
    st = coordinator_submit(t->session->coordinator, &request, &job->request, err);
    if (st != STATUS_OK)
        return st;
    job->is_active = true;
    t->n_active++;
    t->n_rows += n_rows;
    t->n_texts++;
    return STATUS_OK;
}

/* False when it has to wait until some rows are through. */
static bool has_room(const struct teacher *t, const struct teacher_text *text)
{
    uint64_t n_rows = text->n_ids > text->first_target ? text->n_ids - text->first_target : 0;
    return t->n_active == 0 || (t->n_active < t->max_texts && t->n_rows + n_rows <= t->max_rows);
}

static struct teacher_job *find_free(struct teacher *t)
{
    struct teacher_job *job = t->jobs;
    while (job->is_active)
        job++;
    return job;
}

/* Submits the text; when the coordinator has no room, *is_submitted is false. */
static void give_text(struct teacher *t, const struct teacher_text *text, bool *is_submitted)
{
    struct teacher_job *job = find_free(t);
    struct err err = {0};
    enum status st = submit(t, job, text, &err);
    *is_submitted = st == STATUS_OK;
    if (st == STATUS_OK)
        return;
    free_job(job);
    if (st == STATUS_FULL && t->n_active > 0)
        return;
    err_wrap(&err, "text %" PRIu64, t->n_texts);
    t->err = err;
}

static void run(struct teacher *t)
{
    struct teacher_text text;
    bool has_text = false, is_over = false;
    while (!has_failed(t) && (!is_over || has_text || t->n_active > 0)) {
        if (!has_text && !is_over) {
            if (t->listener->next(t->listener->user, &text, &has_text, &t->err) != STATUS_OK)
                return;
            is_over = !has_text;
        }
        bool is_submitted = false;
        if (has_text && has_room(t, &text))
            give_text(t, &text, &is_submitted);
        if (is_submitted) {
            has_text = false;
            continue;
        }
        if (!has_failed(t) && t->n_active > 0) {
            struct err err = {0};
            enum status st = coordinator_step(t->session->coordinator, 200ull * 1000 * 1000, &err);
            if (st != STATUS_OK && !has_failed(t))
                t->err = err;
        }
    }
}

/* No callback may come once the jobs are gone. */
static void abandon(struct teacher *t)
{
    for (uint32_t i = 0; i < t->max_texts; i++)
        if (t->jobs[i].is_active)
            coordinator_cancel(t->session->coordinator, t->jobs[i].request);
    while (t->n_active > 0 &&
           coordinator_step(t->session->coordinator, 200ull * 1000 * 1000, NULL) == STATUS_OK)
        ;
}

static void choose_limits(struct teacher *t, const struct teacher_options *o)
{
    const struct model_config *config = &t->session->checkpoint->config;
    t->wants_hidden = o != NULL && o->wants_hidden;
    t->n_loops = (uint32_t)config->n_loops;
    t->d = (uint32_t)config->d_model;
    t->max_texts = o != NULL && o->max_texts > 0 ? o->max_texts : DEFAULT_TEXTS;
    t->max_rows = o != NULL ? o->max_rows : 0;
    if (t->max_rows == 0) {
        uint64_t row_bytes = (uint64_t)t->n_loops * t->d * sizeof(float);
        t->max_rows = DEFAULT_ROWS;
        if (t->wants_hidden && HIDDEN_BYTES / row_bytes < t->max_rows)
            t->max_rows = HIDDEN_BYTES / row_bytes;
    }
}

enum status teacher_run(struct session *s, const struct teacher_options *options,
                        const struct teacher_listener *listener, struct err *err)
{
    struct teacher t = {.session = s, .listener = listener};
    choose_limits(&t, options);
    t.jobs = calloc(t.max_texts, sizeof *t.jobs);
    if (t.jobs == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %" PRIu32 " texts", t.max_texts);
    for (uint32_t i = 0; i < t.max_texts; i++)
        t.jobs[i].teacher = &t;
    run(&t);
    abandon(&t);
    while (t.free_cells != NULL) {
        struct teacher_cell *cell = t.free_cells;
        t.free_cells = cell->next;
        free(cell);
    }
    free(t.jobs);
    if (has_failed(&t))
        return err_set(err, t.err.code, "%s", t.err.message);
    return STATUS_OK;
}

uint32_t teacher_exit_loop(const float *lambdas, uint32_t n_loops, float q)
{
    struct sequence_params params;
    sequence_params_init(&params);
    params.exit_mode = EXIT_MODE_EXACT;
    params.exit_threshold = q;
    params.max_loops = n_loops;
    struct exit_state state = {.survival = 1.0f};
    uint32_t loop = 1;
    while (!exit_rule_step(&params, loop, 0, lambdas[loop - 1], &state))
        loop++;
    return loop;
}
