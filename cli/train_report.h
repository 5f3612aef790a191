/* What a training run looks like on the screen: a small matrix redrawn in place on a terminal, a
 * compact line every few seconds elsewhere, and a line for each event on both. */
#ifndef CLI_TRAIN_REPORT_H
#define CLI_TRAIN_REPORT_H

#include "cli/terminal.h"
#include "train/trainer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "hop 3", with the source's name before it where two sources are of one task. */
void train_level_name(const struct recipe *r, int level, char *out, size_t cap_bytes);
/* "hop: max_hops 2, letters 10": the knobs that the curriculum turns; "" when it turns none. Pure.
 */
void train_format_knobs(const struct recipe *r, const struct curriculum_state *s, char *out,
                        size_t cap_bytes);
/* Steps of this attempt that are left at most. Pure. */
uint64_t train_steps_left(const struct recipe *r, const struct curriculum_state *s);
/* One line without newline, terminated. steps_per_s <= 0: unknown. Pure. */
void train_format_line(const struct recipe *r, const struct trainer_report *report,
                       double steps_per_s, char *out, size_t cap_bytes);
void train_format_events(const struct recipe *r, const struct trainer_report *report, char *out,
                         size_t cap_bytes);
/* Several lines, each ended by a newline; at most max_lines. Pure. */
int train_format_screen(const struct recipe *r, const struct trainer_report *report,
                        double steps_per_s, const struct terminal *t, int max_lines, char *out,
                        size_t cap_bytes);

struct train_screen {
    const struct recipe *recipe;
    struct terminal terminal;
    bool is_quiet, is_matrix;
    /* The window before, shown together with the present one: a few steps alone would jump about.
     */
    struct metrics before;
    int n_shown; /* lines of the matrix that stand on the screen */
    double next_s;
    double mark_s; /* the rate is counted from here */
    uint64_t mark_step;
    double steps_per_s;
};

void train_screen_init(struct train_screen *s, const struct recipe *r, bool is_quiet);
/* Call after every step: it looks at report->seconds. */
void train_screen_step(struct train_screen *s, const struct trainer_report *report);
/* Call at every report, before the step. */
void train_screen_report(struct train_screen *s, const struct trainer_report *report);
/* Takes the matrix off the screen. */
void train_screen_clear(struct train_screen *s);

#endif
