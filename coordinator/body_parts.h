/* What the files that read a body share: field errors, and one function for each part. */
#ifndef COORDINATOR_BODY_PARTS_H
#define COORDINATOR_BODY_PARTS_H

#include "coordinator/body.h"

#define BODY_CODE_VALUE       "invalid_value"
#define BODY_CODE_MISSING     "missing_required_parameter"
#define BODY_CODE_UNSUPPORTED "unsupported_parameter"
#define BODY_CODE_CONTEXT     "context_length_exceeded"
#define BODY_CODE_JSON        "invalid_json"

/* Strict JSON whose top is an object; `origin` names it in messages. STATUS_CORRUPT with code
 * invalid_json; STATUS_NO_MEMORY. The caller does json_decref(*out). */
enum status body_load(const char *json, size_t len_bytes, const char *origin, json_t **out,
                      struct fault *fault);
/* "name: expected WHAT, found VALUE" as STATUS_INVALID with param `name`; found may be NULL. */
enum status body_field_error(struct fault *fault, const char *name, const char *expected,
                             const json_t *found);
/* STATUS_NO_MEMORY, and the server's fault. */
enum status body_no_memory(struct fault *fault, size_t n, const char *what);
/* NULL where the field is absent or null; object may be NULL. */
const json_t *body_field_of(const json_t *object, const char *name);
/* Reads a whole number, also one written as 1.0, of which JavaScript knows no other. */
bool body_get_whole(const json_t *value, int64_t *out);
/* Token ids at `name`[0..]; out has room for all. */
enum status body_read_ids(const char *name, const json_t *array, int32_t *out, struct fault *fault);

/* All fields but the prompt and the messages. In body_fields.c. */
enum status body_read_fields(const json_t *object, bool is_chat, struct body_fields *out,
                             struct fault *fault);
/* Refuses what would give the answer another meaning and is not done. In body_unsupported.c. */
enum status body_check_unsupported(const json_t *object, bool is_chat, struct fault *fault);
/* In body_prompt.c; fields.n is known. What was read on failure is left for body_clear. */
enum status body_read_prompts(const json_t *prompt, struct body *out, struct fault *fault);
enum status body_read_messages(const json_t *messages, struct body *out, struct fault *fault);

#endif
