/* Tells how far a long run is. */
#include "cli/progress.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_INTERVAL_NS  UINT64_C(100000000)
#define LINE_INTERVAL_NS UINT64_C(5000000000)

enum { BAR_MIN = 8, BAR_MAX = 40 };

double progress_eta_s(const struct progress_facts *f)
{
    /* Errors cost no time worth counting, nor did this run do what earlier ones did. */
    uint64_t n_free = f->n_skipped + f->n_errors;
    if (f->n_total == 0 || f->n_done <= n_free || f->n_done > f->n_total)
        return -1;
    uint64_t n_own = f->n_done - n_free;
    return (double)(f->n_total - f->n_done) * f->elapsed_s / (double)n_own;
}

void progress_format_time(double seconds, char *out, size_t cap_bytes)
{
    unsigned long long s = (unsigned long long)llround(seconds);
    if (s >= 3600)
        snprintf(out, cap_bytes, "%llu:%02llu:%02llu", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, cap_bytes, "%llu:%02llu", s / 60, s % 60);
}

/* Appends as far as there is room. */
static void add(char *out, size_t cap_bytes, size_t *n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void add(char *out, size_t cap_bytes, size_t *n, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(out + *n, cap_bytes - *n, format, args);
    va_end(args);
    if (wanted > 0)
        *n = *n + (size_t)wanted < cap_bytes ? *n + (size_t)wanted : cap_bytes - 1;
}

static void add_counts(const struct progress_facts *f, char *out, size_t cap, size_t *n)
{
    add(out, cap, n, "%llu", (unsigned long long)f->n_done);
    if (f->n_total > 0)
        add(out, cap, n, "/%llu", (unsigned long long)f->n_total);
}

static double tokens_per_s(const struct progress_facts *f)
{
    return f->elapsed_s > 0 ? (double)f->n_tokens / f->elapsed_s : 0.0;
}

static double mean_exit_loop(const struct progress_facts *f)
{
    return f->n_tokens > 0 ? (double)f->sum_exit_loops / (double)f->n_tokens : 0.0;
}

size_t progress_format_line(const struct progress_facts *f, char *out, size_t cap_bytes)
{
    size_t n = 0;
    char eta[32];
    double eta_s = progress_eta_s(f);
    add_counts(f, out, cap_bytes, &n);
    add(out, cap_bytes, &n, " done, %.0f tokens/s, mean exit loop %.2f", tokens_per_s(f),
        mean_exit_loop(f));
    if (eta_s >= 0) {
        progress_format_time(eta_s, eta, sizeof eta);
        add(out, cap_bytes, &n, ", ETA %s", eta);
    }
    if (f->n_errors > 0)
        add(out, cap_bytes, &n, ", %llu %s", (unsigned long long)f->n_errors,
            f->n_errors == 1 ? "error" : "errors");
    return n;
}

static void add_bar(const struct progress_facts *f, const struct terminal *t, size_t width,
                    char *out, size_t cap, size_t *n)
{
    size_t filled = (size_t)((double)width * (double)f->n_done / (double)f->n_total);
    if (filled > width)
        filled = width;
    if (t->has_colour)
        add(out, cap, n, "\033[36m");
    for (size_t i = 0; i < filled; i++)
        add(out, cap, n, "%s", t->has_utf8 ? "\u2501" : "#");
    if (t->has_colour)
        add(out, cap, n, "\033[90m");
    for (size_t i = filled; i < width; i++)
        add(out, cap, n, "%s", t->has_utf8 ? "\u2500" : ".");
    if (t->has_colour)
        add(out, cap, n, "\033[0m");
    add(out, cap, n, " ");
}

size_t progress_format_bar(const struct progress_facts *f, const struct terminal *t, char *out,
                           size_t cap_bytes)
{
    char text[192], errors[48] = "", eta[32];
    size_t n_text = 0, n = 0, n_errors = 0;
    double eta_s = progress_eta_s(f);
    add_counts(f, text, sizeof text, &n_text);
    add(text, sizeof text, &n_text, "  %.0f tok/s  exit %.2f", tokens_per_s(f), mean_exit_loop(f));
    if (eta_s >= 0) {
        progress_format_time(eta_s, eta, sizeof eta);
        add(text, sizeof text, &n_text, "  ETA %s", eta);
    }
    if (f->n_errors > 0)
        add(errors, sizeof errors, &n_errors, "  %llu %s", (unsigned long long)f->n_errors,
            f->n_errors == 1 ? "error" : "errors");
    /* One column stays free: a character in the last one makes some terminals wrap. */
    size_t used = n_text + n_errors + 7, columns = (size_t)t->columns;
    if (f->n_total > 0 && columns >= used + BAR_MIN) {
        size_t width = columns - used;
        unsigned percent = (unsigned)(100.0 * (double)f->n_done / (double)f->n_total);
        add(out, cap_bytes, &n, "%3u%% ", percent < 100 ? percent : 100);
        add_bar(f, t, width < BAR_MAX ? width : BAR_MAX, out, cap_bytes, &n);
    }
    if (n_text + n_errors >= columns) {
        n_errors = 0;
        text[n_text < columns ? n_text : columns - 1] = '\0';
    }
    add(out, cap_bytes, &n, "%s", text);
    if (n_errors > 0)
        add(out, cap_bytes, &n, "%s%s%s", t->has_colour ? "\033[31m" : "", errors,
            t->has_colour ? "\033[0m" : "");
    return n;
}

void progress_init(struct progress *p, const char *name, bool is_quiet)
{
    *p = (struct progress){.name = name, .is_quiet = is_quiet};
    terminal_look(STDERR_FILENO, &p->terminal);
}

void progress_update(struct progress *p, const struct progress_facts *f, uint64_t now_ns)
{
    bool is_bar = p->terminal.is_terminal;
    if (p->is_quiet || now_ns < p->next_ns)
        return;
    /* The first plain line says something only after some work. */
    bool is_first = p->next_ns == 0;
    p->next_ns = now_ns + (is_bar ? BAR_INTERVAL_NS : LINE_INTERVAL_NS);
    if (is_first && !is_bar)
        return;
    char text[1024];
    if (is_bar) {
        progress_format_bar(f, &p->terminal, text, sizeof text);
        fprintf(stderr, "\r\033[K%s", text);
        p->is_shown = true;
    } else {
        progress_format_line(f, text, sizeof text);
        fprintf(stderr, "%s: %s\n", p->name, text);
    }
    fflush(stderr);
}

void progress_clear(struct progress *p)
{
    if (p->is_shown) {
        fprintf(stderr, "\r\033[K");
        fflush(stderr);
    }
    p->is_shown = false;
}
