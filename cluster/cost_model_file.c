/* Reads and writes cost files: every field checked, times in microseconds as people read them. */
#include "cluster/cost_model.h"

#include "model/atomic_file.h"
#include "model/json_input.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_BYTES = 1 << 20 };

/* Far above anything real, and low enough that a batch's nanoseconds fit in 64 bits. */
static const double MAX_US = 1e9, MAX_ROWS = 1e6, MAX_GB_PER_S = 1e6;
/* What is multiplied by the positions of a batch, of which there are billions, and what a curve's
 * last slope may come to. */
static const double MAX_POSITION_US = 1e3, MAX_LAST_US = 1e12;
static const double NS_PER_US = 1e3;

/* An object of the file and what messages need to name it. */
struct cost_reader {
    const json_t *object;
    const char *origin, *prefix; /* prefix: "" or "links.local." */
    struct err *err;
};

static enum status fail_value(const struct cost_reader *r, const char *key, const json_t *value,
                              const char *expected)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    if (value == NULL)
        return err_set(r->err, STATUS_CORRUPT, "field %s%s is missing from %s: expected %s",
                       r->prefix, key, r->origin, expected);
    return err_set(r->err, STATUS_CORRUPT, "field %s%s in %s: expected %s, found %s", r->prefix,
                   key, r->origin, expected, json_input_show(value, shown));
}

static bool is_number_in(const json_t *value, double min, double max)
{
    if (!json_is_number(value))
        return false;
    double v = json_number_value(value);
    return v >= min && v <= max;
}

static enum status read_number(const struct cost_reader *r, const char *key, double min, double max,
                               double *out)
{
    const json_t *value = json_object_get(r->object, key);
    if (!is_number_in(value, min, max)) {
        char expected[64];
        snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
        return fail_value(r, key, value, expected);
    }
    *out = json_number_value(value);
    return STATUS_OK;
}

static enum status read_us(const struct cost_reader *r, const char *key, double max_us, double *ns)
{
    double us = 0;
    enum status status = read_number(r, key, 0, max_us, &us);
    if (status == STATUS_OK)
        *ns = us * NS_PER_US;
    return status;
}

static enum status read_text(const struct cost_reader *r, const char *key, char *out, size_t cap)
{
    const json_t *value = json_object_get(r->object, key);
    const char *text = json_string_value(value);
    bool is_line = text != NULL && strlen(text) < cap;
    for (const char *p = text; is_line && *p != '\0'; p++)
        is_line = (unsigned char)*p >= 0x20 && *p != 0x7f;
    if (!is_line) {
        char expected[64];
        snprintf(expected, sizeof expected, "one line of at most %zu bytes", cap - 1);
        return fail_value(r, key, value, expected);
    }
    memcpy(out, text, strlen(text) + 1);
    return STATUS_OK;
}

/* [[rows, us], ...] */
static enum status read_curve(const struct cost_reader *r, const char *key, struct cost_curve *out)
{
    const json_t *value = json_object_get(r->object, key);
    size_t n = json_array_size(value); /* 0 for what is no array */
    if (n < 1 || n > COST_MODEL_MAX_POINTS) {
        char expected[64];
        snprintf(expected, sizeof expected, "1 to %d pairs [rows, us]", COST_MODEL_MAX_POINTS);
        return fail_value(r, key, value, expected);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(value, i);
        const json_t *x = json_array_get(pair, 0), *y = json_array_get(pair, 1);
        if (json_array_size(pair) != 2 || !is_number_in(x, 1, MAX_ROWS) ||
            !is_number_in(y, 0, MAX_US))
            return fail_value(r, key, pair, "a pair [rows from 1 to 1e+06, us from 0 to 1e+09]");
        out->x[i] = json_number_value(x);
        out->y[i] = json_number_value(y) * NS_PER_US;
        if (i > 0 && out->x[i] <= out->x[i - 1])
            return fail_value(r, key, pair, "more rows than in the pair before");
    }
    /* What lies beyond goes on like this, and must not become negative. */
    if (n > 1 && out->y[n - 1] < out->y[n - 2])
        return fail_value(r, key, json_array_get(value, n - 1),
                          "no fewer us in the last pair than in the one before");
    out->n_points = (uint32_t)n;
    if (cost_curve_at(out, MAX_ROWS) > MAX_LAST_US * NS_PER_US)
        return fail_value(r, key, json_array_get(value, n - 1),
                          "a last slope that comes to at most 1e+12 us at 1e+06 rows");
    return STATUS_OK;
}

