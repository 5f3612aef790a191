/* The loop fields of requests and answers as headers, for clients that cannot add fields. */
#include "coordinator/http_state.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_EXIT_LOOPS = 1000, LIST_BYTES = SEQUENCE_MAX_LOOPS * 24 };

enum kind { KIND_WORD, KIND_INTEGER, KIND_NUMBER, KIND_FLAG };

static const struct loop_header {
    const char *name, *key;
    enum kind kind;
} headers[] = {
    {"X-Carousel-Loop-Mode", "mode", KIND_WORD},
    {"X-Carousel-Max-Loops", "max", KIND_INTEGER},
    {"X-Carousel-Min-Loops", "min", KIND_INTEGER},
    {"X-Carousel-Exit-Threshold", "exit_threshold", KIND_NUMBER},
    {"X-Carousel-Return-Exit-Loops", "return_exit_loops", KIND_FLAG},
};

/* False: the value is not of that kind. Its range is the body's to check. */
static bool write_value(struct json_writer *w, enum kind kind, const char *value)
{
    char *end = NULL;
    errno = 0;
    if (kind == KIND_WORD) {
        json_write_string(w, value);
    } else if (kind == KIND_INTEGER) {
        long long n = strtoll(value, &end, 10);
        if (end == value || *end || errno)
            return false;
        json_write_integer(w, n);
    } else if (kind == KIND_NUMBER) {
        double x = strtod(value, &end);
        if (end == value || *end || !isfinite(x))
            return false;
        json_write_number(w, x);
    } else {
        bool is_true = strcasecmp(value, "true") == 0 || strcmp(value, "1") == 0;
        if (!is_true && strcasecmp(value, "false") != 0 && strcmp(value, "0") != 0)
            return false;
        json_write_bool(w, is_true);
    }
    return true;
}

enum status http_loops_read(struct http_exchange *x, char **json, struct fault *fault)
{
    static const char *const wanted[] = {"a word", "a whole number", "a number", "true or false"};
    struct text out = {0};
    struct json_writer w;
    bool is_any = false;
    json_writer_init(&w, &out);
    json_write_begin_object(&w);
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        const char *value = http_header_in(x, headers[i].name);
        if (!value)
            continue;
        is_any = true;
        json_write_key(&w, headers[i].key);
        if (!write_value(&w, headers[i].kind, value)) {
            text_free(&out);
            return fault_request(fault, STATUS_INVALID, headers[i].name, NULL,
                                 "header %s is '%.80s', expected %s", headers[i].name, value,
                                 wanted[headers[i].kind]);
        }
        if (headers[i].kind == KIND_FLAG)
            x->wants_exit_loops = strcasecmp(value, "true") == 0 || strcmp(value, "1") == 0;
    }
    json_write_end_object(&w);
    text_add(&out, "", 1);
    if (out.is_broken) {
        text_free(&out);
        fault_set(fault, 500, "server_error", NULL, "no memory for the loop headers");
        return fault->err.code;
    }
    *json = NULL;
    if (is_any)
        *json = out.bytes;
    else
        text_free(&out);
    return STATUS_OK;
}

static void add_list(struct http_exchange *x, const char *name, const double *seconds, uint32_t n)
{
    char list[LIST_BYTES];
    int at = 0;
    for (uint32_t i = 0; i < n; i++)
        at +=
            snprintf(list + at, sizeof list - (size_t)at, "%s%.3f", i ? "," : "", seconds[i] * 1e3);
    http_header_out(x, name, list);
}

static void add_exit_loops(struct http_exchange *x)
{
    char list[2 * MAX_EXIT_LOOPS + 1] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < x->answer.n_choices; i++) {
        const struct answer_choice *c = &x->answer.choices[i];
        for (size_t k = 0; k < c->n_tokens && at < 2 * MAX_EXIT_LOOPS; k++) {
            if (at)
                list[at - 1] = ',';
            list[at++] = (char)('0' + c->exit_loops[k]); /* at most SEQUENCE_MAX_LOOPS */
            list[at++] = '\0';
        }
    }
    http_header_out(x, "X-Carousel-Exit-Loops", list);
}

void http_loops_write(struct http_exchange *x)
{
    struct answer_loops sum = {0};
    uint64_t n_tokens = 0;
    char mean[32];
    static_assert(SEQUENCE_MAX_LOOPS < 10, "a loop is one digit in a header");
    for (uint32_t i = 0; i < x->answer.n_choices; i++) {
        const struct answer_loops *l = &x->answer.choices[i].loops;
        n_tokens += x->answer.choices[i].n_tokens;
        sum.sum_exit_loops += l->sum_exit_loops;
        for (uint32_t t = 0; t < x->answer.n_loops; t++) {
            sum.wait_s[t] += l->wait_s[t];
            sum.compute_s[t] += l->compute_s[t];
            sum.hop_s[t] += l->hop_s[t];
        }
    }
    if (!n_tokens)
        return;
    snprintf(mean, sizeof mean, "%.4f", (double)sum.sum_exit_loops / (double)n_tokens);
    http_header_out(x, "X-Carousel-Mean-Exit-Loop", mean);
    add_list(x, "X-Carousel-Loop-Wait-Ms", sum.wait_s, x->answer.n_loops);
    add_list(x, "X-Carousel-Loop-Compute-Ms", sum.compute_s, x->answer.n_loops);
    add_list(x, "X-Carousel-Loop-Hop-Ms", sum.hop_s, x->answer.n_loops);
    if (x->wants_exit_loops)
        add_exit_loops(x);
}
