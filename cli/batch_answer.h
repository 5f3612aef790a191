/* Output lines: what a job produced as an OpenAI response object, or why it failed. */
#ifndef CLI_BATCH_ANSWER_H
#define CLI_BATCH_ANSWER_H

#include "cli/batch_run.h"
#include "coordinator/text.h"

/* Both add one line with its newline; a failed allocation shows as out->is_broken. All choices of
 * the job have ended. */
void batch_answer_success(const struct batch_job *job, struct text *out);
void batch_answer_error(const struct batch *b, uint64_t number, const char *custom_id,
                        uint64_t input_hash, const char *code, const char *message,
                        struct text *out);

#endif
