/* Fuzzes chat messages: special tokens stand where the template puts them and nowhere else, and the
 * text between them is the text that was sent. */
#include "model/chat.h"
#include "tests/tokenizer_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_MESSAGES = 8 };

static const char *const roles[] = {"system", "user", "assistant"};

static void require(bool holds)
{
    if (!holds)
        abort();
}

/* Reads messages off the input: a byte for the role, one for the length in steps of 1 or 16. */
static size_t read_messages(const uint8_t *data, size_t size, struct chat_message *messages)
{
    size_t n = 0;
    while (size >= 2 && n < MAX_MESSAGES) {
        size_t len = data[0] & 4 ? data[1] * (size_t)16 : data[1];
        len = len < size - 2 ? len : size - 2;
        messages[n++] = (struct chat_message){
            .role = roles[data[0] % 3], .content = (const char *)data + 2, .content_bytes = len};
        data += 2 + len;
        size -= 2 + len;
    }
    return n;
}

/* The prompt that the template asks for, and which of its bytes belong to special tokens. */
struct expected {
    char *bytes;
    bool *is_special;
    size_t n;
};

static void expect(struct expected *e, const char *bytes, size_t n, bool is_special)
{
    memcpy(e->bytes + e->n, bytes, n);
    for (size_t i = 0; i < n; i++)
        e->is_special[e->n++] = is_special;
}

static void render(const struct chat_message *messages, size_t n_messages, bool thinking,
                   struct expected *e)
{
    for (size_t i = 0; i < n_messages; i++) {
        expect(e, "<|im_start|>", 12, true);
        expect(e, messages[i].role, strlen(messages[i].role), false);
        expect(e, "\n", 1, false);
        expect(e, messages[i].content, messages[i].content_bytes, false);
        expect(e, "<|im_end|>", 10, true);
        expect(e, "\n", 1, false);
    }
    expect(e, "<|im_start|>", 12, true);
    const char *opening = thinking ? "assistant\n<think>\n" : "assistant\n";
    expect(e, opening, strlen(opening), false);
}

static void compare(const struct tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                    const struct expected *e)
{
    size_t at = 0;
    for (size_t i = 0; i < n_ids; i++) {
        size_t n;
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], &n);
        require(bytes != NULL && n <= e->n - at && memcmp(bytes, e->bytes + at, n) == 0);
        bool is_special = tokenizer_is_special(tokenizer, ids[i]);
        for (size_t k = 0; k < n; k++)
            require(e->is_special[at + k] == is_special);
        at += n;
    }
    require(at == e->n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const merges[] = {"Ċ Ċ", "< |", "i m", "| >", "u s", "us e", "use r", NULL};
    static struct tokenizer *tokenizer;
    struct chat_message messages[MAX_MESSAGES];
    if (tokenizer == NULL)
        tokenizer = fixture_make(&(struct fixture){.merges = merges});
    size_t n = read_messages(data, size, messages);
    for (int thinking = 0; thinking < 2; thinking++) {
        int32_t *ids = NULL;
        size_t n_ids = 0;
        struct err err = {0};
        enum status status = chat_encode(tokenizer, messages, n, thinking != 0, &ids, &n_ids, &err);
        if (n == 0) {
            require(status == STATUS_INVALID && err.message[0] != '\0');
            continue;
        }
        require(status == STATUS_OK);
        size_t cap = size + 64 * (n + 1);
        struct expected e = {.bytes = malloc(cap), .is_special = malloc(cap)};
        require(e.bytes != NULL && e.is_special != NULL);
        render(messages, n, thinking != 0, &e);
        compare(tokenizer, ids, n_ids, &e);
        free(e.bytes);
        free(e.is_special);
        free(ids);
    }
    return 0;
}
