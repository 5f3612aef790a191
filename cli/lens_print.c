/* Shows what the lens saw: as a table for a person, as JSON for a program. */
#include "cli/lens.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define COLOUR_RESET   "\033[0m"
#define COLOUR_EXIT    "\033[1;30;42m" /* black on green: here the token gets off */
#define COLOUR_CHANGED "\033[1;33m"    /* yellow: another best token than one loop earlier */
#define COLOUR_AFTER   "\033[90m"      /* grey: loops that an early exit would not run */
#define COLOUR_HEAD    "\033[1m"

/* ---- tokens --------------------------------------------------------------------------------- */

/* One character of the token as it is shown, with its width; blanks must be seen. */
static const char *show_character(utf8proc_int32_t c, bool has_utf8, char piece[8], int *width)
{
    *width = 1;
    if (c == ' ')
        return has_utf8 ? "\u00b7" : "_";
    if (c == '\n')
        return has_utf8 ? "\u21b5" : "$";
    if (c == '\t')
        return has_utf8 ? "\u21e5" : ">";
    int columns = c < 0 ? 0 : utf8proc_charwidth(c);
    if (columns <= 0 || (c > 126 && !has_utf8))
        return c < 0 || !has_utf8 ? "?" : "\u00bf";
    utf8proc_ssize_t n = utf8proc_encode_char(c, (utf8proc_uint8_t *)piece);
    piece[n] = '\0';
    *width = columns;
    return piece;
}

size_t lens_show_token(const struct tokenizer *tokenizer, int32_t id, int width, bool has_utf8,
                       char *out, size_t cap_bytes)
{
    size_t n = 0, at = 0;
    int used = 0;
    const char *bytes = NULL;
    char number[24];
    if (tokenizer != NULL)
        bytes = tokenizer_token_bytes(tokenizer, id, &n);
    if (bytes == NULL) {
        n = (size_t)snprintf(number, sizeof number, "#%d", (int)id);
        bytes = number;
    }
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        char piece[8];
        int columns;
        utf8proc_ssize_t step =
            utf8proc_iterate((const utf8proc_uint8_t *)bytes + i, (utf8proc_ssize_t)(n - i), &c);
        i += step > 0 ? (size_t)step : 1;
        const char *shown = show_character(step > 0 ? c : -1, has_utf8, piece, &columns);
        size_t len = strlen(shown);
        if (used + columns > width || at + len + (size_t)width + 1 > cap_bytes)
            break;
        memcpy(out + at, shown, len);
        at += len;
        used += columns;
    }
    while (used < width && at + 1 < cap_bytes) {
        out[at++] = ' ';
        used++;
    }
    out[at] = '\0';
    return at;
}

/* ---- table ---------------------------------------------------------------------------------- */

struct layout {
    int token_width; /* of the column with the prompt's tokens */
    int best_width;  /* of the best token in a cell */
    bool has_bar;
    bool has_gap; /* a blank in front of each cell */
};

enum { POSITION_WIDTH = 4, CELL_FIXED = 8 }; /* cell: " ~token 100%*" and a gap */

static struct layout choose_layout(const struct lens *l, const struct terminal *t)
{
    int columns = t->columns < 100 ? t->columns : 100;
    struct layout a = {
        .token_width = l->n_loops > 5 ? 5 : 8, .has_bar = t->has_utf8, .has_gap = true};
    int room = columns - 1 - POSITION_WIDTH - 1 - a.token_width;
    a.best_width = room / (int)l->n_loops - CELL_FIXED - (a.has_bar ? 1 : 0);
    if (a.best_width < 2 && a.has_bar) {
        a.has_bar = false;
        a.best_width++;
    }
    if (a.best_width < 2) {
        a.has_gap = false;
        a.best_width++;
    }
    if (a.best_width > 10)
        a.best_width = 10;
    if (a.best_width < 1)
        a.best_width = 1;
    return a;
}

static const char *bar_for(float cdf)
{
    static const char *const levels[] = {" ",      "\u2581", "\u2582", "\u2583", "\u2584",
                                         "\u2585", "\u2586", "\u2587", "\u2588"};
    int level = (int)(cdf * 8.0f + 0.5f);
    return levels[level < 0 ? 0 : level > 8 ? 8 : level];
}

static void print_cell(const struct lens *l, uint32_t p, uint32_t loop, const struct layout *a,
                       const struct terminal *t, FILE *out)
{
    const struct lens_cell *cell = lens_cell_at(l, p, loop);
    const struct lens_cell *before = loop > 1 ? lens_cell_at(l, p, loop - 1) : NULL;
    bool is_exit = loop == l->exit_loops[p], is_after = loop > l->exit_loops[p];
    bool is_changed = before != NULL && before->n_top > 0 && cell->n_top > 0 &&
                      before->top_ids[0] != cell->top_ids[0];
    char token[128] = "";
    if (cell->n_top > 0)
        lens_show_token(l->tokenizer, cell->top_ids[0], a->best_width, t->has_utf8, token,
                        sizeof token);
    const char *colour = !t->has_colour ? ""
                         : is_exit      ? COLOUR_EXIT
                         : is_changed   ? COLOUR_CHANGED
                         : is_after     ? COLOUR_AFTER
                                        : "";
    int percent = (int)(cell->cdf * 100.0f + 0.5f);
    fprintf(out, "%s%s%s%s %s%3d%%%s%s", a->has_gap ? " " : "", colour, is_changed ? "~" : " ",
            token, a->has_bar ? bar_for(cell->cdf) : "", percent < 100 ? percent : 100,
            is_exit ? "*" : " ", *colour != '\0' ? COLOUR_RESET : "");
}

