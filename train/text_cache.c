/* Tokenises a JSONL file of texts into one file of ids, whole or not at all. */
#include "train/text_cache.h"

#include "model/json_input.h"
#include "model/tokenizer.h"
#include "proto/fnv.h"
#include "train/task.h"
#include "train/text_lines.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A cache under construction, beside its final name. */
struct builder {
    const struct text_source_options *options;
    const struct tokenizer *tokenizer;
    struct text_cache_head head;
    char partial[PATH_MAX]; /* "": no file */
    FILE *file;
};

void text_cache_head_init(struct text_cache_head *head)
{
    *head = (struct text_cache_head){.version = 1};
    memcpy(head->magic, "carousel", sizeof head->magic);
}

enum status text_cache_hash_file(const char *path, uint64_t *hash, struct err *err)
{
    struct text_lines lines;
    const char *line;
    size_t len;
    uint64_t h = *hash;
    enum status status = text_lines_open(path, &lines, err);
    while (status == STATUS_OK) {
        status = text_lines_next(&lines, &line, &len, err);
        if (status != STATUS_OK || line == NULL)
            break;
        h = fnv_bytes(fnv_bytes(h, line, len), "\n", 1);
    }
    text_lines_close(&lines);
    if (status == STATUS_OK)
        *hash = h;
    return status;
}

static enum status fail_write(const struct builder *b, int error, struct err *err)
{
    return err_set(err, STATUS_IO, "cannot write the ids of %s to %s: %s", b->options->jsonl,
                   b->options->cache, strerror(error));
}

static enum status put(struct builder *b, const int32_t *ids, size_t n, struct err *err)
{
    if (n > 0 && fwrite(ids, sizeof *ids, n, b->file) != n)
        return fail_write(b, errno, err);
    b->head.n_ids += n;
    return STATUS_OK;
}

static enum status put_symbols(struct builder *b, const char *text, size_t len, struct err *err)
{
    int32_t id = TASK_BOS;
    enum status status = put(b, &id, 1, err);
    for (size_t i = 0; i < len && status == STATUS_OK; i++) {
        id = task_symbol_id(text[i]);
        if (id < 0)
            return err_set(err, STATUS_INVALID,
                           "byte 0x%02x at place %zu of \"text\" is not among the 49 symbols; "
                           "name a tokenizer in the recipe",
                           (unsigned)(unsigned char)text[i], i);
        status = put(b, &id, 1, err);
    }
    return status;
}

/* Special tokens in a text are plain characters: a document cannot end itself. */
static enum status put_document(struct builder *b, const char *text, size_t len, struct err *err)
{
    int32_t *ids = NULL, eos = b->options->eos_id;
    size_t n = 0;
    enum status status;
    if (b->tokenizer == NULL) {
        status = put_symbols(b, text, len, err);
    } else {
        status = tokenizer_encode(b->tokenizer, text, len, TOKENIZER_ADD_BOS | TOKENIZER_STRICT,
                                  &ids, &n, NULL, err);
        if (status == STATUS_OK)
            status = put(b, ids, n, err);
        free(ids);
    }
    if (status == STATUS_OK)
        status = put(b, &eos, 1, err);
    if (status == STATUS_OK)
        b->head.n_documents++;
    return status;
}

static enum status put_line(struct builder *b, const struct text_lines *lines, const char *line,
                            size_t len, struct err *err)
{
    char origin[PATH_MAX + 24], shown[JSON_INPUT_SHOWN_BYTES];
    json_t *object;
    snprintf(origin, sizeof origin, "%s:%llu", lines->path, (unsigned long long)lines->number);
    enum status status = json_input_parse(line, len, origin, &object, err);
    if (status != STATUS_OK)
        return status;
    const json_t *text = json_object_get(object, "text");
    if (!json_is_string(text)) {
        status =
            err_set(err, STATUS_CORRUPT, "%s: expected a string in the field \"text\", found %s",
                    origin, json_input_show(text, shown));
    } else if (json_string_length(text) > 0) {
        status = put_document(b, json_string_value(text), json_string_length(text), err);
        /* A full disk is no fault of the line. */
        if (status != STATUS_OK && status != STATUS_IO)
            err_wrap(err, "%s", origin);
    }
    json_decref(object);
    return status;
}

static bool is_blank(const char *line, size_t len)
{
    while (len > 0 && strchr(" \t\r", line[len - 1]) != NULL && line[len - 1] != '\0')
        len--;
    return len == 0;
}

static enum status put_lines(struct builder *b, struct err *err)
{
    struct text_lines lines;
    const char *line;
    size_t len;
    enum status status = text_lines_open(b->options->jsonl, &lines, err);
    while (status == STATUS_OK) {
        status = text_lines_next(&lines, &line, &len, err);
        if (status != STATUS_OK || line == NULL)
            break;
        if (!is_blank(line, len))
            status = put_line(b, &lines, line, len, err);
    }
    text_lines_close(&lines);
    if (status == STATUS_OK && b->head.n_documents == 0)
        status = err_set(err, STATUS_CORRUPT, "%s has no text: expected {\"text\": \"...\"} lines",
                         b->options->jsonl);
    return status;
}

static enum status create(struct builder *b, struct err *err)
{
    int len = snprintf(b->partial, sizeof b->partial, "%s.XXXXXX", b->options->cache);
    if (len < 0 || len >= (int)sizeof b->partial) {
        b->partial[0] = '\0';
        return err_set(err, STATUS_INVALID, "the path %.80s... is too long", b->options->cache);
    }
    int fd = mkstemp(b->partial);
    if (fd >= 0)
        b->file = fdopen(fd, "wb");
    if (b->file != NULL)
        return STATUS_OK;
    enum status status = fail_write(b, errno, err);
    if (fd >= 0)
        close(fd);
    else
        b->partial[0] = '\0';
    return status;
}

/* The head is written last: before that the file says it is none. */
static enum status finish(struct builder *b, struct err *err)
{
    if (fseek(b->file, 0, SEEK_SET) != 0 || fwrite(&b->head, sizeof b->head, 1, b->file) != 1 ||
        fflush(b->file) != 0 || fchmod(fileno(b->file), 0644) != 0 || fsync(fileno(b->file)) != 0 ||
        rename(b->partial, b->options->cache) != 0)
        return fail_write(b, errno, err);
    b->partial[0] = '\0';
    return STATUS_OK;
}

enum status text_cache_build(const struct text_source_options *options,
                             const struct tokenizer *tokenizer, uint64_t fingerprint,
                             struct err *err)
{
    static const struct text_cache_head nothing;
    struct builder b = {.options = options, .tokenizer = tokenizer};
    enum status status = create(&b, err);
    text_cache_head_init(&b.head);
    b.head.fingerprint = fingerprint;
    if (status == STATUS_OK && fwrite(&nothing, sizeof nothing, 1, b.file) != 1)
        status = fail_write(&b, errno, err);
    if (status == STATUS_OK)
        status = put_lines(&b, err);
    if (status == STATUS_OK)
        status = finish(&b, err);
    if (b.file != NULL)
        fclose(b.file);
    if (b.partial[0] != '\0')
        unlink(b.partial);
    return status;
}
