/* Reads texts line by line and has prompts without an answer continued. */
#include "cli/gate_source.h"

#include "cli/request_options.h"
#include "model/json_input.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum status gate_source_open(struct gate_source *s, struct session *session, const char *path,
                             bool chat, uint32_t max_tokens, struct err *err)
{
    *s = (struct gate_source){.session = session, .chat = chat, .max_tokens = max_tokens};
    return batch_input_open(&s->in, path, 0, err);
}

static void clear_text(struct gate_source_text *text)
{
    free(text->ids);
    *text = (struct gate_source_text){0};
}

void gate_source_close(struct gate_source *s)
{
    if (s->session == NULL)
        return;
    for (int i = 0; i < GATE_SOURCE_WINDOW; i++)
        if (s->texts[i].request != 0 && !s->texts[i].is_ready)
            coordinator_cancel(s->session->coordinator, s->texts[i].request);
    while (s->n_generating > 0 &&
           coordinator_step(s->session->coordinator, 200ull * 1000 * 1000, NULL) == STATUS_OK)
        ;
    for (int i = 0; i < GATE_SOURCE_WINDOW; i++)
        clear_text(&s->texts[i]);
    batch_input_close(&s->in);
    *s = (struct gate_source){0};
}

/* ---- continuations -------------------------------------------------------------------------- */

static enum status append_ids(struct gate_source_text *text, const int32_t *ids, size_t n,
                              struct err *err)
{
    if (text->n_ids + n > text->cap) {
        size_t cap = 2 * text->cap + n;
        int32_t *grown = realloc(text->ids, cap * sizeof *grown);
        if (grown == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for a text of %zu tokens", cap);
        text->ids = grown;
        text->cap = cap;
    }
    if (n > 0)
        memcpy(text->ids + text->n_ids, ids, n * sizeof *ids);
    text->n_ids += n;
    return STATUS_OK;
}

static void on_token(void *user, const struct completion_token *t)
{
    struct gate_source_text *text = user;
    struct gate_source *s = text->source;
    if (s->err.code == STATUS_OK)
        append_ids(text, &t->token->id, 1, &s->err);
}

static void on_end(void *user, const struct completion_end *end)
{
    struct gate_source_text *text = user;
    struct gate_source *s = text->source;
    if (end->reason == FINISH_ERROR && s->err.code == STATUS_OK)
        err_set(&s->err, end->failure, "%s, line %" PRIu64 ": %s", s->in.name, text->line,
                end->message);
    text->is_ready = true;
    s->n_generating--;
}

static enum status start_continuation(struct gate_source *s, struct gate_source_text *text,
                                      struct err *err)
{
    const struct model_config *config = &s->session->checkpoint->config;
    struct request_options options;
    struct completion_request request = {
        .prompt_ids = text->ids,
        .n_prompt = (uint32_t)text->n_ids,
        .user = text,
        .on_token = on_token,
        .on_end = on_end,
    };
    request_options_init(&options);
    options.exit_mode = EXIT_MODE_FULL;
    options.has_exit_mode = true;
    uint32_t room = (uint32_t)config->max_positions - (uint32_t)text->n_ids;
    if (text->n_ids >= (size_t)config->max_positions)
        return err_set(err, STATUS_INVALID,
                       "a prompt of %zu tokens leaves no room to continue it in %d positions",
                       text->n_ids, config->max_positions);
    options.has_max_tokens = s->max_tokens > 0;
    options.max_tokens = (int)(s->max_tokens < room ? s->max_tokens : room);
    enum status st =
        request_options_apply(&options, s->session, (uint32_t)text->n_ids, &request, err);
    if (st == STATUS_OK)
        st = coordinator_submit(s->session->coordinator, &request, &text->request, err);
    if (st == STATUS_OK) {
        s->n_generating++;
        s->n_generated++;
    }
    return st;
}

/* ---- one line ------------------------------------------------------------------------------- */

/* *value stays NULL when the field is absent. */
static enum status take_string(const json_t *line, const char *field, const char **value,
                               struct err *err)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    const json_t *found = json_object_get(line, field);
    if (found == NULL)
        return STATUS_OK;
    if (!json_is_string(found))
        return err_set(err, STATUS_INVALID, "field %s: expected a string, found %s", field,
                       json_input_show(found, shown));
    *value = json_string_value(found);
    return STATUS_OK;
}

static enum status take_ids(const json_t *line, struct gate_source_text *text, struct err *err)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    const json_t *ids = json_object_get(line, "ids"), *n = json_object_get(line, "prompt_tokens");
    if (!json_is_array(ids) || json_array_size(ids) > INT32_MAX)
        return err_set(err, STATUS_INVALID, "field ids: expected a list of token ids, found %s",
                       json_input_show(ids, shown));
    size_t n_ids = json_array_size(ids);
    enum status st = STATUS_OK;
    for (size_t i = 0; i < n_ids && st == STATUS_OK; i++) {
        const json_t *value = json_array_get(ids, i);
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id > INT32_MAX)
            return err_set(err, STATUS_INVALID, "field ids[%zu]: expected a token id, found %s", i,
                           json_input_show(value, shown));
        st = append_ids(text, &(int32_t){(int32_t)id}, 1, err);
    }
    text->first_target = 1;
    if (st != STATUS_OK || n == NULL)
        return st;
    json_int_t given = json_integer_value(n);
    if (!json_is_integer(n) || given < 1 || (size_t)given > n_ids)
        return err_set(err, STATUS_INVALID, "field prompt_tokens: expected 1..%zu, found %s", n_ids,
                       json_input_show(n, shown));
    text->first_target = (uint32_t)given;
    text->wants_more = (size_t)given == n_ids;
    return STATUS_OK;
}

