/* The safetensors files of one model directory as one table of tensors, each with the file it is
 * in. Private to checkpoint*.c. */
#ifndef MODEL_CHECKPOINT_FILES_H
#define MODEL_CHECKPOINT_FILES_H

#include "model/safetensors.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { CHECKPOINT_MAX_SHARDS = 1024 };

struct checkpoint_entry {
    const struct safetensors_tensor *tensor;
    const char *path; /* of its file; borrowed from the table */
    const void
        *file_start; /* data of the file's lowest tensor: positions in a file are relative to it */
    bool is_used;    /* a struct weight points here */
};

struct checkpoint_files {
    char *origin; /* model.safetensors or the index: where a missing tensor is missing from */
    size_t n_files;
    char **paths;
    struct safetensors **files;
    size_t n_entries;
    struct checkpoint_entry *entries; /* sorted by name */
};

/* <dir>/model.safetensors, else the shards that <dir>/model.safetensors.index.json names. Of a
 * shard only the tensors that the index places there are listed. STATUS_NOT_FOUND (neither file, a
 * shard), else as safetensors_open. */
enum status checkpoint_files_open(const char *dir, struct checkpoint_files **out, struct err *err);
void checkpoint_files_close(struct checkpoint_files *files); /* NULL is fine */

/* NULL when there is none. */
struct checkpoint_entry *checkpoint_files_find(const struct checkpoint_files *files,
                                               const char *name);

#endif
