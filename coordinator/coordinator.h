/* Rank 0: takes requests, drives the scheduler, streams tokens and text to callbacks.
 *
 * One thread uses it. Create it over a transport, start it (greets the workers, checks that all
 * hold the same model), submit requests, and turn coordinator_step until they have ended; shut it
 * down. Callbacks run inside coordinator_step and may submit and cancel, but not step. */
#ifndef COORDINATOR_COORDINATOR_H
#define COORDINATOR_COORDINATOR_H

#include "cluster/transport.h"
#include "coordinator/scheduler.h"
#include "coordinator/trace_set.h"
#include "model/checkpoint.h"
#include "model/tokenizer.h"
#include "proto/control.h"
#include "proto/trace.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct coordinator_config {
    uint32_t ring_size;    /* 0 = default (cluster/ring.h) */
    uint32_t max_queue;    /* 0 = 4096 */
    uint32_t max_running;  /* sequences per ring; must equal the workers' max_sequences */
    uint64_t kv_bytes;     /* per worker, --kv-memory; 0 = auto */
    bool is_deterministic; /* workers on GPUs: bits that depend on no batch */
    uint32_t block_size;
    enum dtype kv_dtype;
    uint32_t n_threads;         /* per worker; 0 = cores of the host / workers on it, at least 1 */
    uint64_t start_timeout_ns;  /* all workers must have said hello, then ready, within this each; 0
                                   = 60 s */
    uint64_t answer_timeout_ns; /* a worker must have answered an open, a close, a stats request; 0
                                   = 60 s */
    struct trace *trace;        /* borrowed; NULL: this rank records nothing */
    bool verify_weights; /* read all weights once for NaN and infinity while the workers start */
};

struct coordinator;

enum { COMPLETION_MAX_STOPS = 16, COMPLETION_MAX_STOP_BYTES = 256 };

struct completion_token {
    const struct control_token *token; /* its hop_s corrected by the workers' clock offsets */
    const uint32_t *workers;           /* [token->exit_loop] who ran the loops, 0-based */
    uint32_t index;                    /* 0-based in the output */
    const char
        *text; /* text that became certain with this token: stop strings and bytes that may still
                * become one or half a character are held back; "" when none or without tokenizer */
    size_t text_bytes;
    uint64_t at_ns; /* host clock, when it reached the coordinator */
};
struct completion_end {
    enum finish_reason reason;
    enum status failure; /* reason FINISH_ERROR: code and message */
    const char *message;
    const char *text; /* held-back text released by the end */
    size_t text_bytes;
    uint32_t n_tokens;
    uint64_t submitted_ns, started_ns, first_token_ns, ended_ns; /* host clock; 0 = never */
};
struct completion_request {
    const int32_t *prompt_ids; /* copied */
    uint32_t n_prompt;
    struct sequence_params params;  /* sequence, ring_offset and prompt_tokens are filled in */
    const int32_t *observe_targets; /* [params.n_observe_targets]; copied */
    uint32_t n_stops;               /* stop strings; need a tokenizer */
    const char *stops[COMPLETION_MAX_STOPS];
    bool include_stop; /* leave the stop string in the text */
    bool keep_special; /* special tokens appear in the text */
    void *user;
    void (*on_start)(void *user); /* its prompt has been sent to a worker; may be NULL */
    void (*on_token)(void *user, const struct completion_token *token);        /* may be NULL */
    void (*on_observation)(void *user, const struct control_observation *row); /* may be NULL */
    void (*on_end)(void *user, const struct completion_end *end);
};

/* tokenizer may be NULL (ids only). All are borrowed while the coordinator lives. */
enum status coordinator_create(struct transport *transport, const struct checkpoint *checkpoint,
                               const struct tokenizer *tokenizer,
                               const struct coordinator_config *config, struct coordinator **out,
                               struct err *err);
/* Shakes hands with every worker. STATUS_MISMATCH says which rank on which host holds another
 * model; STATUS_NO_MEMORY which host lacks how much; STATUS_TIMEOUT who did not answer. After a
 * failure the workers have been told to stop. */
