/* The scheduler's tables, shared by its files and nobody else. */
#ifndef COORDINATOR_SCHEDULER_STATE_H
#define COORDINATOR_SCHEDULER_STATE_H

#include "coordinator/scheduler.h"

enum { SCHEDULER_NONE = UINT32_MAX }; /* no entry: the end of a list */

enum entry_state {
    ENTRY_FREE = 0,
    ENTRY_QUEUED,
    ENTRY_OPENING,
    ENTRY_RUNNING,
    ENTRY_CLOSING,
    ENTRY_N_STATES
};

/* What one worker of the ring has been asked and has answered. */
enum ack { ACK_NONE = 0, ACK_OPEN_SENT, ACK_OPENED, ACK_CLOSE_SENT, ACK_CLOSED };

/* A request and, once admitted, its sequence. */
struct entry {
    enum entry_state state;
    uint64_t request;              /* kept until the entry is free, for scheduler_find_sequence */
    struct sequence_params params; /* sequence = 0 while queued */
    uint32_t ring;
    uint32_t n_blocks_per_loop;
    uint32_t n_tokens;                    /* delivered */
    uint32_t n_acks;                      /* workers that have answered what this state waits for */
    uint64_t since_ns;                    /* of the last transition */
    enum finish_reason reason;            /* of its end; FINISH_NONE before */
    uint32_t queue_next, queue_prev;      /* also the free list, by queue_next */
    uint32_t request_next, sequence_next; /* hash chains */
};

/* What scheduler_trace.c keeps. */
struct scheduler_tracing {
    bool has_moved; /* a state has changed in this step */
    bool is_blocked;
    enum trace_blocked blocked;
    uint64_t blocked_since_ns;
};

struct scheduler {
    struct scheduler_config config; /* n_blocks points to our copy */
    uint32_t n_rings;
    uint32_t n_entries;
    struct entry *entries;
    uint8_t *acks;       /* [n_entries, ring_size] enum ack */
    uint32_t *n_blocks;  /* [n_workers] capacity */
    uint32_t *reserved;  /* [n_workers] blocks promised to open sequences */
    uint32_t *ring_open; /* [n_rings] sequences opening, running, closing */
    uint32_t *starts;    /* [n_workers] open sequences of the ring whose loop 1 is on this worker */
    uint32_t *by_request;           /* [n_buckets] first entry of the chain */
    uint32_t *by_sequence;          /* [n_buckets] */
    uint32_t n_buckets;             /* a power of two */
    uint32_t free_first, n_touched; /* entries from n_touched on have never been used: free, too */
    uint32_t queue_first, queue_last;
    uint32_t n_in_state[ENTRY_N_STATES];
    uint64_t last_sequence; /* ids given out so far: 1..last_sequence */
    struct scheduler_action *actions;
    size_t n_actions, cap_actions;
    char message[256]; /* of an END the scheduler itself decides on */
    struct scheduler_tracing tracing;
};

/* ---- scheduler_table.c ---------------------------------------------------------------------- */

/* The only place where a state changes; asserts that docs/scheduler.md allows it. */
void scheduler_set_state(struct scheduler *s, uint32_t at, enum entry_state to, uint64_t now_ns);
uint32_t scheduler_find_request(const struct scheduler *s, uint64_t request);
uint32_t scheduler_find_entry(const struct scheduler *s, uint64_t sequence);
void scheduler_link_request(struct scheduler *s, uint32_t at);
void scheduler_unlink_request(struct scheduler *s, uint32_t at);
void scheduler_link_sequence(struct scheduler *s, uint32_t at);
void scheduler_unlink_sequence(struct scheduler *s, uint32_t at);
uint32_t scheduler_take_entry(struct scheduler *s); /* there must be one */
void scheduler_give_entry(struct scheduler *s, uint32_t at);
void scheduler_queue_push(struct scheduler *s, uint32_t at);
void scheduler_queue_remove(struct scheduler *s, uint32_t at);
uint8_t *scheduler_acks(const struct scheduler *s, uint32_t at); /* [ring_size] */
struct scheduler_action *scheduler_emit(struct scheduler *s, enum scheduler_action_kind kind);

/* ---- scheduler_admit.c ---------------------------------------------------------------------- */

/* KV blocks a sequence takes per loop at most. */
uint32_t scheduler_blocks_per_loop(const struct scheduler_config *config,
                                   const struct sequence_params *params);
/* STATUS_INVALID when not even an empty cluster could hold it. */
enum status scheduler_check_fits(const struct scheduler *s, const struct sequence_params *params,
                                 struct err *err);
/* Opens requests from the head of the queue as long as the head fits. */
void scheduler_admit(struct scheduler *s, uint64_t now_ns);
/* Gives back what scheduler_admit reserved. */
void scheduler_release(struct scheduler *s, uint32_t at);

/* ---- scheduler_trace.c ---------------------------------------------------------------------- */

/* The entry is about to leave its state. */
void scheduler_trace_leave(struct scheduler *s, const struct entry *e, uint64_t now_ns);
void scheduler_trace_token(const struct scheduler *s, const struct entry *e,
                           const struct control_token *token, uint64_t now_ns);
/* At the end of a step. */
void scheduler_trace_step(struct scheduler *s, uint64_t now_ns);

#endif
