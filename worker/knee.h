/* When to start a batch: greedy, tick, the knee or the round rule, as one pure function. */
#ifndef WORKER_KNEE_H
#define WORKER_KNEE_H

#include <stdbool.h>
#include <stdint.h>

/* What is waited for, while the rows are fewer than fill a batch:
 *   greedy  nobody
 *   tick    ring mates whose batch had begun before the wait did
 *   knee    the same, until the rows reach a/b
 *   round   ring mates whose batch is of an earlier round than ours will be, until a/b */
enum batching { BATCHING_GREEDY = 0, BATCHING_TICK = 1, BATCHING_KNEE = 2, BATCHING_ROUND = 3 };

/* Their names, as options take them and reports show them. */
#define BATCHING_NAMES "greedy|tick|knee|round"
const char *batching_name(enum batching batching);

struct knee_input {
    enum batching batching;
    uint32_t n_ready;      /* rows that could go into a batch now, > 0 */
    uint32_t max_rows;     /* row budget of a batch */
    uint64_t batch_ns;     /* a: a batch's fixed cost, as measured */
    uint64_t row_ns;       /* b: a row's cost */
    uint32_t n_busy_mates; /* ring mates that compute a batch that may feed us, as far as they are
                              waited for */
    uint64_t waited_ns;    /* since the first of these rows could have started */
    uint64_t deadline_ns;  /* longest wait; 0 = twice what the waiting rows would cost */
};

/* True: start now. False: wait, and ask again at the next event or after *again_ns. */
bool knee_should_start(const struct knee_input *in, uint64_t *again_ns);

#endif
