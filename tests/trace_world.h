/* A made-up run for tests of traces: sequences ride a ring of workers one row at a time, every
 * worker runs one batch after the other, and all that happens is recorded. Deterministic by seed.
 */
#ifndef TESTS_TRACE_WORLD_H
#define TESTS_TRACE_WORLD_H

#include "tests/unit.h"

#include "coordinator/trace_set.h"

enum { TRACE_WORLD_MAX_WORKERS = 16 };

struct trace_world {
    struct trace_set *set;
    uint32_t n_workers;
    uint64_t random, free_ns[TRACE_WORLD_MAX_WORKERS], received_ns[TRACE_WORLD_MAX_WORKERS],
        sent_ns[TRACE_WORLD_MAX_WORKERS];
};

static inline uint64_t trace_world_random(struct trace_world *w, uint64_t below)
{
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (w->random >> 33) % below;
}

static inline void trace_world_add(struct trace_world *w, uint32_t rank, struct trace_record record)
{
    struct err err;
    assert_int_equal(trace_set_append(w->set, rank, &record, 1, &err), STATUS_OK);
}

/* One loop of the live row of `position`, that left `peer` at now_ns. Returns when its batch ended.
 */
static inline uint64_t trace_world_loop(struct trace_world *w, uint64_t sequence, uint32_t position,
                                        uint8_t loop, bool is_exit, uint16_t peer, uint32_t worker,
                                        uint64_t now_ns)
{
    uint16_t rank = (uint16_t)(worker + 1);
    uint64_t arrived = now_ns + (peer == rank ? 0 : 2000 + trace_world_random(w, 3000));
    if (arrived < w->received_ns[worker])
        arrived = w->received_ns[worker];
    if (peer != rank)
        trace_world_add(w, rank,
                        (struct trace_record){.kind = TRACE_RECEIVE,
                                              .at_ns = arrived,
                                              .lasted_ns = 300,
                                              .peer = peer,
                                              .message = {.n_bytes = 4096, .n_frames = 1}});
    w->received_ns[worker] = arrived + 300;
    uint64_t start = arrived + 300 > w->free_ns[worker] ? arrived + 300 : w->free_ns[worker];
    if (start > w->free_ns[worker])
        trace_world_add(w, rank,
                        (struct trace_record){.kind = TRACE_IDLE,
                                              .flags = trace_world_random(w, 2) == 0
                                                           ? TRACE_IDLE_STARVED
                                                           : TRACE_IDLE_PEER,
                                              .at_ns = w->free_ns[worker],
                                              .lasted_ns = start - w->free_ns[worker]});
    uint64_t lasted = 50001 + trace_world_random(w, 20000);
    struct trace_record batch = {
        .kind = TRACE_BATCH,
        .at_ns = start,
        .lasted_ns = lasted,
        .n_rows = 1,
        .batch = {.n_segments = 1, .n_heads = is_exit, .head_ns = is_exit ? 7003 : 0}};
    batch.batch.rows_by_loop[loop - 1] = 1;
    trace_world_add(w, rank, batch);
    trace_world_add(w, rank,
                    (struct trace_record){.kind = TRACE_ROWS,
                                          .at_ns = start,
                                          .lasted_ns = lasted,
                                          .sequence = sequence,
                                          .position = position,
                                          .n_rows = 1,
                                          .loop = loop,
                                          .flags = TRACE_LIVE | (is_exit ? TRACE_EXIT : 0),
                                          .peer = peer,
                                          .rows = {.hop_ns = (int64_t)(arrived - now_ns),
                                                   .wait_ns = start - arrived,
                                                   .n_parked = is_exit,
                                                   .n_revived = trace_world_random(w, 2) == 0}});
    trace_world_add(w, rank,
                    (struct trace_record){.kind = TRACE_POOL,
                                          .at_ns = start + lasted,
                                          .pool = {position + 1, 4096, position, 0, 1}});
    w->free_ns[worker] = start + lasted;
    if (w->sent_ns[worker] < start + lasted)
        w->sent_ns[worker] = start + lasted;
    trace_world_add(w, rank,
                    (struct trace_record){.kind = TRACE_SEND,
                                          .at_ns = w->sent_ns[worker],
                                          .lasted_ns = 200,
                                          .message = {.n_bytes = 80, .n_frames = !is_exit}});
    w->sent_ns[worker] += 200;
    return start + lasted;
}

