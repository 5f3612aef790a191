/* Packs control messages into bytes without touching the heap. */
#include "proto/control_wire.h"
#include "proto/frame.h"
#include "proto/wire_bytes.h"

#include <assert.h>

/* A message as protobuf sees it; its strings and arrays are borrowed from the control_message. */
struct packing {
    Carousel__Control control;
    Carousel__LogitBias logit_bias;
    union {
        Carousel__Hello hello;
        Carousel__Welcome welcome;
        Carousel__Ready ready;
        Carousel__Open open;
        Carousel__Opened opened;
        Carousel__Close close;
        Carousel__Closed closed;
        Carousel__Failed failed;
        Carousel__StatsRequest stats_request;
        Carousel__Stats stats;
        Carousel__Shutdown shutdown;
        Carousel__Goodbye goodbye;
        Carousel__TraceRequest trace_request;
        Carousel__Trace trace;
    } body;
};

/* protobuf-c's structs have no const, though packing only reads. */
static char *lend_text(const char *text)
{
    return (char *)(uintptr_t)text;
}

static void fill_greetings(const struct control_message *m, struct packing *p)
{
    if (m->kind == CONTROL_HELLO) {
        const struct control_hello *h = &m->hello;
        Carousel__Hello *to = p->control.hello = &p->body.hello;
        carousel__hello__init(to);
        to->protocol = h->protocol;
        to->rank = h->rank;
        to->host = lend_text(h->host);
        to->version = lend_text(h->version);
        to->backend = lend_text(h->backend);
        to->isa = lend_text(h->isa);
        to->fingerprint = h->fingerprint;
        to->memory_available = h->memory_available_bytes;
        to->n_cores = h->n_cores;
        to->failure = (uint32_t)h->failure;
        to->message = lend_text(h->message);
        to->boot_id = lend_text(h->boot_id);
        to->device = h->device;
        to->device_name = lend_text(h->device_name);
        to->device_id = lend_text(h->device_id);
        to->device_memory = h->device_memory_bytes;
        to->is_direct = h->is_direct;
    } else if (m->kind == CONTROL_WELCOME) {
        const struct control_welcome *w = &m->welcome;
        Carousel__Welcome *to = p->control.welcome = &p->body.welcome;
        carousel__welcome__init(to);
        to->isa = lend_text(w->isa);
        to->kv_bytes = w->kv_bytes;
        to->n_threads = w->n_threads;
        to->may_spin = w->may_spin;
        to->is_deterministic = w->is_deterministic;
        to->is_direct = w->is_direct;
        to->n_sharing = w->n_sharing;
        to->failure = (uint32_t)w->failure;
        to->message = lend_text(w->message);
    } else {
        const struct control_ready *r = &m->ready;
        Carousel__Ready *to = p->control.ready = &p->body.ready;
        carousel__ready__init(to);
        to->n_kv_blocks = r->n_kv_blocks;
        to->block_size = r->block_size;
        to->n_row_slots = r->n_row_slots;
        to->batch_ns = r->batch_ns;
        to->row_ns = r->row_ns;
        to->failure = (uint32_t)r->failure;
        to->message = lend_text(r->message);
    }
}

