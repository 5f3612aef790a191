/* Hands out windows of a tokenised text in an order that is a function of seed and index. */
#include "train/text_source.h"

#include "model/json_input.h"
#include "model/tokenizer.h"
#include "proto/fnv.h"
#include "train/random.h"
#include "train/task.h"
#include "train/text_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The streams of (seed, epoch): the order of the windows, and where the first one begins. */
enum { STREAM_ORDER = 0x0e7c, STREAM_OFFSET = 0x0e7d };
enum { ROUNDS = 4, TOKENIZER_MAX_BYTES = 1 << 28 };

struct text_source {
    void *map;
    size_t map_bytes;
    const struct text_cache_head *head;
    const int32_t *ids;
};

/* ---- open ---------------------------------------------------------------------------------- */

/* The tokenizer, NULL for the 49 symbols, and its content's hash on top of *hash. */
static enum status load_tokenizer(const struct text_source_options *o, struct tokenizer **out,
                                  uint64_t *hash, struct err *err)
{
    char path[PATH_MAX], *json = NULL;
    size_t len = 0;
    struct stat info;
    int vocab_size = TASK_VOCABULARY;
    *out = NULL;
    if (o->tokenizer != NULL && o->tokenizer[0] != '\0') {
        bool is_dir = stat(o->tokenizer, &info) == 0 && S_ISDIR(info.st_mode);
        int n = snprintf(path, sizeof path, "%s%s", o->tokenizer, is_dir ? "/tokenizer.json" : "");
        if (n < 0 || n >= (int)sizeof path)
            return err_set(err, STATUS_INVALID, "the path %.80s... is too long", o->tokenizer);
        enum status status = json_input_read(path, TOKENIZER_MAX_BYTES, &json, &len, err);
        if (status == STATUS_OK)
            status = tokenizer_parse(json, len, path, out, err);
        if (status == STATUS_OK)
            *hash = fnv_bytes(*hash, json, len);
        free(json);
        if (status != STATUS_OK)
            return status;
        vocab_size = tokenizer_vocab_size(*out);
    }
    if (vocab_size <= o->vocab_size && o->eos_id >= 0 && o->eos_id < o->vocab_size)
        return STATUS_OK;
    tokenizer_free(*out);
    *out = NULL;
    return vocab_size > o->vocab_size
               ? err_set(err, STATUS_MISMATCH,
                         "the tokenizer of %s has ids up to %d, the model's vocabulary ends at %d; "
                         "raise vocab_size or take the model's own tokenizer",
                         o->jsonl, vocab_size - 1, o->vocab_size - 1)
               : err_set(err, STATUS_MISMATCH,
                         "the eos id %d that ends a document of %s is outside the vocabulary 0..%d",
                         o->eos_id, o->jsonl, o->vocab_size - 1);
}

/* *source stays empty, and that is no error, when there is no cache of that fingerprint. */
static enum status map_cache(const char *path, uint64_t fingerprint, struct text_source *source,
                             struct err *err)
{
    struct text_cache_head wanted;
    struct stat info;
    enum status status = STATUS_OK;
    text_cache_head_init(&wanted);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT
                   ? STATUS_OK
                   : err_set(err, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = err_set(err, STATUS_IO,
                         "%s is not a regular file: the ids of a text would go there", path);
        goto out;
    }
    size_t len = (size_t)info.st_size;
    if (len <= sizeof wanted)
        goto out;
    void *map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        status = err_set(err, STATUS_IO, "cannot map %s: %s", path, strerror(errno));
        goto out;
    }
    const struct text_cache_head *head = map;
    if (memcmp(head->magic, wanted.magic, sizeof head->magic) == 0 &&
        head->version == wanted.version && head->fingerprint == fingerprint &&
        head->n_ids == (len - sizeof *head) / sizeof(int32_t) && len % sizeof(int32_t) == 0)
        *source = (struct text_source){map, len, head, (const int32_t *)(head + 1)};
    else
        munmap(map, len);
out:
    close(fd);
    return status;
}

