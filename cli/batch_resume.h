/* The output file of a batch: what an earlier run has answered, and a place to append to.
 *
 * A run killed while it wrote leaves a last line without newline: that piece is cut off. Answers
 * count as final, except errors of the engine (code "server_error"): those lines run again. */
#ifndef CLI_BATCH_RESUME_H
#define CLI_BATCH_RESUME_H

#include "cli/batch_ids.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

#define BATCH_CODE_DUPLICATE "duplicate_custom_id"
#define BATCH_CODE_SERVER    "server_error"

struct batch_resume {
    uint64_t n_lines;   /* complete lines found */
    uint64_t n_answers; /* final ones */
    uint64_t cut_bytes; /* of the piece that was cut off */
};

/* Marks in `ids` what the complete lines of the text answer; *complete_bytes is their length.
 * STATUS_CORRUPT: a line, or the piece after the last newline, is not ours. Pure. */
enum status batch_resume_scan(const char *text, size_t len_bytes, const char *origin,
                              struct batch_ids *ids, struct batch_resume *out,
                              size_t *complete_bytes, struct err *err);

/* Opens or creates `path` for appending, locked against a second run (waits up to lock_wait_ms for
 * one that is just ending), scanned and cut. *fd is the caller's to close. STATUS_IO,
 * STATUS_CORRUPT, STATUS_FULL (another run writes it), STATUS_NO_MEMORY. */
enum status batch_resume_open(const char *path, uint32_t lock_wait_ms, struct batch_ids *ids,
                              struct batch_resume *out, int *fd, struct err *err);

#endif
