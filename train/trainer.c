/* Trains a recipe from its beginning, or from a saved state, to its end or to a stop. */
#include "train/trainer_private.h"

#include "cluster/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double cpu_now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* ---- open and close ---------------------------------------------------------------------------
 */

/* Every rank keeps a text's ids in its own out_dir, which may be the same directory. */
static enum status open_text(struct trainer *t, int data, struct err *err)
{
    const struct recipe *r = t->recipe;
    char jsonl[PATH_MAX], tokenizer[PATH_MAX] = "", cache[PATH_MAX];
    enum status status = recipe_file(r, r->data[data].text, jsonl, sizeof jsonl, err);
    if (status == STATUS_OK && r->tokenizer[0] != '\0')
        status = recipe_file(r, r->tokenizer, tokenizer, sizeof tokenizer, err);
    if (status != STATUS_OK)
        return status;
    int n = snprintf(cache, sizeof cache, "%s/text-%d.ids", t->options->out_dir, data);
    if (n < 0 || (size_t)n >= sizeof cache)
        return err_set(err, STATUS_INVALID, "--out: the path is too long");
    struct text_source_options options = {.jsonl = jsonl,
                                          .tokenizer = tokenizer,
                                          .eos_id = r->tokenizer[0] == '\0' ? TASK_EOS
                                                    : r->config.n_eos > 0   ? r->config.eos_ids[0]
                                                                            : -1,
                                          .vocab_size = r->config.vocab_size,
                                          .cache = cache};
    return text_source_open(&options, &t->texts[data], err);
}

/* A changed text is another run, as a changed recipe is. */
static enum status open_texts(struct trainer *t, struct err *err)
{
    t->fingerprint = recipe_fingerprint(t->recipe);
    for (int i = 0; i < t->recipe->n_data; i++) {
        if (t->recipe->data[i].task != NULL)
            continue;
        enum status status = trainer_make_directory(t->options->out_dir, err);
        if (status == STATUS_OK)
            status = open_text(t, i, err);
        if (status != STATUS_OK)
            return status;
        struct random mix =
            random_of(t->fingerprint, text_source_fingerprint(t->texts[i]), (uint64_t)i);
        t->fingerprint = random_bits(&mix);
    }
    return STATUS_OK;
}

