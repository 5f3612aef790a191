/* `carousel generate`: one prompt in, text out as it comes, or one JSON object. */
#include "cli/cli.h"
#include "cli/request_options.h"
#include "cli/session.h"
#include "cli/stdin_prompt.h"
#include "cluster/host.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct generate {
    struct session *session;
    bool as_json;
    bool is_done;
    enum status status;
    struct err err;
    /* for --json */
    json_t *tokens, *exit_loops, *logprobs;
    char *text;
    size_t text_bytes, text_cap;
    enum finish_reason reason;
    double ttft_ms, total_ms;
    uint32_t n_tokens;
};

static const char usage[] =

    "usage: carousel generate [MODEL] [PROMPT | --ids 1,2,3 | -] [options]\n"
    "Continues PROMPT (- reads it from standard input). With one argument that is a\n"
    "directory, it is the MODEL; any other single argument is the PROMPT for the\n"
    "bundled model.";

static void generate_append(struct generate *g, const char *text, size_t n)
{
    if (g->text_bytes + n + 1 > g->text_cap) {
        size_t cap = 2 * (g->text_bytes + n + 1);
        char *grown = realloc(g->text, cap);
        if (grown == NULL) {
            g->status = err_set(&g->err, STATUS_NO_MEMORY, "no memory for %zu bytes of text", cap);
            return;
        }
        g->text = grown;
        g->text_cap = cap;
    }
    memcpy(g->text + g->text_bytes, text, n);
    g->text_bytes += n;
    g->text[g->text_bytes] = '\0';
}

static void generate_emit(struct generate *g, const char *text, size_t n)
{
    if (g->as_json) {
        generate_append(g, text, n);
    } else {
        fwrite(text, 1, n, stdout);
        fflush(stdout);
    }
}

static void generate_on_token(void *user, const struct completion_token *t)
{
    struct generate *g = user;
    generate_emit(g, t->text, t->text_bytes);
    if (!g->as_json) {
        if (g->session->tokenizer == NULL) {
            printf("%s%d", t->index > 0 ? "," : "", (int)t->token->id);
            fflush(stdout);
        }
        return;
    }
    json_array_append_new(g->tokens, json_integer(t->token->id));
    json_array_append_new(g->exit_loops, json_integer(t->token->exit_loop));
    json_t *top = json_array();
    for (uint32_t i = 0; i < t->token->n_top; i++)
        json_array_append_new(top, json_pack("{s:i, s:f}", "id", (int)t->token->top_ids[i],
                                             "logprob", (double)t->token->top_logprobs[i]));
    json_array_append_new(
        g->logprobs, json_pack("{s:f, s:o}", "logprob", (double)t->token->logprob, "top", top));
}

static void generate_on_end(void *user, const struct completion_end *end)
{
    struct generate *g = user;
    generate_emit(g, end->text, end->text_bytes);
    g->reason = end->reason;
    g->n_tokens = end->n_tokens;
    if (end->first_token_ns != 0)
        g->ttft_ms = (double)(end->first_token_ns - end->submitted_ns) / 1e6;
    g->total_ms = (double)(end->ended_ns - end->submitted_ns) / 1e6;
    if (end->reason == FINISH_ERROR)
        g->status = err_set(&g->err, end->failure, "%s", end->message);
    g->is_done = true;
}

