/* Drives the MPI transport from inside a job: mpirun -n N mpi_transport_check (mix SEED | wake |
 * idle SECONDS | latency | reject | exit CODE). Rank 0 prints the results; every rank exits with 1
 * when something is wrong. */
#include "cluster/host.h"
#include "cluster/launch.h"
#include "cluster/transport.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { N_MESSAGES = 40, N_PINGS = 3000, PING_BYTES = 8192 };
#define SECOND_NS 1000000000ull

static void fail(const struct transport *t, const char *what)
{
    fprintf(stderr, "rank %d: %s\n", t->rank, what);
    _exit(1);
}

static void must(struct transport *t, enum status status, const struct err *err)
{
    if (status != STATUS_OK)
        fail(t, err->message);
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Message number i from a to b: both sides know its size and content. Key 0 is a message of zeros.
 */
static uint64_t key_of(uint64_t seed, int a, int b, int i)
{
    return mix(seed ^ mix((uint64_t)a << 40 | (uint64_t)b << 20 | (uint64_t)i));
}

static size_t size_of(uint64_t key)
{
    uint64_t kind = key % 100, r = mix(key);
    if (kind < 5)
        return 0;
    if (kind < 50)
        return r % 1024;
    if (kind < 80)
        return 65536 - 40 + r % 80; /* around the border between whole and announced */
    return kind < 95 ? r % 200000 : r % 3000000;
}

static void fill(unsigned char *bytes, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)(key >> (i % 57)) ^ (unsigned char)(i >> 5);
}

static bool is_filled(const unsigned char *bytes, size_t n, uint64_t key)
{
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != (unsigned char)((unsigned char)(key >> (i % 57)) ^ (unsigned char)(i >> 5)))
            return false;
    return true;
}

/* Of every third message of a mix; the second part's memory is the host's here, and its bytes are
 * the check's as a device's would be the driver's. */
static size_t rows_of(uint64_t key)
{
    return key != 0 && mix(key) % 3 == 0 ? 1 + size_of(mix(key ^ 1)) : 0;
}

struct rows_memory {
    int n_allocs, n_frees, n_releases;
};

static enum status rows_alloc(void *context, size_t len_bytes, void **out, struct err *err)
{
    ((struct rows_memory *)context)->n_allocs++;
    *out = aligned_alloc(64, len_bytes);
    return *out != NULL ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory for rows");
}

static void rows_free(void *context, void *bytes, size_t len_bytes)
{
    (void)len_bytes;
    ((struct rows_memory *)context)->n_frees++;
    free(bytes);
}

static void rows_release(void *context)
{
    ((struct rows_memory *)context)->n_releases++;
}

static void send_bytes(struct transport *t, int dest, size_t n, uint64_t key)
{
    struct err err = {0};
    struct transport_message *message = NULL;
    must(t, transport_acquire(t, n, &message, &err), &err);
    if ((uintptr_t)message->bytes % 64 != 0)
        fail(t, "a buffer is not aligned to 64 bytes");
    if (key != 0)
        fill(message->bytes, n, key);
    else
        memset(message->bytes, 0, n);
    message->len_bytes = n;
    const size_t n_rows_bytes = rows_of(key);
    if (n_rows_bytes > 0) {
        must(t, transport_add_rows(t, message, n_rows_bytes, &err), &err);
        fill(message->rows, n_rows_bytes, mix(key));
    }
    must(t, transport_post(t, dest, message, &err), &err);
}

static struct transport_message *receive(struct transport *t, uint64_t patience_ns)
{
    struct err err = {0};
    struct transport_message *message = NULL;
    uint64_t until_ns = host_now_ns() + patience_ns;
    for (;;) {
        must(t, transport_poll(t, &message, &err), &err);
        if (message != NULL)
            return message;
        if (host_now_ns() > until_ns)
            fail(t, "no message in time");
        must(t, transport_wait(t, SECOND_NS, &err), &err);
    }
}

static void drain(struct transport *t)
{
    struct err err = {0};
    uint64_t until_ns = host_now_ns() + 20 * SECOND_NS;
    while (!transport_is_drained(t)) {
        if (host_now_ns() > until_ns)
            fail(t, "sends do not complete");
        must(t, transport_wait(t, SECOND_NS / 100, &err), &err);
    }
}

/* Every rank to every rank, itself included, in random order and sizes; order and content are
 * checked. */
