/* Why a request was refused or failed, as a client is told: status, type, field, code.
 *
 * {"error": {"message", "type", "param", "code"}} with an HTTP status; the OpenAI shape. */
#ifndef COORDINATOR_FAULT_H
#define COORDINATOR_FAULT_H

#include "proto/status.h"

enum { FAULT_PARAM_BYTES = 96 };

struct fault {
    struct err err;
    int http_status;               /* 400, 401, 404, 405, 413, 415, 429, 500, 503, 504 */
    const char *type;              /* static: "invalid_request_error", "authentication_error",
                                      "rate_limit_error", "server_error", "timeout_error", ... */
    const char *code;              /* static; NULL is null in JSON */
    char param[FAULT_PARAM_BYTES]; /* the field, "" is null in JSON: "messages[0].role" */
};

/* The request itself is wrong: 400, invalid_request_error. param and code may be NULL. Returns
 * status. */
enum status fault_request(struct fault *fault, enum status status, const char *param,
                          const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* Makes a fault of an engine's error: STATUS_INVALID, _CORRUPT, _UNSUPPORTED and _NOT_FOUND are the
 * request's (400), STATUS_FULL 429, STATUS_TIMEOUT 504, anything else 500. */
void fault_from_err(struct fault *fault, const struct err *err);
/* Any other: fault_set(f, 404, "invalid_request_error", "not_found", "...", ...). */
void fault_set(struct fault *fault, int http_status, const char *type, const char *code,
               const char *format, ...) __attribute__((format(printf, 5, 6)));

#endif
