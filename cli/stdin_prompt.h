/* The prompt `-`: all of standard input. */
#ifndef CLI_STDIN_PROMPT_H
#define CLI_STDIN_PROMPT_H

#include "proto/status.h"

/* Where *prompt is "-": reads standard input to its end, takes one final newline off (what `echo`
 * and editors add) and sets *prompt and *owned to the text, which the caller frees. Any other
 * *prompt, NULL too, stays as it is, and *owned is NULL. STATUS_IO; STATUS_INVALID for a NUL byte;
 * STATUS_NO_MEMORY. */
enum status stdin_prompt_take(const char **prompt, char **owned, struct err *err);

#endif
