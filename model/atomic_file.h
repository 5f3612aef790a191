/* A file that appears whole or not at all.
 *
 * Bytes go to "<path>.tmp" in the same directory; commit syncs it, renames it over `path` and syncs
 * the directory. Whatever fails, `path` is as it was and the temporary file is gone; a process that
 * is killed leaves it behind, and the next writer of the same path takes it over. */
#ifndef MODEL_ATOMIC_FILE_H
#define MODEL_ATOMIC_FILE_H

#include "proto/status.h"

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#define ATOMIC_FILE_SUFFIX ".tmp"

struct atomic_file {
    int fd; /* -1: not open */
    uint64_t n_written;
    uint64_t n_wanted; /* bytes in total, for messages */
    char path[PATH_MAX];
    char temporary[PATH_MAX];
};

/* Opens the temporary file. All errors below are STATUS_IO and name the path, how many of the
 * wanted bytes were written and what the system said (STATUS_INVALID: the path is too long). */
enum status atomic_file_create(struct atomic_file *f, const char *path, uint64_t n_wanted,
                               struct err *err);
/* On failure the file is discarded; do not go on. */
enum status atomic_file_append(struct atomic_file *f, const void *bytes, size_t n, struct err *err);
/* Closes in either case. */
enum status atomic_file_commit(struct atomic_file *f, struct err *err);
/* Closes and removes the temporary file; nothing when it is not open. */
void atomic_file_discard(struct atomic_file *f);

/* All of it in one call. */
enum status atomic_file_write(const char *path, const void *bytes, size_t n, struct err *err);

#endif
