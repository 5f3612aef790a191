/* A completion request from its arrival to the last of its choices: read, bounded, submitted,
 * answered, or given up. */
#include "cluster/host.h"
#include "coordinator/http_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_KEPT_BYTES = 1 << 20 };
enum { RETRY_LOADING_S = 1, RETRY_DRAINING_S = 5, RETRY_LOST_S = 30 };

bool http_request_is_model(const struct http_server *server, const char *name)
{
    const struct http_server_engine *e = &server->engine;
    bool is_ours = !name || !*name || strcmp(name, e->model_name) == 0 ||
                   (e->model_dir && strcmp(name, e->model_dir) == 0);
    for (size_t i = 0; i < e->n_aliases && !is_ours; i++)
        is_ours = strcmp(name, e->aliases[i]) == 0;
    return is_ours;
}

enum status http_request_check_phase(const struct http_server *server, struct fault *fault,
                                     uint32_t *retry_after_s)
{
    switch (server->phase) {
    case HTTP_READY:
        return STATUS_OK;
    case HTTP_LOADING:
        *retry_after_s = RETRY_LOADING_S;
        fault_set(fault, 503, "server_error", "loading", "the model is being loaded");
        break;
    case HTTP_DRAINING:
        *retry_after_s = RETRY_DRAINING_S;
        fault_set(fault, 503, "server_error", "draining", "the server is being stopped");
        break;
    case HTTP_LOST:
        *retry_after_s = RETRY_LOST_S;
        fault_set(fault, 503, "server_error", "cluster_lost", "the cluster is lost: %.400s",
                  server->lost_message);
        break;
    }
    return fault->err.code;
}

/* ---- the queue ------------------------------------------------------------------------------ */

static const struct body_prompt *prompt_of(const struct http_exchange *x, uint32_t choice)
{
    return &x->job->body.prompts[choice / (x->job->n_choices / (uint32_t)x->job->body.n_prompts)];
}

static void leave_queue(struct http_exchange *x, uint32_t choice)
{
    x->n_waiting--;
    x->server->n_waiting--;
    x->server->waiting_tokens -= prompt_of(x, choice)->n_ids;
}

/* The client has gone: what it wanted is no more in anybody's way. */
void http_request_forget_waiting(struct http_exchange *x)
{
    for (uint32_t i = 0; i < x->job->n_choices; i++)
        if (!x->choices[i].is_started && !x->choices[i].is_forgotten &&
            !x->answer.choices[i].has_ended) {
            leave_queue(x, i);
            x->choices[i].is_forgotten = true;
        }
}

/* ---- arrival -------------------------------------------------------------------------------- */

static void begin(struct http_exchange *x, bool is_chat)
{
    struct http_server *server = x->server;
    struct fault fault = {0};
    uint32_t retry_after_s = 0;
    x->is_chat = is_chat;
    if (http_request_check_phase(server, &fault, &retry_after_s)) {
        http_queue_refuse(x, &fault, retry_after_s, fault.code);
        return;
    }
    if (server->n_waiting >= server->config.max_waiting && !http_queue_has_room(x, 1, 1))
        return;
    char *loops = NULL;
    if (http_loops_read(x, &loops, &fault))
        http_reply_fault(x, &fault, 0);
    else
        http_request_order(x, loops, NULL);
}

void http_request_order(struct http_exchange *x, char *loops,
                        void (*read)(const struct intake_config *config,
                                     struct intake_order *order))
{
    struct evbuffer *in = evhttp_request_get_input_buffer(x->request);
    size_t len_bytes = evbuffer_get_length(in);
    if (!http_queue_has_intake_room(x, len_bytes)) {
        free(loops);
        return;
    }
    struct intake_order *order = calloc(1, sizeof *order);
    char *json = malloc(len_bytes + 1);
    if (!order || !json || evbuffer_remove(in, json, len_bytes) < 0) {
        struct fault fault = {0};
        free(order);
        free(json);
        free(loops);
        fault_set(&fault, 500, "server_error", NULL, "no memory for a body of %zu bytes",
                  len_bytes);
        http_reply_fault(x, &fault, 0);
        return;
    }
    json[len_bytes] = '\0';
    order->is_chat = x->is_chat;
    order->json = json;
    order->len_bytes = len_bytes;
    order->loops_json = loops;
    order->read = read;
    order->user = x;
    x->is_in_intake = true;
    x->intake_bytes = len_bytes;
    x->server->intake_bytes += len_bytes;
    intake_put(x->server->intake, order);
}