static void print_head(const struct lens *l, const struct layout *a, uint32_t first,
                       const struct terminal *t, FILE *out)
{
    const char *bold = t->has_colour ? COLOUR_HEAD : "", *reset = t->has_colour ? COLOUR_RESET : "";
    fprintf(out, "%s%s%s: %u positions, %u loops\n", bold, l->model_name, reset, l->n_positions,
            l->n_loops);
    fprintf(out, "exits at q = %g%s\n", (double)l->exit_threshold,
            l->is_threshold_assumed ? " (assumed: the model's own is 1, all loops)" : "");
    fputs("best next token and cdf of the gate per loop; * exits here, ~ changed its mind\n", out);
    if (first > 0)
        fprintf(out, "the last %u positions; --all shows all\n", l->n_positions - first);
    fprintf(out, "\n%s%*s %-*s", bold, POSITION_WIDTH, "", a->token_width, "token");
    for (uint32_t t_loop = 1; t_loop <= l->n_loops; t_loop++)
        fprintf(out, "%s%-*s", a->has_gap ? "  " : " ",
                a->best_width + CELL_FIXED - 2 + (a->has_bar ? 1 : 0),
                (char[]){'l', 'o', 'o', 'p', ' ', (char)('0' + t_loop), '\0'});
    fprintf(out, "%s\n", reset);
}

void lens_print_table(const struct lens *l, uint32_t first, const struct terminal *t, FILE *out)
{
    struct layout a = choose_layout(l, t);
    print_head(l, &a, first, t, out);
    for (uint32_t p = first; p < l->n_positions; p++) {
        char token[128];
        lens_show_token(l->tokenizer, l->ids[p], a.token_width, t->has_utf8, token, sizeof token);
        fprintf(out, "%*u %s", POSITION_WIDTH, p, token);
        for (uint32_t loop = 1; loop <= l->n_loops; loop++)
            print_cell(l, p, loop, &a, t, out);
        fputc('\n', out);
    }
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *token_json(const struct lens *l, int32_t id)
{
    size_t n = 0;
    const char *bytes = NULL;
    if (l->tokenizer != NULL)
        bytes = tokenizer_token_bytes(l->tokenizer, id, &n);
    if (bytes == NULL)
        return json_null();
    json_t *string = json_stringn(bytes, n);
    if (string != NULL)
        return string;
    /* Part of a character: as the detokenizer would show it. */
    char text[DETOKENIZER_MAX_BYTES + 16];
    struct detokenizer d;
    detokenizer_init(&d, l->tokenizer, false);
    n = detokenizer_push(&d, id, text, sizeof text);
    n += detokenizer_flush(&d, text + n, sizeof text - n);
    return json_stringn(text, n);
}

static void dump(json_t *value, FILE *out)
{
    json_dumpf(value, out, JSON_ENSURE_ASCII | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    json_decref(value);
}

static json_t *loop_json(const struct lens *l, uint32_t p, uint32_t loop)
{
    const struct lens_cell *cell = lens_cell_at(l, p, loop);
    json_t *top = json_array();
    for (uint32_t k = 0; k < cell->n_top; k++)
        json_array_append_new(top, json_pack("{s:i, s:o, s:f}", "id", (int)cell->top_ids[k],
                                             "token", token_json(l, cell->top_ids[k]), "logit",
                                             (double)cell->top_logits[k]));
    return json_pack("{s:i, s:f, s:f, s:o}", "loop", (int)loop, "lambda", (double)cell->lambda,
                     "cdf", (double)cell->cdf, "top", top);
}

/* Piece by piece: with the whole vocabulary as top, one tree would be many times the output. */
void lens_print_json(const struct lens *l, FILE *out)
{
    fputs("{\"prompt_ids\": [", out);
    for (uint32_t p = 0; p < l->n_positions; p++)
        fprintf(out, "%s%d", p > 0 ? ", " : "", (int)l->ids[p]);
    fputs("], \"tokens\": [", out);
    for (uint32_t p = 0; p < l->n_positions; p++) {
        fputs(p > 0 ? ", " : "", out);
        dump(token_json(l, l->ids[p]), out);
    }
    fprintf(out, "], \"exit_threshold\": %.9g, \"positions\": [", (double)l->exit_threshold);
    for (uint32_t p = 0; p < l->n_positions; p++) {
        fprintf(out, "%s{\"position\": %u, \"id\": %d, \"token\": ", p > 0 ? ", " : "", p,
                (int)l->ids[p]);
        dump(token_json(l, l->ids[p]), out);
        fprintf(out, ", \"exit_loop\": %u, \"loops\": [", l->exit_loops[p]);
        for (uint32_t loop = 1; loop <= l->n_loops; loop++) {
            fputs(loop > 1 ? ", " : "", out);
            dump(loop_json(l, p, loop), out);
        }
        fputs("]}", out);
    }
    fputs("]}\n", out);
}
