/* What the stage_*.c files share: the state of the stage, and the functions they give each other.
 *
 * A lane is one (sequence, loop) that this worker serves. Its positions, in order:
 *
 *   0 ........... F(t+1) ........... F(t) ......... F(t) + running ......... + pending
 *   | gone deeper  |     parked       | running batches |  wait for a batch   |  not here yet
 *
 * Every used slot is in one place: a parked chain, a pending chain, or a running batch. A running
 * batch is one that has been started and has not ended; two may be in flight, and then the younger
 * one waits in the replica for the older. */
#ifndef WORKER_STAGE_STATE_H
#define WORKER_STAGE_STATE_H

#include "worker/chain.h"
#include "worker/kv_blocks.h"
#include "worker/stage.h"

enum stage_sequence_state {
    SEQUENCE_FREE = 0, /* the table entry is unused */
    SEQUENCE_OPEN,     /* takes frames */
    SEQUENCE_FAILED,   /* dead: its frames are stale; waits for close */
    SEQUENCE_CLOSING,  /* dead: rows of it are in a running batch, freed when the last one ends */
    SEQUENCE_STATES
};

/* Where a lane waits for its turn. */
enum stage_queue {
    QUEUE_NONE = 0, /* nothing pending */
    QUEUE_LIVE,     /* all pending rows fit into one segment and end with the live row */
    QUEUE_PROMPT,   /* the rest */
    QUEUE_COUNT
};

/* What a ring mate does, as far as it may feed us. A wait is for the mates that were busy when it
 * began: one that starts later belongs to the next round, which we want to be part of. (Waiting for
 * it as well, the ring's rows would gather in one batch that goes round while all other workers
 * wait.) */
enum stage_mate {
    MATE_IDLE = 0,
    MATE_BUSY,
    MATE_AWAITED /* busy since before our wait began */
};

/* Rounds are counted modulo 2^32. */
static inline bool stage_round_is_before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

struct stage_lane {
    uint32_t frontier;  /* F(t): positions whose batch is done */
    uint32_t n_running; /* rows in running batches */
    struct chain pending, parked;
    struct chain blocks;
    bool is_live_pending;   /* the last pending row is the live row */
    struct exit_state exit; /* of the live row, while is_live_pending */
    uint32_t n_ready;       /* pending rows that one batch may take */
    uint32_t round;         /* the latest of the batches that the pending rows come from */
    uint64_t batch;         /* number of the last batch that took rows */
    enum stage_queue queue;
    uint32_t previous, next; /* lanes of the queue */
};

struct stage_sequence {
    enum stage_sequence_state state;
    struct sequence_params params;
    const int32_t *targets; /* of an observed sequence; the driver's */
    uint32_t next;          /* of the hash bucket, or of the free list */
    uint32_t live_loop;     /* where the live row is, 0 = not here */
    /* Of the live row while it is here: where its time went up to and in its loop, and since when
     * it has been here. */
    struct loop_timing timings[SEQUENCE_MAX_LOOPS];
    uint64_t live_since_ns;
    uint32_t n_running_segments; /* of all running batches */
    struct stage_lane lanes[SEQUENCE_MAX_LOOPS];
};

/* How a row came to wait here; kept for the trace. */
struct stage_arrival {
    uint64_t at_ns;
    int64_t hop_ns;  /* from the sender's clock to ours; 0 when it stayed */
    uint16_t source; /* rank of the sender */
};

/* What became of the rows of a finished segment. */
struct stage_departure {
    bool is_exit; /* the live row got off */
    uint32_t n_parked, n_revived;
};

/* What the stage does, as the trace tells it. */
enum stage_idle {
    STAGE_UNBORN = 0, /* before the first event: there is no time yet */
    STAGE_BUSY,
    STAGE_STARVED,
    STAGE_GATHERING, /* rows are here, and the rule has not been asked: the driver takes in more */
    STAGE_HELD       /* the rule holds them back */
};

struct stage_lane_list {
    uint32_t head, tail, n;
};

struct stage_counters {
    uint64_t n_batches, n_rows, n_heads, n_stale_frames, n_parked, n_revived;
    uint64_t rows_by_loop[SEQUENCE_MAX_LOOPS];
};

/* A batch that has been started and has not ended. */
struct stage_flight {
    struct batch batch;
    uint32_t *lanes;   /* [n_segments] lane of each segment */
    uint64_t began_ns; /* its own time: from its start, or from the end of the one before it */
    uint32_t round;
    bool *may_feed;    /* [ring_size] mates its rows may go to */
    bool is_live_back; /* a ring of one: live rows of it come back here */
};

