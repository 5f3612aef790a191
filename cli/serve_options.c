/* Reads what `carousel serve` is told, and refuses what would surprise before anything is started.
 */
#include "cli/serve_options.h"

#include <arpa/inet.h>
#include <assert.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: carousel serve [MODEL] [--host 127.0.0.1] [--port 8000] [options]\n"
    "Serves the model over HTTP with OpenAI's API: alone, with --workers W, under\n"
    "mpirun or srun. SIGTERM drains and ends it. docs/http.md is the contract.";

static void init(struct serve_options *o)
{
    *o = (struct serve_options){
        .host = "127.0.0.1",
        .port = 8000,
        .log_level = LOG_LEVEL_INFO,
        .drain_timeout_s = 25,
        .request_timeout_s = 600,
        .idle_timeout_s = 75,
        .ping_interval_s = 15,
        .max_queue = 1024,
        .max_queue_tokens = 1048576,
        .max_choices = 128,
        .max_connections = 1024,
        .max_body_bytes = (uint64_t)4 << 20,
        .max_header_bytes = (uint64_t)32 << 10,
        .max_unsent_bytes = (uint64_t)1 << 20,
    };
    session_options_init(&o->session);
    request_options_init(&o->request);
    o->request.temperature = 1;
    o->session.is_server = true;
}

static struct option_group own_group(struct serve_options *o, struct option_spec *specs)
{
    const struct option_spec table[] = {
        {.type = OPTION_HEADING, .help = "Server:"},
        {"host", 0, OPTION_STRING, &o->host, "ADDRESS", NULL, 0, 0,
         "where to listen (default 127.0.0.1)", NULL},
        {"port", 0, OPTION_INT, &o->port, "N", NULL, 0, 65535, "0: any free one (default 8000)",
         NULL},
        {"served-model-name", 0, OPTION_STRING, &o->names, "NAMES", NULL, 0, 0,
         "shown,other,... (default: MODEL's directory)", NULL},
        {"api-key-file", 0, OPTION_STRING, &o->key_file, "FILE", NULL, 0, 0,
         "a key, or a name and a key, per line", NULL},
        {"insecure", 0, OPTION_FLAG, &o->is_insecure, NULL, NULL, 0, 0,
         "listen beyond this host without keys", NULL},
        {"tls-cert", 0, OPTION_STRING, &o->tls_cert, "FILE", NULL, 0, 0,
         "PEM with the certificate chain: serve HTTPS", NULL},
        {"tls-key", 0, OPTION_STRING, &o->tls_key, "FILE", NULL, 0, 0, "PEM with its key", NULL},
        {"endpoint-file", 0, OPTION_STRING, &o->endpoint_file, "FILE", NULL, 0, 0,
         "kept up to date: host, port, pid, state", NULL},
        {"log-format", 0, OPTION_CHOICE, &o->log_format, NULL, "human|json", 0, 0,
         "of the lines on standard error", NULL},
        {"drain-timeout", 0, OPTION_FLOAT, &o->drain_timeout_s, "S", NULL, 0, 1e6,
         "for what runs at SIGTERM (default 25)", NULL},
        {"max-queue", 0, OPTION_INT, &o->max_queue, "N", NULL, 1, 1 << 20,
         "waiting choices, then 429 (default 1024)", NULL},
        {"request-timeout", 0, OPTION_FLOAT, &o->request_timeout_s, "S", NULL, 1e-3, 1e6,
         "from arrival to end, then 504 (default 600)", NULL},
        {.type = OPTION_MORE},
        {"max-queue-tokens", 0, OPTION_INT, &o->max_queue_tokens, "N", NULL, 1, INT32_MAX,
         "their prompt tokens (default 1048576)", NULL},
        {"log-level", 0, OPTION_CHOICE, &o->log_level, NULL, "debug|info|warn|error", 0, 0,
         "the least that is logged (default info)", NULL},
        {"max-prompt-tokens", 0, OPTION_INT, &o->max_prompt_tokens, "N", NULL, 1, INT32_MAX,
         "of one prompt (default: the model's context)", NULL},
        {"max-choices", 0, OPTION_INT, &o->max_choices, "N", NULL, 1, BODY_MAX_CHOICES,
         "prompts * n of one request (default 128)", NULL},
        {"max-connections", 0, OPTION_INT, &o->max_connections, "N", NULL, 1, 1 << 20,
         "open at once (default 1024)", NULL},
        {"max-body", 0, OPTION_BYTES, &o->max_body_bytes, "SIZE", NULL, 0, 0,
         "of a request (default 4M)", NULL},
        {"max-header", 0, OPTION_BYTES, &o->max_header_bytes, "SIZE", NULL, 0, 0,
         "of a request's head (default 32K)", NULL},
        {"max-unsent", 0, OPTION_BYTES, &o->max_unsent_bytes, "SIZE", NULL, 0, 0,
         "for a slow reader, who is then cut off (1M)", NULL},
        {"idle-timeout", 0, OPTION_FLOAT, &o->idle_timeout_s, "S", NULL, 1e-3, 1e6,
         "of connections that say nothing (default 75)", NULL},
        {"worker-timeout", 0, OPTION_FLOAT, &o->session.answer_timeout_s, "S", NULL, 0.1, 1e6,
         "a worker that owes an answer for S is lost (default 60)", NULL},
        {"ping-interval", 0, OPTION_FLOAT, &o->ping_interval_s, "S", NULL, 1e-3, 1e6,
         "of comments on idle streams (default 15)", NULL},
    };
    enum { N = sizeof table / sizeof table[0] };
    static_assert((int)N <= (int)SERVE_N_SPECS, "callers lend SERVE_N_SPECS");
    memcpy(specs, table, sizeof table);
    return (struct option_group){specs, N};
}