/* n_sequences of n_tokens each over n_workers, 4 loops; all start within a millisecond. Aligned. */
static inline struct trace_set *trace_world_make(uint32_t n_workers, uint32_t n_sequences,
                                                 uint32_t n_tokens, uint64_t seed)
{
    struct trace_world w = {.n_workers = n_workers, .random = seed};
    struct err err;
    const uint64_t begin = 7000000000;
    assert_int_equal(trace_set_create(n_workers + 1, &w.set, &err), STATUS_OK);
    w.set->n_loops = 4;
    w.set->ring_size = n_workers;
    snprintf(w.set->model, sizeof w.set->model, "made \"up\"");
    uint64_t *now = calloc(n_sequences, sizeof *now), *started = calloc(n_sequences, sizeof *now);
    uint16_t *last = calloc(n_sequences, sizeof *last); /* who made the last token */
    assert_true(now != NULL && started != NULL && last != NULL);
    for (uint32_t i = 0; i < n_workers; i++) {
        snprintf(w.set->ranks[i + 1].host, sizeof w.set->ranks[0].host, "node%u", i / 2);
        w.set->ranks[i + 1].clock_error_ns = 1500 + i;
        w.free_ns[i] = w.received_ns[i] = w.sent_ns[i] = begin;
    }
    for (uint32_t s = 0; s < n_sequences; s++) {
        uint64_t queued = trace_world_random(&w, 500000), opening = trace_world_random(&w, 100000);
        now[s] = begin + s * 1000 % 1000000;
        trace_world_add(&w, 0,
                        (struct trace_record){.kind = TRACE_QUEUE,
                                              .at_ns = now[s],
                                              .lasted_ns = queued,
                                              .sequence = s + 1,
                                              .n_rows = 5,
                                              .request.request = s + 100});
        trace_world_add(&w, 0,
                        (struct trace_record){.kind = TRACE_ADMISSION,
                                              .at_ns = now[s] + queued,
                                              .lasted_ns = opening,
                                              .sequence = s + 1,
                                              .peer = (uint16_t)(s % n_workers + 1),
                                              .request.request = s + 100});
        trace_world_add(&w, 0,
                        (struct trace_record){.kind = TRACE_LOAD,
                                              .at_ns = now[s] + queued,
                                              .load = {n_sequences - s, 1, s, 0, s, 4096}});
        now[s] += queued + opening;
        started[s] = now[s];
    }
    for (uint32_t i = 0; i < n_tokens; i++)
        for (uint32_t s = 0; s < n_sequences; s++) {
            uint8_t exit_loop = (uint8_t)(1 + trace_world_random(&w, 4));
            for (uint8_t loop = 1; loop <= exit_loop; loop++) {
                uint32_t worker = (s + loop - 1) % n_workers;
                now[s] = trace_world_loop(&w, s + 1, 4 + i, loop, loop == exit_loop, last[s],
                                          worker, now[s]);
                last[s] = (uint16_t)(worker + 1);
            }
            trace_world_add(
                &w, 0,
                (struct trace_record){.kind = TRACE_TOKEN,
                                      .at_ns = now[s] + 1000 + trace_world_random(&w, 9000),
                                      .sequence = s + 1,
                                      .position = 5 + i,
                                      .loop = exit_loop,
                                      .peer = last[s],
                                      .token = {(int32_t)i - 3, 0.1f * exit_loop}});
        }
    for (uint32_t s = 0; s < n_sequences; s++)
        trace_world_add(&w, 0,
                        (struct trace_record){.kind = TRACE_SEQUENCE,
                                              .at_ns = started[s],
                                              .lasted_ns = now[s] + 20000 - started[s],
                                              .sequence = s + 1,
                                              .n_rows = n_tokens,
                                              .flags = 2,
                                              .request.request = s + 100});
    trace_world_add(&w, 0,
                    (struct trace_record){.kind = TRACE_BLOCKED,
                                          .at_ns = begin + 5000,
                                          .lasted_ns = 90000,
                                          .flags = TRACE_BLOCKED_SEQUENCES});
    trace_world_add(&w, 0,
                    (struct trace_record){
                        .kind = TRACE_DRAINING, .at_ns = begin + 50000, .lasted_ns = 9000000});
    free(now);
    free(started);
    free(last);
    assert_int_equal(trace_set_align(w.set, &err), STATUS_OK);
    return w.set;
}

#endif
