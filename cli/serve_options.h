/* The options of `carousel serve`: read, checked, and what needs no model made of them. */
#ifndef CLI_SERVE_OPTIONS_H
#define CLI_SERVE_OPTIONS_H

#include "cli/request_options.h"
#include "cli/session.h"
#include "coordinator/http_server.h"
#include "coordinator/server_log.h"

#include <stdbool.h>
#include <stdint.h>

enum { SERVE_MAX_NAMES = 16, SERVE_N_SPECS = 40, SERVE_DEFAULT_MAX_TOKENS = 16 };

struct serve_options {
    struct session_options session;
    struct request_options request; /* the server's defaults */
    const char *host, *names, *key_file, *tls_cert, *tls_key, *endpoint_file;
    int port, log_format, log_level;
    bool is_insecure;
    double drain_timeout_s, request_timeout_s, idle_timeout_s, ping_interval_s;
    int max_queue, max_queue_tokens, max_prompt_tokens, max_choices, max_connections;
    uint64_t max_body_bytes, max_header_bytes, max_unsent_bytes;
    /* Made by serve_options_read. */
    struct server_log log;
    char *names_text; /* the names below point into it */
    const char *name_list[SERVE_MAX_NAMES];
    size_t n_names; /* 0: the model directory's name */
};

/* Reads the command line; *is_over: help was printed, and that was all. STATUS_INVALID. Free in any
 * case. */
enum status serve_options_read(struct serve_options *o, int argc, char **argv, bool *is_over,
                               struct err *err);
void serve_options_free(struct serve_options *o);

/* The server's own part: keys is what o->key_file holds, or NULL. */
void serve_options_http_config(const struct serve_options *o, const struct api_keys *keys,
                               struct http_server_config *config);
/* The intake's part: defaults of a request against the opened model. STATUS_INVALID. */
enum status serve_options_intake_config(const struct serve_options *o, const struct session *s,
                                        struct intake_config *config, struct err *err);

/* Whether only this host reaches the address or name; a name that cannot be resolved is not. */
bool serve_host_is_loopback(const char *host);

#endif