static void run_mix(struct transport *t, uint64_t seed)
{
    int n = t->n_ranks, n_left_out = n * N_MESSAGES, n_left_in = n * N_MESSAGES;
    int *sent = calloc((size_t)n, sizeof *sent), *got = calloc((size_t)n, sizeof *got);
    uint64_t random = mix(seed + (uint64_t)t->rank);
    while (n_left_out > 0 || n_left_in > 0) {
        if (n_left_out > 0) {
            random = mix(random);
            int dest = (int)(random % (uint64_t)n);
            while (sent[dest] == N_MESSAGES)
                dest = (dest + 1) % n;
            uint64_t key = key_of(seed, t->rank, dest, sent[dest]++);
            send_bytes(t, dest, size_of(key), key);
            n_left_out--;
        }
        struct err err = {0};
        struct transport_message *in = NULL;
        must(t, transport_poll(t, &in, &err), &err);
        if (in == NULL && n_left_out == 0 && n_left_in > 0)
            in = receive(t, 30 * SECOND_NS);
        if (in == NULL)
            continue;
        uint64_t key = key_of(seed, in->source, t->rank, got[in->source]++);
        if (in->len_bytes != size_of(key) || !is_filled(in->bytes, in->len_bytes, key))
            fail(t, "a message is out of order, of the wrong length or damaged");
        if (in->rows_bytes != rows_of(key) ||
            (in->rows_bytes > 0 && !is_filled(in->rows, in->rows_bytes, mix(key))))
            fail(t, "a second part is of the wrong length or damaged");
        transport_release(t, in);
        n_left_in--;
    }
    drain(t);
    if (t->counters.n_messages_sent != (uint64_t)(n * N_MESSAGES) ||
        t->counters.n_messages_received != (uint64_t)(n * N_MESSAGES))
        fail(t, "the counters are wrong");
    free(sent);
    free(got);
    if (t->rank == 0)
        printf("mix: %d ranks, %d messages a rank, seed %llu\n", n, n * N_MESSAGES,
               (unsigned long long)seed);
}

static void *wake_later(void *t)
{
    struct timespec nap = {.tv_nsec = 50000000};
    nanosleep(&nap, NULL);
    transport_wake(t);
    return NULL;
}

static void run_wake(struct transport *t)
{
    struct err err = {0};
    pthread_t thread;
    uint64_t begin_ns = host_now_ns();
    pthread_create(&thread, NULL, wake_later, t);
    /* A wait may end early for no reason, so go on until the wake's own time. */
    while (host_now_ns() - begin_ns < 49000000u)
        must(t, transport_wait(t, 10 * SECOND_NS, &err), &err);
    uint64_t took_ns = host_now_ns() - begin_ns;
    pthread_join(thread, NULL);
    if (took_ns > SECOND_NS)
        fail(t, "a wake did not end the wait");
    must(t, transport_wait(t, 0, &err), &err);
    begin_ns = host_now_ns();
    for (int i = 0; host_now_ns() - begin_ns < 30000000u && i < 1000; i++)
        must(t, transport_wait(t, 10000000u, &err), &err);
    if (host_now_ns() - begin_ns < 25000000u)
        fail(t, "waits end at once although nobody calls wake");
    if (t->rank == 0)
        printf("wake: %.1f ms (called after 50)\n", (double)took_ns / 1e6);
}

