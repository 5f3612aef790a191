/* Writes the tokenizer of the tasks' 49 symbols as Hugging Face libraries read it. */
#include "train/task.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Byte-level BPE writes a newline and a space as the letters U+010A and U+0120. */
static void write_symbol(int id, char name[4])
{
    char c = task_symbol(id);
    if (id == TASK_BOS)
        strcpy(name, "<s>");
    else if (c == '\n' || c == ' ')
        strcpy(name, c == '\n' ? "\xc4\x8a" : "\xc4\xa0");
    else
        snprintf(name, 4, "%c", c);
}

/* NULL: no memory. jansson passes a NULL on through every call that takes it. */
static json_t *make_vocab(void)
{
    json_t *vocab = json_object();
    for (int id = 0; id < TASK_VOCABULARY; id++) {
        char name[4];
        write_symbol(id, name);
        if (json_object_set_new(vocab, name, json_integer(id)) != 0) {
            json_decref(vocab);
            return NULL;
        }
    }
    return vocab;
}

static json_t *make_byte_level(bool add_prefix_space)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space",
                     add_prefix_space, "trim_offsets", 1, "use_regex", 0);
}

/* <s> in front of every text, the second of a pair excepted. */
static json_t *make_template(void)
{
    return json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}],"
                     " s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}],"
                     " s:{s:{s:s, s:[i], s:[s]}}}",
                     "type", "TemplateProcessing", "single", "SpecialToken", "id", "<s>", "type_id",
                     0, "Sequence", "id", "A", "type_id", 0, "pair", "SpecialToken", "id", "<s>",
                     "type_id", 0, "Sequence", "id", "A", "type_id", 0, "Sequence", "id", "B",
                     "type_id", 1, "special_tokens", "<s>", "id", "<s>", "ids", TASK_BOS, "tokens",
                     "<s>");
}

static json_t *make_model(void)
{
    return json_pack("{s:s, s:n, s:n, s:s, s:s, s:b, s:b, s:b, s:o, s:[]}", "type", "BPE",
                     "dropout", "unk_token", "continuing_subword_prefix", "", "end_of_word_suffix",
                     "", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0, "vocab",
                     make_vocab(), "merges");
}

static json_t *make_tokenizer(void)
{
    return json_pack("{s:s, s:n, s:n, s:[{s:i, s:s, s:b, s:b, s:b, s:b, s:b}], s:n, s:o, s:o, s:o,"
                     " s:o}",
                     "version", "1.0", "truncation", "padding", "added_tokens", "id", TASK_BOS,
                     "content", "<s>", "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                     "special", 1, "normalizer", "pre_tokenizer", make_byte_level(false),
                     "post_processor", make_template(), "decoder", make_byte_level(true), "model",
                     make_model());
}

static json_t *make_config(void)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
                     "bos_token", "<s>", "eos_token", "\n", "add_bos_token", 1,
                     "clean_up_tokenization_spaces", 0);
}

static enum status write_all(int fd, const char *text, size_t len, const char *path,
                             struct err *err)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, text + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, STATUS_IO, "cannot write %s: %s", path, strerror(errno));
        done += (size_t)n;
    }
    if (fsync(fd) != 0)
        return err_set(err, STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    return STATUS_OK;
}

/* Under another name first: who reads dir meanwhile never sees half a file. Takes the object. */
static enum status write_json(const char *dir, const char *name, json_t *object, struct err *err)
{
    enum status status = STATUS_OK;
    char path[PATH_MAX], partial[PATH_MAX + 8];
    char *text = object == NULL ? NULL : json_dumps(object, JSON_INDENT(1));
    int fd = -1;
    partial[0] = '\0';
    if (text == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for %s", name);
        goto out;
    }
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path) {
        status =
            err_set(err, STATUS_INVALID, "the path %.80s... is too long for a file in it", dir);
        goto out;
    }
    snprintf(partial, sizeof partial, "%s.XXXXXX", path);
    fd = mkstemp(partial);
    if (fd < 0) {
        status = err_set(err, STATUS_IO, "cannot create %s: %s", path, strerror(errno));
        partial[0] = '\0';
        goto out;
    }
    status = write_all(fd, text, strlen(text), path, err);
    if (status == STATUS_OK && (fchmod(fd, 0644) != 0 || rename(partial, path) != 0))
        status = err_set(err, STATUS_IO, "cannot put %s in place: %s", path, strerror(errno));
    if (status == STATUS_OK)
        partial[0] = '\0';
out:
    if (fd >= 0)
        close(fd);
    if (partial[0] != '\0')
        unlink(partial);
    free(text);
    json_decref(object);
    return status;
}

enum status task_write_tokenizer(const char *dir, struct err *err)
{
    enum status status = write_json(dir, "tokenizer.json", make_tokenizer(), err);
    return status == STATUS_OK ? write_json(dir, "tokenizer_config.json", make_config(), err)
                               : status;
}
