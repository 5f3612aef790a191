/* Measures round trips and streaming between ranks 0 and 1, next to what the MPI library does
 * without us. */
#include "cli/bench_net.h"

#include "cli/cli.h"
#include "cli/options.h"
#include "cluster/host.h"
#include "cluster/launch.h"
#include "cluster/transport.h"
#include "cluster/transport_mpi.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_SIZES = 32, MAX_ITERATIONS = 1000000, N_COLD = 20, WINDOW = 16, ACK_EVERY = 8 };
#define COLD_PAUSE_NS  (2 * 1000 * 1000) /* longer than any spin: both sides are asleep */
#define BYTES_PER_SIZE (256u << 20)      /* bounds the iterations of long messages */
#define PATIENCE_NS    (30ull * 1000000000u)
#define WAIT_NS        (100 * 1000 * 1000u)

struct bench {
    bool is_json, is_inproc;
    int n_iterations, n_sizes;
    size_t sizes[MAX_SIZES];
    uint64_t *samples_ns; /* [n_iterations] */
};

struct times {
    double p50_us, p99_us;
};

struct result {
    int n_iterations;
    struct times raw, hop, cold; /* half round trips */
    double stream_mb_per_s;
};

static const char usage[] =

    "usage: carousel bench net [options]\n"
    "Ping-pong between ranks 0 and 1 for each frame size: raw MPI that never sleeps,\n"
    "the transport as the drivers use it, the same after a pause (cold), and\n"
    "streaming one way.";

/* ---- options -------------------------------------------------------------------------------- */

static enum status parse_sizes(const char *text, struct bench *b, struct err *err)
{
    b->n_sizes = 0;
    for (const char *at = text;; at++) {
        char *end = NULL;
        errno = 0;
        unsigned long long n = *at == '-' ? 0 : strtoull(at, &end, 10);
        bool is_number = end != NULL && end != at && errno == 0;
        int shift = 0;
        if (is_number && (*end == 'k' || *end == 'K'))
            shift = 10, end++;
        else if (is_number && (*end == 'm' || *end == 'M'))
            shift = 20, end++;
        if (!is_number || n < 1 || n > (unsigned long long)TRANSPORT_MAX_MESSAGE_BYTES >> shift ||
            (*end != ',' && *end != '\0'))
            return err_set(err, STATUS_INVALID,
                           "--sizes %s: '%s' is not a list of sizes from 1 to %d bytes", text, at,
                           TRANSPORT_MAX_MESSAGE_BYTES);
        if (b->n_sizes == MAX_SIZES)
            return err_set(err, STATUS_INVALID, "--sizes %s: more than %d sizes", text, MAX_SIZES);
        b->sizes[b->n_sizes++] = (size_t)n << shift;
        if (*end == '\0')
            return STATUS_OK;
        at = end;
    }
}

