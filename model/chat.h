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
    const char *content; /* UTF-8; may be NULL when empty */
    size_t content_bytes;
};

/* *ids is malloc'd, the caller frees. Without a system message none is added. STATUS_UNSUPPORTED
 * when
 * <|im_start|> or <|im_end|> is not a special token of the tokenizer; STATUS_INVALID for an unknown
 * role or no message at all; STATUS_NO_MEMORY. */
enum status chat_encode(const struct tokenizer *tokenizer, const struct chat_message *messages,
                        size_t n_messages, bool enable_thinking, int32_t **ids, size_t *n_ids,
                        struct err *err);

/* The default stop ids: the eos ids of config.json, and that of the special token <|im_end|> (2 in
 * the published vocabulary, whose config names only 0). tokenizer may be NULL. Writes at most cap
 * ids, returns how many. */
struct model_config;
size_t chat_default_stop_ids(const struct tokenizer *tokenizer, const struct model_config *config,
                             int32_t *ids, size_t cap);

#endif
