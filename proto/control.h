/* Control messages as plain structs, turned into protobuf and back; decoding checks everything.
 *
 * A decoded message owns nothing outside the struct: strings and arrays have fixed room, and a peer
 * that sends more is STATUS_CORRUPT, except that a long `message` is cut. Strings arrive as clean
 * UTF-8 on one line: in a message bad bytes become '?', in a name they are STATUS_CORRUPT. Batched
 * kinds (tokens, observations, trace) decode into one allocation each, the targets of an open into
 * another. */
#ifndef PROTO_CONTROL_H
#define PROTO_CONTROL_H

#include "proto/sequence.h"
#include "proto/status.h"
#include "proto/trace.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CONTROL_PROTOCOL_VERSION = 6, CONTROL_TEXT_BYTES = 512, CONTROL_NAME_BYTES = 64 };

enum control_kind {
    CONTROL_HELLO = 1,
    CONTROL_WELCOME,
    CONTROL_READY,
    CONTROL_OPEN,
    CONTROL_OPENED,
    CONTROL_CLOSE,
    CONTROL_CLOSED,
    CONTROL_FAILED,
    CONTROL_TOKENS,
    CONTROL_OBSERVATIONS,
    CONTROL_STATS_REQUEST,
    CONTROL_STATS,
    CONTROL_SHUTDOWN,
    CONTROL_GOODBYE,
    CONTROL_TRACE_REQUEST,
    CONTROL_TRACE,
};

struct control_hello {
    uint32_t protocol, rank;
    char host[CONTROL_NAME_BYTES], version[CONTROL_NAME_BYTES], backend[16], isa[16];
    char boot_id[CONTROL_NAME_BYTES]; /* cluster/host.h; ranks with the same one share a clock */
    uint64_t fingerprint, memory_available_bytes;
    uint32_t n_cores;
    /* of a worker on a GPU: its number there, name, what tells it from all others, its memory */
    uint32_t device;
    char device_name[CONTROL_NAME_BYTES], device_id[CONTROL_NAME_BYTES];
    uint64_t device_memory_bytes;
    bool is_direct; /* its transport takes rows in the memory it computes in */
    enum status failure;
    char message[CONTROL_TEXT_BYTES];
};
struct control_welcome {
    char isa[16];
    uint64_t kv_bytes; /* 0: a worker on a GPU looks what fits there */
    uint32_t n_threads;
    bool may_spin;
    bool is_deterministic;
    bool is_direct; /* all workers are: rows travel apart from their bundle */
    uint32_t n_sharing; /* workers on this worker's GPU, itself included; 0 without one */
    enum status failure;
    char message[CONTROL_TEXT_BYTES];
};
struct control_ready {
    uint32_t n_kv_blocks, block_size, n_row_slots;
    uint64_t batch_ns, row_ns;
    enum status failure;
    char message[CONTROL_TEXT_BYTES];
};
/* opened, closed, close, failed: a sequence, and for opened/failed what went wrong */
struct control_sequence {
    uint64_t sequence;
    enum status failure;
    char message[CONTROL_TEXT_BYTES];
};
struct control_token {
    uint64_t sequence;
    uint32_t position; /* of the token: prompt_tokens + i */
    int32_t id;
    uint32_t exit_loop; /* 1-based */
    float cdf;
    float logprob;
    bool is_last;
    uint32_t n_top;
    int32_t top_ids[SEQUENCE_MAX_LOGPROBS];
    float top_logprobs[SEQUENCE_MAX_LOGPROBS];
    struct loop_timing timings[SEQUENCE_MAX_LOOPS]; /* loops 1 .. exit_loop of its live row */
};
/* ids, logits and hidden point into the message's allocation (decode) or are the caller's (encode)
 */
struct control_observation {
    uint64_t sequence;
    uint32_t position, loop;
    float lambda;
    bool has_target, is_hit; /* a target is known for the position; it is the best token */
    float logprob;           /* of the target; 0 without one */
    float log_norm; /* log-sum-exp of the row's logits, so that a token's log-probability is
                       its logit - log_norm; 0 without a target */
    uint32_t n_top, n_hidden; /* n_hidden: the model's d, or 0 */
    const int32_t *top_ids;
    const float *top_logits;
    const float *hidden; /* final-normed */
};
struct control_stats {
    uint64_t tag;
    bool reset; /* requests only: restart the counters after answering */
    uint32_t kv_blocks_used, kv_blocks_total, parked_rows, row_slots_used, row_slots_total,
        n_sequences;
    uint64_t n_batches, n_rows, n_heads, n_messages_sent, n_bytes_sent, busy_ns, idle_starved_ns,
        idle_waiting_ns, n_stale_frames, batch_ns, row_ns, n_parked_total, n_revived_total,
        elapsed_ns, clock_ns; /* clock_ns: the worker's own clock when it answered */
    uint64_t n_trace_records; /* made, kept or not */
    uint64_t rows_by_loop[SEQUENCE_MAX_LOOPS];
};

/* Coordinator -> worker: send what you have recorded. */
struct control_trace_request {
    uint64_t tag;
    uint64_t window_ns; /* records that ended within the last so long; 0 = all */
};
/* Worker -> coordinator, as many as it takes, the last one marked. */
struct control_trace {
    uint64_t tag, n_lost;
    bool is_last;
    uint32_t n;
    struct trace_record
        *records; /* encode: the caller's; decode: malloc'd, freed by control_clear */
};

struct control_message {
    enum control_kind kind;
    union {
        struct control_hello hello;
        struct control_welcome welcome;
        struct control_ready ready;
        struct {
            struct sequence_params open;
            /* [open.n_observe_targets]; encode: the caller's; decode: malloc'd, and who takes it
             * over sets it to NULL before control_clear */
            int32_t *open_targets;
        };
        struct control_sequence sequence; /* opened, close, closed, failed */
        struct {
            uint32_t n;
            struct control_token *items; /* encode: the caller's; decode: see control_decode */
        } tokens;
        struct {
            uint32_t n;
            struct control_observation *items;
        } observations;
        struct control_stats stats;       /* stats_request uses tag and reset */
        struct control_sequence shutdown; /* failure and message */
        uint32_t goodbye_rank;
        struct control_trace_request trace_request;
        struct control_trace trace;
    };
};

/* Bytes control_encode needs. Neither call allocates; strings of *m are terminated. */
size_t control_size(const struct control_message *m);
/* Writes message head and protobuf; cap_bytes >= control_size(m). Returns the length. */
size_t control_encode(const struct control_message *m, void *bytes, size_t cap_bytes);

/* Decodes. tokens.items, observations.items, open_targets are malloc'd in one piece each (freed by
 * control_clear); other kinds allocate nothing that outlives the call. STATUS_CORRUPT says which
 * field. */
enum status control_decode(const void *bytes, size_t len_bytes, struct control_message *out,
                           struct err *err);
void control_clear(struct control_message *m);

#endif
