/* Compares two gates on the same rows, threshold by threshold. */
#include "cli/gate_table.h"

#include "cli/teacher.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WINDOW_BYTES = 16 * 1024 * 1024 };

/* One column of the table while rows are added: a row changes it, the end of a text closes it. */
struct column {
    struct gate_outcome *outcome;
    bool is_wrong; /* a row of the text at hand */
};

static void add_row(struct column *c, const struct gate_row *row, uint32_t exit_loop)
{
    bool is_hit = (row->hits >> (exit_loop - 1) & 1) != 0;
    if (row->index == 0) {
        c->outcome->exact++;
        c->is_wrong = false;
    }
    if (!is_hit && !c->is_wrong) {
        c->outcome->exact--;
        c->is_wrong = true;
    }
    c->outcome->accuracy += is_hit;
    c->outcome->ce += (double)row->ce[exit_loop - 1];
    c->outcome->mean_loops += exit_loop;
    c->outcome->exits[exit_loop - 1]++;
}

struct columns {
    struct column fixed[GATE_MAX_LOOPS], old_gate[GATE_TABLE_MAX_THRESHOLDS],
        new_gate[GATE_TABLE_MAX_THRESHOLDS];
};

static void add_to_all(const struct gate_table *t, struct columns *c, const struct gate_row *row,
                       const struct gate *gate)
{
    uint32_t n_loops = (uint32_t)t->n_loops;
    float lambdas[GATE_MAX_LOOPS];
    for (uint32_t loop = 0; loop < n_loops; loop++) {
        double z = gate_logit(gate->weight, (double)gate->bias,
                              row->hidden + (size_t)loop * (size_t)gate->d, gate->d);
        lambdas[loop] = (float)(1 / (1 + exp(-z)));
        add_row(&c->fixed[loop], row, loop + 1);
    }
    for (int i = 0; i < t->n_thresholds; i++) {
        float q = t->thresholds[i];
        add_row(&c->old_gate[i], row, teacher_exit_loop(row->lambda, n_loops, q));
        add_row(&c->new_gate[i], row, teacher_exit_loop(lambdas, n_loops, q));
    }
}

static void take_means(const struct gate_table *t, struct gate_outcome *o)
{
    o->accuracy /= (double)t->n_rows;
    o->ce /= (double)t->n_rows;
    o->mean_loops /= (double)t->n_rows;
    o->exact /= (double)t->n_texts;
}

enum status gate_table_fill(struct gate_table *t, const struct gate_rows *rows,
                            const struct gate *gate, struct err *err)
{
    struct gate_table made = {.n_loops = rows->n_loops, .n_thresholds = t->n_thresholds};
    struct columns columns;
    struct gate_window window = {0};
    memcpy(made.thresholds, t->thresholds, sizeof made.thresholds);
    for (int i = 0; i < GATE_MAX_LOOPS; i++)
        columns.fixed[i] = (struct column){&made.fixed[i], false};
    for (int i = 0; i < GATE_TABLE_MAX_THRESHOLDS; i++) {
        columns.old_gate[i] = (struct column){&made.old_gate[i], false};
        columns.new_gate[i] = (struct column){&made.new_gate[i], false};
    }
    enum status st = gate_window_create(rows, WINDOW_BYTES, &window, err);
    for (uint64_t first = 0; st == STATUS_OK && first < rows->n_rows; first += window.cap) {
        uint64_t n = rows->n_rows - first < window.cap ? rows->n_rows - first : window.cap;
        st = gate_window_read(&window, 0, first, n, err);
        for (uint64_t i = 0; st == STATUS_OK && i < n; i++) {
            struct gate_row row;
            gate_window_get(&window, i, &row);
            made.n_texts += row.index == 0;
            add_to_all(&made, &columns, &row, gate);
        }
    }
    gate_window_free(&window);
    if (st != STATUS_OK)
        return st;
    made.n_rows = rows->n_rows;
    for (int i = 0; i < made.n_loops; i++)
        take_means(&made, &made.fixed[i]);
    for (int i = 0; i < made.n_thresholds; i++) {
        take_means(&made, &made.old_gate[i]);
        take_means(&made, &made.new_gate[i]);
    }
    *t = made;
    return STATUS_OK;
}

/* ---- for people ----------------------------------------------------------------------------- */

static void print_outcome(const struct gate_outcome *o, FILE *out)
{
    fprintf(out, "  %6.2f%% %6.2f%% %7.4f %5.2f", 100 * o->accuracy, 100 * o->exact, o->ce,
            o->mean_loops);
}

static void print_exits(const struct gate_table *t, const struct gate_outcome *o, FILE *out)
{
    for (int i = 0; i < t->n_loops; i++)
        fprintf(out, "%s%.0f", i > 0 ? "/" : "  ", 100 * (double)o->exits[i] / (double)t->n_rows);
    fputc('\n', out);
}

void gate_table_print(const struct gate_table *t, FILE *out)
{
    fprintf(out, "held out: %" PRIu64 " rows of %" PRIu64 " texts\n\n", t->n_rows, t->n_texts);
    fputs("           row      text\n"
          "fixed      right    right    CE\n",
          out);
    for (int i = 0; i < t->n_loops; i++)
        fprintf(out, "loop %d   %6.2f%% %7.2f%% %7.4f\n", i + 1, 100 * t->fixed[i].accuracy,
                100 * t->fixed[i].exact, t->fixed[i].ce);
    fputs("\n       old gate                        new gate\n"
          "         row     text                    row     text\n"
          "   q    right   right      CE  loops     right   right      CE  loops  exits of the new "
          "gate, %\n",
          out);
    for (int i = 0; i < t->n_thresholds; i++) {
        fprintf(out, "%5.3g", (double)t->thresholds[i]);
        print_outcome(&t->old_gate[i], out);
        fputs("  ", out);
        print_outcome(&t->new_gate[i], out);
        print_exits(t, &t->new_gate[i], out);
    }
}

/* ---- for programs --------------------------------------------------------------------------- */

static json_t *outcome_json(const struct gate_outcome *o, int n_loops)
{
    json_t *exits = json_array();
    for (int i = 0; i < n_loops; i++)
        json_array_append_new(exits, json_integer((json_int_t)o->exits[i]));
    return json_pack("{s:f, s:f, s:f, s:f, s:o}", "accuracy", o->accuracy, "exact", o->exact, "ce",
                     o->ce, "mean_loops", o->mean_loops, "exits", exits);
}

json_t *gate_table_json(const struct gate_table *t)
{
    json_t *loops = json_array(), *thresholds = json_array();
    for (int i = 0; i < t->n_loops; i++)
        json_array_append_new(loops, json_pack("{s:i, s:f, s:f, s:f}", "loop", i + 1, "accuracy",
                                               t->fixed[i].accuracy, "exact", t->fixed[i].exact,
                                               "ce", t->fixed[i].ce));
    for (int i = 0; i < t->n_thresholds; i++) {
        /* 0.1f as 0.1: what the user typed */
        double q = round((double)t->thresholds[i] * 1e6) / 1e6;
        json_array_append_new(thresholds,
                              json_pack("{s:f, s:o, s:o}", "q", q, "old",
                                        outcome_json(&t->old_gate[i], t->n_loops), "new",
                                        outcome_json(&t->new_gate[i], t->n_loops)));
    }
    return json_pack("{s:I, s:I, s:o, s:o}", "rows", (json_int_t)t->n_rows, "texts",
                     (json_int_t)t->n_texts, "loops", loops, "thresholds", thresholds);
}