static void fill_open(const struct sequence_params *o, const int32_t *targets, struct packing *p)
{
    const struct sampling_params *s = &o->sampling;
    Carousel__Open *to = p->control.open = &p->body.open;
    assert(o->n_stop_ids <= SEQUENCE_MAX_STOP_IDS && o->n_force_exits <= SEQUENCE_MAX_LOOPS);
    assert(s->n_logit_bias >= 0 && s->n_logit_bias <= SEQUENCE_MAX_LOGIT_BIAS);
    carousel__open__init(to);
    to->sequence = o->sequence;
    to->ring_offset = o->ring_offset;
    to->prompt_tokens = o->prompt_tokens;
    to->max_tokens = o->max_tokens;
    to->min_tokens = o->min_tokens;
    to->exit_mode = (uint32_t)o->exit_mode;
    to->exit_threshold = o->exit_threshold;
    to->max_loops = o->max_loops;
    to->min_loops = o->min_loops;
    to->prefill = (uint32_t)o->prefill;
    to->n_stop_ids = o->n_stop_ids;
    to->stop_ids = (int32_t *)(uintptr_t)o->stop_ids;
    to->temperature = s->temperature;
    to->top_k = s->top_k;
    to->top_p = s->top_p;
    to->min_p = s->min_p;
    to->repetition_penalty = s->repetition_penalty;
    to->presence_penalty = s->presence_penalty;
    to->frequency_penalty = s->frequency_penalty;
    to->seed = s->seed;
    to->n_logprobs = (uint32_t)s->n_logprobs;
    if (s->n_logit_bias > 0) {
        carousel__logit_bias__init(&p->logit_bias);
        p->logit_bias.n_ids = p->logit_bias.n_biases = (size_t)s->n_logit_bias;
        p->logit_bias.ids = (int32_t *)(uintptr_t)s->bias_ids;
        p->logit_bias.biases = (float *)(uintptr_t)s->biases;
        to->logit_bias = &p->logit_bias;
    }
    to->observe_top = o->observe_top;
    to->observe_first = o->observe_first;
    to->observe_hidden = o->observe_hidden;
    to->n_observe_targets = o->n_observe_targets;
    to->observe_targets = (int32_t *)(uintptr_t)targets;
    to->n_force_exits = o->n_force_exits;
    to->force_exits = (float *)(uintptr_t)o->force_exits;
}

static void fill_sequence(enum control_kind kind, const struct control_sequence *s,
                          struct packing *p)
{
    if (kind == CONTROL_OPENED) {
        Carousel__Opened *to = p->control.opened = &p->body.opened;
        carousel__opened__init(to);
        to->sequence = s->sequence;
        to->failure = (uint32_t)s->failure;
        to->message = lend_text(s->message);
    } else if (kind == CONTROL_FAILED) {
        Carousel__Failed *to = p->control.failed = &p->body.failed;
        carousel__failed__init(to);
        to->sequence = s->sequence;
        to->failure = (uint32_t)s->failure;
        to->message = lend_text(s->message);
    } else if (kind == CONTROL_CLOSE) {
        Carousel__Close *to = p->control.close = &p->body.close;
        carousel__close__init(to);
        to->sequence = s->sequence;
    } else {
        Carousel__Closed *to = p->control.closed = &p->body.closed;
        carousel__closed__init(to);
        to->sequence = s->sequence;
    }
}

static void fill_stats(const struct control_stats *s, struct packing *p)
{
    Carousel__Stats *to = p->control.stats = &p->body.stats;
    carousel__stats__init(to);
    to->tag = s->tag;
    to->kv_blocks_used = s->kv_blocks_used;
    to->kv_blocks_total = s->kv_blocks_total;
    to->parked_rows = s->parked_rows;
    to->row_slots_used = s->row_slots_used;
    to->row_slots_total = s->row_slots_total;
    to->n_sequences = s->n_sequences;
    to->n_batches = s->n_batches;
    to->n_rows = s->n_rows;
    to->n_heads = s->n_heads;
    to->n_messages_sent = s->n_messages_sent;
    to->n_bytes_sent = s->n_bytes_sent;
    to->busy_ns = s->busy_ns;
    to->idle_starved_ns = s->idle_starved_ns;
    to->idle_waiting_ns = s->idle_waiting_ns;
    to->n_stale_frames = s->n_stale_frames;
    to->batch_ns = s->batch_ns;
    to->row_ns = s->row_ns;
    to->n_parked_total = s->n_parked_total;
    to->n_revived_total = s->n_revived_total;
    to->n_rows_by_loop = SEQUENCE_MAX_LOOPS;
    to->rows_by_loop = (uint64_t *)(uintptr_t)s->rows_by_loop;
    to->elapsed_ns = s->elapsed_ns;
    to->clock_ns = s->clock_ns;
    to->n_trace_records = s->n_trace_records;
}

static void fill_farewells(const struct control_message *m, struct packing *p)
{
    if (m->kind == CONTROL_SHUTDOWN) {
        Carousel__Shutdown *to = p->control.shutdown = &p->body.shutdown;
        carousel__shutdown__init(to);
        to->failure = (uint32_t)m->shutdown.failure;
        to->message = lend_text(m->shutdown.message);
    } else {
        Carousel__Goodbye *to = p->control.goodbye = &p->body.goodbye;
        carousel__goodbye__init(to);
        to->rank = m->goodbye_rank;
    }
}