static uint64_t cpu_ns(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * SECOND_NS +
           (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000u;
}

/* What the ranks burn together while nothing happens, in shares of one core. */
static void run_idle(struct transport *t, double seconds)
{
    struct err err = {0};
    uint64_t begin_ns = host_now_ns(), begin_cpu_ns = cpu_ns();
    uint64_t until_ns = begin_ns + (uint64_t)(seconds * 1e9);
    for (uint64_t now_ns; (now_ns = host_now_ns()) < until_ns;)
        must(t,
             transport_wait(
                 t, until_ns - now_ns < SECOND_NS / 10 ? until_ns - now_ns : SECOND_NS / 10, &err),
             &err);
    double share = (double)(cpu_ns() - begin_cpu_ns) / (double)(host_now_ns() - begin_ns),
           sum = share;
    if (t->rank != 0) {
        struct transport_message *message = NULL;
        must(t, transport_acquire(t, sizeof share, &message, &err), &err);
        memcpy(message->bytes, &share, sizeof share);
        message->len_bytes = sizeof share;
        must(t, transport_post(t, 0, message, &err), &err);
        drain(t);
        return;
    }
    for (int i = 1; i < t->n_ranks; i++) {
        struct transport_message *message = receive(t, 10 * SECOND_NS);
        memcpy(&share, message->bytes, sizeof share);
        sum += share;
        transport_release(t, message);
    }
    printf("idle: %d ranks use %.2f %% of one core\n", t->n_ranks, 100 * sum);
    if (sum > 0.05)
        fail(t, "an idle cluster uses more than 5 % of a core");
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Half round trips of one row round ranks 0 and 1, back to back or after a pause in which both fall
 * asleep. */
static void ping_pong(struct transport *t, int n_pings, long pause_ns, const char *name)
{
    uint64_t took_ns[N_PINGS];
    for (int i = 0; i < n_pings && t->rank < 2; i++) {
        if (t->rank == 1) {
            transport_release(t, receive(t, 10 * SECOND_NS));
            send_bytes(t, 0, PING_BYTES, 0);
            continue;
        }
        struct timespec pause = {.tv_nsec = pause_ns};
        nanosleep(&pause, NULL);
        uint64_t begin_ns = host_now_ns();
        send_bytes(t, 1, PING_BYTES, 0);
        transport_release(t, receive(t, 10 * SECOND_NS));
        took_ns[i] = (host_now_ns() - begin_ns) / 2;
    }
    if (t->rank != 0)
        return;
    qsort(took_ns, (size_t)n_pings, sizeof took_ns[0], compare_u64);
    printf("latency: %d B %s, half round trip p50 %.1f us, p90 %.1f us, slowest %.1f us\n",
           PING_BYTES, name, (double)took_ns[n_pings / 2] / 1e3,
           (double)took_ns[n_pings * 9 / 10] / 1e3, (double)took_ns[n_pings - 1] / 1e3);
    /* A lost wake-up is mended by the transport's bounded sleep of 200 ms, and shows as such. */
    if (took_ns[n_pings - 1] > 90 * 1000 * 1000)
        fail(t, "a wake-up was lost");
}

static void run_latency(struct transport *t)
{
    ping_pong(t, N_PINGS, 0, "back to back");
    ping_pong(t, N_PINGS / 30, 5000000, "cold");
    if (t->rank == 0) {
        for (int i = 2; i < t->n_ranks; i++)
            send_bytes(t, i, 0, 0);
        drain(t);
    } else if (t->rank > 1) {
        transport_release(t, receive(t, 30 * SECOND_NS));
    }
}

/* Wrong calls are refused with a message and cost nothing. */
static void run_reject(struct transport *t)
{
    struct err err = {0};
    struct transport_message *message = NULL;
    struct transport *again = NULL;
    if (transport_acquire(t, (size_t)TRANSPORT_MAX_MESSAGE_BYTES + 1, &message, &err) !=
        STATUS_INVALID)
        fail(t, "a message over the limit is lent");
    must(t, transport_acquire(t, 8, &message, &err), &err);
    if (transport_post(t, t->n_ranks, message, &err) != STATUS_INVALID)
        fail(t, "a rank that does not exist is accepted");
    must(t, transport_acquire(t, 8, &message, &err), &err);
    message->len_bytes = message->cap_bytes + 1;
    if (transport_post(t, 0, message, &err) != STATUS_INVALID)
        fail(t, "a length over the capacity is accepted");
    must(t, transport_acquire(t, 10, &message, &err), &err);
    if (transport_add_rows(t, message, 100, &err) != STATUS_INVALID ||
        strstr(err.message, "no memory for it") == NULL)
        fail(t, "a second part is accepted where there is no memory for it");
    transport_release(t, message);
    if (transport_mpi_create(&again, &err) != STATUS_INVALID)
        fail(t, "MPI can be started twice");
    if (t->rank == 0)
        printf("reject: %s\n", transport_mpi_version());
}

/* Rank 0 has the user's stdin and sees what the launcher says about the terminal. */
static void run_stdin(const struct transport *t)
{
    char line[128] = "";
    if (t->rank != 0)
        return;
    if (fgets(line, sizeof line, stdin) == NULL)
        fail(t, "stdin is empty");
    line[strcspn(line, "\n")] = '\0';
    printf("stdin: '%s', is a rank: %d, terminal: %d, columns: %s\n", line, launch_is_rank(),
           getenv("CAROUSEL_TTY_OUT") != NULL, getenv("CAROUSEL_COLUMNS"));
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct transport *t = NULL;
    if (argc > 3 && strcmp(argv[1], "launch") == 0) {
        launch_mpirun((int)strtol(argv[2], NULL, 10), argv + 2, &err);
        fprintf(stderr, "%s\n", err.message);
        return 2;
    }
    if (argc < 2 || transport_mpi_create(&t, &err) != STATUS_OK) {
        fprintf(stderr, "%s\n", argc < 2 ? "what to check?" : err.message);
        return 2;
    }
    struct rows_memory rows = {0};
    const bool is_mix = strcmp(argv[1], "mix") == 0;
    if (is_mix)
        transport_use_rows_memory(
            t, &(struct transport_memory){rows_alloc, rows_free, rows_release, &rows});
    double value = argc > 2 ? strtod(argv[2], NULL) : 1;
    if (is_mix)
        run_mix(t, (uint64_t)value);
    else if (strcmp(argv[1], "wake") == 0)
        run_wake(t);
    else if (strcmp(argv[1], "idle") == 0)
        run_idle(t, value);
    else if (strcmp(argv[1], "latency") == 0)
        run_latency(t);
    else if (strcmp(argv[1], "reject") == 0)
        run_reject(t);
    else if (strcmp(argv[1], "stdin") == 0)
        run_stdin(t);
    else if (strcmp(argv[1], "exit") != 0)
        fail(t, "unknown check");
    fflush(stdout);
    bool says_no = strcmp(argv[1], "exit") == 0 && t->rank == 0;
    if (says_no)
        fprintf(stderr, "rank 0 has an error to tell\n");
    transport_destroy(t);
    if (is_mix && (rows.n_allocs == 0 || rows.n_frees != rows.n_allocs || rows.n_releases != 1)) {
        fprintf(stderr, "memory for rows: %d taken, %d given back, %d releases\n", rows.n_allocs,
                rows.n_frees, rows.n_releases);
        return 1;
    }
    return says_no ? (int)value : 0;
}