struct stage {
    struct stage_config config;

    struct chain_pool slots;
    int32_t *slot_ids; /* [n_slots] token id of the slot's position */
    /* [n_slots] of rows that wait or run; NULL without a trace */
    struct stage_arrival *arrivals;
    struct kv_blocks kv;

    struct stage_sequence *sequences; /* [max_sequences] */
    uint32_t free_sequence, n_touched_sequences, n_sequences;
    uint32_t *buckets; /* [n_buckets] first sequence of each hash value */
    uint32_t n_buckets;
    uint64_t highest_opened;

    struct stage_lane_list queues[QUEUE_COUNT];
    uint32_t n_ready;  /* sum over lanes */
    uint32_t n_parked; /* sum over lanes */

    uint64_t now_ns; /* of the event that is being handled */

    struct stage_flight flights[STAGE_MAX_IN_FLIGHT]; /* a queue: the oldest, then the next */
    uint32_t oldest, n_running;
    uint64_t n_formed; /* batches ever formed: their numbers */

    bool is_waiting; /* idle with ready rows, since waiting_since_ns */
    uint64_t waiting_since_ns;
    bool is_held;           /* ... and the rule has said to wait */
    enum stage_mate *mates; /* [ring_size] as they announced */
    /* Batches are numbered by rounds: one more than the latest batch its rows come from. So the
     * batches of a ring that could run side by side have about the same number, whatever else a
     * worker has done in between. */
    uint32_t round;        /* of the batch we started last */
    uint32_t ready_round;  /* the latest of the waiting rows' lanes; while n_ready > 0 */
    uint32_t *mate_rounds; /* [ring_size] of the batch each has announced last */
    uint32_t n_awaited_mates;
    /* [ring_size] mates we told that a batch runs: the oldest of those that may feed them */
    bool *is_announced;

    struct stage_counters counters;

    enum stage_idle idle; /* as of the last event; only with a trace */
    uint64_t idle_since_ns;

    /* The output and the room behind it; stage_output.c says why nothing overflows. */
    struct stage_output output;
    int32_t *copy_slots;
    struct stage_frame *unsorted; /* frames in the order they came up */
    uint32_t *unsorted_mates;
    uint32_t n_rows_out;
    uint32_t *mate_flags;       /* [ring_size] bundle_flags of the message to each */
    uint32_t *mate_busy_rounds; /* [ring_size] of the batch that BUNDLE_BUSY in it announces */
    uint32_t *mate_first_frame; /* [ring_size] where its frames start */
    uint32_t *mate_n_frames;    /* [ring_size] */
};

/* ---- lanes ---------------------------------------------------------------------------------- */

static inline struct stage_sequence *stage_lane_sequence(struct stage *s, uint32_t lane)
{
    return &s->sequences[lane / SEQUENCE_MAX_LOOPS];
}
static inline uint32_t stage_lane_loop(uint32_t lane)
{
    return lane % SEQUENCE_MAX_LOOPS + 1;
}
static inline struct stage_lane *stage_lane_at(struct stage *s, uint32_t lane)
{
    return &stage_lane_sequence(s, lane)->lanes[lane % SEQUENCE_MAX_LOOPS];
}
static inline uint32_t stage_lane_index(const struct stage *s, const struct stage_sequence *q,
                                        uint32_t loop)
{
    return (uint32_t)(q - s->sequences) * SEQUENCE_MAX_LOOPS + loop - 1;
}

/* The oldest batch that runs; while n_running > 0. */
static inline struct stage_flight *stage_oldest_flight(struct stage *s)
{
    return &s->flights[s->oldest];
}
/* The place behind the youngest; while n_running < n_in_flight. */
static inline struct stage_flight *stage_next_flight(struct stage *s)
{
    return &s->flights[(s->oldest + s->n_running) % s->config.n_in_flight];
}

/* ---- stage_memory.c ------------------------------------------------------------------------- */

/* Places every array of *s in one piece of memory that starts at base; with base NULL only counts.
 * Returns the bytes needed, SIZE_MAX when they do not fit into size_t. */
size_t stage_memory_place(struct stage *s, unsigned char *base);

/* ---- stage_sequence.c ----------------------------------------------------------------------- */

void stage_sequences_init(struct stage *s);
/* NULL when the id is not in the table. */
struct stage_sequence *stage_sequence_find(const struct stage *s, uint64_t id);
void stage_sequence_open(struct stage *s, const struct sequence_params *params,
                         const int32_t *targets);
