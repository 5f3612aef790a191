/* The pages that need no engine: models, health, readiness, version, metrics. */
#include "coordinator/http_state.h"

#include <stdio.h>
#include <string.h>

static void write_model(const struct http_server *server, struct json_writer *w)
{
    const struct http_server_engine *e = &server->engine;
    const struct model_config *m = &e->checkpoint->config;
    json_write_begin_object(w);
    json_write_key(w, "id");
    json_write_string(w, e->model_name);
    json_write_key(w, "object");
    json_write_string(w, "model");
    json_write_key(w, "created");
    json_write_integer(w, server->opened_at_s);
    json_write_key(w, "owned_by");
    json_write_string(w, "carousel");
    json_write_key(w, "root");
    json_write_string(w, e->model_dir);
    json_write_key(w, "max_model_len");
    json_write_integer(w, m->max_positions);
    json_write_key(w, "n_loops");
    json_write_integer(w, m->n_loops);
    json_write_key(w, "aliases");
    json_write_begin_array(w);
    for (size_t i = 0; i < e->n_aliases; i++)
        json_write_string(w, e->aliases[i]);
    json_write_end_array(w);
    json_write_end_object(w);
}

/* The model is known once the engine is there. */
static bool refuse_closed(struct http_exchange *x)
{
    struct fault fault = {0};
    uint32_t retry_after_s = 0;
    if (x->server->is_open || !http_request_check_phase(x->server, &fault, &retry_after_s))
        return false;
    http_reply_fault(x, &fault, retry_after_s);
    return true;
}

static struct text *begin_json(struct http_exchange *x, struct json_writer *w)
{
    struct text *json = &x->server->json;
    text_reset(json);
    json_writer_init(w, json);
    return json;
}

void http_page_models(struct http_exchange *x, const char *rest)
{
    (void)rest;
    struct json_writer w;
    if (refuse_closed(x))
        return;
    struct text *json = begin_json(x, &w);
    json_write_begin_object(&w);
    json_write_key(&w, "object");
    json_write_string(&w, "list");
    json_write_key(&w, "data");
    json_write_begin_array(&w);
    write_model(x->server, &w);
    json_write_end_array(&w);
    json_write_end_object(&w);
    http_reply_json(x, 200, json);
}

void http_page_model(struct http_exchange *x, const char *rest)
{
    struct json_writer w;
    if (refuse_closed(x))
        return;
    if (!http_request_is_model(x->server, rest)) {
        struct fault fault = {0};
        fault_set(&fault, 404, "invalid_request_error", "model_not_found",
                  "no model '%.200s' here; this server has '%.200s'", rest,
                  x->server->engine.model_name);
        snprintf(fault.param, sizeof fault.param, "model");
        http_reply_fault(x, &fault, 0);
        return;
    }
    struct text *json = begin_json(x, &w);
    write_model(x->server, &w);
    http_reply_json(x, 200, json);
}

const char *http_phase_name(enum http_phase phase)
{
    static const char *const names[] = {"loading", "ready", "draining", "lost"};
    return names[phase];
}

static void reply_state(struct http_exchange *x, int status)
{
    struct json_writer w;
    struct text *json = begin_json(x, &w);
    json_write_begin_object(&w);
    json_write_key(&w, "status");
    json_write_string(&w, http_phase_name(x->server->phase));
    if (x->server->phase == HTTP_LOST) {
        json_write_key(&w, "message");
        json_write_string(&w, x->server->lost_message);
    }
    json_write_end_object(&w);
    http_reply_json(x, status, json);
}

void http_page_health(struct http_exchange *x, const char *rest)
{
    (void)rest;
    reply_state(x, 200);
}

void http_page_ready(struct http_exchange *x, const char *rest)
{
    (void)rest;
    struct fault fault = {0};
    uint32_t retry_after_s = 0;
    if (http_request_check_phase(x->server, &fault, &retry_after_s)) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%u", retry_after_s);
        http_header_out(x, "Retry-After", seconds);
        reply_state(x, 503);
        return;
    }
    reply_state(x, 200);
}

void http_page_version(struct http_exchange *x, const char *rest)
{
    (void)rest;
    struct json_writer w;
    struct text *json = begin_json(x, &w);
    json_write_begin_object(&w);
    json_write_key(&w, "version");
    json_write_string(&w, CAROUSEL_VERSION);
    json_write_end_object(&w);
    http_reply_json(x, 200, json);
}

void http_page_metrics(struct http_exchange *x, const char *rest)
{
    (void)rest;
    struct text *page = &x->server->json;
    text_reset(page);
    metrics_write(x->server->metrics, page);
    if (page->is_broken) {
        http_reply_json(x, 500, page);
        return;
    }
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", page->bytes, page->len_bytes);
}
