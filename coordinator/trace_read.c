/* Reads a trace file back, line by line. */
#include "coordinator/trace_fields.h"
#include "coordinator/trace_set.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

enum { READ_BYTES = 1 << 20, MAX_LINE_BYTES = 64 << 20 };

static const char first_line[] = "{\"traceEvents\":[";

struct reader {
    const char *name;
    struct trace_set *set; /* with as many ranks as were seen */
    uint32_t n_room;       /* of set->ranks */
    uint64_t n_lines;      /* the line at hand, from 1 */
    bool has_begun, is_comma_due, has_ended;
};

static enum status fail(const struct reader *r, struct err *err, const char *what)
{
    return err_set(err, STATUS_CORRUPT, "%s: line %" PRIu64 ": %s", r->name, r->n_lines, what);
}

static enum status fail_cut(const struct reader *r, struct err *err)
{
    return err_set(err, STATUS_CORRUPT,
                   "%s ends after %" PRIu64
                   " lines, in the middle: it was cut; record it again, or "
                   "copy it again from where it was written",
                   r->name, r->n_lines);
}

static enum status ensure_rank(struct reader *r, uint32_t rank, struct err *err)
{
    struct trace_set *set = r->set;
    if (rank < set->n_ranks)
        return STATUS_OK;
    if (rank >= r->n_room) {
        uint32_t n_room = 2 * (rank + 1);
        struct trace_rank *grown = realloc(set->ranks, n_room * sizeof *grown);
        if (grown == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the trace of %" PRIu32 " ranks",
                           rank + 1);
        set->ranks = grown;
        r->n_room = n_room;
    }
    memset(set->ranks + set->n_ranks, 0, (rank + 1 - set->n_ranks) * sizeof *set->ranks);
    set->n_ranks = rank + 1;
    return STATUS_OK;
}

static enum status take_event(struct reader *r, const json_t *event, struct err *err)
{
    struct trace_fields f = {.status = STATUS_OK};
    struct trace_record record;
    uint32_t rank;
    /* Names of tracks: the end says them again. */
    if (strcmp(trace_field_string(&f, event, "ph", true), "M") == 0)
        return STATUS_OK;
    bool is_record = trace_fields_record(&f, event, &record, &rank);
    if (f.status != STATUS_OK)
        return fail(r, err, f.err.message);
    if (!is_record)
        return STATUS_OK;
    enum status status = ensure_rank(r, rank, err);
    return status == STATUS_OK ? trace_set_append(r->set, rank, &record, 1, err) : status;
}

/* ---- the last line -------------------------------------------------------------------------- */

static enum status take_rank(struct reader *r, const json_t *rank, uint32_t number,
                             struct trace_fields *f, struct err *err)
{
    enum status status = ensure_rank(r, number, err);
    if (status != STATUS_OK)
        return status;
    struct trace_rank *out = &r->set->ranks[number];
    snprintf(out->host, sizeof out->host, "%s", trace_field_string(f, rank, "host", true));
    uint64_t n_records = trace_field_number(f, rank, "records", INT64_MAX, true);
    out->n_lost = trace_field_number(f, rank, "lost", INT64_MAX, true);
    out->is_missing = json_is_true(json_object_get(rank, "missing"));
    /* Already out of the times: align has nothing to do with it. */
    out->clock_removed_ns = json_integer_value(json_object_get(rank, "clock_offset_ns"));
    out->clock_error_ns = trace_field_number(f, rank, "clock_error_ns", INT64_MAX, true);
    out->is_clock_shared = json_is_true(json_object_get(rank, "clock_shared"));
    if (f->status == STATUS_OK && n_records != out->n_records)
        return err_set(err, STATUS_CORRUPT,
                       "%s: line %" PRIu64 " tells of %" PRIu64 " records of rank %" PRIu32
                       "; the file has %zu: it was changed since it was written",
                       r->name, r->n_lines, n_records, number, out->n_records);
    return STATUS_OK;
}

static enum status add_begin(struct trace_set *set, uint64_t begin_ns)
{
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++) {
            struct trace_record *a = &set->ranks[rank].records[i];
            a->at_ns += begin_ns; /* both fit an int64_t */
            if (a->lasted_ns > UINT64_MAX - a->at_ns)
                return STATUS_CORRUPT;
        }
    return STATUS_OK;
}

