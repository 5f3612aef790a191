/* Draws a training run's progress, in place on a terminal. */
#include "cli/train_report.h"

#include "cli/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { NAME_BYTES = 96, SCREEN_BYTES = 16384, BAR_WIDTH = 24, SCREEN_LINES = 24 };
/* A matrix may be redrawn often; plain lines should not fill a log. A rate over less than some
 * seconds jumps. */
static const double redraw_s = 0.25, line_s = 5, rate_s = 5;

static void add(char *out, size_t cap, size_t *n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void add(char *out, size_t cap, size_t *n, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int written = *n < cap ? vsnprintf(out + *n, cap - *n, format, args) : 0;
    va_end(args);
    if (written > 0)
        *n = *n + (size_t)written < cap ? *n + (size_t)written : cap - 1;
}

/* ---- words ------------------------------------------------------------------------------------
 */

static bool is_task_twice(const struct recipe *r, int data)
{
    for (int i = 0; i < r->n_data; i++)
        if (i != data && r->data[i].task == r->data[data].task)
            return true;
    return false;
}

void train_level_name(const struct recipe *r, int level, char *out, size_t cap_bytes)
{
    char name[NAME_BYTES] = "";
    int data = 0;
    while (data + 1 < r->n_data && recipe_first_level(r, data + 1) <= level)
        data++;
    const struct task *task = r->data[data].task;
    if (task != NULL)
        task->level_name(level - recipe_first_level(r, data), name, sizeof name);
    if (is_task_twice(r, data))
        snprintf(out, cap_bytes, "%s: %s", r->data[data].name, name);
    else
        snprintf(out, cap_bytes, "%s", name);
}

/* Whether a step of a track sets the knob. */
static bool is_turned(const struct recipe *r, int data, int knob)
{
    for (int i = 0; i < r->curriculum.n_tracks; i++) {
        const struct recipe_track *track = &r->curriculum.tracks[i];
        for (int k = 0; k < track->n_steps && track->data == data; k++)
            if (track->steps[k].sets[knob])
                return true;
    }
    return false;
}

void train_format_knobs(const struct recipe *r, const struct curriculum_state *s, char *out,
                        size_t cap_bytes)
{
    size_t n = 0;
    out[0] = '\0';
    for (int i = 0; i < r->n_data; i++) {
        bool is_first = true;
        for (int k = 0; r->data[i].task != NULL && k < r->data[i].task->n_knobs; k++) {
            if (!is_turned(r, i, k))
                continue;
            if (is_first)
                add(out, cap_bytes, &n, "%s%s:", n > 0 ? "; " : "", r->data[i].name);
            add(out, cap_bytes, &n, "%s %s %d", is_first ? "" : ",", r->data[i].task->knobs[k].name,
                s->knobs[i][k]);
            is_first = false;
        }
    }
}

uint64_t train_steps_left(const struct recipe *r, const struct curriculum_state *s)
{
    uint64_t n = 0;
    for (int i = s->stage; i < r->n_stages && !s->is_finished; i++)
        n += r->stages[i].steps;
    return n > s->stage_step ? n - s->stage_step : 0;
}

static double per_sequence(float sum, const struct trainer_report *report)
{
    return report->sum->n_sequences > 0 ? (double)sum / (double)report->sum->n_sequences : 0.0;
}

/* Percent of the level's targets in the window that loop (from 0) got right; < 0: there were none.
 */
static double percent(const struct trainer_report *report, int level, int loop)
{
    const struct metrics *m = report->sum;
    return m->n[level] > 0 ? 100.0 * (double)m->correct[level][loop] / (double)m->n[level] : -1.0;
}

static void add_rate(const struct recipe *r, const struct trainer_report *report,
                     double steps_per_s, char *out, size_t cap, size_t *n)
{
    char eta[32];
    if (steps_per_s <= 0)
        return;
    progress_format_time((double)train_steps_left(r, report->state) / steps_per_s, eta, sizeof eta);
    add(out, cap, n, "  %.*f steps/s  ETA %s", steps_per_s < 10 ? 2 : 0, steps_per_s, eta);
}

static void add_place(const struct recipe *r, const struct curriculum_state *s, char *out,
                      size_t cap, size_t *n)
{
    uint64_t total = s->attempt_step + train_steps_left(r, s);
    add(out, cap, n, "step %llu/%llu", (unsigned long long)s->attempt_step,
        (unsigned long long)total);
    if (s->attempt > 0)
        add(out, cap, n, " (restart %d)", s->attempt);
    add(out, cap, n, "  %s", r->stages[s->stage].name);
}

void train_format_line(const struct recipe *r, const struct trainer_report *report,
                       double steps_per_s, char *out, size_t cap_bytes)
{
    const struct curriculum_state *s = report->state;
    size_t n = 0;
    out[0] = '\0';
    add_place(r, s, out, cap_bytes, &n);
    add(out, cap_bytes, &n, "  loops %d  loss %.4f", s->loops,
        per_sequence(report->sum->loss, report));
    add_rate(r, report, steps_per_s, out, cap_bytes, &n);
    int n_levels = recipe_n_levels(r);
    for (int i = 0; i < n_levels; i++) {
        char name[NAME_BYTES];
        if (report->sum->n[i] <= 0)
            continue;
        train_level_name(r, i, name, sizeof name);
        add(out, cap_bytes, &n, "  %s %.1f%%", name, percent(report, i, s->loops - 1));
    }
}

void train_format_events(const struct recipe *r, const struct trainer_report *report, char *out,
                         size_t cap_bytes)
{
    const struct curriculum_state *s = report->state;
    char knobs[512];
    size_t n = 0;
    out[0] = '\0';
    add(out, cap_bytes, &n, "step %llu:", (unsigned long long)s->step);
    if (report->events & CURRICULUM_RESTART)
        add(out, cap_bytes, &n, " starts anew from other random values (restart %d);", s->attempt);
    if (report->events & CURRICULUM_STAGE)
        add(out, cap_bytes, &n, " stage %s begins;", r->stages[s->stage].name);
    if (report->events & CURRICULUM_FINISHED)
        add(out, cap_bytes, &n, " the last stage is through;");
    add(out, cap_bytes, &n, " open: loops %d", s->loops);
    train_format_knobs(r, s, knobs, sizeof knobs);
    if (knobs[0] != '\0')
        add(out, cap_bytes, &n, "; %s", knobs);
}

/* ---- the matrix -------------------------------------------------------------------------------
 */

/* Cut at the terminal's width: a wrapped line would spoil the redraw. Escape sequences are not
 * counted. */
static void add_cut(char *out, size_t cap, size_t *n, const char *line, int columns)
{
    int shown = 0;
    for (const char *c = line; *c != '\0'; c++) {
        if (*c == '\033') {
            while (*c != 'm')
                add(out, cap, n, "%c", *c++);
            add(out, cap, n, "m");
            continue;
        }
        /* Continuation bytes of UTF-8 belong to the column before. */
        shown += ((unsigned char)*c & 0xc0) != 0x80;
        if (shown < columns)
            add(out, cap, n, "%c", *c);
    }
    add(out, cap, n, "\n");
}

static void format_bar(const struct recipe *r, const struct curriculum_state *s,
                       const struct terminal *t, char *out, size_t cap, size_t *n)
{
    uint64_t total = s->attempt_step + train_steps_left(r, s);
    int filled = total > 0 ? (int)((uint64_t)BAR_WIDTH * s->attempt_step / total) : BAR_WIDTH;
    add(out, cap, n, "%s", t->has_colour ? "\033[36m" : "");
    for (int i = 0; i < BAR_WIDTH; i++) {
        if (i == filled)
            add(out, cap, n, "%s", t->has_colour ? "\033[90m" : "");
        add(out, cap, n, "%s",
            i < filled ? (t->has_utf8 ? "\u2501" : "#") : (t->has_utf8 ? "\u2500" : "."));
    }
    add(out, cap, n, "%s", t->has_colour ? "\033[0m" : "");
}

static void format_level(const struct recipe *r, const struct trainer_report *report, int level,
                         const struct terminal *t, char *out, size_t cap)
{
    char name[NAME_BYTES];
    size_t n = 0;
    train_level_name(r, level, name, sizeof name);
    add(out, cap, &n, "  %-14s", name);
    for (int loop = 0; loop < report->state->loops; loop++) {
        double value = percent(report, level, loop);
        const char *colour = value >= 99 ? "\033[32m" : value >= 80 ? "\033[33m" : "";
        bool is_coloured = t->has_colour && colour[0] != '\0';
        add(out, cap, &n, "%s%7.1f%s", is_coloured ? colour : "", value,
            is_coloured ? "\033[0m" : "");
    }
}

int train_format_screen(const struct recipe *r, const struct trainer_report *report,
                        double steps_per_s, const struct terminal *t, int max_lines, char *out,
                        size_t cap_bytes)
{
    const struct curriculum_state *s = report->state;
    char line[1024];
    size_t n = 0, at = 0;
    int n_lines = 2, n_levels = recipe_n_levels(r);
    bool has_head = false;
    out[0] = line[0] = '\0';
    format_bar(r, s, t, line, sizeof line, &at);
    add(line, sizeof line, &at, "  ");
    add_place(r, s, line, sizeof line, &at);
    add_rate(r, report, steps_per_s, line, sizeof line, &at);
    add_cut(out, cap_bytes, &n, line, t->columns);

    at = 0;
    add(line, sizeof line, &at, "  loss %.4f  lr %.2e  |g| %.2f  loops %d",
        per_sequence(report->sum->loss, report), (double)report->lr, (double)report->grad_norm,
        s->loops);
    add_cut(out, cap_bytes, &n, line, t->columns);
    train_format_knobs(r, s, line + 2, sizeof line - 2);
    if (line[2] != '\0') {
        line[0] = line[1] = ' ';
        add_cut(out, cap_bytes, &n, line, t->columns);
        n_lines++;
    }

    at = 0;
    add(line, sizeof line, &at, "  %-14s", "% right");
    for (int loop = 0; loop < s->loops; loop++)
        add(line, sizeof line, &at, " loop %d", loop + 1);
    for (int i = 0; i < n_levels && n_lines + !has_head < max_lines; i++) {
        if (report->sum->n[i] <= 0)
            continue;
        if (!has_head) {
            add_cut(out, cap_bytes, &n, line, t->columns);
            n_lines++;
            has_head = true;
        }
        format_level(r, report, i, t, line, sizeof line);
        add_cut(out, cap_bytes, &n, line, t->columns);
        n_lines++;
    }
    return n_lines;
}

/* ---- on the screen ----------------------------------------------------------------------------
 */

static int screen_lines(void)
{
    struct winsize size = {0};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 8 ? size.ws_row - 2
                                                                           : SCREEN_LINES - 2;
}

void train_screen_init(struct train_screen *s, const struct recipe *r, bool is_quiet)
{
    *s = (struct train_screen){.recipe = r, .is_quiet = is_quiet};
    terminal_look(STDERR_FILENO, &s->terminal);
    s->is_matrix = s->terminal.is_terminal;
    s->next_s = s->is_matrix ? 0 : line_s;
}

void train_screen_clear(struct train_screen *s)
{
    if (s->n_shown > 0) {
        fprintf(stderr, "\033[%dA\r\033[J", s->n_shown);
        fflush(stderr);
    }
    s->n_shown = 0;
}

static void measure_rate(struct train_screen *s, const struct trainer_report *report)
{
    uint64_t step = report->state->step;
    if (s->mark_step == 0 || step < s->mark_step) {
        s->mark_step = step;
        s->mark_s = report->seconds;
    } else if (report->seconds >= s->mark_s + rate_s || s->steps_per_s <= 0) {
        if (report->seconds > s->mark_s)
            s->steps_per_s = (double)(step - s->mark_step) / (report->seconds - s->mark_s);
        if (report->seconds >= s->mark_s + rate_s) {
            s->mark_step = step;
            s->mark_s = report->seconds;
        }
    }
}

void train_screen_step(struct train_screen *s, const struct trainer_report *step)
{
    char text[SCREEN_BYTES];
    measure_rate(s, step);
    if (s->is_quiet || step->seconds < s->next_s)
        return;
    struct trainer_report both = *step;
    struct metrics sum = s->before;
    for (int i = 0; i < METRICS_FLOATS; i++)
        ((float *)&sum)[i] += ((const float *)step->sum)[i];
    both.sum = &sum;
    const struct trainer_report *report = &both;
    s->next_s = report->seconds + (s->is_matrix ? redraw_s : line_s);
    if (s->is_matrix) {
        int n = train_format_screen(s->recipe, report, s->steps_per_s, &s->terminal, screen_lines(),
                                    text, sizeof text);
        train_screen_clear(s);
        fputs(text, stderr);
        s->n_shown = n;
    } else {
        train_format_line(s->recipe, report, s->steps_per_s, text, sizeof text);
        fprintf(stderr, "train: %s\n", text);
    }
    fflush(stderr);
}

void train_screen_report(struct train_screen *s, const struct trainer_report *report)
{
    char text[1024];
    /* What was right before a move says little about what is asked after it. */
    if (report->events != CURRICULUM_NONE)
        s->before = (struct metrics){0};
    else if (report->ends_window)
        s->before = *report->sum;
    if (s->is_quiet || report->events == CURRICULUM_NONE)
        return;
    train_format_events(s->recipe, report, text, sizeof text);
    train_screen_clear(s);
    fprintf(stderr, "train: %s\n", text);
    s->next_s = s->is_matrix ? 0 : s->next_s;
}
