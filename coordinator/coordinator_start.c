/* Shakes hands: every worker is there, holds the same model, and has its share of its host. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading the weights while the workers start -------------------------------------------- */

struct verification {
    const struct checkpoint *checkpoint;
    pthread_t thread;
    bool is_running;
    enum status status;
    struct err err;
};

static void *verify_main(void *arg)
{
    struct verification *v = arg;
    v->status = checkpoint_verify_finite(v->checkpoint, 2, &v->err);
    return NULL;
}

static enum status verification_begin(struct verification *v, const struct checkpoint *checkpoint,
                                      struct err *err)
{
    v->checkpoint = checkpoint;
    int rc = pthread_create(&v->thread, NULL, verify_main, v);
    if (rc != 0)
        return err_set(err, STATUS_NO_MEMORY, "no thread to check the weights: %s", strerror(rc));
    v->is_running = true;
    return STATUS_OK;
}

static enum status verification_end(struct verification *v, struct err *err)
{
    if (!v->is_running)
        return STATUS_OK;
    pthread_join(v->thread, NULL);
    v->is_running = false;
    return v->status == STATUS_OK ? STATUS_OK : err_set(err, v->status, "%s", v->err.message);
}

/* ---- hello and ready ------------------------------------------------------------------------ */

static bool has_answered(const struct coordinator *c, const struct peer *p)
{
    return c->phase == PHASE_HELLO   ? p->has_hello
           : c->phase == PHASE_READY ? p->has_ready
                                     : coordinator_clock_is_known(p);
}

/* "2, 5 (node7)": the ranks that have not answered; the host where it is known. */
static void list_missing(const struct coordinator *c, char *out, size_t cap_bytes)
{
    size_t at = 0;
    out[0] = '\0';
    for (uint32_t w = 0; w < c->n_workers; w++) {
        const struct peer *p = &c->peers[w];
        if (has_answered(c, p))
            continue;
        if (at + CONTROL_NAME_BYTES + 24 > cap_bytes) {
            snprintf(out + at, cap_bytes - at, " ...");
            return;
        }
        const char *comma = at > 0 ? ", " : "";
        if (p->has_hello)
            at += (size_t)snprintf(out + at, cap_bytes - at, "%s%u (%s)", comma, w + 1,
                                   p->hello.host);
        else
            at += (size_t)snprintf(out + at, cap_bytes - at, "%s%u", comma, w + 1);
    }
}

static enum status check_hello(const struct coordinator *c, uint32_t worker, struct err *err)
{
    const struct control_hello *h = &c->peers[worker].hello;
    const uint64_t expected = c->checkpoint->fingerprint;
    if (h->protocol != CONTROL_PROTOCOL_VERSION || strcmp(h->version, CAROUSEL_VERSION) != 0)
        return err_set(
            err, STATUS_MISMATCH,
            "rank %u on %s runs carousel %s (protocol %u), rank 0 runs %s (protocol %d): "
            "install the same version on all hosts",
            worker + 1, h->host, h->version, h->protocol, CAROUSEL_VERSION,
            CONTROL_PROTOCOL_VERSION);
    if (h->failure != STATUS_OK)
        return err_set(err, h->failure, "rank %u on %s: %s", worker + 1, h->host, h->message);
    if (h->fingerprint != expected)
        return err_set(err, STATUS_MISMATCH,
                       "rank %u on %s holds another model: its fingerprint is %016" PRIx64
                       ", that of rank 0 (%s) is %016" PRIx64
                       ": copy the same files to every host, or check --loops",
                       worker + 1, h->host, h->fingerprint, c->checkpoint->dir, expected);
    return STATUS_OK;
}

static enum status check_ready(const struct coordinator *c, uint32_t worker, struct err *err)
{
    const struct control_ready *r = &c->peers[worker].ready;
    const char *host = coordinator_host_of(c, worker);
    if (r->failure != STATUS_OK)
        return err_set(err, r->failure, "rank %u on %s: %s", worker + 1, host, r->message);
    if (r->block_size != c->config.block_size)
        return err_set(
            err, STATUS_MISMATCH,
            "rank %u on %s has KV blocks of %u positions, rank 0 plans with %u: start all "
            "ranks with the same options",
            worker + 1, host, r->block_size, c->config.block_size);
    if (r->n_kv_blocks == 0)
        return err_set(err, STATUS_NO_MEMORY,
                       "rank %u on %s has room for no KV block: give it more with --kv-memory",
                       worker + 1, host);
    return STATUS_OK;
}

enum status coordinator_take_hello(struct coordinator *c, uint32_t worker,
                                   const struct control_hello *hello, struct err *err)
{
    struct peer *p = &c->peers[worker];
    if (c->phase != PHASE_HELLO || p->has_hello)
        return coordinator_unexpected(c, worker, "a second hello", err);
    if (hello->rank != worker + 1)
        return err_set(err, STATUS_CORRUPT, "rank %u on %s says it is rank %u", worker + 1,
                       hello->host, hello->rank);
    p->hello = *hello;
    p->has_hello = true;
    coordinator_clock_meet(p);
    return check_hello(c, worker, err);
}

