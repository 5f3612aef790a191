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

/* Letters and numbers of Unicode 15.1 and 16, which the reference knows and an older libutf8proc
 * reports as unassigned: pieces must not depend on the library a machine happens to have. */
static const struct {
    int32_t first, last;
    enum char_class class;
} newer_points[] = {
    {0x1C89, 0x1C8A, CLASS_LETTER},   {0xA7CB, 0xA7CD, CLASS_LETTER},
    {0xA7DA, 0xA7DC, CLASS_LETTER},   {0x105C0, 0x105F3, CLASS_LETTER},
    {0x10D40, 0x10D49, CLASS_NUMBER}, {0x10D4A, 0x10D65, CLASS_LETTER},
    {0x10D6F, 0x10D85, CLASS_LETTER}, {0x10EC2, 0x10EC4, CLASS_LETTER},
    {0x11380, 0x11389, CLASS_LETTER}, {0x1138B, 0x1138B, CLASS_LETTER},
    {0x1138E, 0x1138E, CLASS_LETTER}, {0x11390, 0x113B5, CLASS_LETTER},
    {0x113B7, 0x113B7, CLASS_LETTER}, {0x113D1, 0x113D1, CLASS_LETTER},
    {0x113D3, 0x113D3, CLASS_LETTER}, {0x116D0, 0x116E3, CLASS_NUMBER},
    {0x11BC0, 0x11BE0, CLASS_LETTER}, {0x11BF0, 0x11BF9, CLASS_NUMBER},
    {0x13460, 0x143FA, CLASS_LETTER}, {0x16100, 0x1611D, CLASS_LETTER},
    {0x16130, 0x16139, CLASS_NUMBER}, {0x16D40, 0x16D6C, CLASS_LETTER},
    {0x16D70, 0x16D79, CLASS_NUMBER}, {0x18CFF, 0x18CFF, CLASS_LETTER},
    {0x1CCF0, 0x1CCF9, CLASS_NUMBER}, {0x1E5D0, 0x1E5ED, CLASS_LETTER},
    {0x1E5F0, 0x1E5F0, CLASS_LETTER}, {0x1E5F1, 0x1E5FA, CLASS_NUMBER},
    {0x2EBF0, 0x2EE5D, CLASS_LETTER},
};

static enum char_class class_of_newer(utf8proc_int32_t point)
{
    for (size_t i = 0; i < sizeof newer_points / sizeof newer_points[0]; i++)
        if (point >= newer_points[i].first && point <= newer_points[i].last)
            return newer_points[i].class;
    return CLASS_OTHER;
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
    case UTF8PROC_CATEGORY_CN:
        return class_of_newer(point);
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
