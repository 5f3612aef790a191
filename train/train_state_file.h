/* What a state file is called and what its metadata says. Private to train_state*.c. */
#ifndef TRAIN_TRAIN_STATE_FILE_H
#define TRAIN_TRAIN_STATE_FILE_H

#include "model/safetensors_write.h"
#include "train/train_state.h"

#include <stdbool.h>

#define TRAIN_STATE_FORMAT "carousel-train-state-1"
#define TRAIN_STATE_M      "adam_m."
#define TRAIN_STATE_V      "adam_v."

enum {
    TRAIN_STATE_FIELDS = 16, /* at most, of the curriculum */
    TRAIN_STATE_PAIRS = TRAIN_STATE_FIELDS + 8
};

/* The step of a file name like state-000012000.safetensors; false for every other name. */
bool train_state_parse_name(const char *name, uint64_t *step);
/* Step numbers of dir's state files, newest first; the caller frees. STATUS_NOT_FOUND (no such
 * directory), STATUS_IO, STATUS_NO_MEMORY. */
enum status train_state_list(const char *dir, uint64_t **steps, size_t *n, struct err *err);
/* STATUS_INVALID when it is too long. */
enum status train_state_path(const char *dir, uint64_t step, char *path, size_t cap_bytes,
                             struct err *err);

/* The curriculum as metadata, exact: integers as decimals, floats as the hex digits of their bits,
 * separated by spaces. Keys are borrowed statics; *text owns the values, the caller frees it. */
enum status train_state_format_curriculum(const struct curriculum_state *s,
                                          struct safetensors_pair *pairs, size_t *n, char **text,
                                          struct err *err);
/* STATUS_CORRUPT names the key. `origin` is the file. */
enum status train_state_parse_curriculum(const struct safetensors *file, const char *origin,
                                         struct curriculum_state *out, struct err *err);

/* Over all metadata but content_hash itself, and over name, shape and bytes of every tensor. Both
 * in order of name, so that writer and reader agree. */
uint64_t train_state_hash(const struct safetensors_pair *pairs, size_t n_pairs,
                          const struct safetensors_tensor *tensors, size_t n_tensors);

#endif