/* *is_help: only the usage was asked for, and is printed. */
static enum status parse_options(int argc, char **argv, struct bench *b, bool *is_help,
                                 struct err *err)
{
    *b = (struct bench){.n_iterations = 1000};
    const char *sizes = "64,1k,8k,64k,1m,4m";
    int transport = 0;
    const struct option_spec own[] = {
        {"sizes", 0, OPTION_STRING, &sizes, "LIST", NULL, 0, 0,
         "bytes, with k or m (default 64,1k,8k,64k,1m,4m)", NULL},
        {"iterations", 0, OPTION_INT, &b->n_iterations, "N", NULL, 1, MAX_ITERATIONS,
         "round trips a size (default 1000)", NULL},
        {"transport", 0, OPTION_CHOICE, &transport, NULL, "mpi|inproc", 0, 0,
         "mpi (default) starts mpirun by itself", NULL},
        {"json", 0, OPTION_FLAG, &b->is_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
    };
    const struct option_group group = {own, sizeof own / sizeof own[0]};
    struct options_result args;
    enum status status = options_parse(&group, 1, argc, argv, &args, err);
    *is_help = status == STATUS_OK && args.wants_help;
    if (*is_help)
        options_print_help(usage, &group, 1, &args);
    if (status == STATUS_OK && args.n_positionals > 0)
        status = err_set(err, STATUS_INVALID, "unexpected argument '%s'", args.positionals[0]);
    b->is_inproc = transport == 1;
    return status == STATUS_OK ? parse_sizes(sizes, b, err) : status;
}

/* ---- the two sides -------------------------------------------------------------------------- */

static int n_iterations_of(const struct bench *b, size_t n_bytes)
{
    size_t n = BYTES_PER_SIZE / n_bytes;
    n = n < 8 ? 8 : n;
    return n < (size_t)b->n_iterations ? (int)n : b->n_iterations;
}

static enum status send_bytes(struct transport *t, int dest, size_t n_bytes, struct err *err)
{
    struct transport_message *message = NULL;
    enum status status = transport_acquire(t, n_bytes, &message, err);
    if (status != STATUS_OK)
        return status;
    message->len_bytes = n_bytes;
    return transport_post(t, dest, message, err);
}

/* Takes the next message as a driver would (poll, wait, poll) and drops it. */
static enum status receive(struct transport *t, struct err *err)
{
    struct transport_message *message = NULL;
    uint64_t until_ns = host_now_ns() + PATIENCE_NS;
    for (;;) {
        enum status status = transport_poll(t, &message, err);
        if (status != STATUS_OK)
            return status;
        if (message != NULL) {
            transport_release(t, message);
            return STATUS_OK;
        }
        if (host_now_ns() > until_ns)
            return err_set(err, STATUS_TIMEOUT, "rank %d: no message for 30 s", t->rank);
        status = transport_wait(t, WAIT_NS, err);
        if (status != STATUS_OK)
            return status;
    }
}

static enum status drain(struct transport *t, struct err *err)
{
    enum status status = STATUS_OK;
    uint64_t until_ns = host_now_ns() + PATIENCE_NS;
    while (status == STATUS_OK && !transport_is_drained(t)) {
        if (host_now_ns() > until_ns)
            return err_set(err, STATUS_TIMEOUT, "rank %d: a send does not complete", t->rank);
        status = transport_wait(t, WAIT_NS, err);
    }
    return status;
}

static enum status ping_pong(struct transport *t, size_t n_bytes, int n, long pause_ns,
                             uint64_t *samples_ns, struct err *err)
{
    enum status status = STATUS_OK;
    for (int i = 0; i < n && status == STATUS_OK; i++) {
        struct timespec pause = {.tv_nsec = pause_ns};
        if (pause_ns > 0 && t->rank == 0)
            nanosleep(&pause, NULL);
        uint64_t begin_ns = host_now_ns();
        if (t->rank == 0)
            status = send_bytes(t, 1, n_bytes, err);
        if (status == STATUS_OK)
            status = receive(t, err);
        if (status == STATUS_OK && t->rank == 1)
            status = send_bytes(t, 0, n_bytes, err);
        if (samples_ns != NULL)
            samples_ns[i] = host_now_ns() - begin_ns;
    }
    return status;
}

/* n messages one way; rank 1 acknowledges every eighth and the last, rank 0 is at most WINDOW
 * ahead. */
static enum status stream(struct transport *t, size_t n_bytes, int n, struct err *err)
{
    enum status status = STATUS_OK;
    int n_acked = 0;
    for (int i = 0; i < n && status == STATUS_OK; i++) {
        bool wants_ack = i % ACK_EVERY == ACK_EVERY - 1 || i == n - 1;
        if (t->rank == 1) {
            status = receive(t, err);
            if (status == STATUS_OK && wants_ack)
                status = send_bytes(t, 0, 0, err);
            continue;
        }
        status = send_bytes(t, 1, n_bytes, err);
        while (status == STATUS_OK && n_acked < (i == n - 1 ? n : i + 1 - WINDOW)) {
            status = receive(t, err);
            n_acked += ACK_EVERY;
        }
    }
    return status;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static struct times half_times(uint64_t *samples_ns, int n)
{
    qsort(samples_ns, (size_t)n, sizeof samples_ns[0], compare_u64);
    return (struct times){.p50_us = (double)samples_ns[n / 2] / 2e3,
                          .p99_us = (double)samples_ns[n - 1 - n / 100] / 2e3};
}

/* Ranks 0 and 1 run this together, so that every send has its receive. */
static enum status measure_size(struct transport *t, const struct bench *b, uint64_t *samples_ns,
                                size_t n_bytes, struct result *out, struct err *err)
{
    int n = n_iterations_of(b, n_bytes), n_cold = n < N_COLD ? n : N_COLD, n_warm = n / 10 + 1;
    enum status status = STATUS_OK;
    out->n_iterations = n;
    if (!b->is_inproc) {
        status = transport_mpi_raw_ping_pong(t, 1 - t->rank, n_bytes, n_warm, NULL, err);
        if (status == STATUS_OK)
            status = transport_mpi_raw_ping_pong(t, 1 - t->rank, n_bytes, n, samples_ns, err);
        if (status == STATUS_OK)
            out->raw = half_times(samples_ns, n);
    }
    if (status == STATUS_OK)
        status = ping_pong(t, n_bytes, n_warm, 0, NULL, err);
    if (status == STATUS_OK)
        status = ping_pong(t, n_bytes, n, 0, samples_ns, err);
    if (status != STATUS_OK)
        return status;
    out->hop = half_times(samples_ns, n);
    status = ping_pong(t, n_bytes, n_cold, COLD_PAUSE_NS, samples_ns, err);
    if (status != STATUS_OK)
        return status;
    out->cold = half_times(samples_ns, n_cold);
    uint64_t begin_ns = host_now_ns();
    status = stream(t, n_bytes, n, err);
    out->stream_mb_per_s = (double)n_bytes * n / 1e6 / ((double)(host_now_ns() - begin_ns) / 1e9);
    return status;
}

/* ---- output --------------------------------------------------------------------------------- */

static void print_head(const struct bench *b, const struct transport *t)
{
    const char *library = b->is_inproc ? "threads of one process" : transport_mpi_version();
    if (b->is_json) {
        printf("{\"transport\": \"%s\", \"library\": \"%s\", \"ranks\": %d, \"local_ranks\": %d, "
               "\"results\": [",
               t->ops->name, library, t->n_ranks, t->n_local_ranks);
        return;
    }
    printf("bench net: %s (%s), %d ranks, %d on this host, half round trips in us\n", t->ops->name,
           library, t->n_ranks, t->n_local_ranks);
    if (b->is_inproc)
        printf("%10s %9s %9s %9s %10s\n", "bytes", "hop p50", "p99", "cold p50", "MB/s");
    else
        printf("%10s %9s %9s %9s %9s %6s %9s %10s\n", "bytes", "raw p50", "p99", "hop p50", "p99",
               "ratio", "cold p50", "MB/s");
}

static void print_result(const struct bench *b, size_t n_bytes, const struct result *r,
                         bool is_first)
{
    if (b->is_json) {
        printf("%s{\"bytes\": %zu, \"iterations\": %d, ", is_first ? "" : ", ", n_bytes,
               r->n_iterations);
        if (!b->is_inproc)
            printf("\"raw_p50_us\": %.3f, \"raw_p99_us\": %.3f, ", r->raw.p50_us, r->raw.p99_us);
        printf("\"hop_p50_us\": %.3f, \"hop_p99_us\": %.3f, \"cold_p50_us\": %.3f, "
               "\"stream_mb_per_s\": %.1f}",
               r->hop.p50_us, r->hop.p99_us, r->cold.p50_us, r->stream_mb_per_s);
        return;
    }
    printf("%10zu ", n_bytes);
    if (!b->is_inproc)
        printf("%9.2f %9.2f ", r->raw.p50_us, r->raw.p99_us);
    printf("%9.2f %9.2f ", r->hop.p50_us, r->hop.p99_us);
    if (!b->is_inproc)
        printf("%6.2f ", r->raw.p50_us > 0 ? r->hop.p50_us / r->raw.p50_us : 0);
    printf("%9.2f %10.1f\n", r->cold.p50_us, r->stream_mb_per_s);
    fflush(stdout);
}

/* What one rank does from start to end; ranks above 1 sleep until rank 0 dismisses them. */
static enum status run_rank(struct transport *t, const struct bench *b, struct err *err)
{
    if (t->rank > 1)
        return receive(t, err);
    uint64_t *samples_ns = calloc((size_t)b->n_iterations, sizeof *samples_ns);
    if (samples_ns == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d samples", b->n_iterations);
    if (t->rank == 0)
        print_head(b, t);
    enum status status = STATUS_OK;
    for (int i = 0; i < b->n_sizes && status == STATUS_OK; i++) {
        struct result result = {0};
        status = measure_size(t, b, samples_ns, b->sizes[i], &result, err);
        if (status == STATUS_OK && t->rank == 0)
            print_result(b, b->sizes[i], &result, i == 0);
    }
    if (t->rank == 0 && b->is_json && status == STATUS_OK)
        printf("]}\n");
    for (int i = 2; i < t->n_ranks && t->rank == 0 && status == STATUS_OK; i++)
        status = send_bytes(t, i, 0, err);
    free(samples_ns);
    return status == STATUS_OK ? drain(t, err) : status;
}

struct second_side {
    struct transport *t;
    const struct bench *bench;
    enum status status;
    struct err err;
};

static void *run_second_side(void *arg)
{
    struct second_side *side = arg;
    side->status = run_rank(side->t, side->bench, &side->err);
    return NULL;
}

static enum status run_inproc(const struct bench *b, struct err *err)
{
    struct transport *t[2];
    pthread_t thread;
    enum status status = transport_inproc_create(2, t, err);
    if (status != STATUS_OK)
        return status;
    struct second_side side = {.t = t[1], .bench = b};
    if (pthread_create(&thread, NULL, run_second_side, &side) != 0) {
        status = err_set(err, STATUS_NO_MEMORY, "can't start a second thread");
    } else {
        status = run_rank(t[0], b, err);
        pthread_join(thread, NULL);
        if (status == STATUS_OK && side.status != STATUS_OK) {
            status = side.status;
            *err = side.err;
        }
    }
    transport_destroy(t[0]);
    transport_destroy(t[1]);
    return status;
}

static enum status run_mpi(const struct bench *b, struct err *err)
{
    struct transport *t = NULL;
    enum status status = transport_mpi_create(&t, err);
    if (status != STATUS_OK)
        return status;
    if (t->n_ranks < 2)
        status = err_set(err, STATUS_INVALID, "one rank has nobody to talk to: start two or more");
    else
        status = run_rank(t, b, err);
    fflush(stdout);
    /* After a failure the other side may be stuck: let the exit end the job. */
    if (status == STATUS_OK)
        transport_destroy(t);
    return status;
}

/* Becomes `mpirun -n 2 carousel bench net ...`; comes back only when that fails. */
static enum status start_two_ranks(int argc, char **argv, struct err *err)
{
    char **args = calloc((size_t)argc + 3, sizeof *args);
    if (args == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the arguments of mpirun");
    args[0] = "carousel";
    args[1] = "bench";
    args[2] = "net";
    for (int i = 1; i < argc; i++)
        args[i + 2] = argv[i];
    enum status status = launch_mpirun(2, args, err);
    free(args);
    return status;
}

int cli_bench_net(int argc, char **argv)
{
    struct bench bench;
    struct err err = {0};
    bool is_help = false;
    enum status status = parse_options(argc, argv, &bench, &is_help, &err);
    if (status != STATUS_OK)
        return cli_fail_usage("bench net", &err);
    if (is_help)
        return CLI_OK;
    if (bench.is_inproc)
        status = run_inproc(&bench, &err);
    else if (launch_is_rank())
        status = run_mpi(&bench, &err);
    else
        status = start_two_ranks(argc, argv, &err);
    return status == STATUS_OK ? CLI_OK : cli_fail("bench net", &err);
}