static enum status take_prompt(struct gate_source *s, const char *prompt, const char *answer,
                               struct gate_source_text *text, struct err *err)
{
    enum status st =
        session_prompt_ids(s->session, NULL, prompt, s->chat, false, &text->ids, &text->n_ids, err);
    text->cap = text->n_ids;
    text->first_target = (uint32_t)text->n_ids;
    text->wants_more = answer == NULL;
    if (st != STATUS_OK || answer == NULL)
        return st;
    int32_t *ids = NULL;
    size_t n_ids = 0, n_dropped = 0;
    st =
        tokenizer_encode(s->session->tokenizer, answer, strlen(answer),
                         TOKENIZER_PARSE_SPECIAL | TOKENIZER_STRICT, &ids, &n_ids, &n_dropped, err);
    if (st == STATUS_OK && n_ids == 0)
        st = err_set(err, STATUS_INVALID,
                     "the answer is empty; leave the field out to have the "
                     "model continue the prompt");
    if (st == STATUS_OK)
        st = append_ids(text, ids, n_ids, err);
    free(ids);
    return st;
}

static enum status read_fields(struct gate_source *s, const json_t *line,
                               struct gate_source_text *text, struct err *err)
{
    const char *prompt = NULL, *answer = NULL, *completion = NULL, *plain = NULL;
    enum status st;
    if ((st = take_string(line, "prompt", &prompt, err)) ||
        (st = take_string(line, "answer", &answer, err)) ||
        (st = take_string(line, "completion", &completion, err)) ||
        (st = take_string(line, "text", &plain, err)))
        return st;
    bool has_ids = json_object_get(line, "ids") != NULL;
    if ((prompt != NULL) + (plain != NULL) + has_ids != 1 || (answer != NULL && completion != NULL))
        return err_set(err, STATUS_INVALID,
                       "expected one of prompt (with answer or completion), text, ids");
    if (has_ids)
        return take_ids(line, text, err);
    if (prompt != NULL)
        return take_prompt(s, prompt, answer != NULL ? answer : completion, text, err);
    st = session_prompt_ids(s->session, NULL, plain, false, false, &text->ids, &text->n_ids, err);
    text->cap = text->n_ids;
    text->first_target = 1;
    return st;
}

/* Either the text is ready, or it is being continued. */
static enum status take_line(struct gate_source *s, const char *bytes, size_t n, struct err *err)
{
    const struct model_config *config = &s->session->checkpoint->config;
    struct gate_source_text *text = &s->texts[s->n_read % GATE_SOURCE_WINDOW];
    json_t *line = NULL;
    *text = (struct gate_source_text){.source = s, .line = s->in.n_lines};
    enum status st = json_input_parse(bytes, n, "this line", &line, err);
    if (st == STATUS_OK)
        st = read_fields(s, line, text, err);
    json_decref(line);
    if (st == STATUS_OK && text->n_ids > (size_t)config->max_positions)
        st = err_set(err, STATUS_INVALID, "%zu tokens; the model has %d positions: cut the text",
                     text->n_ids, config->max_positions);
    for (size_t i = 0; st == STATUS_OK && i < text->n_ids; i++)
        if (text->ids[i] >= config->vocab_size)
            st = err_set(err, STATUS_INVALID,
                         "token id %" PRId32 " at place %zu is outside the "
                         "vocabulary 0..%d",
                         text->ids[i], i, config->vocab_size - 1);
    if (st == STATUS_OK && text->wants_more)
        st = start_continuation(s, text, err);
    else if (st == STATUS_OK && text->first_target >= text->n_ids)
        st = err_set(err, STATUS_INVALID, "%zu tokens: there is nothing to predict", text->n_ids);
    if (st != STATUS_OK) {
        clear_text(text);
        return err_wrap(err, "%s, line %" PRIu64, s->in.name, s->in.n_lines);
    }
    text->is_ready = !text->wants_more;
    s->n_read++;
    return STATUS_OK;
}

/* Reads ahead, so that many prompts are continued at once. */
static enum status fill(struct gate_source *s, struct err *err)
{
    while (!s->is_over && s->n_read - s->n_given < GATE_SOURCE_WINDOW) {
        enum batch_input_kind kind;
        const char *line;
        size_t n;
        enum status st = batch_input_next(&s->in, 1000, &kind, &line, &n, err);
        if (st == STATUS_OK && kind == BATCH_INPUT_TOO_LONG)
            st = err_set(err, STATUS_INVALID, "%s, line %" PRIu64 " has more than %d bytes",
                         s->in.name, s->in.n_lines, BATCH_INPUT_MAX_LINE);
        if (st == STATUS_OK && kind == BATCH_INPUT_LINE)
            st = take_line(s, line, n, err);
        if (st != STATUS_OK)
            return st;
        s->is_over = kind == BATCH_INPUT_END;
    }
    return STATUS_OK;
}

enum status gate_source_next(struct gate_source *s, const struct gate_source_text **text,
                             struct err *err)
{
    if (s->is_lent) {
        clear_text(&s->texts[s->n_given++ % GATE_SOURCE_WINDOW]);
        s->is_lent = false;
    }
    enum status st = fill(s, err);
    if (st != STATUS_OK)
        return st;
    *text = NULL;
    if (s->n_given == s->n_read)
        return STATUS_OK;
    struct gate_source_text *next = &s->texts[s->n_given % GATE_SOURCE_WINDOW];
    while (!next->is_ready && s->err.code == STATUS_OK) {
        st = coordinator_step(s->session->coordinator, 200ull * 1000 * 1000, err);
        if (st != STATUS_OK)
            return st;
    }
    if (s->err.code != STATUS_OK)
        return err_set(err, s->err.code, "%s", s->err.message);
    s->is_lent = true;
    *text = next;
    return STATUS_OK;
}
