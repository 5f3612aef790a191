/* The file a text source maps: all ids of a JSONL file, after a head that says what they were made
 * from. For text_*.c only. */
#ifndef TRAIN_TEXT_CACHE_H
#define TRAIN_TEXT_CACHE_H

#include "train/text_source.h"

/* In the machine's byte order: a cache from elsewhere is not recognised, and made anew. */
struct text_cache_head {
    char magic[8];
    uint64_t version;
    uint64_t fingerprint; /* text_source_fingerprint */
    uint64_t n_ids, n_documents;
    uint64_t unused[3]; /* 0; ids begin at byte 64 */
};
void text_cache_head_init(struct text_cache_head *head);

/* Hashes file after file, byte for byte; *hash goes in and out. */
enum status text_cache_hash_file(const char *path, uint64_t *hash, struct err *err);
/* Tokenises options->jsonl (tokenizer NULL: the 49 symbols) into options->cache. */
struct tokenizer;
enum status text_cache_build(const struct text_source_options *options,
                             const struct tokenizer *tokenizer, uint64_t fingerprint,
                             struct err *err);

#endif
