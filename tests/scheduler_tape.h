/* A scheduler driven by text: one event in, its actions out as a line to compare.
 *
 *   submit r1 20+12 [loops 2] [stop 7]   opened w0 s1   refused w1 s1   token s1 @20 id5 [last]
 *   stop r1   cancel r1   failed w0 s1   closed w0 s1          (w* is every worker of ring 0)
 *
 *   open w0 s1+2 (sequence 1, ring offset 2)   start w0 s1   give r1 id5   close w0 s1   end r1
 * stop */
#ifndef TESTS_SCHEDULER_TAPE_H
#define TESTS_SCHEDULER_TAPE_H

#include "tests/unit.h"

#include "coordinator/scheduler.h"

struct tape {
    struct scheduler *scheduler;
    uint32_t ring_size;
    uint64_t now_ns;
    struct trace *trace; /* NULL: nothing is recorded */
    struct err err;
    char line[4096];
};

static inline void tape_open(struct tape *t, const struct scheduler_config *config)
{
    memset(t, 0, sizeof *t);
    t->ring_size = config->ring_size;
    if (scheduler_create(config, &t->scheduler, &t->err) != STATUS_OK)
        fail_msg("%s", t->err.message);
}

/* n_workers workers in one ring with n_blocks KV blocks of 16 positions each; T = 4, 8 waiting, 4
 * open. */
static inline void tape_open_ring(struct tape *t, uint32_t n_workers, uint32_t n_blocks)
{
    uint32_t blocks[16];
    for (uint32_t w = 0; w < n_workers; w++)
        blocks[w] = n_blocks;
    const struct scheduler_config config = {
        .n_workers = n_workers,
        .ring_size = n_workers,
        .n_loops = 4,
        .max_positions = 1024,
        .block_size = 16,
        .n_blocks = blocks,
        .max_queue = 8,
        .max_running = 4,
    };
    tape_open(t, &config);
}

static inline void tape_put(struct tape *t, const char *format, ...)
{
    size_t at = strlen(t->line);
    va_list args;
    va_start(args, format);
    if (at > 0)
        at += (size_t)snprintf(t->line + at, sizeof t->line - at, ", ");
    vsnprintf(t->line + at, sizeof t->line - at, format, args);
    va_end(args);
}

static inline void tape_action(struct tape *t, const struct scheduler_action *a)
{
    switch (a->kind) {
    case SCHEDULER_SEND_OPEN:
        assert_true(a->params->sequence == a->sequence);
        tape_put(t, "open w%u s%u+%u", a->worker, (unsigned)a->sequence, a->params->ring_offset);
        break;
    case SCHEDULER_SEND_START:
        tape_put(t, "start w%u s%u", a->worker, (unsigned)a->sequence);
        break;
    case SCHEDULER_SEND_CLOSE:
        tape_put(t, "close w%u s%u", a->worker, (unsigned)a->sequence);
        break;
    case SCHEDULER_DELIVER:
        tape_put(t, "give r%u id%d", (unsigned)a->request, a->token->id);
        break;
    case SCHEDULER_END:
        tape_put(t, "end r%u %s%s%s", (unsigned)a->request, finish_reason_name(a->reason),
                 a->reason == FINISH_ERROR ? " " : "", a->reason == FINISH_ERROR ? a->message : "");
        break;
    }
}

static inline void tape_step(struct tape *t, struct scheduler_event *event)
{
    const struct scheduler_action *actions;
    size_t n;
    event->now_ns = ++t->now_ns;
    enum status st = scheduler_step(t->scheduler, event, &actions, &n, &t->err);
    if (st != STATUS_OK)
        tape_put(t, "%s", status_name(st));
    for (size_t i = 0; st == STATUS_OK && i < n; i++)
        tape_action(t, &actions[i]);
}

/* The part of the text behind `word`, or NULL. */
static inline const char *tape_option(const char *text, const char *word)
{
    const char *at = strstr(text, word);
    return at != NULL ? at + strlen(word) : NULL;
}

static inline void tape_worker_event(struct tape *t, const char *text)
{
    char verb[16], worker[8];
    unsigned sequence;
    if (sscanf(text, "%15s w%7s s%u", verb, worker, &sequence) != 3)
        fail_msg("cannot read event '%s'", text);
    bool is_refused = strcmp(verb, "refused") == 0, is_failed = strcmp(verb, "failed") == 0;
    struct scheduler_event event = {
        .kind = strcmp(verb, "closed") == 0 ? SCHEDULER_CLOSED
                : is_failed                 ? SCHEDULER_FAILED
                                            : SCHEDULER_OPENED,
        .sequence = sequence,
        .failure = is_refused || is_failed ? STATUS_NO_MEMORY : STATUS_OK,
        .message = is_refused || is_failed ? "no room" : NULL,
    };
    uint32_t first = worker[0] == '*' ? 0 : (uint32_t)atoi(worker);
    uint32_t last = worker[0] == '*' ? t->ring_size - 1 : first;
    for (event.worker = first; event.worker <= last; event.worker++)
        tape_step(t, &event);
}

static inline void tape_event(struct tape *t, const char *text)
{
    struct scheduler_event event = {0};
    struct sequence_params params;
    struct control_token token = {0};
    unsigned a, b, c;
    int id;
    if (sscanf(text, "submit r%u %u+%u", &a, &b, &c) == 3) {
        sequence_params_init(&params);
        const char *loops = tape_option(text, " loops "), *stop = tape_option(text, " stop ");
        params.prompt_tokens = b;
        params.max_tokens = c;
        params.max_loops = loops != NULL ? (uint32_t)atoi(loops) : 4;
        params.n_stop_ids = stop != NULL ? 1 : 0;
        params.stop_ids[0] = stop != NULL ? atoi(stop) : 0;
        event.kind = SCHEDULER_SUBMIT;
        event.request = a;
        event.params = &params;
    } else if (sscanf(text, "token s%u @%u id%d", &a, &b, &id) == 3) {
        token = (struct control_token){.sequence = a, .position = b, .id = id, .exit_loop = 1};
        token.is_last = strstr(text, " last") != NULL;
        event.kind = SCHEDULER_TOKEN;
        event.token = &token;
    } else if (sscanf(text, "stop r%u", &a) == 1 || sscanf(text, "cancel r%u", &a) == 1) {
        event.kind = text[0] == 's' ? SCHEDULER_STOP : SCHEDULER_CANCEL;
        event.request = a;
    } else {
        tape_worker_event(t, text);
        return;
    }
    tape_step(t, &event);
}

/* Feeds the event and compares what follows from it; "" is nothing. */
static inline void tape_expect(struct tape *t, const char *event, const char *expected)
{
    t->line[0] = '\0';
    tape_event(t, event);
    if (strcmp(t->line, expected) != 0)
        fail_msg("%s\n  gave     %s\n  expected %s (%s)", event, t->line, expected, t->err.message);
}

/* Nothing may be left: no request, no sequence, no block. */
static inline void tape_close(struct tape *t)
{
    struct scheduler_load load;
    scheduler_get_load(t->scheduler, &load);
    assert_int_equal(load.n_queued + load.n_opening + load.n_running + load.n_closing, 0);
    assert_int_equal(load.blocks_reserved_max, 0);
    scheduler_destroy(t->scheduler);
}

#endif
