/* One safetensors file, memory-mapped: a table of named tensors whose bytes stay where they are.
 *
 * The header is outside bytes: every name, dtype, shape and offset is checked before a pointer is
 * handed out; tensors must tile the data section without overlap or gap (as the format demands). */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "model/dtype.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SAFETENSORS_MAX_RANK = 8, SAFETENSORS_MAX_HEADER_BYTES = 100 * 1000 * 1000 };

struct safetensors_tensor {
    const char *name; /* borrowed from the file object */
    enum dtype dtype;
    int rank;
    int64_t shape[SAFETENSORS_MAX_RANK];
    const void *data; /* into the mapping; may be unaligned to dtype (a warning case: readers use
                         unaligned loads) */
    size_t len_bytes;
};

struct safetensors; /* a mapped file */

/* Maps path read-only and shared. Errors name the file and the tensor: STATUS_NOT_FOUND, STATUS_IO,
 * STATUS_CORRUPT (truncated, overlapping, shape x dtype != length, duplicate name),
 * STATUS_UNSUPPORTED (a dtype other than F32, BF16, F16). The caller closes. */
enum status safetensors_open(const char *path, struct safetensors **out, struct err *err);

/* The same checks over bytes in memory (borrowed until close): the fuzz target's and the tests' way
 * in. */
enum status safetensors_open_bytes(const void *bytes, size_t len_bytes, const char *origin,
                                   struct safetensors **out, struct err *err);
void safetensors_close(struct safetensors *file); /* NULL is fine */

/* A hint to the kernel: scattered reads follow, so do not read ahead (true), or back to normal
 * (false). */
void safetensors_expect_scattered(const struct safetensors *file, bool is_scattered);

/* Tensors in order of name; NULL past the last. The order is that of strcmp. */
size_t safetensors_count(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t i);
/* NULL when there is no such tensor. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* The string of __metadata__ under that key, borrowed from the file object; NULL when there is
 * none. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

#endif