void http_request_begin_completion(struct http_exchange *x, const char *rest)
{
    (void)rest;
    begin(x, false);
}

void http_request_begin_chat(struct http_exchange *x, const char *rest)
{
    (void)rest;
    begin(x, true);
}

/* ---- from the intake to the engine ---------------------------------------------------------- */

static bool prepare_answer(struct http_exchange *x)
{
    const struct http_server *server = x->server;
    const uint32_t n = x->job->n_choices;
    struct answer *a = &x->answer;
    memcpy(x->id, x->is_chat ? "chatcmpl-" : "cmpl-", x->is_chat ? 10 : 6);
    http_random_hex(x->id + strlen(x->id), 32);
    *a = (struct answer){
        .body = &x->job->body,
        .tokenizer = server->engine.tokenizer,
        .id = x->id,
        .model = server->engine.model_name,
        .fingerprint = server->fingerprint,
        .created = (int64_t)time(NULL),
        .n_loops = (uint32_t)server->engine.checkpoint->config.n_loops,
    };
    a->choices = calloc(n, sizeof *a->choices);
    x->choices = calloc(n, sizeof *x->choices);
    x->news = calloc(n, sizeof *x->news);
    if (!a->choices || !x->choices || !x->news)
        return false;
    a->n_choices = n;
    for (uint32_t i = 0; i < n; i++) {
        a->choices[i].index = i;
        a->choices[i].prompt = i / (n / (uint32_t)x->job->body.n_prompts);
    }
    return true;
}

static void submit(struct http_exchange *x, struct service_job *job)
{
    struct http_server *server = x->server;
    struct fault fault = {0};
    uint64_t n_tokens = 0;
    uint32_t n_per_prompt = job->n_choices / (uint32_t)job->body.n_prompts;
    for (size_t i = 0; i < job->body.n_prompts; i++)
        n_tokens += job->body.prompts[i].n_ids * (uint64_t)n_per_prompt;
    x->n_ended = job->n_choices; /* the engine does not have it yet */
    x->job = job;
    if (server->phase == HTTP_LOST) {
        uint32_t retry_after_s = 0;
        http_request_check_phase(server, &fault, &retry_after_s);
        http_queue_refuse(x, &fault, retry_after_s, fault.code);
        return;
    }
    if (!http_request_is_model(server, job->body.fields.model)) {
        fault_set(&fault, 404, "invalid_request_error", "model_not_found",
                  "no model '%.200s' here; this server has '%.200s'", job->body.fields.model,
                  server->engine.model_name);
        snprintf(fault.param, sizeof fault.param, "model");
        http_reply_fault(x, &fault, 0);
        return;
    }
    if (!http_queue_has_room(x, job->n_choices, n_tokens))
        return;
    if (!prepare_answer(x)) {
        fault_set(&fault, 500, "server_error", NULL, "no memory for %u choices", job->n_choices);
        http_reply_fault(x, &fault, 0);
        return;
    }
    x->n_ended = 0;
    x->n_waiting = job->n_choices;
    server->n_waiting += job->n_choices;
    server->waiting_tokens += n_tokens;
    for (uint32_t i = 0; i < job->n_choices; i++)
        metrics_choice_queued(server->metrics, (uint32_t)prompt_of(x, i)->n_ids);
    x->last_write_ns = host_now_ns();
    job->user = x;
    service_submit(server->engine.service, job);
}

void http_request_take_orders(struct http_server *server)
{
    struct intake_order *order = intake_take(server->intake);
    while (order) {
        struct intake_order *next = (struct intake_order *)order->mail.next;
        struct http_exchange *x = order->user;
        x->is_in_intake = false;
        server->intake_bytes -= x->intake_bytes;
        if (x->is_answered) { /* gone, or out of time */
            http_exchange_release(x);
        } else if (order->fault.err.code) {
            http_reply_fault(x, &order->fault, 0);
        } else if (!order->job) {
            http_reply_json(x, 200, &order->answer);
        } else {
            struct service_job *job = order->job;
            order->job = NULL;
            submit(x, job);
        }
        intake_order_free(order);
        order = next;
    }
}

/* ---- the end -------------------------------------------------------------------------------- */