static void generate_print_json(struct generate *g, const int32_t *ids, size_t n_ids,
                                bool with_logprobs)
{
    json_t *prompt = json_array();
    for (size_t i = 0; i < n_ids; i++)
        json_array_append_new(prompt, json_integer(ids[i]));
    double decode_ms = g->total_ms - g->ttft_ms;
    json_t *timing = json_pack(
        "{s:f, s:f, s:f}", "ttft_ms", g->ttft_ms, "total_ms", g->total_ms, "decode_tokens_per_s",
        g->n_tokens > 1 && decode_ms > 0 ? (double)(g->n_tokens - 1) / decode_ms * 1e3 : 0.0);
    double sum = 0;
    size_t i;
    json_t *value;
    json_array_foreach(g->exit_loops, i, value) sum += (double)json_integer_value(value);
    json_t *root =
        json_pack("{s:o, s:O, s:O, s:f}", "prompt_ids", prompt, "tokens", g->tokens, "exit_loops",
                  g->exit_loops, "mean_exit_loop", g->n_tokens > 0 ? sum / g->n_tokens : 0.0);
    if (g->session->tokenizer != NULL)
        json_object_set_new(root, "text",
                            json_stringn(g->text != NULL ? g->text : "", g->text_bytes));
    else
        json_object_set_new(root, "text", json_null());
    json_object_set_new(root, "finish_reason", json_string(finish_reason_name(g->reason)));
    if (with_logprobs)
        json_object_set(root, "logprobs", g->logprobs);
    json_object_set_new(root, "timing", timing);
    char *text = json_dumps(root, JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
    puts(text != NULL ? text : "{}");
    free(text);
    json_decref(root);
}

static enum status generate_run(struct generate *g, const struct request_options *request_options,
                                const int32_t *ids, size_t n_ids, struct err *err)
{
    struct completion_request request = {
        .prompt_ids = ids,
        .n_prompt = (uint32_t)n_ids,
        .user = g,
        .on_token = generate_on_token,
        .on_end = generate_on_end,
    };
    enum status status =
        request_options_apply(request_options, g->session, (uint32_t)n_ids, &request, err);
    uint64_t id;
    if (status == STATUS_OK)
        status = coordinator_submit(g->session->coordinator, &request, &id, err);
    if (status == STATUS_OK)
        status = session_run(g->session, NULL, err);
    if (status == STATUS_OK && g->status != STATUS_OK) {
        *err = g->err;
        status = g->status;
    }
    return status;
}

int cli_generate(int argc, char **argv, char **program_argv)
{
    struct session_options so;
    struct request_options ro;
    session_options_init(&so);
    request_options_init(&ro);
    const char *ids_text = NULL;
    bool chat = false, thinking = false, as_json = false;
    const struct option_spec own[] = {
        {"ids", 0, OPTION_STRING, &ids_text, "IDS", NULL, 0, 0, "the prompt as token ids: 1,2,3",
         NULL},
        {"chat", 0, OPTION_FLAG, &chat, NULL, NULL, 0, 0, "the prompt is a user's chat turn", NULL},
        {"thinking", 0, OPTION_FLAG, &thinking, NULL, NULL, 0, 0,
         "with --chat: open the answer with <think>", NULL},
        {"json", 0, OPTION_FLAG, &as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
    };
    struct option_spec request_specs[REQUEST_N_SPECS], session_specs[SESSION_N_SPECS];
    struct option_group groups[] = {
        {own, sizeof own / sizeof own[0]},
        request_options_group(&ro, request_specs),
        session_options_group(&so, session_specs),
    };
    struct options_result args;
    struct err err = {0};
    if (options_parse(groups, 3, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("generate", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 3, &args);
        return CLI_OK;
    }
    const char *prompt = NULL;
    enum status status = session_split_arguments(&args, ids_text, &so.model, &prompt, &err);
    if (status == STATUS_OK && ((thinking && !chat) || (chat && ids_text != NULL)))
        status = err_set(&err, STATUS_INVALID,
                         "%s: without effect; the prompt's text becomes a chat "
                         "turn with --chat",
                         thinking && !chat ? "--thinking" : "--chat with --ids");
    if (status != STATUS_OK)
        return cli_fail_usage("generate", &err);
    so.needs_tokenizer = ids_text == NULL;

    struct generate g = {.as_json = as_json};
    char *owned = NULL;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    int exit_code;
    status = session_open(&so, program_argv, &g.session, &exit_code, &err);
    if (status != STATUS_OK)
        return cli_fail("generate", &err);
    if (g.session == NULL)
        return exit_code;
    g.tokens = json_array();
    g.exit_loops = json_array();
    g.logprobs = json_array();
    status = stdin_prompt_take(&prompt, &owned, &err);
    if (status == STATUS_OK)
        status =
            session_prompt_ids(g.session, ids_text, prompt, chat, thinking, &ids, &n_ids, &err);
    if (status == STATUS_OK)
        status = generate_run(&g, &ro, ids, n_ids, &err);
    if (status == STATUS_OK && as_json)
        generate_print_json(&g, ids, n_ids, ro.n_logprobs > 0);
    else if (status == STATUS_OK)
        putchar('\n');
    status = session_save_trace(g.session, status, &err);
    exit_code = status == STATUS_OK ? CLI_OK : cli_fail("generate", &err);
    session_close(g.session);
    json_decref(g.tokens);
    json_decref(g.exit_loops);
    json_decref(g.logprobs);
    free(g.text);
    free(owned);
    free(ids);
    return exit_code;
}
