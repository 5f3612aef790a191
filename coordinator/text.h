/* A growing piece of text. After a failed allocation it stays as it is and is_broken is set: check
 * once, at the end. */
#ifndef COORDINATOR_TEXT_H
#define COORDINATOR_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *bytes; /* not terminated; NULL while empty */
    size_t len_bytes, cap_bytes;
    bool is_broken;
};

void text_add(struct text *t, const char *bytes, size_t len_bytes);
void text_adds(struct text *t, const char *string);
void text_addf(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Empties it; the memory stays for the next use. */
void text_reset(struct text *t);
void text_free(struct text *t);

#endif