/* The request options say what generate and batch do where a server does otherwise. */
static struct option_group request_group(struct serve_options *o, struct option_spec *specs)
{
    static const char *const other[][2] = {
        {"max-tokens", "of completions that say nothing (default 16)"},
        {"temperature", "0 is greedy (default 1)"},
        {"seed", "of requests that give none (default: random)"},
        {"stop", NULL},
        {"logprobs", NULL},
    };
    struct option_group group = request_options_group(&o->request, specs);
    size_t n = 0;
    for (size_t i = 0; i < group.n_specs; i++) {
        bool is_kept = true;
        for (size_t k = 0; k < sizeof other / sizeof other[0]; k++)
            if (specs[i].name != NULL && strcmp(specs[i].name, other[k][0]) == 0) {
                specs[i].help = other[k][1];
                is_kept = other[k][1] != NULL; /* only a request can say that */
            }
        if (specs[i].type == OPTION_HEADING)
            specs[i].help = "What a request that says nothing gets:";
        if (is_kept)
            specs[n++] = specs[i];
    }
    return (struct option_group){specs, n};
}

bool serve_host_is_loopback(const char *host)
{
    struct addrinfo *list = NULL;
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    if (getaddrinfo(host, NULL, &hints, &list) != 0)
        return false;
    bool is_loopback = list != NULL;
    for (const struct addrinfo *a = list; a != NULL && is_loopback; a = a->ai_next) {
        if (a->ai_family == AF_INET) {
            const struct sockaddr_in *in = (const struct sockaddr_in *)a->ai_addr;
            is_loopback = ntohl(in->sin_addr.s_addr) >> 24 == 127;
        } else {
            const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)a->ai_addr;
            is_loopback = a->ai_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
        }
    }
    freeaddrinfo(list);
    return is_loopback;
}