/* A key nobody reads is a typing error more often than not. */
static enum status check_keys(const struct cost_reader *r, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)r->object, key, value)
    {
        const char *const *at = known;
        while (*at != NULL && strcmp(*at, key) != 0)
            at++;
        if (*at == NULL) {
            char shown[JSON_INPUT_SHOWN_BYTES];
            json_t *name = json_string(key);
            enum status status =
                err_set(r->err, STATUS_CORRUPT,
                        "unknown field %s in %s%s; docs/simulator.md lists "
                        "the fields of a cost file",
                        json_input_show(name, shown), *r->prefix ? "links of " : "", r->origin);
            json_decref(name);
            return status;
        }
    }
    return STATUS_OK;
}

static enum status read_link(const struct cost_reader *links, const char *key, const char *prefix,
                             struct cost_link *out)
{
    static const char *const known[] = {"latency_us", "gb_per_s", NULL};
    const json_t *value = json_object_get(links->object, key);
    if (!json_is_object(value))
        return fail_value(links, key, value, "an object with latency_us and gb_per_s");
    struct cost_reader r = {value, links->origin, prefix, links->err};
    double gb_per_s = 0;
    enum status status = check_keys(&r, known);
    if (status == STATUS_OK)
        status = read_us(&r, "latency_us", MAX_US, &out->latency_ns);
    if (status == STATUS_OK)
        status = read_number(&r, "gb_per_s", 1e-6, MAX_GB_PER_S, &gb_per_s);
    if (status == STATUS_OK)
        out->ns_per_byte = 1.0 / gb_per_s;
    return status;
}

static enum status read_links(const struct cost_reader *r, struct cost_model *m)
{
    static const char *const known[] = {"local", "remote", NULL};
    const json_t *value = json_object_get(r->object, "links");
    if (!json_is_object(value))
        return fail_value(r, "links", value, "an object with local and remote");
    struct cost_reader links = {value, r->origin, "links.", r->err};
    enum status status = check_keys(&links, known);
    if (status == STATUS_OK)
        status = read_link(&links, "local", "links.local.", &m->local);
    return status == STATUS_OK ? read_link(&links, "remote", "links.remote.", &m->remote) : status;
}