enum status text_source_open(const struct text_source_options *options, struct text_source **out,
                             struct err *err)
{
    struct tokenizer *tokenizer = NULL;
    struct text_source *source = calloc(1, sizeof *source);
    int32_t eos = options->eos_id;
    uint64_t hash = fnv_bytes(FNV_START, &eos, sizeof eos);
    if (source == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a text source");
    enum status status = load_tokenizer(options, &tokenizer, &hash, err);
    if (status == STATUS_OK)
        status = text_cache_hash_file(options->jsonl, &hash, err);
    if (status == STATUS_OK)
        status = map_cache(options->cache, hash, source, err);
    if (status == STATUS_OK && source->map == NULL) {
        status = text_cache_build(options, tokenizer, hash, err);
        if (status == STATUS_OK)
            status = map_cache(options->cache, hash, source, err);
        if (status == STATUS_OK && source->map == NULL)
            status = err_set(err, STATUS_IO, "%s was replaced while it was opened", options->cache);
    }
    tokenizer_free(tokenizer);
    if (status == STATUS_OK)
        *out = source;
    else
        text_source_close(source);
    return status;
}

void text_source_close(struct text_source *source)
{
    if (source == NULL)
        return;
    if (source->map != NULL)
        munmap(source->map, source->map_bytes);
    free(source);
}

/* ---- take ---------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h)
{
    h = (h ^ (h >> 33)) * UINT64_C(0xff51afd7ed558ccd);
    h = (h ^ (h >> 33)) * UINT64_C(0xc4ceb9fe1a85ec53);
    return h ^ (h >> 33);
}

/* The place of x in a random order of 0 .. n - 1: a Feistel network over the next power of four,
 * walked until it lands inside, is one without a table of n. */
static uint64_t permute(uint64_t x, uint64_t n, uint64_t seed, uint64_t epoch)
{
    struct random r = random_of(seed, epoch, STREAM_ORDER);
    uint64_t keys[ROUNDS];
    int half_bits = 1;
    for (int i = 0; i < ROUNDS; i++)
        keys[i] = random_bits(&r);
    while (half_bits < 31 && n > UINT64_C(1) << (2 * half_bits))
        half_bits++;
    uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    do {
        uint64_t left = x >> half_bits, right = x & mask;
        for (int i = 0; i < ROUNDS; i++) {
            uint64_t next = left ^ (mix(right ^ keys[i]) & mask);
            left = right;
            right = next;
        }
        x = left << half_bits | right;
    } while (x >= n);
    return x;
}

enum status text_source_take(const struct text_source *source, int seq_length, uint64_t seed,
                             uint64_t index, int level, struct sequence_rows *out, struct err *err)
{
    uint64_t n = text_source_n_sequences(source, seq_length);
    if (n == 0)
        return err_set(err, STATUS_INVALID,
                       "the text has %llu ids; sequences of %d need at least one more than that",
                       (unsigned long long)source->head->n_ids, seq_length);
    uint64_t epoch = index / n, length = (uint64_t)seq_length;
    /* What is left over at the end is less than a window: each epoch leaves out another piece. */
    uint64_t slack = source->head->n_ids - 1 - n * length;
    struct random r = random_of(seed, epoch, STREAM_OFFSET);
    uint64_t offset = (uint64_t)random_below(&r, (int)slack + 1);
    const int32_t *ids = source->ids + offset + permute(index % n, n, seed, epoch) * length;
    enum status status = STATUS_OK;
    sequence_rows_clear(out);
    for (int i = 0; i < seq_length && status == STATUS_OK; i++) {
        status = sequence_rows_append(out, ids[i], err);
        if (status == STATUS_OK)
            sequence_rows_target(out, ids[i + 1], 1, level);
    }
    return status;
}

uint64_t text_source_n_ids(const struct text_source *source)
{
    return source->head->n_ids;
}

uint64_t text_source_n_documents(const struct text_source *source)
{
    return source->head->n_documents;
}

uint64_t text_source_n_sequences(const struct text_source *source, int seq_length)
{
    return seq_length < 1 ? 0 : (source->head->n_ids - 1) / (uint64_t)seq_length;
}

uint64_t text_source_fingerprint(const struct text_source *source)
{
    return source->head->fingerprint;
}