static enum status take_other_data(struct reader *r, const json_t *other, struct err *err)
{
    struct trace_fields f = {.status = STATUS_OK};
    struct trace_set *set = r->set;
    const json_t *program = json_object_get(other, "program");
    const json_t *ranks = json_object_get(other, "ranks");
    if (!json_is_string(program) || strcmp(json_string_value(program), "carousel") != 0)
        return fail(r, err, "this is a trace of another program: otherData names no \"carousel\"");
    set->n_loops = (uint32_t)trace_field_number(&f, other, "loops", SEQUENCE_MAX_LOOPS, true);
    set->ring_size = (uint32_t)trace_field_number(&f, other, "ring_size", UINT16_MAX, true);
    set->is_simulated = json_is_true(json_object_get(other, "simulated"));
    snprintf(set->version, sizeof set->version, "%s",
             trace_field_string(&f, other, "version", true));
    snprintf(set->model, sizeof set->model, "%s", trace_field_string(&f, other, "model", true));
    uint64_t begin_ns = trace_field_number(&f, other, "begin_ns", INT64_MAX, true);
    enum status status = STATUS_OK;
    if (!json_is_array(ranks) || json_array_size(ranks) < set->n_ranks ||
        json_array_size(ranks) > UINT16_MAX + 1)
        status = fail(r, err, "\"ranks\" does not list every rank of the events");
    for (size_t i = 0; status == STATUS_OK && i < json_array_size(ranks); i++)
        status = take_rank(r, json_array_get(ranks, i), (uint32_t)i, &f, err);
    if (status == STATUS_OK && f.status != STATUS_OK)
        status = fail(r, err, f.err.message);
    if (status == STATUS_OK && add_begin(set, begin_ns) != STATUS_OK)
        status = fail(r, err, "with this \"begin_ns\" a record ends after the end of time");
    return status;
}

/* `],"displayTimeUnit":"ms","otherData":{...}}`: an object once its first bracket is replaced. */
static enum status take_end(struct reader *r, const char *line, size_t len, struct err *err)
{
    static const char opening[] = "{\"traceEvents\":0";
    char *text = malloc(sizeof opening + len);
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for line %" PRIu64 " of %s", r->n_lines,
                       r->name);
    memcpy(text, opening, sizeof opening - 1);
    memcpy(text + sizeof opening - 1, line + 1, len - 1);
    json_t *root = json_loadb(text, sizeof opening - 1 + len - 1, 0, NULL);
    free(text);
    const json_t *other = json_object_get(root, "otherData");
    enum status status =
        root == NULL    ? fail(r, err, "the list of events ends here, but not with JSON")
        : other == NULL ? fail(r, err, "this is a trace of another program: it has no otherData")
                        : take_other_data(r, other, err);
    json_decref(root);
    r->has_ended = true;
    return status;
}

/* ---- lines ---------------------------------------------------------------------------------- */

/* Ends of spans, their parts, arrows and what else is there for the eye only says nothing that is
 * not said elsewhere: two of three lines of a file as it was written, known by their looks. */
static bool is_only_seen(const char *line, size_t len)
{
    static const char start[] = "{\"ph\":\"", view[] = "\"cat\":\"view\"", args[] = "\"args\":";
    if (len <= sizeof start + 1 || memcmp(line, start, sizeof start - 1) != 0 ||
        line[sizeof start] != '"' || line[len - 1] != '}')
        return false;
    char phase = line[sizeof start - 1];
    return memchr("estf", phase, 4) != NULL ||
           (phase == 'b' && memmem(line, len, args, sizeof args - 1) == NULL) ||
           memmem(line, len, view, sizeof view - 1) != NULL;
}

static enum status take_line(struct reader *r, const char *line, size_t len, struct err *err)
{
    while (len > 0 && memchr(" \t\r", line[len - 1], 3) != NULL)
        len--;
    if (r->has_ended)
        return len == 0 ? STATUS_OK : fail(r, err, "there is more after the end of the trace");
    if (!r->has_begun) {
        if (len != sizeof first_line - 1 || memcmp(line, first_line, len) != 0)
            return err_set(err, STATUS_CORRUPT,
                           "%s is no trace that carousel has written: line 1 must be %s", r->name,
                           first_line);
        r->has_begun = true;
        return STATUS_OK;
    }
    if (len > 0 && line[0] == ']')
        return take_end(r, line, len, err);
    if (r->is_comma_due)
        return fail(r, err, "the line before has no comma at its end");
    r->is_comma_due = len == 0 || line[len - 1] != ',';
    len -= !r->is_comma_due;
    if (is_only_seen(line, len))
        return STATUS_OK;
    json_error_t why;
    json_t *event = json_loadb(line, len, 0, &why);
    enum status status;
    if (event == NULL) {
        char what[JSON_ERROR_TEXT_LENGTH + 40];
        snprintf(what, sizeof what, "an event that is no JSON: %s", why.text);
        status = fail(r, err, what);
    } else {
        status = take_event(r, event, err);
    }
    json_decref(event);
    return status;
}

