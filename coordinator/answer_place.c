/* Says at which character of an answer's text each of its tokens begins. */
#include "coordinator/answer_parts.h"

#include <string.h>

uint64_t answer_count_characters(const char *text, size_t len_bytes)
{
    uint64_t n = 0;
    for (size_t i = 0; i < len_bytes; i++)
        n += (text[i] & 0xC0) != 0x80;
    return n;
}

void answer_place_start(struct answer_place *p, const struct answer *a, uint64_t n_before)
{
    *p = (struct answer_place){.n_characters = n_before};
    detokenizer_init(&p->detokenizer, a->tokenizer, a->body->fields.skip_special);
}

void answer_place_start_prompt(struct answer_place *p, const struct answer *a,
                               const struct body_prompt *prompt)
{
    answer_place_start(p, a, 0);
    if (prompt->text == NULL)
        return;
    p->text = prompt->text;
    p->text_bytes = prompt->text_bytes;
    p->detokenizer.skip_special = false;
}

void answer_place_pass(struct answer_place *p, int32_t id)
{
    const struct tokenizer *tokenizer = p->detokenizer.tokenizer;
    char shown[DETOKENIZER_MAX_BYTES];
    size_t n = 0;
    if (tokenizer == NULL)
        return;
    if (p->text != NULL) {
        const char *bytes = tokenizer_token_bytes(tokenizer, id, &n);
        /* A special token stands in the text where somebody wrote it; those that the tokenizer puts
         * around the text do not. */
        if (tokenizer_is_special(tokenizer, id) &&
            (bytes == NULL || n > p->text_bytes || memcmp(p->text, bytes, n) != 0))
            return;
        n = n < p->text_bytes ? n : p->text_bytes;
        p->text += n;
        p->text_bytes -= n;
    }
    n = detokenizer_push(&p->detokenizer, id, shown, sizeof shown);
    p->n_characters += answer_count_characters(shown, n);
}

uint64_t answer_place_end(const struct answer_place *p)
{
    return p->n_characters + (p->detokenizer.n_held > 0);
}

void answer_add_prompt_text(const struct answer *a, const struct body_prompt *prompt,
                            struct text *out)
{
    char shown[DETOKENIZER_MAX_BYTES];
    if (prompt->text != NULL) {
        text_add(out, prompt->text, prompt->text_bytes);
        return;
    }
    if (a->tokenizer == NULL)
        return;
    struct detokenizer d;
    detokenizer_init(&d, a->tokenizer, a->body->fields.skip_special);
    for (size_t i = 0; i < prompt->n_ids; i++)
        text_add(out, shown, detokenizer_push(&d, prompt->ids[i], shown, sizeof shown));
    text_add(out, shown, detokenizer_flush(&d, shown, sizeof shown));
}

uint64_t answer_count_prompt(const struct answer *a, const struct body_prompt *prompt)
{
    char shown[DETOKENIZER_MAX_BYTES];
    uint64_t n = 0;
    if (prompt->text != NULL)
        return answer_count_characters(prompt->text, prompt->text_bytes);
    if (a->tokenizer == NULL)
        return 0;
    struct detokenizer d;
    detokenizer_init(&d, a->tokenizer, a->body->fields.skip_special);
    for (size_t i = 0; i < prompt->n_ids; i++)
        n += answer_count_characters(shown,
                                     detokenizer_push(&d, prompt->ids[i], shown, sizeof shown));
    return n + answer_count_characters(shown, detokenizer_flush(&d, shown, sizeof shown));
}
