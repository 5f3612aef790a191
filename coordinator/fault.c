/* Says why a request was refused, in the words of the HTTP contract. */
#include "coordinator/fault.h"

#include <stdarg.h>
#include <stdio.h>

static const char type_request[] = "invalid_request_error", type_server[] = "server_error";

static void fill(struct fault *fault, enum status status, const char *format, va_list arguments)
{
    *fault = (struct fault){.err = {.code = status}};
    vsnprintf(fault->err.message, sizeof fault->err.message, format, arguments);
}

enum status fault_request(struct fault *fault, enum status status, const char *param,
                          const char *code, const char *format, ...)
{
    va_list arguments;
    if (fault == NULL)
        return status;
    va_start(arguments, format);
    fill(fault, status, format, arguments);
    va_end(arguments);
    fault->http_status = 400;
    fault->type = type_request;
    fault->code = code;
    if (param != NULL)
        snprintf(fault->param, sizeof fault->param, "%s", param);
    return status;
}

void fault_from_err(struct fault *fault, const struct err *err)
{
    *fault = (struct fault){.err = *err, .http_status = 500, .type = type_server};
    switch (err->code) {
    case STATUS_INVALID:
    case STATUS_CORRUPT:
    case STATUS_UNSUPPORTED:
    case STATUS_NOT_FOUND:
        fault->http_status = 400;
        fault->type = type_request;
        break;
    case STATUS_FULL:
        fault->http_status = 429;
        fault->type = "rate_limit_error";
        fault->code = "queue_full";
        break;
    case STATUS_TIMEOUT:
        fault->http_status = 504;
        fault->type = "timeout_error";
        fault->code = "deadline_exceeded";
        break;
    default:
        break;
    }
}

/* The engine's word for an HTTP status, so that err alone still says what kind it was. */
static enum status status_of_http(int http_status)
{
    switch (http_status) {
    case 404:
        return STATUS_NOT_FOUND;
    case 405:
    case 415:
        return STATUS_UNSUPPORTED;
    case 429:
    case 503:
        return STATUS_FULL;
    case 504:
        return STATUS_TIMEOUT;
    default:
        return http_status < 500 ? STATUS_INVALID : STATUS_INTERNAL;
    }
}

void fault_set(struct fault *fault, int http_status, const char *type, const char *code,
               const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fill(fault, status_of_http(http_status), format, arguments);
    va_end(arguments);
    fault->http_status = http_status;
    fault->type = type;
    fault->code = code;
}
