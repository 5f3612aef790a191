/* A hand-written scanner that gives the pieces of the reference's Digits and GPT-2 split. */
#include "model/pretokenize.h"

#include <stdint.h>
#include <string.h>

#include <utf8proc.h>

enum char_class { CLASS_OTHER = 0, CLASS_LETTER, CLASS_NUMBER, CLASS_SPACE };

static enum char_class class_of_ascii(unsigned char c)
{
    unsigned char lower = c | 0x20;
    if (lower >= 'a' && lower <= 'z')
        return CLASS_LETTER;
    if (c == ' ' || (c >= '\t' && c <= '\r'))
        return CLASS_SPACE;
    return c >= '0' && c <= '9' ? CLASS_NUMBER : CLASS_OTHER;
}

/* Beyond ASCII. White_Space is listed because it is not a general category: U+0085 is Cc, and
 * U+200B is Zs in old tables. Combining marks (M*) are neither letters nor numbers. */
static enum char_class class_of_point(utf8proc_int32_t point)
{
    if (point == 0x85 || point == 0xA0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200A) ||
        point == 0x2028 || point == 0x2029 || point == 0x202F || point == 0x205F || point == 0x3000)
        return CLASS_SPACE;
    switch (utf8proc_category(point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return CLASS_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return CLASS_NUMBER;
    default:
        return CLASS_OTHER;
    }
}

/* Class and length of the character at `at` (at < end). */
static enum char_class read_char(const char *at, const char *end, size_t *len_bytes)
{
    unsigned char c = (unsigned char)*at;
    *len_bytes = 1;
    if (c < 0x80)
        return class_of_ascii(c);
    utf8proc_int32_t point;
    utf8proc_ssize_t n = end - at < 4 ? end - at : 4;
    n = utf8proc_iterate((const utf8proc_uint8_t *)at, n, &point);
    if (n <= 0)
        return CLASS_OTHER;
    *len_bytes = (size_t)n;
    return class_of_point(point);
}

static const char *skip_class(const char *at, const char *end, enum char_class class)
{
    size_t n;
    while (at < end && read_char(at, end, &n) == class)
        at += n;
    return at;
}

static const char *find_number(const char *at, const char *end)
{
    size_t n;
    while (at < end && read_char(at, end, &n) != CLASS_NUMBER)
        at += n;
    return at;
}

/* Length of 's 't 're 've 'm 'll 'd at `at`, or 0. Lower case only, as the reference. */
static size_t match_contraction(const char *at, const char *end)
{
    if (*at != '\'' || end - at < 2)
        return 0;
    if (at[1] == 's' || at[1] == 't' || at[1] == 'm' || at[1] == 'd')
        return 2;
    if (end - at < 3)
        return 0;
    bool is_long = (at[1] == 'r' && at[2] == 'e') || (at[1] == 'v' && at[2] == 'e') ||
                   (at[1] == 'l' && at[2] == 'l');
    return is_long ? 3 : 0;
}

/* A piece that starts with white space: a run that reaches the end is one piece; a run before a
 * visible character leaves its last character behind, unless that is all there is. */
static const char *end_of_space(const char *at, const char *end)
{
    const char *last = at;
    while (at < end) {
        size_t n;
        if (read_char(at, end, &n) != CLASS_SPACE)
            return last;
        last = at;
        at += n;
    }
    return end;
}

/* The end of the GPT-2 piece that starts at `at`. */
static const char *end_of_piece(const char *at, const char *end)
{
    size_t n = match_contraction(at, end);
    if (n > 0)
        return at + n;
    enum char_class class = read_char(at, end, &n);
    if (class != CLASS_SPACE)
        return skip_class(at + n, end, class);
    if (*at == ' ' && at + 1 < end) {
        size_t n_next;
        enum char_class next = read_char(at + 1, end, &n_next);
        if (next != CLASS_SPACE)
            return skip_class(at + 1 + n_next, end, next);
    }
    const char *stop = end_of_space(at, end);
    return stop == at ? at + n : stop;
}

void pretokenize_start(struct pretokenize_scan *scan, const struct pretokenizer *rules,
                       const char *text, size_t len_bytes)
{
    *scan = (struct pretokenize_scan){
        .rules = *rules, .at = text, .stretch_end = text, .end = text + len_bytes};
}

/* Where the stretch at scan->at ends: a digit (or a run of them) alone, or all up to the next. */
static const char *end_of_stretch(const struct pretokenize_scan *scan)
{
    if (!scan->rules.split_digits)
        return scan->end;
    size_t n;
    if (read_char(scan->at, scan->end, &n) != CLASS_NUMBER)
        return find_number(scan->at + n, scan->end);
    if (scan->rules.individual_digits)
        return scan->at + n;
    return skip_class(scan->at + n, scan->end, CLASS_NUMBER);
}

bool pretokenize_next(struct pretokenize_scan *scan, const char **piece, size_t *len_bytes)
{
    if (scan->at == scan->end)
        return false;
    if (scan->at == scan->stretch_end)
        scan->stretch_end = end_of_stretch(scan);
    const char *stop = scan->stretch_end;
    if (scan->rules.use_regex)
        stop = end_of_piece(scan->at, stop);
    *piece = scan->at;
    *len_bytes = (size_t)(stop - scan->at);
    scan->at = stop;
    return true;
}
