/* ChatML: messages to prompt ids. User text cannot produce special tokens.
 *
 * <|im_start|>role\ncontent<|im_end|>\n ... <|im_start|>assistant\n   (+ "<think>\n" when asked) */
#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H

#include "model/tokenizer.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chat_message {
    const char *role;    /* "system", "user", "assistant"; anything else is STATUS_INVALID */
    const char *content; /* UTF-8 */
    size_t content_bytes;
};

/* STATUS_UNSUPPORTED when the tokenizer has no <|im_start|> and <|im_end|>. When there is no system message the template's default
 * (none) applies. *ids is malloc'd, the caller frees. */
enum status chat_encode(const struct tokenizer *tokenizer, const struct chat_message *messages,
                        size_t n_messages, bool enable_thinking, int32_t **ids, size_t *n_ids,
                        struct err *err);

/* The default stop ids: the eos ids of config.json, and 2 where token 2 is <|im_end|>. Writes at most
 * cap ids, returns how many. */
struct model_config;
size_t chat_default_stop_ids(const struct tokenizer *tokenizer, const struct model_config *config,
                             int32_t *ids, size_t cap);

#endif
