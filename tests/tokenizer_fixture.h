/* Tokenizers made on the spot for tests: special tokens, 256 byte symbols, then one token a merge.
 */
#ifndef TESTS_TOKENIZER_FIXTURE_H
#define TESTS_TOKENIZER_FIXTURE_H

#include "model/tokenizer.h"
#include "model/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIXTURE_PRE_SMOL                                                                           \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},"  \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"                    \
    "\"use_regex\":true}]}"
#define FIXTURE_PRE_WHOLE                                                                          \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"

struct fixture {
    const char *const *merges; /* "left right", NULL-terminated; may be NULL */
    const char *missing;       /* bytes without a symbol; may be NULL */
    const char *pre;           /* NULL: FIXTURE_PRE_SMOL */
    const char *model_options; /* more fields of model, each with its comma; may be NULL */
    const char *top_options;   /* more fields of the file, each with its comma; may be NULL */
    const char *more_added;    /* more objects of added_tokens, each with a comma before it */
    bool merges_as_pairs;
};

/* Ids: 0..2 the special tokens below, then the byte symbols in order of bytes, then the merges. */
static const char *const fixture_specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

static inline void fixture_put_string(FILE *out, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '"' || text[i] == '\\')
            fputc('\\', out);
        fputc(text[i], out);
    }
}

static inline char *fixture_json(const struct fixture *f, size_t *len_bytes)
{
    char *json = NULL;
    FILE *out = open_memstream(&json, len_bytes);
    int id = 0;
    if (!out)
        abort();
    fprintf(out, "{\"version\":\"1.0\",%s\"added_tokens\":[", f->top_options ? f->top_options : "");
    for (int i = 0; i < 3; i++)
        fprintf(out, "%s{\"id\":%d,\"content\":\"%s\",\"special\":true}", i ? "," : "", i,
                fixture_specials[i]);
    fprintf(out,
            "%s],\"normalizer\":null,\"pre_tokenizer\":%s,\"decoder\":{\"type\":\"ByteLevel\"},",
            f->more_added ? f->more_added : "", f->pre ? f->pre : FIXTURE_PRE_SMOL);
    fprintf(out, "\"model\":{\"type\":\"BPE\",%s\"vocab\":{",
            f->model_options ? f->model_options : "");
    for (; id < 3; id++)
        fprintf(out, "%s\"%s\":%d", id ? "," : "", fixture_specials[id], id);
    for (int b = 0; b < 256; b++) {
        char symbol[2];
        size_t n = vocab_byte_symbol((unsigned char)b, symbol);
        if (f->missing && b && strchr(f->missing, b))
            continue;
        fprintf(out, ",\"");
        fixture_put_string(out, symbol, n);
        fprintf(out, "\":%d", id++);
    }
    for (const char *const *m = f->merges; m && *m; m++) {
        const char *space = strchr(*m, ' ');
        fprintf(out, ",\"");
        fixture_put_string(out, *m, (size_t)(space - *m));
        fixture_put_string(out, space + 1, strlen(space + 1));
        fprintf(out, "\":%d", id++);
    }
    fprintf(out, "},\"merges\":[");
    for (const char *const *m = f->merges; m && *m; m++) {
        const char *space = strchr(*m, ' ');
        fprintf(out, m == f->merges ? "" : ",");
        fprintf(out, f->merges_as_pairs ? "[\"" : "\"");
        fixture_put_string(out, *m, (size_t)(space - *m));
        fprintf(out, f->merges_as_pairs ? "\",\"" : " ");
        fixture_put_string(out, space + 1, strlen(space + 1));
        fprintf(out, f->merges_as_pairs ? "\"]" : "\"");
    }
    fprintf(out, "]}}");
    if (fclose(out) != 0)
        abort();
    return json;
}

static inline enum status fixture_parse(const struct fixture *f, struct tokenizer **out,
                                        struct err *err)
{
    size_t n;
    char *json = fixture_json(f, &n);
    enum status status = tokenizer_parse(json, n, "fixture", out, err);
    free(json);
    return status;
}

/* The tokenizer, or the end of the test program with the reason. */
static inline struct tokenizer *fixture_make(const struct fixture *f)
{
    struct tokenizer *tokenizer = NULL;
    struct err err = {0};
    if (fixture_parse(f, &tokenizer, &err) != STATUS_OK) {
        fprintf(stderr, "fixture: %s\n", err.message);
        abort();
    }
    return tokenizer;
}

#endif