void stage_sequence_close(struct stage *s, uint64_t id);
/* Makes the sequence dead, frees what it holds as soon as no running row needs it, and tells the
 * coordinator. */
void stage_sequence_fail(struct stage *s, struct stage_sequence *q, enum status failure,
                         const char *message);
/* One running segment of the sequence has ended; frees a dead sequence after its last. */
void stage_sequence_segment_done(struct stage *s, struct stage_sequence *q);
/* Positions this sequence can ever process. */
uint32_t stage_sequence_limit(const struct stage *s, const struct sequence_params *params);
/* Whether loop t runs on this worker. */
bool stage_serves(const struct stage *s, const struct sequence_params *params, uint32_t loop);

/* ---- stage_rows.c --------------------------------------------------------------------------- */

/* Takes a frame from another rank: checks it, gives its rows slots, queues them. */
enum status stage_rows_receive(struct stage *s, const struct stage_event *event, struct err *err);
/* Queues rows that come from this worker itself: all of *slots (which becomes empty), or with slots
 * NULL one row of loop 1 with this token id. */
void stage_rows_requeue(struct stage *s, struct stage_sequence *q, uint32_t loop,
                        uint32_t first_position, struct chain *slots, int32_t id,
                        const struct exit_state *live);
/* Detaches the next n pending rows of the lane for a batch: writes their slots. */
void stage_rows_take(struct stage *s, uint32_t lane, uint32_t n, int32_t *slots);
/* Parks rows that a batch has finished; slots are detached. */
void stage_rows_park(struct stage *s, struct stage_lane *lane, const int32_t *slots, uint32_t n);
/* Frees the parked rows of a lane. */
void stage_rows_free_parked(struct stage *s, struct stage_lane *lane);
/* Frees all rows of the sequence that are not in a running batch. */
void stage_rows_free_all(struct stage *s, struct stage_sequence *q);

/* ---- stage_batch.c -------------------------------------------------------------------------- */

/* Starts a batch if there are ready rows, one more may run, and the batching rule says so; else
 * says when to ask again. */
void stage_batch_consider(struct stage *s, const struct stage_event *event);
/* The oldest batch has ended: tells the mates it might have fed, and that the one behind it, which
 * may feed them, too, still runs. */
void stage_batch_retire(struct stage *s);

/* ---- stage_forward.c ------------------------------------------------------------------------ */

/* Decides for every segment of the oldest batch, which has ended, where its rows go. */
void stage_forward_results(struct stage *s, const struct batch_result *result);
/* Whether the segment's rows go on to the next loop by themselves once done, without a live row
 * (eager prompts). */
bool stage_forward_is_eager(const struct sequence_params *params, uint32_t first_position,
                            uint32_t n_rows);
/* Whether a token at this position ends its sequence whatever its id is. */
bool stage_forward_is_end(const struct stage *s, const struct sequence_params *params,
                          uint32_t token_position);

/* ---- stage_trace.c -------------------------------------------------------------------------- */

/* All but stage_trace_segment do nothing without a trace. */

/* A row has arrived and waits. */
void stage_trace_arrival(struct stage *s, uint32_t slot, uint16_t source, int64_t hop_ns);
/* The batch has ended: itself, then each of its segments, then the pool as it is after them. */
void stage_trace_batch(struct stage *s, const struct stage_flight *flight,
                       const struct batch_result *result);
void stage_trace_segment(struct stage *s, const struct stage_flight *flight, uint32_t i,
                         const struct stage_arrival *oldest,
                         const struct stage_departure *departure);
void stage_trace_pool(struct stage *s);
/* At the end of every step: ends idle spans and begins them. */
void stage_trace_idle(struct stage *s);

/* ---- stage_output.c ------------------------------------------------------------------------- */

void stage_output_reset(struct stage *s);
void stage_output_notice(struct stage *s, enum control_kind kind, uint64_t sequence,
                         enum status failure, const char *message);
void stage_output_token(struct stage *s, const struct control_token *token);
/* round: of the batch that BUNDLE_BUSY announces. */
void stage_output_flag(struct stage *s, uint32_t mate, uint32_t flag, uint32_t round);
/* Adds a frame for a mate; *head as in struct stage_frame. stage_output_row adds its rows, in
 * order. */
void stage_output_frame(struct stage *s, uint32_t mate, const struct frame *head);
void stage_output_row(struct stage *s, int32_t slot, int32_t id);
/* Sorts the frames by mate and makes one message for each mate that has frames or flags. */
void stage_output_finish(struct stage *s);

#endif
