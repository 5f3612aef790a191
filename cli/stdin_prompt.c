/* Reads a prompt from standard input. */
#include "cli/stdin_prompt.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { START_BYTES = 1 << 16 };

enum status stdin_prompt_take(const char **prompt, char **owned, struct err *err)
{
    *owned = NULL;
    if (*prompt == NULL || strcmp(*prompt, "-") != 0)
        return STATUS_OK;
    size_t n = 0, cap = START_BYTES;
    char *text = malloc(cap);
    while (text != NULL) {
        n += fread(text + n, 1, cap - 1 - n, stdin);
        if (n < cap - 1)
            break;
        char *grown = realloc(text, cap *= 2);
        if (grown == NULL)
            free(text);
        text = grown;
    }
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the prompt on standard input");
    if (ferror(stdin)) {
        free(text);
        return err_set(err, STATUS_IO, "cannot read the prompt from standard input: %s",
                       strerror(errno));
    }
    const char *nul = memchr(text, '\0', n);
    if (nul != NULL) {
        err_set(err, STATUS_INVALID, "the prompt on standard input has a NUL byte at offset %zu",
                (size_t)(nul - text));
        free(text);
        return STATUS_INVALID;
    }
    n -= n > 0 && text[n - 1] == '\n';
    text[n] = '\0';
    *prompt = *owned = text;
    return STATUS_OK;
}