/* Takes the whole lines of bytes[0 .. n), and the rest, too, if no more will come. */
static enum status take_lines(struct reader *r, const char *bytes, size_t n, bool is_end,
                              size_t *n_taken, struct err *err)
{
    enum status status = STATUS_OK;
    size_t at = 0;
    while (at < n && status == STATUS_OK) {
        const char *newline = memchr(bytes + at, '\n', n - at);
        if (newline == NULL && !is_end)
            break;
        size_t len = newline != NULL ? (size_t)(newline - bytes) - at : n - at;
        r->n_lines++;
        status = take_line(r, bytes + at, len, err);
        /* What is wrong with half a line is that it is half. */
        if (status == STATUS_CORRUPT && newline == NULL && r->has_begun && !r->has_ended)
            status = fail_cut(r, err);
        at += len + (newline != NULL);
    }
    *n_taken = at;
    return status;
}

static enum status start(struct reader *r, const char *name, struct err *err)
{
    *r = (struct reader){.name = name};
    return trace_set_create(0, &r->set, err);
}

static enum status finish(struct reader *r, enum status status, struct trace_set **out,
                          struct err *err)
{
    if (status == STATUS_OK && !r->has_ended)
        status = r->n_lines == 0 ? err_set(err, STATUS_CORRUPT, "%s is empty", r->name)
                                 : fail_cut(r, err);
    /* Nothing to do for a file as it was written. */
    if (status == STATUS_OK)
        status = trace_set_align(r->set, err);
    if (status == STATUS_OK)
        *out = r->set;
    else
        trace_set_destroy(r->set);
    return status;
}

enum status trace_set_parse(const char *text, size_t len_bytes, const char *name,
                            struct trace_set **out, struct err *err)
{
    struct reader r;
    size_t n_taken;
    enum status status = start(&r, name, err);
    if (status != STATUS_OK)
        return status;
    status = take_lines(&r, text, len_bytes, true, &n_taken, err);
    return finish(&r, status, out, err);
}

static enum status read_all(struct reader *r, FILE *file, struct err *err)
{
    size_t room = READ_BYTES, n = 0, n_taken;
    char *bytes = malloc(room);
    enum status status = STATUS_OK;
    for (bool is_end = false; status == STATUS_OK && !is_end;) {
        /* A line longer than the room: half of it stays, and the room doubles. */
        char *grown = n < room ? bytes : realloc(bytes, room *= 2);
        if (grown == NULL) {
            status = err_set(err, STATUS_NO_MEMORY, "no memory to read %s", r->name);
            break;
        }
        bytes = grown;
        n += fread(bytes + n, 1, room - n, file);
        if (ferror(file)) {
            status = err_set(err, STATUS_IO, "cannot read %s: %s", r->name, strerror(errno));
            break;
        }
        is_end = n < room;
        status = take_lines(r, bytes, n, is_end, &n_taken, err);
        if (status != STATUS_OK)
            break;
        n -= n_taken;
        memmove(bytes, bytes + n_taken, n);
        if (n > MAX_LINE_BYTES || (n > 0 && !r->has_begun && r->n_lines == 0))
            status = err_set(err, STATUS_CORRUPT,
                             "%s is no trace that carousel has written: line %" PRIu64
                             " is longer than any of its own",
                             r->name, r->n_lines + 1);
    }
    free(bytes);
    return status;
}

enum status trace_set_read(const char *path, struct trace_set **out, struct err *err)
{
    struct reader r;
    FILE *file = fopen(path, "rbe");
    if (file == NULL)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s",
                       path, strerror(errno));
    enum status status = start(&r, path, err);
    if (status == STATUS_OK) {
        status = read_all(&r, file, err);
        status = finish(&r, status, out, err);
    }
    fclose(file);
    return status;
}
