/* Tells whether an answer of an earlier run is the answer of this input line in this run. */
#ifndef CLI_BATCH_HASH_H
#define CLI_BATCH_HASH_H

#include "cli/request_options.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BATCH_HASH_DIGITS = 16 };

/* What the command line decides about the answers: the model (with T), the type of its KV, the
 * request options. Not what leaves every answer the same: workers, memory, batching, prefill. */
uint64_t batch_hash_run(const struct request_options *o, const struct model_config *config,
                        uint64_t fingerprint, bool has_bf16_kv);
/* `run` gone on with the bytes of one line, without its newline. */
uint64_t batch_hash_line(uint64_t run, const char *line, size_t len_bytes);

/* As "input_hash" of an output line has it: 16 lower-case hex digits and a terminator. */
void batch_hash_print(uint64_t hash, char out[BATCH_HASH_DIGITS + 1]);
bool batch_hash_read(const char *text, uint64_t *out);

#endif