/* Gives the client an error and the engine its rows back. x may be gone afterwards. */
static void fail(struct http_exchange *x, const struct fault *fault, uint32_t retry_after_s,
                 const char *reason)
{
    bool is_running = x->job && x->n_ended < x->job->n_choices;
    if (is_running) {
        http_request_forget_waiting(x);
        service_cancel(x->server->engine.service, x->job);
    }
    if (reason)
        metrics_cancelled(x->server->metrics, reason);
    if (x->is_head_sent)
        http_stream_fail(x, fault);
    else
        http_reply_fault(x, fault, retry_after_s);
}

void http_request_fail_all(struct http_server *server, const struct fault *fault,
                           const char *reason)
{
    struct http_exchange *next;
    for (struct http_exchange *x = server->exchanges; x; x = next) {
        next = x->next;
        if (!x->is_answered)
            fail(x, fault, RETRY_DRAINING_S, reason);
    }
}

static void finish_whole(struct http_exchange *x)
{
    struct text *json = &x->server->json;
    text_reset(json);
    answer_write(&x->answer, json);
    http_loops_write(x);
    http_reply_json(x, 200, json);
    if (json->cap_bytes > MAX_KEPT_BYTES) /* one long answer must not cost memory for ever */
        text_free(json);
}

static void take_end(struct http_exchange *x, const struct delivery *d)
{
    struct http_server *server = x->server;
    struct answer_choice *c = &x->answer.choices[d->choice];
    struct http_choice *state = &x->choices[d->choice];
    x->n_ended++;
    if (!state->is_started && !state->is_forgotten)
        leave_queue(x, d->choice);
    bool has_room_left = answer_choice_end(c, d->end.reason, d->end.text, d->end.text_bytes);
    metrics_choice_ended(server->metrics, d->end.reason, state->is_started,
                         (uint32_t)prompt_of(x, d->choice)->n_ids, (uint32_t)c->n_tokens,
                         (double)(host_now_ns() - x->arrived_ns) / 1e9);
    if (state->is_started) {
        server->n_running--;
        double s = server->last_end_ns ? (double)(d->at_ns - server->last_end_ns) / 1e9 : 0;
        if (s > 0)
            server->choice_interval_s +=
                (s - server->choice_interval_s) * (server->choice_interval_s > 0 ? 0.1 : 1);
        /* A pause in which nothing ran says nothing of how fast choices end. */
        server->last_end_ns = server->n_running + server->n_waiting ? d->at_ns : 0;
    }
    if (x->is_answered)
        return;
    struct fault fault = {0};
    if (d->end.reason == FINISH_ERROR) {
        struct err err = {.code = d->end.failure};
        snprintf(err.message, sizeof err.message, "%s", d->end.message ? d->end.message : "");
        fault_from_err(&fault, &err);
        fail(x, &fault, fault.http_status == 429 ? http_queue_retry_s(server) : 0, NULL);
    } else if (d->end.reason == FINISH_CANCELLED) { /* not by us */
        fault_set(&fault, 503, "server_error", "draining", "the server has cancelled this request");
        fail(x, &fault, RETRY_DRAINING_S, "shutdown");
    } else if (!has_room_left) {
        fault_set(&fault, 500, "server_error", NULL, "no memory for the answer");
        fail(x, &fault, 0, NULL);
    }
}

/* ---- deliveries ----------------------------------------------------------------------------- */

static void take_token(struct http_exchange *x, const struct delivery *d)
{
    struct http_choice *state = &x->choices[d->choice];
    struct answer_choice *c = &x->answer.choices[d->choice];
    struct completion_token token = {.token = &d->token,
                                     .workers = d->workers,
                                     .index = d->index,
                                     .text = d->text,
                                     .text_bytes = d->text_bytes,
                                     .at_ns = d->at_ns};
    uint64_t since_ns = state->last_token_ns ? state->last_token_ns : x->arrived_ns;
    double gap_s = d->at_ns > since_ns ? (double)(d->at_ns - since_ns) / 1e9 : 0;
    metrics_token(x->server->metrics, d, gap_s);
    live_token(x->server->live, d->at_ns, d->token.exit_loop, d->index == 0, gap_s);
    state->last_token_ns = d->at_ns;
    if (!x->first_token_ns)
        x->first_token_ns = d->at_ns;
    if (x->is_answered)
        return;
    if (!answer_choice_take(c, &x->job->body.fields, &token)) {
        struct fault fault = {0};
        fault_set(&fault, 500, "server_error", NULL, "no memory for the answer");
        fail(x, &fault, 0, NULL);
    } else if (x->job->body.fields.stream) {
        http_stream_mark(x, d->at_ns);
    }
}

