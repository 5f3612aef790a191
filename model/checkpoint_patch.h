/* A copy of a model directory in which some tensors are others. */
#ifndef MODEL_CHECKPOINT_PATCH_H
#define MODEL_CHECKPOINT_PATCH_H

#include "model/checkpoint.h"
#include "model/safetensors.h"

#define CHECKPOINT_PATCH_FILE_BYTES UINT64_C(268435456)

/* Writes the model `source` into directory `dir`, which is made when it is missing, with `tensors`
 * in place of its own of those names (same shapes, any dtype) and its configuration, tokenizer and
 * text files copied.
 *
 * A model of at most max_file_bytes becomes one model.safetensors. Of a larger one nothing is
 * copied: its weight files are hard links (symbolic ones to another file system) beside
 * patched.safetensors and an index that takes the new tensors from there. Weights in `dir` from an
 * earlier call are replaced. Each file appears whole or not at all, the index or model.safetensors
 * last.
 *
 * STATUS_INVALID (dir is the model's own directory, a path too long), STATUS_NOT_FOUND (no such
 * tensor in the model), STATUS_MISMATCH (its shape differs), STATUS_IO, STATUS_NO_MEMORY. */
enum status checkpoint_patch(const struct checkpoint *source, const char *dir,
                             const struct safetensors_tensor *tensors, size_t n_tensors,
                             uint64_t max_file_bytes, struct err *err);

#endif
