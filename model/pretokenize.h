/* Cuts text into the pieces that BPE sees one by one: Digits first, then ByteLevel's GPT-2 split.
 *
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * With Digits, the split sees every stretch between digits alone, so `(?!\S)` looks at the
 * stretch's end, not at the digit behind it. Pieces cover the text without gaps. A byte that is no
 * part of valid UTF-8 counts as one character that is neither letter, number nor space. */
#ifndef MODEL_PRETOKENIZE_H
#define MODEL_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

struct pretokenizer {
    bool split_digits;      /* a Digits step exists */
    bool individual_digits; /* it cuts every digit off alone, not runs of them */
    bool use_regex;         /* ByteLevel splits; otherwise a stretch is one piece */
};

struct pretokenize_scan {
    struct pretokenizer rules;
    const char *at, *stretch_end, *end;
};

/* Text is borrowed for as long as the scan is used. */
void pretokenize_start(struct pretokenize_scan *scan, const struct pretokenizer *rules,
                       const char *text, size_t len_bytes);
/* The next piece (len_bytes >= 1); false at the end of the text. */
bool pretokenize_next(struct pretokenize_scan *scan, const char **piece, size_t *len_bytes);

#endif
