/* Text that grows by doubling; what was not added for want of memory is known at the end. */
#include "coordinator/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_FIRST_BYTES = 256 };

/* Room for n more bytes. */
static bool text_reserve(struct text *t, size_t n)
{
    if (t->is_broken || n <= t->cap_bytes - t->len_bytes)
        return !t->is_broken;
    if (n > SIZE_MAX / 2 - t->len_bytes) {
        t->is_broken = true;
        return false;
    }
    size_t cap = 2 * (t->len_bytes + n);
    if (cap < TEXT_FIRST_BYTES)
        cap = TEXT_FIRST_BYTES;
    char *grown = realloc(t->bytes, cap);
    if (grown == NULL) {
        t->is_broken = true;
        return false;
    }
    t->bytes = grown;
    t->cap_bytes = cap;
    return true;
}

void text_add(struct text *t, const char *bytes, size_t len_bytes)
{
    if (len_bytes == 0 || !text_reserve(t, len_bytes))
        return;
    memcpy(t->bytes + t->len_bytes, bytes, len_bytes);
    t->len_bytes += len_bytes;
}

void text_adds(struct text *t, const char *string)
{
    text_add(t, string, strlen(string));
}

void text_addf(struct text *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    /* One more for the terminator, which is not kept. */
    if (n < 0 || !text_reserve(t, (size_t)n + 1)) {
        t->is_broken = true;
        return;
    }
    va_start(arguments, format);
    vsnprintf(t->bytes + t->len_bytes, (size_t)n + 1, format, arguments);
    va_end(arguments);
    t->len_bytes += (size_t)n;
}

void text_reset(struct text *t)
{
    t->len_bytes = 0;
    t->is_broken = false;
}

void text_free(struct text *t)
{
    free(t->bytes);
    *t = (struct text){0};
}
