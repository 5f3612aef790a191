/* Cuts a stream of tokens into text that is certain, text held back, and the end at a stop string.
 */
#include "coordinator/completion.h"

#include <string.h>
#include <utf8proc.h>

static bool is_utf8(const char *text, size_t len_bytes)
{
    size_t at = 0;
    while (at < len_bytes) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                              (utf8proc_ssize_t)(len_bytes - at), &c);
        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

enum status completion_init(struct completion *c, const struct tokenizer *tokenizer,
                            bool keep_special, bool include_stop, const char *const *stops,
                            uint32_t n_stops, struct err *err)
{
    if (n_stops > COMPLETION_MAX_STOPS)
        return err_set(err, STATUS_INVALID, "%u stop strings; at most %d are allowed", n_stops,
                       COMPLETION_MAX_STOPS);
    if (n_stops > 0 && tokenizer == NULL)
        return err_set(
            err, STATUS_UNSUPPORTED,
            "stop strings need text, and this model has no tokenizer.json: use stop ids");
    for (uint32_t i = 0; i < n_stops; i++) {
        size_t n = strnlen(stops[i], COMPLETION_MAX_STOP_BYTES + 1);
        if (n == 0 || n > COMPLETION_MAX_STOP_BYTES)
            return err_set(err, STATUS_INVALID, "stop string %u has %s; allowed are 1..%d bytes", i,
                           n == 0 ? "no byte" : "more bytes than that", COMPLETION_MAX_STOP_BYTES);
        if (!is_utf8(stops[i], n))
            return err_set(err, STATUS_INVALID, "stop string %u is not UTF-8", i);
    }
    c->detokenizer = (struct detokenizer){0};
    if (tokenizer != NULL)
        detokenizer_init(&c->detokenizer, tokenizer, !keep_special);
    c->include_stop = include_stop;
    c->is_stopped = false;
    c->n_held = 0;
    c->n_stops = n_stops;
    for (uint32_t i = 0; i < n_stops; i++) {
        c->stop_bytes[i] = (uint32_t)strlen(stops[i]);
        memcpy(c->stops[i], stops[i], c->stop_bytes[i]);
    }
    return STATUS_OK;
}

/* The first end in (from, n] of any stop string in text; *length is the longest that ends there. 0
 * when there is none. */
static size_t find_stop(const struct completion *c, const char *text, size_t from, size_t n,
                        size_t *length)
{
    for (size_t end = from + 1; end <= n; end++) {
        size_t longest = 0;
        for (uint32_t i = 0; i < c->n_stops; i++) {
            size_t len = c->stop_bytes[i];
            if (len <= end && len > longest && memcmp(text + end - len, c->stops[i], len) == 0)
                longest = len;
        }
        if (longest > 0) {
            *length = longest;
            return end;
        }
    }
    return 0;
}

/* How many bytes at the end of text are the beginning of a stop string; the longest such. */
static size_t held_bytes(const struct completion *c, const char *text, size_t n)
{
    size_t most = 0;
    for (uint32_t i = 0; i < c->n_stops; i++) {
        size_t len = c->stop_bytes[i] - 1 < n ? c->stop_bytes[i] - 1 : n;
        while (len > most && memcmp(text + n - len, c->stops[i], len) != 0)
            len--;
        most = len > most ? len : most;
    }
    return most;
}

/* out[0, n) is what was held and what has come, the first n_old of it known to complete no stop
 * string. Cuts at a stop, else holds back; returns what is certain. */
static size_t settle(struct completion *c, char *out, size_t n_old, size_t n)
{
    size_t stop_bytes = 0;
    size_t end = find_stop(c, out, n_old, n, &stop_bytes);
    if (end > 0) {
        c->is_stopped = true;
        c->n_held = 0;
        return c->include_stop ? end : end - stop_bytes;
    }
    size_t n_hold = held_bytes(c, out, n);
    memcpy(c->held, out + n - n_hold, n_hold);
    c->n_held = (uint32_t)n_hold;
    return n - n_hold;
}

size_t completion_push(struct completion *c, int32_t id, char *out)
{
    if (c->detokenizer.tokenizer == NULL || c->is_stopped)
        return 0;
    size_t n_old = c->n_held;
    memcpy(out, c->held, n_old);
    size_t n_new =
        detokenizer_push(&c->detokenizer, id, out + n_old, COMPLETION_TEXT_BYTES - n_old);
    return settle(c, out, n_old, n_old + n_new);
}

size_t completion_flush(struct completion *c, char *out)
{
    if (c->detokenizer.tokenizer == NULL || c->is_stopped)
        return 0;
    size_t n_old = c->n_held;
    memcpy(out, c->held, n_old);
    size_t n_new = detokenizer_flush(&c->detokenizer, out + n_old, COMPLETION_TEXT_BYTES - n_old);
    size_t n = settle(c, out, n_old, n_old + n_new);
    if (!c->is_stopped) { /* nothing follows, so nothing can become a stop string any more */
        memcpy(out + n, c->held, c->n_held);
        n += c->n_held;
    }
    c->n_held = 0;
    return n;
}
