/* A small simulated cluster with round costs, for tests that know every time beforehand. */
#ifndef TESTS_SIMULATE_CASE_H
#define TESTS_SIMULATE_CASE_H

#include "cli/simulate_world.h"

struct simulate_case {
    struct simulate_config config;
    struct bench_workload workload;
    struct simulate_load load;
    struct simulate_world *world;
    struct simulate_result result;
};

/* Microseconds: a batch 1000, a head 100, a hand-over 10, a message 2 and a row in it 1, a request
 * 5, a token 3, a link 7; bytes are free. Two loops, prompts of one token, three to make. */
static inline void simulate_case_init(struct simulate_case *c, uint32_t n_workers)
{
    *c = (struct simulate_case){
        .config = {.model = {.architecture = "OuroForCausalLM",
                             .n_layers = 1,
                             .d_model = 8,
                             .n_heads = 1,
                             .n_kv_heads = 1,
                             .head_dim = 8,
                             .vocab_size = 100,
                             .max_positions = 1000,
                             .n_loops = 2},
                   .cost = {.name = "round numbers",
                            .block = {.n_points = 1, .x = {1}, .y = {1e6}},
                            .head = {.n_points = 1, .x = {1}, .y = {1e5}},
                            .batch_overhead_ns = 1e4,
                            .worker_message_ns = 2e3,
                            .worker_row_ns = 1e3,
                            .coordinator_request_ns = 5e3,
                            .coordinator_token_ns = 3e3,
                            .local = {.latency_ns = 7e3},
                            .remote = {.latency_ns = 7e3},
                            .ranks_per_host = 1},
                   .n_workers = n_workers,
                   .n_blocks = 1000,
                   .block_size = 4,
                   .n_slots = 4000,
                   .max_sequences = 64,
                   .max_batch_rows = 64,
                   .prefill_chunk = 16,
                   .batching = BATCHING_KNEE},
    };
    bench_workload_init(&c->workload);
    c->workload.n_requests = c->workload.concurrency = 1;
    c->workload.prompt_min = c->workload.prompt_max = 1;
    c->workload.output_min = c->workload.output_max = 3;
    c->load = (struct simulate_load){.workload = &c->workload, .model = &c->config.model};
    sequence_params_init(&c->load.base);
    c->load.base.max_loops = 2;
}

/* The share of tokens at each loop, of two. */
static inline void simulate_case_exits(struct simulate_case *c, float at_1)
{
    c->workload.n_force_exits = 2;
    c->workload.force_exits[0] = at_1;
    c->workload.force_exits[1] = 1.0f - at_1;
}

static inline void simulate_case_run(struct simulate_case *c)
{
    struct err err = {0};
    if (simulate_world_create(&c->config, &c->load, &c->world, &err) != STATUS_OK ||
        simulate_world_run(c->world, (uint32_t)c->workload.n_warmup,
                           (uint32_t)c->workload.n_requests, &c->result, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static inline void simulate_case_free(struct simulate_case *c)
{
    simulate_world_destroy(c->world);
    simulate_load_free(&c->load);
}

#endif