static enum status split_names(struct serve_options *o, struct err *err)
{
    if (o->names == NULL)
        return STATUS_OK;
    o->names_text = strdup(o->names);
    if (o->names_text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the model's names");
    char *rest = o->names_text, *name;
    while ((name = strsep(&rest, ",")) != NULL) {
        if (*name == '\0')
            return err_set(err, STATUS_INVALID, "--served-model-name: '%s' has an empty name",
                           o->names);
        if (o->n_names == SERVE_MAX_NAMES)
            return err_set(err, STATUS_INVALID, "--served-model-name: more than %d names",
                           (int)SERVE_MAX_NAMES);
        o->name_list[o->n_names++] = name;
    }
    return STATUS_OK;
}

static enum status check(const struct serve_options *o, struct err *err)
{
    if ((o->tls_cert == NULL) != (o->tls_key == NULL))
        return err_set(err, STATUS_INVALID, "%s needs %s: TLS takes a certificate and its key",
                       o->tls_cert != NULL ? "--tls-cert" : "--tls-key",
                       o->tls_cert != NULL ? "--tls-key" : "--tls-cert");
    if (o->max_body_bytes == 0 || o->max_header_bytes == 0 || o->max_unsent_bytes == 0)
        return err_set(err, STATUS_INVALID,
                       "--max-body, --max-header and --max-unsent start at 1 byte");
    if (o->key_file == NULL && !o->is_insecure && !serve_host_is_loopback(o->host))
        return err_set(err, STATUS_INVALID,
                       "--host %s is reachable from other hosts, and anybody there could use the "
                       "model: give --api-key-file, or --insecure when that is meant",
                       o->host);
    return STATUS_OK;
}

enum status serve_options_read(struct serve_options *o, int argc, char **argv, bool *is_over,
                               struct err *err)
{
    struct option_spec own[SERVE_N_SPECS], request[REQUEST_N_SPECS], session[SESSION_N_SPECS];
    struct options_result args;
    init(o);
    struct option_group groups[] = {own_group(o, own), request_group(o, request),
                                    session_options_group(&o->session, session)};
    *is_over = false;
    enum status status = options_parse(groups, 3, argc, argv, &args, err);
    if (status == STATUS_OK && args.wants_help) {
        options_print_help(usage, groups, 3, &args);
        *is_over = true;
        return STATUS_OK;
    }
    if (status == STATUS_OK)
        status = session_take_model(&args, &o->session.model, err);
    if (status == STATUS_OK)
        status = split_names(o, err);
    if (status == STATUS_OK)
        status = check(o, err);
    if (status != STATUS_OK)
        return status;
    /* What waits is counted at the front door; the coordinator has room for more than that. */
    o->session.max_queue = (uint32_t)o->max_queue + BODY_MAX_CHOICES;
    o->log = (struct server_log){
        .fd = STDERR_FILENO, .is_json = o->log_format == 1, .level = (enum log_level)o->log_level};
    return STATUS_OK;
}

void serve_options_free(struct serve_options *o)
{
    free(o->names_text);
    o->names_text = NULL;
}

void serve_options_http_config(const struct serve_options *o, const struct api_keys *keys,
                               struct http_server_config *config)
{
    *config = (struct http_server_config){
        .host = o->host,
        .port = (uint16_t)o->port,
        .tls_cert = o->tls_cert,
        .tls_key = o->tls_key,
        .keys = keys,
        .log = &o->log,
        .max_body_bytes = o->max_body_bytes,
        .max_header_bytes = o->max_header_bytes,
        .max_connections = (uint32_t)o->max_connections,
        .max_waiting = (uint32_t)o->max_queue,
        .max_waiting_tokens = (uint64_t)o->max_queue_tokens,
        .max_unsent_bytes = o->max_unsent_bytes,
        .request_timeout_s = o->request_timeout_s,
        .idle_timeout_s = o->idle_timeout_s,
        .ping_interval_s = o->ping_interval_s,
    };
}

enum status serve_options_intake_config(const struct serve_options *o, const struct session *s,
                                        struct intake_config *config, struct err *err)
{
    struct completion_request request = {0};
    enum status status = request_options_apply(&o->request, s, 1, &request, err);
    if (status != STATUS_OK)
        return status;
    if (!o->request.has_max_tokens)
        request.params.max_tokens = SERVE_DEFAULT_MAX_TOKENS;
    *config = (struct intake_config){
        .checkpoint = s->checkpoint,
        .tokenizer = s->tokenizer,
        .model_dir = s->model_dir,
        .defaults = request.params,
        .default_max_tokens = request.params.max_tokens,
        .max_prompt_tokens = (uint32_t)o->max_prompt_tokens,
        .max_choices = (uint32_t)o->max_choices,
        .has_seed = o->request.has_seed,
    };
    return STATUS_OK;
}
