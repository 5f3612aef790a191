/* The fingerprint of an open checkpoint. Private to checkpoint*.c. */
#ifndef MODEL_CHECKPOINT_HASH_H
#define MODEL_CHECKPOINT_HASH_H

#include "model/checkpoint_files.h"
#include "model/config.h"

#include <stdint.h>

/* 64-bit FNV-1a; what goes in is said at struct checkpoint. Reads at most 64 bytes per tensor. */
uint64_t checkpoint_hash(const struct model_config *config, const struct checkpoint_files *files);

#endif
