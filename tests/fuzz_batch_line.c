/* Fuzzes batch lines: whatever a line holds, it is refused with a message or every value read is in
 * the range the engine accepts. */
#include "cli/batch_line.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void check_prompts(const struct batch_line *line)
{
    size_t sum = 0;
    require(line->n_prompts >= 1 && batch_line_n_choices(line) >= 1 &&
            batch_line_n_choices(line) <= BATCH_MAX_CHOICES);
    for (size_t i = 0; i < line->n_prompts && !line->is_chat; i++) {
        const struct batch_prompt *p = &line->prompts[i];
        require((p->text != NULL) != (p->ids != NULL));
        for (size_t k = 0; k < p->text_bytes; k++)
            sum += (unsigned char)p->text[k];
        for (size_t k = 0; k < p->n_ids; k++)
            require(p->ids[k] >= 0);
    }
    for (size_t i = 0; i < line->n_messages; i++) {
        require(line->messages[i].role != NULL && line->messages[i].content != NULL);
        sum += strlen(line->messages[i].content);
    }
    /* Keeps the reads alive. */
    require(sum < SIZE_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct batch_line line;
    struct err err = {0};
    enum status status = batch_line_parse((const char *)data, size, 7, &line, &err);
    require(line.custom_id[0] != '\0' && strlen(line.custom_id) <= BATCH_MAX_CUSTOM_ID_BYTES);
    if (status != STATUS_OK) {
        require(err.code == status && err.message[0] != '\0' && line.root == NULL);
        batch_line_clear(&line);
        return 0;
    }
    check_prompts(&line);
    struct sequence_params p;
    sequence_params_init(&p);
    p.sequence = 1;
    p.prompt_tokens = 1;
    p.max_tokens = 16;
    p.max_loops = SEQUENCE_MAX_LOOPS;
    if (batch_line_apply(&line, 0, &p, &err) == STATUS_OK) {
        require(p.max_tokens >= 1 && p.sampling.temperature >= 0.0f && p.sampling.top_k >= 0 &&
                p.exit_threshold > 0.0f && p.exit_threshold <= 1.0f && p.max_loops >= 1 &&
                p.max_loops <= SEQUENCE_MAX_LOOPS &&
                p.sampling.n_logprobs <= SEQUENCE_MAX_LOGPROBS &&
                isfinite(p.sampling.repetition_penalty));
        /* With room for everything only relations between fields can be wrong, never a crash. */
        sequence_params_check(&p, SEQUENCE_MAX_LOOPS, INT32_MAX, UINT32_MAX, &err);
    }
    batch_line_clear(&line);
    return 0;
}