static void add_news(struct http_exchange *x, uint32_t choice)
{
    if (!x->choices[choice].has_news) {
        x->choices[choice].has_news = true;
        x->news[x->n_news++] = choice;
    }
    if (!x->is_on_news_list) {
        x->is_on_news_list = true;
        x->next_with_news = NULL;
        *x->server->with_news_end = x;
        x->server->with_news_end = &x->next_with_news;
    }
}

static void take_delivery(struct http_server *server, struct delivery *d)
{
    struct http_exchange *x = d->job ? d->job->user : NULL;
    switch (d->kind) {
    case DELIVERY_STARTED:
        x->choices[d->choice].is_started = true;
        server->n_running++;
        if (!x->choices[d->choice].is_forgotten)
            leave_queue(x, d->choice);
        metrics_choice_started(server->metrics, (double)(d->at_ns - x->arrived_ns) / 1e9);
        break;
    case DELIVERY_PROMPT:
        x->answer.choices[d->choice].prompt_rows = d->prompt_rows;
        add_news(x, d->choice);
        break;
    case DELIVERY_TOKEN:
        add_news(x, d->choice);
        take_token(x, d);
        break;
    case DELIVERY_ENDED:
        add_news(x, d->choice); /* before the end, with which x may go */
        take_end(x, d);
        break;
    case DELIVERY_STATS:
        metrics_snapshot(server->metrics, d->snapshot);
        live_snapshot(server->live, d->snapshot);
        free(d->snapshot);
        d->snapshot = NULL;
        break;
    case DELIVERY_LOST: /* told already */
        break;
    }
}

/* What came in one go for one stream is written in one go. */
void http_request_take_deliveries(struct http_server *server)
{
    struct delivery *d = service_take(server->engine.service);
    /* The ends of what the loss has cut come before its news; clients are to hear the reason. */
    for (const struct delivery *l = d; l; l = (const struct delivery *)l->mail.next)
        if (l->kind == DELIVERY_LOST)
            http_server_lose(server, l->message);
    while (d) {
        struct delivery *next = (struct delivery *)d->mail.next;
        take_delivery(server, d);
        service_give_back(server->engine.service, d);
        d = next;
    }
    struct http_exchange *x;
    while ((x = server->with_news)) { /* in the order they came */
        server->with_news = x->next_with_news;
        if (!server->with_news)
            server->with_news_end = &server->with_news;
        x->is_on_news_list = false;
        bool is_over = x->n_ended == x->job->n_choices;
        if (x->is_answered) {
            if (is_over)
                http_exchange_release(x);
        } else if (x->job->body.fields.stream) {
            http_stream_write_news(x);
        } else {
            for (uint32_t i = 0; i < x->n_news; i++)
                x->choices[x->news[i]].has_news = false;
            x->n_news = 0;
            if (is_over)
                finish_whole(x);
        }
    }
}

static bool is_late(const struct http_server *server, uint64_t since_ns, uint64_t now_ns)
{
    return now_ns > since_ns &&
           (double)(now_ns - since_ns) / 1e9 > server->config.request_timeout_s;
}

/* Answers that are complete wait as long again for a client that reads them byte by byte. */
void http_request_tick(struct http_server *server, uint64_t now_ns)
{
    struct http_exchange *next;
    for (struct http_exchange *x = server->exchanges; x; x = next) {
        next = x->next;
        if (x->is_answered) {
            if (x->request && is_late(server, x->last_write_ns, now_ns))
                evhttp_connection_free(evhttp_request_get_connection(x->request));
            continue;
        }
        if (is_late(server, x->arrived_ns, now_ns)) {
            struct fault fault = {0};
            fault_set(&fault, 504, "timeout_error", "deadline_exceeded",
                      "the request was not done after %.3g s, this server's limit",
                      server->config.request_timeout_s);
            fail(x, &fault, 0, "deadline");
        } else if (x->job && x->job->body.fields.stream) {
            http_stream_ping(x, now_ns);
        }
    }
}
