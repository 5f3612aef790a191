/* ChatML around messages whose text, whatever it says, cannot open or close a turn. */
#include "model/chat.h"

#include "model/config.h"

#include <stdlib.h>
#include <string.h>

static const char turn_open[] = "<|im_start|>", turn_close[] = "<|im_end|>";

struct id_list {
    int32_t *ids;
    size_t n, cap;
};

static enum status append_ids(struct id_list *list, const int32_t *ids, size_t n, struct err *err)
{
    if (list->n + n > list->cap) {
        size_t cap = 2 * list->cap + n + 64;
        int32_t *grown = realloc(list->ids, cap * sizeof *grown);
        if (!grown)
            return err_set(err, STATUS_NO_MEMORY, "no memory for a chat prompt of %zu tokens", cap);
        list->ids = grown;
        list->cap = cap;
    }
    if (n > 0)
        memcpy(list->ids + list->n, ids, n * sizeof *ids);
    list->n += n;
    return STATUS_OK;
}

static enum status append_text(struct id_list *list, const struct tokenizer *tokenizer,
                               const char *text, size_t len_bytes, int flags, struct err *err)
{
    int32_t *ids = NULL;
    size_t n = 0;
    enum status status = tokenizer_encode(tokenizer, text, len_bytes, flags, &ids, &n, NULL, err);
    if (status == STATUS_OK)
        status = append_ids(list, ids, n, err);
    free(ids);
    return status;
}

/* Role, newline and content are encoded as one text: a split sees across their seams, as it does
 * when the reference encodes the rendered template. */
static enum status append_message(struct id_list *list, const struct tokenizer *tokenizer,
                                  const struct chat_message *message, size_t index, struct err *err)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    size_t i = 0;
    while (i < 3 && (!message->role || strcmp(message->role, roles[i]) != 0))
        i++;
    if (i == 3)
        return err_set(err, STATUS_INVALID,
                       "messages[%zu].role is \"%.60s\"; use system, user or assistant", index,
                       message->role ? message->role : "(none)");
    size_t n_role = strlen(message->role), n = n_role + 1 + message->content_bytes;
    char *text = malloc(n);
    if (!text)
        return err_set(err, STATUS_NO_MEMORY, "no memory for messages[%zu], %zu bytes", index, n);
    memcpy(text, message->role, n_role);
    text[n_role] = '\n';
    if (message->content_bytes > 0)
        memcpy(text + n_role + 1, message->content, message->content_bytes);
    enum status status = append_text(list, tokenizer, text, n, 0, err);
    free(text);
    return status;
}

enum status chat_encode(const struct tokenizer *tokenizer, const struct chat_message *messages,
                        size_t n_messages, bool enable_thinking, int32_t **ids, size_t *n_ids,
                        struct err *err)
{
    struct id_list list = {0};
    enum status status = STATUS_OK;
    int32_t open_id = tokenizer_find(tokenizer, turn_open);
    int32_t close_id = tokenizer_find(tokenizer, turn_close);
    if (!tokenizer_is_special(tokenizer, open_id) || !tokenizer_is_special(tokenizer, close_id))
        return err_set(err, STATUS_UNSUPPORTED,
                       "this model's tokenizer has no special tokens %s and %s, so it cannot chat; "
                       "send a plain prompt",
                       turn_open, turn_close);
    if (n_messages == 0)
        return err_set(err, STATUS_INVALID, "a chat needs at least one message");
    for (size_t i = 0; status == STATUS_OK && i < n_messages; i++) {
        status = append_ids(&list, &open_id, 1, err);
        if (status == STATUS_OK)
            status = append_message(&list, tokenizer, &messages[i], i, err);
        if (status == STATUS_OK)
            status = append_ids(&list, &close_id, 1, err);
        if (status == STATUS_OK)
            status = append_text(&list, tokenizer, "\n", 1, 0, err);
    }
    /* The opening of the answer is ours, so <think> may be a token of its own. */
    const char *opening = enable_thinking ? "assistant\n<think>\n" : "assistant\n";
    if (status == STATUS_OK)
        status = append_ids(&list, &open_id, 1, err);
    if (status == STATUS_OK)
        status =
            append_text(&list, tokenizer, opening, strlen(opening), TOKENIZER_PARSE_SPECIAL, err);
    if (status != STATUS_OK) {
        free(list.ids);
        return status;
    }
    *ids = list.ids;
    *n_ids = list.n;
    return STATUS_OK;
}

size_t chat_default_stop_ids(const struct tokenizer *tokenizer, const struct model_config *config,
                             int32_t *ids, size_t cap)
{
    size_t n = 0;
    int32_t close_id = tokenizer ? tokenizer_find(tokenizer, turn_close) : -1;
    bool ends_turn = close_id >= 0 && tokenizer_is_special(tokenizer, close_id);
    for (int i = 0; i < config->n_eos && n < cap; i++) {
        ids[n++] = config->eos_ids[i];
        ends_turn = ends_turn && config->eos_ids[i] != close_id;
    }
    if (ends_turn && n < cap)
        ids[n++] = close_id;
    return n;
}
