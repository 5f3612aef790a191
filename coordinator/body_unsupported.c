/* Refuses the fields that would give an answer another meaning and are not done here. */
#include "coordinator/body_parts.h"

#include <string.h>

/* What a field may say without asking for anything. */
enum harmless {
    HARMLESS_EMPTY, /* false, "", [], {} */
    HARMLESS_TRUE,
    HARMLESS_CHOICE,    /* "none" or "auto", as there are no tools */
    HARMLESS_TEXT_TYPE, /* {"type": "text"} */
    HARMLESS_TEXT_LIST, /* ["text"] */
    HARMLESS_NOTHING    /* only null */
};

struct unsupported_field {
    const char *name;
    enum harmless harmless;
    bool in_chat, in_text;
    const char *advice;
};

static const char no_tools[] = "this server calls no tools; leave it out";
static const char no_grammar[] = "answers are plain text here, no grammar or schema binds them; "
                                 "leave it out";
static const char no_media[] = "this server reads and writes text only; leave it out";
static const char no_template[] = "the model's own chat template is used; leave it out";
static const char not_done[] = "this server does not do that; leave it out";

static const struct unsupported_field unsupported[] = {
    {"tools", HARMLESS_EMPTY, true, true, no_tools},
    {"functions", HARMLESS_EMPTY, true, true, no_tools},
    {"tool_choice", HARMLESS_CHOICE, true, true, no_tools},
    {"function_call", HARMLESS_CHOICE, true, true, no_tools},
    {"response_format", HARMLESS_TEXT_TYPE, true, true, no_grammar},
    {"structured_outputs", HARMLESS_EMPTY, true, true, no_grammar},
    {"guided_json", HARMLESS_EMPTY, true, true, no_grammar},
    {"guided_regex", HARMLESS_EMPTY, true, true, no_grammar},
    {"guided_choice", HARMLESS_EMPTY, true, true, no_grammar},
    {"guided_grammar", HARMLESS_EMPTY, true, true, no_grammar},
    {"modalities", HARMLESS_TEXT_LIST, true, true, no_media},
    {"audio", HARMLESS_EMPTY, true, true, no_media},
    {"prompt_embeds", HARMLESS_EMPTY, false, true, no_media},
    {"web_search_options", HARMLESS_NOTHING, true, false, not_done},
    {"suffix", HARMLESS_EMPTY, false, true, not_done},
    {"echo", HARMLESS_EMPTY, true, false,
     "only /v1/completions gives the prompt back; leave it out"},
    {"use_beam_search", HARMLESS_EMPTY, true, true, not_done},
    {"bad_words", HARMLESS_EMPTY, true, true, "use logit_bias with token ids instead"},
    {"allowed_token_ids", HARMLESS_NOTHING, true, true, "use logit_bias with token ids instead"},
    {"truncate_prompt_tokens", HARMLESS_NOTHING, true, true,
     "prompts are never cut; shorten it before sending"},
    {"chat_template", HARMLESS_EMPTY, true, false, no_template},
    {"documents", HARMLESS_EMPTY, true, false, no_template},
    {"add_generation_prompt", HARMLESS_TRUE, true, false, no_template},
    {"continue_final_message", HARMLESS_EMPTY, true, false, no_template},
};

static bool is_string(const json_t *value, const char *string)
{
    return json_is_string(value) && strcmp(json_string_value(value), string) == 0;
}

static bool is_empty(const json_t *value)
{
    return json_is_false(value) || is_string(value, "") ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

static bool is_harmless(enum harmless harmless, const json_t *value)
{
    switch (harmless) {
    case HARMLESS_EMPTY:
        return is_empty(value);
    case HARMLESS_TRUE:
        return json_is_true(value);
    case HARMLESS_CHOICE:
        return is_string(value, "none") || is_string(value, "auto");
    case HARMLESS_TEXT_TYPE:
        return json_is_object(value) && is_string(json_object_get(value, "type"), "text");
    case HARMLESS_TEXT_LIST:
        return json_is_array(value) && json_array_size(value) == 1 &&
               is_string(json_array_get(value, 0), "text");
    case HARMLESS_NOTHING:
        break;
    }
    return false;
}

enum status body_check_unsupported(const json_t *object, bool is_chat, struct fault *fault)
{
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++) {
        const struct unsupported_field *u = &unsupported[i];
        const json_t *value = body_field_of(object, u->name);
        if (value == NULL || !(is_chat ? u->in_chat : u->in_text) ||
            is_harmless(u->harmless, value))
            continue;
        return fault_request(fault, STATUS_UNSUPPORTED, u->name, BODY_CODE_UNSUPPORTED, "%s: %s",
                             u->name, u->advice);
    }
    return STATUS_OK;
}
