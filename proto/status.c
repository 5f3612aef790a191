/* Formats the message of the first detector and names status codes. */
#include "proto/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum status err_set(struct err *err, enum status code, const char *format, ...)
{
    if (err == NULL)
        return code;
    err->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return code;
}

enum status err_wrap(struct err *err, const char *format, ...)
{
    if (err == NULL)
        return STATUS_INTERNAL;
    char context[ERR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    char old[ERR_MESSAGE_BYTES];
    memcpy(old, err->message, sizeof old);
    /* Two steps, because a cut of the message is fine and a format-truncation warning is not. */
    size_t used = strnlen(context, sizeof context - 1);
    memcpy(err->message, context, used);
    err->message[used] = '\0';
    const char *parts[2] = {": ", old};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(parts[i]);
        if (n > sizeof err->message - 1 - used)
            n = sizeof err->message - 1 - used;
        memcpy(err->message + used, parts[i], n);
        used += n;
        err->message[used] = '\0';
    }
    return err->code;
}

const char *status_name(enum status code)
{
    static const char *const names[STATUS_COUNT] = {
        [STATUS_OK] = "ok",
        [STATUS_INVALID] = "invalid",
        [STATUS_NOT_FOUND] = "not_found",
        [STATUS_CORRUPT] = "corrupt",
        [STATUS_UNSUPPORTED] = "unsupported",
        [STATUS_NO_MEMORY] = "no_memory",
        [STATUS_IO] = "io",
        [STATUS_MISMATCH] = "mismatch",
        [STATUS_FULL] = "full",
        [STATUS_TIMEOUT] = "timeout",
        [STATUS_CANCELLED] = "cancelled",
        [STATUS_INTERNAL] = "internal",
    };
    if ((unsigned)code >= STATUS_COUNT)
        return "unknown";
    return names[code];
}