enum status coordinator_take_ready(struct coordinator *c, uint32_t worker,
                                   const struct control_ready *ready, struct err *err)
{
    struct peer *p = &c->peers[worker];
    if (c->phase != PHASE_READY || p->has_ready)
        return coordinator_unexpected(c, worker, "ready out of turn", err);
    p->ready = *ready;
    p->has_ready = true;
    return check_ready(c, worker, err);
}

static uint32_t count_answers(const struct coordinator *c)
{
    uint32_t n = 0;
    for (uint32_t w = 0; w < c->n_workers; w++)
        n += has_answered(c, &c->peers[w]);
    return n;
}

/* Takes messages until every worker has answered in this phase, or one cannot go on. */
static enum status await_all(struct coordinator *c, struct err *err)
{
    const uint64_t deadline_ns = host_now_ns() + c->config.start_timeout_ns;
    for (;;) {
        uint32_t n_handled = 0;
        enum status st = coordinator_receive(c, &n_handled, err);
        if (st != STATUS_OK || count_answers(c) == c->n_workers)
            return st;
        if (c->phase == PHASE_CLOCK && (st = coordinator_clock_ask(c, err)) != STATUS_OK)
            return st;
        uint64_t now_ns = host_now_ns();
        if (now_ns >= deadline_ns) {
            char missing[256];
            list_missing(c, missing, sizeof missing);
            return err_set(err, STATUS_TIMEOUT,
                           "rank %s did not %s within %.1f s: look at its output, and whether its "
                           "host can reach this one",
                           missing,
                           c->phase == PHASE_HELLO   ? "say hello"
                           : c->phase == PHASE_READY ? "get ready"
                                                     : "tell its clock",
                           (double)c->config.start_timeout_ns / 1e9);
        }
        if (n_handled == 0 &&
            (st = transport_wait(c->transport, deadline_ns - now_ns, err)) != STATUS_OK)
            return st;
    }
}

static enum status welcome_all(struct coordinator *c, struct err *err)
{
    struct control_welcome *welcomes = calloc(c->n_workers, sizeof *welcomes);
    if (welcomes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u workers", c->n_workers);
    enum status st = coordinator_plan(c, welcomes, err);
    for (uint32_t w = 0; w < c->n_workers && st == STATUS_OK; w++) {
        const struct control_message m = {.kind = CONTROL_WELCOME, .welcome = welcomes[w]};
        st = coordinator_send(c, w, &m, err);
    }
    free(welcomes);
    return st;
}

static enum status create_scheduler(struct coordinator *c, struct err *err)
{
    uint32_t *n_blocks = calloc(c->n_workers, sizeof *n_blocks);
    if (n_blocks == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u workers", c->n_workers);
    for (uint32_t w = 0; w < c->n_workers; w++)
        n_blocks[w] = c->peers[w].ready.n_kv_blocks;
    const struct scheduler_config config = {
        .n_workers = c->n_workers,
        .ring_size = c->ring_size,
        .n_loops = (uint32_t)c->checkpoint->config.n_loops,
        .max_positions = (uint32_t)c->checkpoint->config.max_positions,
        .block_size = c->config.block_size,
        .n_blocks = n_blocks,
        .max_queue = c->config.max_queue,
        .max_running = c->config.max_running,
        .trace = c->config.trace,
    };
    enum status st = scheduler_create(&config, &c->scheduler, err);
    free(n_blocks);
    return st;
}

enum status coordinator_start(struct coordinator *c, struct err *err)
{
    struct err why = {0}, bad = {0};
    struct verification verification = {0};
    enum status st;
    if (c->phase != PHASE_HELLO)
        return err_set(err, STATUS_INTERNAL, "coordinator_start was called twice");
    if ((st = await_all(c, &why)) != STATUS_OK || (st = welcome_all(c, &why)) != STATUS_OK)
        goto out;
    c->phase = PHASE_READY;
    if (c->config.verify_weights &&
        (st = verification_begin(&verification, c->checkpoint, &why)) != STATUS_OK)
        goto out;
    st = await_all(c, &why);
    /* Joined on every path; bad weights matter more than a worker that is late because it reads the
     * same slow disk. */
    if (verification_end(&verification, &bad) != STATUS_OK) {
        why = bad;
        st = bad.code;
    }
    if (st != STATUS_OK || (st = create_scheduler(c, &why)) != STATUS_OK)
        goto out;
    c->phase = PHASE_CLOCK;
    if ((st = await_all(c, &why)) == STATUS_OK)
        c->phase = PHASE_RUNNING;
out:
    if (st != STATUS_OK) {
        c->fatal = why;
        coordinator_stop_workers(c, st, why.message);
        return err_set(err, st, "%s", why.message);
    }
    return STATUS_OK;
}