static enum status open_threads(struct trainer *t, struct err *err)
{
    int n = t->options->n_threads, n_shards = t->end_shard - t->first_shard;
    t->n_threads = n < 1 ? 1 : n < n_shards ? n : n_shards;
    t->threads = calloc((size_t)t->n_threads, sizeof *t->threads);
    if (t->threads == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d threads", t->n_threads);
    enum status status = cpu_pool_create(t->n_threads, false, &t->pool, err);
    for (int i = 0; i < t->n_threads && status == STATUS_OK; i++)
        status = pass_create(t->params, t->ops, &t->threads[i].pass, err);
    return status == STATUS_OK ? trainer_enter_stage(t, err) : status;
}

static enum status open_looped(struct trainer *t, struct err *err)
{
    bool is_looped = false;
    for (int i = 0; i < t->recipe->n_stages; i++)
        is_looped = is_looped || t->recipe->stages[i].looping_weight > 0;
    if (!is_looped)
        return STATUS_OK;
    t->looped = malloc(t->params->n_values * sizeof *t->looped);
    return t->looped != NULL
               ? STATUS_OK
               : err_set(err, STATUS_NO_MEMORY, "no memory for the looping regulariser");
}

static enum status trainer_open(struct trainer *t, struct err *err)
{
    t->of_stage = malloc(sizeof *t->of_stage);
    if (t->of_stage == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the recipe");
    *t->of_stage = *t->recipe;
    recipe_first_loops(t->recipe, t->first_loops);
    enum status status = params_create(&t->recipe->config, &t->params, err);
    if (status == STATUS_OK)
        status = optimizer_create(t->params, &t->optimizer, err);
    if (status == STATUS_OK)
        status = trainer_connect(t, err);
    if (status == STATUS_OK && t->rank == 0)
        status = trainer_make_directory(t->options->out_dir, err);
    if (status == STATUS_OK && t->rank == 0)
        status = trainer_lock(t, err);
    if (status == STATUS_OK)
        status = open_texts(t, err);
    if (status == STATUS_OK)
        status = trainer_agree(t, err);
    if (status == STATUS_OK)
        status = open_looped(t, err);
    if (status == STATUS_OK && t->rank == 0 && t->options->init_from != NULL)
        status = trainer_open_init(t, err);
    if (status == STATUS_OK && t->rank == 0)
        status = trainer_restore(t, err);
    if (status == STATUS_OK)
        status = trainer_share(t, err);
    if (status == STATUS_OK && t->listener->on_opened != NULL)
        t->listener->on_opened(t->listener->user);
    return status == STATUS_OK && !t->state.is_finished ? open_threads(t, err) : status;
}

static void trainer_close(struct trainer *t)
{
    cpu_pool_destroy(t->pool);
    trainer_free_threads(t);
    for (int i = 0; i < RECIPE_MAX_DATA; i++)
        text_source_close(t->texts[i]);
    free(t->looped);
    free(t->of_stage);
    reduce_destroy(t->reduce);
    optimizer_free(&t->optimizer);
    params_destroy(t->params);
    if (t->lock >= 0)
        close(t->lock);
    free(t);
}

/* ---- reports ----------------------------------------------------------------------------------
 */

static void add_counts(struct metrics *sum, const struct metrics *counts)
{
    float *to = (float *)sum;
    const float *from = (const float *)counts;
    for (int i = 0; i < METRICS_FLOATS; i++)
        to[i] += from[i];
}

static enum status tell_start(const struct trainer *t, struct err *err)
{
    struct trainer_start start = {.step = t->state.step,
                                  .resumed_from = t->last_state[0] != '\0' ? t->last_state : NULL,
                                  .n_parameters = t->params->n_values,
                                  .n_ranks = t->n_ranks,
                                  .n_threads = t->n_threads,
                                  .isa = t->ops->name};
    return t->rank == 0 && t->listener->on_start != NULL
               ? t->listener->on_start(t->listener->user, &start, err)
               : STATUS_OK;
}

static void tell_step(struct trainer *t, struct trainer_report *report, bool ends_window)
{
    const struct trainer_listener *l = t->listener;
    if (t->rank == 0) {
        report->state = &t->state;
        report->sum = &t->window;
        report->n_steps = t->n_window_steps;
        report->cosines = t->has_cosines ? t->cosines : NULL;
        report->seconds = (double)(host_now_ns() - t->begin_ns) * 1e-9;
        report->cpu_seconds = cpu_now_s() - t->begin_cpu_s;
        report->ends_window = ends_window;
        if (l->on_report != NULL && (ends_window || report->events != CURRICULUM_NONE))
            l->on_report(l->user, report);
        report->ends_window = false;
        if (l->on_step != NULL)
            l->on_step(l->user, report);
    }
    if (ends_window) {
        memset(&t->window, 0, sizeof t->window);
        t->n_window_steps = 0;
    }
}

/* ---- the loop ---------------------------------------------------------------------------------
 */

/* The sum with the regulariser's gradient where the stage has one. */
static const float *add_looping(struct trainer *t, const float *sum)
{
    const struct recipe_stage *stage = &t->recipe->stages[t->state.stage];
    t->has_cosines = stage->looping_weight > 0;
    if (!t->has_cosines)
        return sum;
    memcpy(t->looped, sum, t->params->n_values * sizeof *sum);
    optimizer_looping(t->params, stage->looping_block, stage->looping_weight, t->looped,
                      t->cosines);
    return t->looped;
}

/* Other values and no moments; with init_from only rank 0 has read them. */
static enum status restart(struct trainer *t, struct err *err)
{
    enum status status = trainer_fresh_values(t, err);
    if (status == STATUS_OK && t->options->init_from != NULL)
        status = trainer_share(t, err);
    return status;
}

static enum status trainer_step(struct trainer *t, struct trainer_report *report, bool *stop,
                                struct err *err)
{
    const struct recipe_stage *stage = &t->recipe->stages[t->state.stage];
    struct metrics counts;
    const float *sum;
    enum status status = trainer_gradients(t, &sum, &counts, stop, err);
    if (status != STATUS_OK)
        return status;
    report->lr = recipe_lr(stage, t->state.stage_step);
    report->beta = recipe_beta(stage, t->state.stage_step);
    status = optimizer_step(&t->optimizer, t->params, add_looping(t, sum), t->ops, t->of_stage,
                            report->lr, &report->grad_norm, err);
    if (status != STATUS_OK)
        return status;
    add_counts(&t->window, &counts);
    t->n_window_steps++;
    report->events = curriculum_step(t->recipe, &t->state, &counts);
    if (report->events & CURRICULUM_RESTART)
        status = restart(t, err);
    if (status == STATUS_OK && report->events != CURRICULUM_NONE &&
        !(report->events & CURRICULUM_FINISHED))
        status = trainer_enter_stage(t, err);
    return status;
}

/* Says what the user can do; the message stays one line. A loss that is not finite would come
 * again: what goes on is the same to the last bit. */
static enum status add_way_on(const struct trainer *t, enum status status, struct err *err)
{
    struct err first = *err;
    unsigned long long step = t->state.step;
    if (t->last_state[0] == '\0')
        return err_set(err, status, "step %llu: %s; no state was saved before (--save-every N)",
                       step, first.message);
    /* Another rank's failure comes with its message but not with its code. */
    if (status == STATUS_CORRUPT || strstr(first.message, OPTIMIZER_ADVICE) != NULL)
        return err_set(err, status, "step %llu: %s; the newest state is %s", step, first.message,
                       t->last_state);
    return err_set(err, status, "step %llu: %s; the last good state is %s: go on with --resume",
                   step, first.message, t->last_state);
}

static enum status trainer_loop(struct trainer *t, bool *finished, struct err *err)
{
    const struct trainer_options *o = t->options;
    const struct trainer_listener *l = t->listener;
    struct trainer_report report = {0};
    uint64_t n_done = 0, report_every = o->report_every > 0 ? o->report_every : 1;
    bool is_through = t->state.is_finished != 0, stop = false;
    while (!is_through && !stop) {
        enum status status = trainer_step(t, &report, &stop, err);
        if (status != STATUS_OK)
            return add_way_on(t, status, err);
        n_done++;
        is_through = (report.events & CURRICULUM_FINISHED) != 0;
        stop = stop || (t->stop_after > 0 && n_done >= t->stop_after);
        bool is_saved =
            is_through || stop || (o->save_every > 0 && t->state.step % o->save_every == 0);
        /* A window ends where a state is saved: a run that goes on from it reports the same. */
        tell_step(t, &report, is_saved || t->state.step % report_every == 0);
        if (t->rank == 0 && is_saved)
            status = trainer_save(t, err);
        if (status != STATUS_OK)
            return add_way_on(t, status, err);
        if (l->should_stop != NULL && l->should_stop(l->user))
            t->wants_stop = true;
    }
    enum status status = is_through && t->rank == 0 ? trainer_export(t, err) : STATUS_OK;
    if (status != STATUS_OK)
        return add_way_on(t, status, err);
    *finished = is_through;
    return STATUS_OK;
}

enum status trainer_run(const struct trainer_options *options,
                        const struct trainer_listener *listener, bool *finished, struct err *err)
{
    struct err own = {0};
    struct trainer *t = calloc(1, sizeof *t);
    if (t == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the trainer");
    t->options = options;
    t->listener = listener;
    t->recipe = options->recipe;
    t->rank = options->transport != NULL ? options->transport->rank : 0;
    t->n_ranks = options->transport != NULL ? options->transport->n_ranks : 1;
    t->lock = -1;
    t->begin_ns = host_now_ns();
    t->begin_cpu_s = cpu_now_s();
    bool is_through = false;
    enum status status = trainer_open(t, &own);
    if (status == STATUS_OK)
        status = tell_start(t, &own);
    if (status == STATUS_OK)
        status = trainer_loop(t, &is_through, &own);
    if (status == STATUS_OK)
        *finished = is_through;
    else if (t->reduce != NULL)
        reduce_fail(t->reduce, &own);
    else if (options->transport != NULL)
        trainer_decline(options->transport, &own);
    trainer_close(t);
    return status == STATUS_OK ? STATUS_OK : err_set(err, own.code, "%s", own.message);
}
