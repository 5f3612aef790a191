/* The page at /, and what it asks for each second: /live. */
#include "cluster/host.h"
#include "coordinator/http_state.h"

#include <string.h>

/* live_page.html as it is, with a 0 behind it. */
__asm__(".pushsection .rodata\n"
        ".global http_live_page\n"
        "http_live_page:\n"
        ".incbin \"coordinator/live_page.html\"\n"
        ".byte 0\n"
        ".popsection\n");
extern const char http_live_page[];

void http_page_live(struct http_exchange *x, const char *rest)
{
    (void)rest;
    /* The page is the same for everybody and loads nothing; its numbers come from /live alone. */
    http_header_out(x, "Content-Security-Policy",
                    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                    "frame-ancestors 'none'");
    http_header_out(x, "X-Content-Type-Options", "nosniff");
    http_header_out(x, "Referrer-Policy", "no-referrer");
    http_header_out(x, "Cache-Control", "no-cache");
    http_reply(x, 200, "text/html; charset=utf-8", http_live_page, strlen(http_live_page));
}

void http_page_live_numbers(struct http_exchange *x, const char *rest)
{
    (void)rest;
    struct http_server *server = x->server;
    struct text *json = &server->json;
    struct json_writer w;
    text_reset(json);
    json_writer_init(&w, json);
    json_write_begin_object(&w);
    json_write_key(&w, "version");
    json_write_string(&w, CAROUSEL_VERSION);
    json_write_key(&w, "model");
    json_write_string(&w, server->is_open ? server->engine.model_name : NULL);
    json_write_key(&w, "state");
    json_write_string(&w, http_phase_name(server->phase));
    json_write_key(&w, "message");
    json_write_string(&w, server->phase == HTTP_LOST ? server->lost_message : NULL);
    json_write_key(&w, "started_at");
    json_write_integer(&w, server->created_at_s);
    json_write_key(&w, "connections");
    json_write_integer(&w, server->n_peers);
    json_write_key(&w, "waiting");
    json_write_integer(&w, metrics_n_waiting(server->metrics));
    json_write_key(&w, "running");
    json_write_integer(&w, metrics_n_running(server->metrics));
    live_write(server->live, host_now_ns(), &w);
    json_write_end_object(&w);
    http_header_out(x, "Cache-Control", "no-store");
    http_reply_json(x, 200, json);
}