static enum status read_model(const struct cost_reader *r, struct cost_model *m)
{
    static const char *const known[] = {"name",
                                        "source",
                                        "notes",
                                        "backend",
                                        "block_us",
                                        "kv_position_us",
                                        "head_us",
                                        "batch_overhead_us",
                                        "worker_message_us",
                                        "worker_row_us",
                                        "coordinator_request_us",
                                        "coordinator_token_us",
                                        "links",
                                        "ranks_per_host",
                                        "jitter",
                                        NULL};
    const struct {
        const char *key;
        double max_us, *ns;
    } times[] = {
        {"kv_position_us", MAX_POSITION_US, &m->kv_position_ns},
        {"batch_overhead_us", MAX_US, &m->batch_overhead_ns},
        {"worker_message_us", MAX_US, &m->worker_message_ns},
        {"worker_row_us", MAX_US, &m->worker_row_ns},
        {"coordinator_request_us", MAX_US, &m->coordinator_request_ns},
        {"coordinator_token_us", MAX_US, &m->coordinator_token_ns},
    };
    enum status status = check_keys(r, known);
    if (status == STATUS_OK)
        status = read_text(r, "name", m->name, sizeof m->name);
    if (status == STATUS_OK)
        status = read_text(r, "source", m->source, sizeof m->source);
    if (status == STATUS_OK)
        status = read_text(r, "backend", m->backend, sizeof m->backend);
    if (status == STATUS_OK)
        status = read_curve(r, "block_us", &m->block);
    if (status == STATUS_OK)
        status = read_curve(r, "head_us", &m->head);
    for (size_t i = 0; status == STATUS_OK && i < sizeof times / sizeof times[0]; i++)
        status = read_us(r, times[i].key, times[i].max_us, times[i].ns);
    if (status == STATUS_OK)
        status = read_links(r, m);
    double ranks = 0;
    if (status == STATUS_OK)
        status = read_number(r, "ranks_per_host", 1, 4096, &ranks);
    if (status == STATUS_OK && ranks != floor(ranks))
        status = fail_value(r, "ranks_per_host", json_object_get(r->object, "ranks_per_host"),
                            "a whole number");
    if (status == STATUS_OK) {
        m->ranks_per_host = (uint32_t)ranks;
        status = read_number(r, "jitter", 0, COST_MODEL_MAX_JITTER, &m->jitter);
    }
    if (status == STATUS_OK && m->block.y[0] <= 0)
        status = fail_value(r, "block_us", json_object_get(r->object, "block_us"),
                            "a batch that takes more than 0 us");
    return status;
}

enum status cost_model_parse(const char *text, size_t len_bytes, const char *name,
                             struct cost_model *out, struct err *err)
{
    json_t *root;
    enum status status = json_input_parse(text, len_bytes, name, &root, err);
    if (status != STATUS_OK)
        return status;
    struct cost_reader r = {root, name, "", err};
    struct cost_model m = {0};
    status = read_model(&r, &m);
    if (status == STATUS_OK)
        *out = m;
    json_decref(root);
    return status;
}

enum status cost_model_load(const char *path, struct cost_model *out, struct err *err)
{
    char *text = NULL;
    size_t len_bytes = 0;
    enum status status = json_input_read(path, MAX_FILE_BYTES, &text, &len_bytes, err);
    if (status == STATUS_OK)
        status = cost_model_parse(text, len_bytes, path, out, err);
    free(text);
    return status;
}

static json_t *curve_json(const struct cost_curve *c)
{
    json_t *points = json_array();
    for (uint32_t i = 0; i < c->n_points; i++)
        json_array_append_new(points, json_pack("[f, f]", c->x[i], c->y[i] / NS_PER_US));
    return points;
}

static json_t *link_json(const struct cost_link *l)
{
    return json_pack("{s:f, s:f}", "latency_us", l->latency_ns / NS_PER_US, "gb_per_s",
                     1.0 / l->ns_per_byte);
}

enum status cost_model_save(const struct cost_model *m, const char *path, struct err *err)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:o, s:f, s:o, s:f, s:f, s:f, s:f, s:f, s:{s:o, s:o}, s:i, s:f}", "name",
        m->name, "source", m->source, "backend", m->backend, "block_us", curve_json(&m->block),
        "kv_position_us", m->kv_position_ns / NS_PER_US, "head_us", curve_json(&m->head),
        "batch_overhead_us", m->batch_overhead_ns / NS_PER_US, "worker_message_us",
        m->worker_message_ns / NS_PER_US, "worker_row_us", m->worker_row_ns / NS_PER_US,
        "coordinator_request_us", m->coordinator_request_ns / NS_PER_US, "coordinator_token_us",
        m->coordinator_token_ns / NS_PER_US, "links", "local", link_json(&m->local), "remote",
        link_json(&m->remote), "ranks_per_host", (int)m->ranks_per_host, "jitter", m->jitter);
    if (root == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the text of %s", path);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(root);
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the text of %s", path);
    size_t len = strlen(text);
    text[len] = '\n'; /* in the place of the NUL: the file ends in a line break */
    enum status status = atomic_file_write(path, text, len + 1, err);
    free(text);
    return status;
}
