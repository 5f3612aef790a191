/* Writes one safetensors file, whole or not at all (atomic_file.h). */
#ifndef MODEL_SAFETENSORS_WRITE_H
#define MODEL_SAFETENSORS_WRITE_H

#include "model/safetensors.h"

/* One string of __metadata__. */
struct safetensors_pair {
    const char *key, *value;
};

/* Writes the tensors (of each: name, dtype, rank, shape, data, len_bytes) in the order the format's
 * own library uses, wider dtypes first and then by name, so that all are aligned; the data begins
 * at a multiple of 64. Readers of Hugging Face models want the pair "format": "pt".
 * STATUS_INVALID: a name twice, or one that is not UTF-8; STATUS_IO as atomic_file.h says;
 * STATUS_NO_MEMORY. */
enum status safetensors_write(const char *path, const struct safetensors_tensor *tensors,
                              size_t n_tensors, const struct safetensors_pair *metadata,
                              size_t n_metadata, struct err *err);

#endif