static void fill_trace(const struct control_message *m, struct packing *p)
{
    if (m->kind == CONTROL_TRACE_REQUEST) {
        Carousel__TraceRequest *to = p->control.trace_request = &p->body.trace_request;
        carousel__trace_request__init(to);
        to->tag = m->trace_request.tag;
        to->window_ns = m->trace_request.window_ns;
        return;
    }
    Carousel__Trace *to = p->control.trace = &p->body.trace;
    carousel__trace__init(to);
    to->tag = m->trace.tag;
    to->n_lost = m->trace.n_lost;
    to->is_last = m->trace.is_last;
    to->records.len = m->trace.n * sizeof *m->trace.records;
    to->records.data = (uint8_t *)m->trace.records;
}

/* Every kind but the batched ones. */
static void fill(const struct control_message *m, struct packing *p)
{
    carousel__control__init(&p->control);
    p->control.body_case = (Carousel__Control__BodyCase)m->kind;
    switch (m->kind) {
    case CONTROL_HELLO:
    case CONTROL_WELCOME:
    case CONTROL_READY:
        fill_greetings(m, p);
        break;
    case CONTROL_OPEN:
        fill_open(&m->open, m->open_targets, p);
        break;
    case CONTROL_OPENED:
    case CONTROL_CLOSE:
    case CONTROL_CLOSED:
    case CONTROL_FAILED:
        fill_sequence(m->kind, &m->sequence, p);
        break;
    case CONTROL_STATS_REQUEST:
        p->control.stats_request = &p->body.stats_request;
        carousel__stats_request__init(&p->body.stats_request);
        p->body.stats_request.tag = m->stats.tag;
        p->body.stats_request.reset = m->stats.reset;
        break;
    case CONTROL_STATS:
        fill_stats(&m->stats, p);
        break;
    case CONTROL_SHUTDOWN:
    case CONTROL_GOODBYE:
        fill_farewells(m, p);
        break;
    case CONTROL_TRACE_REQUEST:
    case CONTROL_TRACE:
        fill_trace(m, p);
        break;
    case CONTROL_TOKENS:
    case CONTROL_OBSERVATIONS:
        assert(!"batched kinds are packed item by item");
    }
}

/* ---- batched kinds --------------------------------------------------------------------------- */

/* Tokens and observations come once per batch with many items. protobuf-c would want an array of
 * pointers to structs; instead the two nestings around the items (Control.tokens, Tokens.tokens)
 * are written here and each item is packed by the generated code from one struct on the stack. Both
 * are length-delimited fields: tag = field number << 3 | 2, then a varint length. */
enum { ITEM_TAG = 1 << 3 | 2 };

static unsigned body_tag(enum control_kind kind)
{
    return (unsigned)kind << 3 | 2;
}
_Static_assert(CONTROL_OBSERVATIONS < 16, "a field number up to 15 makes a tag of one byte");

static size_t varint_size(uint64_t v)
{
    size_t n = 1;
    for (; v >= 0x80; v >>= 7)
        n++;
    return n;
}

static unsigned char *varint_put(unsigned char *at, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *at++ = (unsigned char)(v | 0x80);
    *at++ = (unsigned char)v;
    return at;
}

/* A token as protobuf sees it: its timings lie side by side, those of the struct loop by loop. */
struct token_packing {
    Carousel__Token token;
    double hops[SEQUENCE_MAX_LOOPS];
    float waits[SEQUENCE_MAX_LOOPS], computes[SEQUENCE_MAX_LOOPS];
};

static void fill_token(const struct control_token *t, struct token_packing *p)
{
    Carousel__Token *to = &p->token;
    uint32_t n_loops = t->exit_loop < SEQUENCE_MAX_LOOPS ? t->exit_loop : SEQUENCE_MAX_LOOPS;
    assert(t->n_top <= SEQUENCE_MAX_LOGPROBS);
    carousel__token__init(to);
    for (uint32_t i = 0; i < n_loops; i++) {
        p->hops[i] = t->timings[i].hop_s;
        p->waits[i] = t->timings[i].wait_s;
        p->computes[i] = t->timings[i].compute_s;
    }
    to->n_hops = to->n_waits = to->n_computes = n_loops;
    to->hops = p->hops;
    to->waits = p->waits;
    to->computes = p->computes;
    to->sequence = t->sequence;
    to->position = t->position;
    to->id = t->id;
    to->exit_loop = t->exit_loop;
    to->cdf = t->cdf;
    to->logprob = t->logprob;
    to->n_top_ids = to->n_top_logprobs = t->n_top;
    to->top_ids = (int32_t *)(uintptr_t)t->top_ids;
    to->top_logprobs = (float *)(uintptr_t)t->top_logprobs;
    to->is_last = t->is_last;
}

