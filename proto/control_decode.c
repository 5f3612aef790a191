/* Turns bytes of a peer into control messages whose every field is in range, or says which is not.
 */
#include "proto/control_arena.h"
#include "proto/control_wire.h"
#include "proto/frame.h"
#include "proto/wire_bytes.h"

#include <inttypes.h>
#include <stdlib.h>

static enum status read_failure(const char *field, uint32_t value, enum status *out,
                                struct err *err)
{
    enum status st = control_check_range(field, value, STATUS_OK, STATUS_COUNT - 1, err);
    if (st == STATUS_OK)
        *out = (enum status)value;
    return st;
}

/* ---- strings --------------------------------------------------------------------------------- */

/* Length of the valid UTF-8 character at s (1..4), or 0. `s` is terminated, so no byte is read
 * behind the end: a terminator is not a continuation byte. */
static size_t utf8_length(const unsigned char *s)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (n == 0 || s[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    bool is_overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool is_surrogate = s[0] == 0xed && s[1] > 0x9f;
    bool is_past_end = s[0] == 0xf4 && s[1] > 0x8f;
    return is_overlong || is_surrogate || is_past_end ? 0 : n;
}

static bool is_control_byte(unsigned char c)
{
    return c < 0x20 || c == 0x7f;
}

/* A text for people: one clean line. Bad bytes become '?', a long one is cut between characters. */
static void read_text(const char *from, char *to, size_t room_bytes)
{
    const unsigned char *s = (const unsigned char *)from;
    size_t used = 0;
    while (*s != '\0') {
        size_t n = utf8_length(s);
        if (used + (n ? n : 1) >= room_bytes)
            break;
        if (n == 0 || is_control_byte(*s)) {
            to[used++] = '?';
            s++;
        } else {
            memcpy(to + used, s, n);
            used += n;
            s += n;
        }
    }
    to[used] = '\0';
}

/* A name is compared and printed: it arrives whole and clean, or the message is refused. */
static enum status read_name(const char *field, const char *from, char *to, size_t room_bytes,
                             struct err *err)
{
    size_t len = strlen(from);
    if (len >= room_bytes)
        return err_set(err, STATUS_CORRUPT, "%s has %zu bytes; at most %zu fit", field, len,
                       room_bytes - 1);
    for (size_t i = 0; i < len;) {
        size_t n = utf8_length((const unsigned char *)from + i);
        if (n == 0 || is_control_byte((unsigned char)from[i]))
            return err_set(err, STATUS_CORRUPT, "%s holds byte 0x%02x at %zu: not readable UTF-8",
                           field, (unsigned char)from[i], i);
        i += n;
    }
    memcpy(to, from, len + 1);
    return STATUS_OK;
}

/* ---- start and end --------------------------------------------------------------------------- */

static enum status read_hello(const Carousel__Hello *h, struct control_hello *out, struct err *err)
{
    enum status st;
    if ((st = read_name("hello.host", h->host, out->host, sizeof out->host, err)) ||
        (st = read_name("hello.version", h->version, out->version, sizeof out->version, err)) ||
        (st = read_name("hello.backend", h->backend, out->backend, sizeof out->backend, err)) ||
        (st = read_name("hello.isa", h->isa, out->isa, sizeof out->isa, err)) ||
        (st = read_name("hello.boot_id", h->boot_id, out->boot_id, sizeof out->boot_id, err)) ||
        (st = read_name("hello.device_name", h->device_name, out->device_name,
                        sizeof out->device_name, err)) ||
        (st = read_name("hello.device_id", h->device_id, out->device_id, sizeof out->device_id,
                        err)) ||
        (st = read_failure("hello.failure", h->failure, &out->failure, err)))
        return st;
    out->protocol = h->protocol;
    out->rank = h->rank;
    out->fingerprint = h->fingerprint;
    out->memory_available_bytes = h->memory_available;
    out->n_cores = h->n_cores;
    out->device = h->device;
    out->device_memory_bytes = h->device_memory;
    out->is_direct = h->is_direct;
    read_text(h->message, out->message, sizeof out->message);
    return STATUS_OK;
}

static enum status read_welcome(const Carousel__Welcome *w, struct control_welcome *out,
                                struct err *err)
{
    enum status st;
    if ((st = read_name("welcome.isa", w->isa, out->isa, sizeof out->isa, err)) ||
        (st = read_failure("welcome.failure", w->failure, &out->failure, err)))
        return st;
    out->kv_bytes = w->kv_bytes;
    out->n_threads = w->n_threads;
    out->may_spin = w->may_spin;
    out->is_deterministic = w->is_deterministic;
    out->is_direct = w->is_direct;
    out->n_sharing = w->n_sharing;
    read_text(w->message, out->message, sizeof out->message);
    return STATUS_OK;
}

static enum status read_ready(const Carousel__Ready *r, struct control_ready *out, struct err *err)
{
    enum status st = read_failure("ready.failure", r->failure, &out->failure, err);
    if (st != STATUS_OK)
        return st;
    out->n_kv_blocks = r->n_kv_blocks;
    out->block_size = r->block_size;
    out->n_row_slots = r->n_row_slots;
    out->batch_ns = r->batch_ns;
    out->row_ns = r->row_ns;
    read_text(r->message, out->message, sizeof out->message);
    return STATUS_OK;
}

static enum status read_shutdown(const Carousel__Shutdown *s, struct control_sequence *out,
                                 struct err *err)
{
    enum status st = read_failure("shutdown.failure", s->failure, &out->failure, err);
    if (st == STATUS_OK)
        read_text(s->message, out->message, sizeof out->message);
    return st;
}

static enum status read_stats(const Carousel__Stats *s, struct control_stats *out, struct err *err)
{
    if (s->n_rows_by_loop > SEQUENCE_MAX_LOOPS)
        return err_set(err, STATUS_CORRUPT, "stats.rows_by_loop has %zu entries; at most %d fit",
                       s->n_rows_by_loop, SEQUENCE_MAX_LOOPS);
    *out = (struct control_stats){
        .tag = s->tag,
        .kv_blocks_used = s->kv_blocks_used,
        .kv_blocks_total = s->kv_blocks_total,
        .parked_rows = s->parked_rows,
        .row_slots_used = s->row_slots_used,
        .row_slots_total = s->row_slots_total,
        .n_sequences = s->n_sequences,
        .n_batches = s->n_batches,
        .n_rows = s->n_rows,
        .n_heads = s->n_heads,
        .n_messages_sent = s->n_messages_sent,
        .n_bytes_sent = s->n_bytes_sent,
        .busy_ns = s->busy_ns,
        .idle_starved_ns = s->idle_starved_ns,
        .idle_waiting_ns = s->idle_waiting_ns,
        .n_stale_frames = s->n_stale_frames,
        .batch_ns = s->batch_ns,
        .row_ns = s->row_ns,
        .n_parked_total = s->n_parked_total,
        .n_revived_total = s->n_revived_total,
        .elapsed_ns = s->elapsed_ns,
        .clock_ns = s->clock_ns,
        .n_trace_records = s->n_trace_records,
    };
    for (size_t i = 0; i < s->n_rows_by_loop; i++)
        out->rows_by_loop[i] = s->rows_by_loop[i];
    return STATUS_OK;
}

/* ---- a sequence's life ----------------------------------------------------------------------- */

/* The arrays of an open; the scalars are checked by sequence_params_check. */
static enum status read_open_arrays(const Carousel__Open *o, struct sequence_params *out,
                                    struct err *err)
{
    if (o->n_stop_ids > SEQUENCE_MAX_STOP_IDS)
        return err_set(err, STATUS_CORRUPT, "open.stop_ids has %zu entries; at most %d fit",
                       o->n_stop_ids, SEQUENCE_MAX_STOP_IDS);
    if (o->n_force_exits > SEQUENCE_MAX_LOOPS)
        return err_set(err, STATUS_CORRUPT, "open.force_exits has %zu entries; at most %d fit",
                       o->n_force_exits, SEQUENCE_MAX_LOOPS);
    out->n_stop_ids = (uint32_t)o->n_stop_ids;
    for (size_t i = 0; i < o->n_stop_ids; i++)
        out->stop_ids[i] = o->stop_ids[i];
    out->n_force_exits = (uint32_t)o->n_force_exits;
    for (size_t i = 0; i < o->n_force_exits; i++)
        out->force_exits[i] = o->force_exits[i];
    const Carousel__LogitBias *b = o->logit_bias;
    if (b == NULL)
        return STATUS_OK;
    enum status st =
        control_check_pairs("open.logit_bias", b->n_ids, b->n_biases, SEQUENCE_MAX_LOGIT_BIAS, err);
    if (st != STATUS_OK)
        return st;
    out->sampling.n_logit_bias = (int32_t)b->n_ids;
    for (size_t i = 0; i < b->n_ids; i++) {
        out->sampling.bias_ids[i] = b->ids[i];
        out->sampling.biases[i] = b->biases[i];
    }
    return STATUS_OK;
}

/* *out stays NULL when there are none. The count is in range already. */
static enum status read_targets(const Carousel__Open *o, int32_t **out, struct err *err)
{
    size_t n = o->n_observe_targets;
    enum status st = STATUS_OK;
    for (size_t i = 0; i < n && st == STATUS_OK; i++)
        st = control_check_id("open.observe_targets", o->observe_targets[i], err);
    if (st != STATUS_OK || n == 0)
        return st;
    *out = malloc(n * sizeof **out);
    if (*out == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu targets", n);
    memcpy(*out, o->observe_targets, n * sizeof **out);
    return STATUS_OK;
}

static enum status read_open(const Carousel__Open *o, struct sequence_params *out,
                             int32_t **targets, struct err *err)
{
    enum status st;
    /* As enums and signed numbers these could hide what was sent, so they are checked first. */
    if ((st = control_check_range("open.exit_mode", o->exit_mode, EXIT_MODE_FULL, EXIT_MODE_EXACT,
                                  err)) ||
        (st = control_check_range("open.prefill", o->prefill, PREFILL_EAGER, PREFILL_LAZY, err)) ||
        (st = control_check_range("open.n_logprobs", o->n_logprobs, 0, SEQUENCE_MAX_LOGPROBS,
                                  err)) ||
        (st = read_open_arrays(o, out, err)))
        return st;
    out->sequence = o->sequence;
    out->ring_offset = o->ring_offset;
    out->prompt_tokens = o->prompt_tokens;
    out->max_tokens = o->max_tokens;
    out->min_tokens = o->min_tokens;
    out->exit_mode = (enum exit_mode)o->exit_mode;
    out->exit_threshold = o->exit_threshold;
    out->max_loops = o->max_loops;
    out->min_loops = o->min_loops;
    out->prefill = (enum prefill_policy)o->prefill;
    out->observe_top = o->observe_top;
    out->observe_first = o->observe_first;
    out->observe_hidden = o->observe_hidden;
    if (o->n_observe_targets > UINT32_MAX)
        return err_set(err, STATUS_CORRUPT, "open.observe_targets has %zu entries",
                       o->n_observe_targets);
    out->n_observe_targets = (uint32_t)o->n_observe_targets;
    struct sampling_params *s = &out->sampling;
    s->temperature = o->temperature;
    s->top_k = o->top_k;
    s->top_p = o->top_p;
    s->min_p = o->min_p;
    s->repetition_penalty = o->repetition_penalty;
    s->presence_penalty = o->presence_penalty;
    s->frequency_penalty = o->frequency_penalty;
    s->seed = o->seed;
    s->n_logprobs = (int32_t)o->n_logprobs;
    /* The model is not known here: its own limits are checked by the worker that opens. */
    struct err detail = {0};
    if (sequence_params_check(out, SEQUENCE_MAX_LOOPS, INT32_MAX, UINT32_MAX, &detail) != STATUS_OK)
        return err_set(err, STATUS_CORRUPT, "open: %s", detail.message);
    return read_targets(o, targets, err);
}

static enum status read_sequence(const Carousel__Control *c, struct control_sequence *out,
                                 struct err *err)
{
    enum status st;
    switch (c->body_case) {
    case CAROUSEL__CONTROL__BODY_OPENED:
        if ((st = control_check_sequence("opened.sequence", c->opened->sequence, err)) ||
            (st = read_failure("opened.failure", c->opened->failure, &out->failure, err)))
            return st;
        out->sequence = c->opened->sequence;
        read_text(c->opened->message, out->message, sizeof out->message);
        return STATUS_OK;
    case CAROUSEL__CONTROL__BODY_FAILED:
        if ((st = control_check_sequence("failed.sequence", c->failed->sequence, err)) ||
            (st = control_check_range("failed.failure", c->failed->failure, STATUS_OK + 1,
                                      STATUS_COUNT - 1, err)))
            return st;
        out->sequence = c->failed->sequence;
        out->failure = (enum status)c->failed->failure;
        read_text(c->failed->message, out->message, sizeof out->message);
        return STATUS_OK;
    case CAROUSEL__CONTROL__BODY_CLOSE:
        out->sequence = c->close->sequence;
        return control_check_sequence("close.sequence", out->sequence, err);
    default:
        out->sequence = c->closed->sequence;
        return control_check_sequence("closed.sequence", out->sequence, err);
    }
}

/* ---- the two calls --------------------------------------------------------------------------- */

static enum status read_stats_request(const Carousel__StatsRequest *r, struct control_stats *out)
{
    out->tag = r->tag;
    out->reset = r->reset;
    return STATUS_OK;
}

static enum status read_body(const Carousel__Control *c, struct control_message *out,
                             struct err *err)
{
    out->kind = (enum control_kind)c->body_case;
    switch (out->kind) {
    case CONTROL_HELLO:
        return read_hello(c->hello, &out->hello, err);
    case CONTROL_WELCOME:
        return read_welcome(c->welcome, &out->welcome, err);
    case CONTROL_READY:
        return read_ready(c->ready, &out->ready, err);
    case CONTROL_OPEN:
        return read_open(c->open, &out->open, &out->open_targets, err);
    case CONTROL_OPENED:
    case CONTROL_CLOSE:
    case CONTROL_CLOSED:
    case CONTROL_FAILED:
        return read_sequence(c, &out->sequence, err);
    case CONTROL_TOKENS:
        return control_read_tokens(c->tokens, out, err);
    case CONTROL_OBSERVATIONS:
        return control_read_observations(c->observations, out, err);
    case CONTROL_STATS_REQUEST:
        return read_stats_request(c->stats_request, &out->stats);
    case CONTROL_STATS:
        return read_stats(c->stats, &out->stats, err);
    case CONTROL_SHUTDOWN:
        return read_shutdown(c->shutdown, &out->shutdown, err);
    case CONTROL_GOODBYE:
        out->goodbye_rank = c->goodbye->rank;
        return STATUS_OK;
    case CONTROL_TRACE_REQUEST:
        out->trace_request.tag = c->trace_request->tag;
        out->trace_request.window_ns = c->trace_request->window_ns;
        return STATUS_OK;
    case CONTROL_TRACE:
        return control_read_trace(c->trace, out, err);
    }
    return err_set(err, STATUS_CORRUPT,
                   "control message of no known kind: start all ranks from the "
                   "same build");
}

enum status control_decode(const void *bytes, size_t len_bytes, struct control_message *out,
                           struct err *err)
{
    int kind = 0;
    enum status st = message_kind(bytes, len_bytes, &kind, err);
    if (st != STATUS_OK)
        return st;
    if (kind != MESSAGE_CONTROL)
        return err_set(err, STATUS_CORRUPT, "message kind %d where control (%d) was expected", kind,
                       MESSAGE_CONTROL);
    if (len_bytes > CONTROL_MAX_BYTES)
        return err_set(err, STATUS_CORRUPT, "control message of %zu bytes; at most %zu are allowed",
                       len_bytes, CONTROL_MAX_BYTES);
    struct control_arena arena;
    control_arena_init(&arena, len_bytes);
    size_t body_bytes = len_bytes - MESSAGE_HEAD_BYTES;
    Carousel__Control *c = carousel__control__unpack(&arena.allocator, body_bytes,
                                                     (const uint8_t *)bytes + MESSAGE_HEAD_BYTES);
    struct control_message m;
    memset(&m, 0, sizeof m);
    if (c == NULL)
        st = err_set(err, STATUS_CORRUPT, "control message of %zu bytes does not parse", len_bytes);
    else if (c->base.n_unknown_fields > 0)
        st = err_set(err, STATUS_CORRUPT, "control message holds %u unknown fields (first: %u)",
                     c->base.n_unknown_fields, c->base.unknown_fields[0].tag);
    else
        st = read_body(c, &m, err);
    control_arena_clear(&arena);
    if (st == STATUS_OK)
        *out = m;
    return st;
}

void control_clear(struct control_message *m)
{
    if (m->kind == CONTROL_TOKENS)
        free(m->tokens.items);
    else if (m->kind == CONTROL_OBSERVATIONS)
        free(m->observations.items);
    else if (m->kind == CONTROL_OPEN)
        free(m->open_targets);
    else if (m->kind == CONTROL_TRACE)
        free(m->trace.records);
    memset(m, 0, sizeof *m);
}
