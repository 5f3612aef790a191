/* Writes one event as one line that nothing from outside can break, split or dress up.
 *
 * What a client sends may hold newlines, terminal escapes, text that runs backwards or no text at
 * all: for people it is quoted and escaped, in JSON the writer does it. Long values are cut. */
#include "coordinator/server_log.h"

#include "coordinator/json_writer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <utf8proc.h>

enum { VALUE_MAX_BYTES = 1024 };

static const char *const level_names[] = {"debug", "info", "warn", "error"};

/* The longest beginning of at most VALUE_MAX_BYTES that does not end within a character. */
static size_t cut(const char *string, bool *is_cut)
{
    size_t n = strnlen(string, VALUE_MAX_BYTES + 1);
    *is_cut = n > VALUE_MAX_BYTES;
    if (!*is_cut)
        return n;
    n = VALUE_MAX_BYTES;
    for (int i = 0; i < 3 && ((unsigned char)string[n] & 0xc0) == 0x80; i++)
        n--;
    return n;
}

/* A word that needs no quotes. */
static bool is_plain(const char *string, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (string[i] <= ' ' || string[i] > '~' || strchr("\"\\=", string[i]) != NULL)
            return false;
    return n > 0;
}

/* Whether a terminal shows the character where it stands, and as itself. */
static bool is_shown(utf8proc_int32_t c)
{
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC: /* control */
    case UTF8PROC_CATEGORY_CF: /* direction overrides, zero width */
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    default:
        return true;
    }
}

static void add_escaped(struct text *t, const char *string, size_t n)
{
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t size =
            utf8proc_iterate((const utf8proc_uint8_t *)string + i, (utf8proc_ssize_t)(n - i), &c);
        if (size <= 0) { /* no UTF-8: its first byte stands for itself */
            text_addf(t, "\\x%02x", (unsigned char)string[i]);
            i++;
            continue;
        }
        if (c == '"' || c == '\\')
            text_addf(t, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            text_adds(t, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (is_shown(c))
            text_add(t, string + i, (size_t)size);
        else
            text_addf(t, c > 0xffff ? "\\U%08x" : "\\u%04x", (unsigned)c);
        i += (size_t)size;
    }
}

static void add_string_for_people(struct text *t, const char *string)
{
    bool is_cut;
    size_t n = cut(string, &is_cut);
    if (!is_cut && is_plain(string, n)) {
        text_add(t, string, n);
        return;
    }
    text_adds(t, "\"");
    add_escaped(t, string, n);
    text_adds(t, is_cut ? "...\"" : "\"");
}

static void write_for_people(struct text *t, const struct tm *now, int ms, enum log_level level,
                             const char *event, const struct log_field *fields, size_t n_fields)
{
    text_addf(t, "%02d:%02d:%02d.%03d %-5s %s", now->tm_hour, now->tm_min, now->tm_sec, ms,
              level_names[level], event);
    for (size_t i = 0; i < n_fields; i++) {
        const struct log_field *f = &fields[i];
        if (f->type == LOG_STRING && f->string == NULL)
            continue;
        text_addf(t, " %s=", strcmp(f->key, "request_id") == 0 ? "id" : f->key);
        if (f->type == LOG_STRING)
            add_string_for_people(t, f->string);
        else if (f->type == LOG_INTEGER)
            text_addf(t, "%lld", (long long)f->integer);
        else if (f->type == LOG_NUMBER)
            text_addf(t, "%.6g", f->number);
        else
            text_adds(t, f->integer != 0 ? "true" : "false");
    }
}

static void write_as_json(struct text *t, const struct tm *now, int ms, enum log_level level,
                          const char *event, const struct log_field *fields, size_t n_fields)
{
    struct json_writer w;
    char time_text[64];
    snprintf(time_text, sizeof time_text, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ",
             now->tm_year + 1900, now->tm_mon + 1, now->tm_mday, now->tm_hour, now->tm_min,
             now->tm_sec, ms);
    json_writer_init(&w, t);
    json_write_begin_object(&w);
    json_write_key(&w, "time");
    json_write_string(&w, time_text);
    json_write_key(&w, "level");
    json_write_string(&w, level_names[level]);
    json_write_key(&w, "event");
    json_write_string(&w, event);
    for (size_t i = 0; i < n_fields; i++) {
        const struct log_field *f = &fields[i];
        if (f->type == LOG_STRING && f->string == NULL)
            continue;
        json_write_key(&w, f->key);
        if (f->type == LOG_STRING) {
            bool is_cut;
            char value[VALUE_MAX_BYTES + sizeof "..."];
            size_t n = cut(f->string, &is_cut);
            memcpy(value, f->string, n);
            memcpy(value + n, "...", 3);
            json_write_bytes(&w, value, n + (is_cut ? 3 : 0));
        } else if (f->type == LOG_INTEGER) {
            json_write_integer(&w, f->integer);
        } else if (f->type == LOG_NUMBER) {
            json_write_number(&w, f->number);
        } else {
            json_write_bool(&w, f->integer != 0);
        }
    }
    json_write_end_object(&w);
}

/* One write for the line; what a pipe did not take at once follows. A log that cannot be written
 * stops nothing. */
static void write_line(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, bytes, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return;
        bytes += done;
        n -= (size_t)done;
    }
}

void server_log(const struct server_log *log, enum log_level level, const char *event,
                const struct log_field *fields, size_t n_fields)
{
    if (level < log->level || level > LOG_LEVEL_ERROR)
        return;
    int saved_errno = errno;
    struct timespec now;
    struct tm utc;
    struct text line = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    int ms = (int)(now.tv_nsec / 1000000);
    if (log->is_json)
        write_as_json(&line, &utc, ms, level, event, fields, n_fields);
    else
        write_for_people(&line, &utc, ms, level, event, fields, n_fields);
    text_adds(&line, "\n");
    if (line.is_broken)
        write_line(log->fd, "a line of the log is lost: no memory\n",
                   strlen("a line of the log is lost: no memory\n"));
    else
        write_line(log->fd, line.bytes, line.len_bytes);
    text_free(&line);
    errno = saved_errno;
}