static void fill_observation(const struct control_observation *o, Carousel__Observation *to)
{
    carousel__observation__init(to);
    to->sequence = o->sequence;
    to->position = o->position;
    to->loop = o->loop;
    to->lambda = o->lambda;
    to->n_top_ids = to->n_top_logits = o->n_top;
    to->top_ids = (int32_t *)(uintptr_t)o->top_ids;
    to->top_logits = (float *)(uintptr_t)o->top_logits;
    to->has_target = o->has_target;
    to->logprob = o->logprob;
    to->log_norm = o->log_norm;
    to->is_hit = o->is_hit;
    to->n_hidden = o->n_hidden;
    to->hidden = (float *)(uintptr_t)o->hidden;
}

static bool is_batched(enum control_kind kind)
{
    return kind == CONTROL_TOKENS || kind == CONTROL_OBSERVATIONS;
}

static uint32_t n_items(const struct control_message *m)
{
    return m->kind == CONTROL_TOKENS ? m->tokens.n : m->observations.n;
}

/* Packed length of item i; with `at`, packs it there too. */
static size_t pack_item(const struct control_message *m, uint32_t i, unsigned char *at)
{
    if (m->kind == CONTROL_TOKENS) {
        struct token_packing p;
        fill_token(&m->tokens.items[i], &p);
        return at ? carousel__token__pack(&p.token, at)
                  : carousel__token__get_packed_size(&p.token);
    }
    Carousel__Observation row;
    fill_observation(&m->observations.items[i], &row);
    return at ? carousel__observation__pack(&row, at)
              : carousel__observation__get_packed_size(&row);
}

static size_t items_size(const struct control_message *m)
{
    size_t total = 0;
    for (uint32_t i = 0; i < n_items(m); i++) {
        size_t size = pack_item(m, i, NULL);
        total += 1 + varint_size(size) + size;
    }
    return total;
}

static unsigned char *put_items(const struct control_message *m, size_t body_size,
                                unsigned char *at)
{
    at = varint_put(at, body_tag(m->kind));
    at = varint_put(at, body_size);
    for (uint32_t i = 0; i < n_items(m); i++) {
        at = varint_put(at, ITEM_TAG);
        /* Nearly all items are shorter than 128 bytes: pack behind a length of one byte, and move
         * the few others, instead of walking each item twice. */
        size_t size = pack_item(m, i, at + 1);
        if (varint_size(size) > 1)
            memmove(at + varint_size(size), at + 1, size);
        at = varint_put(at, size) + size;
    }
    return at;
}

/* ---- the two calls --------------------------------------------------------------------------- */

size_t control_size(const struct control_message *m)
{
    if (is_batched(m->kind)) {
        size_t body_size = items_size(m);
        return MESSAGE_HEAD_BYTES + 1 + varint_size(body_size) + body_size;
    }
    struct packing p;
    fill(m, &p);
    return MESSAGE_HEAD_BYTES + carousel__control__get_packed_size(&p.control);
}

size_t control_encode(const struct control_message *m, void *bytes, size_t cap_bytes)
{
    unsigned char *at = bytes;
    assert(cap_bytes >= MESSAGE_HEAD_BYTES);
    wire_store_head(at, FRAME_PROTOCOL_VERSION, MESSAGE_CONTROL);
    at += MESSAGE_HEAD_BYTES;
    if (is_batched(m->kind)) {
        size_t body_size = items_size(m);
        assert(cap_bytes >= MESSAGE_HEAD_BYTES + 1 + varint_size(body_size) + body_size);
        at = put_items(m, body_size, at);
    } else {
        struct packing p;
        fill(m, &p);
        assert(cap_bytes >= MESSAGE_HEAD_BYTES + carousel__control__get_packed_size(&p.control));
        at += carousel__control__pack(&p.control, at);
    }
    return (size_t)(at - (unsigned char *)bytes);
}
