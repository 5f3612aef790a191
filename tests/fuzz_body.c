/* Fuzzes request bodies: whatever the bytes, a body is refused with a message that names a 400, or
 * becomes prompts of known ids and parameters that the engine accepts. */
#include "coordinator/body.h"
#include "model/config.h"
#include "tests/tokenizer_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct model_config model = {
    .vocab_size = 300, .max_positions = 512, .n_loops = 4, .exit_threshold = 1.0f};

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void check_fault(const struct fault *fault, enum status status)
{
    require(fault->err.code == status && fault->err.message[0] != '\0');
    require(fault->http_status == 400 && fault->type != NULL);
    for (const char *c = fault->err.message; *c != '\0'; c++)
        require((unsigned char)*c >= 0x20);
}

/* Everything read stays readable as long as the body lives. */
static void check_strings(const struct body *body)
{
    size_t sum = 0;
    require(body->n_prompts >= 1 && body_n_choices(body) >= 1 &&
            body_n_choices(body) <= BODY_MAX_CHOICES);
    for (size_t i = 0; i < body->n_prompts && !body->is_chat; i++) {
        const struct body_prompt *p = &body->prompts[i];
        require((p->text != NULL) != (p->ids != NULL));
        for (size_t k = 0; k < p->text_bytes; k++)
            sum += (unsigned char)p->text[k];
    }
    for (size_t i = 0; i < body->n_messages; i++) {
        require(body->messages[i].role != NULL && body->messages[i].content != NULL);
        sum += strlen(body->messages[i].content);
    }
    for (uint32_t i = 0; i < body->fields.n_stops; i++)
        sum += strlen(body->fields.stops[i]);
    require(sum < SIZE_MAX && (body->fields.max_tokens > 0 || body->fields.echo ||
                               !(body->fields.given & BODY_MAX_TOKENS)));
}

static void use(struct body *body, const struct tokenizer *tokenizer)
{
    struct fault fault = {0};
    struct sequence_params p;
    enum status status = body_encode(body, tokenizer, model.vocab_size, "the model", &fault);
    if (status != STATUS_OK) {
        check_fault(&fault, status);
        return;
    }
    for (size_t i = 0; i < body->n_prompts; i++) {
        require(body->prompts[i].n_ids > 0);
        for (size_t k = 0; k < body->prompts[i].n_ids; k++)
            require(body->prompts[i].ids[k] >= 0 && body->prompts[i].ids[k] < model.vocab_size);
    }
    sequence_params_init(&p);
    p.max_loops = 4;
    p.max_tokens = body->is_chat ? 0 : 16;
    p.n_stop_ids = 1;
    status = body_apply(body, &model, &p, &fault);
    if (status != STATUS_OK) {
        check_fault(&fault, status);
        return;
    }
    p.sequence = 1;
    require(sequence_params_check(&p, 4, 300, 512, NULL) == STATUS_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const merges[] = {"h i", "Ġ t", "u s", "us e", "use r", NULL};
    static struct tokenizer *tokenizer;
    if (tokenizer == NULL)
        tokenizer = fixture_make(&(struct fixture){.merges = merges});
    for (int is_chat = 0; is_chat < 2; is_chat++) {
        struct body body;
        struct fault fault = {0};
        enum status status = body_parse(is_chat, (const char *)data, size, &body, &fault);
        if (status != STATUS_OK) {
            check_fault(&fault, status);
            require(body.root == NULL && body.prompts == NULL);
        } else {
            check_strings(&body);
            use(&body, size % 5 == 0 ? NULL : tokenizer);
        }
        body_clear(&body);
    }
    return 0;
}