enum status coordinator_start(struct coordinator *c, struct err *err);
/* Takes a request; *id identifies it for cancel. STATUS_INVALID (a parameter, the prompt longer
 * than the context, an id outside the vocabulary, never fits the KV pool), STATUS_FULL. Callbacks
 * come later, from step; after STATUS_OK on_end comes exactly once. */
enum status coordinator_submit(struct coordinator *c, const struct completion_request *request,
                               uint64_t *id, struct err *err);
void coordinator_cancel(struct coordinator *c,
                        uint64_t id); /* on_end follows with FINISH_CANCELLED */
/* Handles what has arrived; waits at most timeout_ns when nothing has (returns early now and then
 * to look at deadlines). An error is fatal for the cluster: every request has ended with
 * FINISH_ERROR when it is returned, and it is returned again by all later calls. */
enum status coordinator_step(struct coordinator *c, uint64_t timeout_ns, struct err *err);
/* Requests taken and not ended; sequences still open or closing. */
uint32_t coordinator_n_active(const struct coordinator *c);
bool coordinator_is_idle(
    const struct coordinator *c); /* nothing active and every sequence closed on every worker */
/* Asks every worker and waits (turning the loop) until all have answered. stats has room for
 * n_workers. */
enum status coordinator_collect_stats(struct coordinator *c, bool reset,
                                      struct control_stats *stats, struct err *err);
/* The same without waiting: on_stats is called from a later step, once all have answered, with
 * [n_workers] of them, borrowed until return. STATUS_FULL while an earlier question is open. */
enum status coordinator_request_stats(struct coordinator *c,
                                      void (*on_stats)(void *user,
                                                       const struct control_stats *stats),
                                      void *user, struct err *err);
/* Asks every worker for its trace; on_trace is called from a later step, once all have answered,
 * with everybody's records, ours first, and the clocks' offsets, not aligned yet; it takes the set
 * over. window_ns: only what ended within the last so long; 0 = all. STATUS_FULL while an earlier
 * question is open, STATUS_INVALID when nothing is recorded. */
enum status coordinator_request_trace(struct coordinator *c, uint64_t window_ns,
                                      void (*on_trace)(void *user, struct trace_set *set),
                                      void *user, struct err *err);
/* The same, turning the loop until all have answered. */
enum status coordinator_collect_trace(struct coordinator *c, uint64_t window_ns,
                                      struct trace_set **out, struct err *err);
/* For when the workers cannot be asked (any more): the records of this rank alone, those of all
 * others are missing. Makes no step; also of a lost cluster. STATUS_INVALID when nothing is
 * recorded. */
enum status coordinator_own_trace(struct coordinator *c, struct trace_set **out, struct err *err);
/* Says from when on no new requests are taken, for the trace. */
void coordinator_note_draining(struct coordinator *c);
/* The worker's clock less ours, and how far that may be off: half the round trip of the best
 * exchange and the drift since. 0 and 0 when they are one clock. */
void coordinator_worker_clock(const struct coordinator *c, uint32_t worker, int64_t *offset_ns,
                              uint64_t *error_ns);
void coordinator_get_load(const struct coordinator *c, struct scheduler_load *out);
/* Blocks reserved of all blocks, on the fullest worker: 0 .. 1. */
double coordinator_kv_usage(const struct coordinator *c);
/* Makes the current or next coordinator_step return soon. Any thread. */
void coordinator_wake(struct coordinator *c);
uint32_t coordinator_n_workers(const struct coordinator *c);
uint32_t coordinator_ring_size(const struct coordinator *c);
const struct control_ready *coordinator_worker_ready(const struct coordinator *c, uint32_t worker);
const struct control_hello *coordinator_worker_hello(const struct coordinator *c, uint32_t worker);
/* The KV budget auto mode would choose for `n_local_workers` workers on a host with that much
 * memory: enough for `max_running` sequences of a useful length, within 3/4 of what is free. Pure.
 */
uint64_t coordinator_auto_kv_bytes(const struct model_config *model, enum dtype kv_dtype,
                                   uint64_t memory_available_bytes, uint32_t n_local_workers,
                                   uint32_t max_running);
/* Tells the workers to stop and waits a short while (5 s) for their goodbyes. Requests still active
 * end with FINISH_CANCELLED. */
void coordinator_shutdown(struct coordinator *c);
void coordinator_destroy(struct coordinator *c);

#endif
