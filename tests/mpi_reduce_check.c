/* Drives a reduction from inside an MPI job: mpirun -n N mpi_reduce_check (sum FLOATS STEPS
 * PAUSE_US | fail RANK | silent RANK). sum compares every bit with the plain tree; rank 0 prints
 * what a step took. PAUSE_US of the last rank's steps stand for one that computes longer. */
#include "cluster/host.h"
#include "cluster/transport.h"
#include "train/reduce.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { N_SHARDS = 8 };

static float value_of(uint64_t step, int shard, size_t i)
{
    uint32_t x = (uint32_t)(step * 7919 + (uint64_t)shard * 104729 + i) * 2654435761u;
    x ^= x >> 15;
    return ((float)(x & 0xffff) - 32768.0f) * (float)(1 << (x >> 28));
}

static float tree_of(uint64_t step, size_t i)
{
    float node[N_SHARDS];
    for (int s = 0; s < N_SHARDS; s++)
        node[s] = value_of(step, s, i);
    for (int width = N_SHARDS; width > 1; width /= 2)
        for (int k = 0; k < width / 2; k++)
            node[k] = node[2 * k] + node[2 * k + 1];
    return node[0];
}

static void fill(struct reduce *r, const struct transport *t, uint64_t step, size_t n_floats)
{
    for (int s = reduce_first_shard(N_SHARDS, t->n_ranks, t->rank);
         s < reduce_first_shard(N_SHARDS, t->n_ranks, t->rank + 1); s++)
        for (size_t i = 0; i < n_floats; i++)
            reduce_shard(r, s)[i] = value_of(step, s, i);
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* The first and the last step are compared; the others only take their time. */
static enum status check_sum(struct reduce *r, struct transport *t, size_t n_floats, long n_steps,
                             long pause_us, struct err *err)
{
    double spent_s = 0, cpu_s = 0;
    uint64_t seed = t->rank == 0 ? 12345 : 0;
    enum status status = reduce_broadcast(r, &seed, sizeof seed, err);
    if (status == STATUS_OK && seed != 12345)
        status = err_set(err, STATUS_CORRUPT, "the seed of rank 0 came as %llu",
                         (unsigned long long)seed);
    for (long k = 0; k < n_steps && status == STATUS_OK; k++) {
        const uint64_t step = seed + (uint64_t)k;
        const float *sum = NULL;
        if (k == 0 || k == n_steps - 1)
            fill(r, t, step, n_floats);
        if (t->rank == t->n_ranks - 1 && pause_us > 0) {
            const struct timespec pause = {pause_us / 1000000, pause_us % 1000000 * 1000};
            nanosleep(&pause, NULL);
        }
        const uint64_t begin_ns = host_now_ns();
        const double begin_cpu = cpu_seconds();
        status = reduce_sum(r, step, &sum, err);
        spent_s += (double)(host_now_ns() - begin_ns) * 1e-9;
        cpu_s += cpu_seconds() - begin_cpu;
        for (size_t i = 0; (k == 0 || k == n_steps - 1) && status == STATUS_OK && i < n_floats; i++)
            if (sum[i] != tree_of(step, i))
                status = err_set(err, STATUS_CORRUPT, "sum %zu of step %ld is %g, the tree has %g",
                                 i, k, (double)sum[i], (double)tree_of(step, i));
    }
    if (status == STATUS_OK && t->rank == 0)
        printf("%d ranks, %.2f MB: %.3f ms a sum, of it %.3f ms of rank 0's CPU\n", t->n_ranks,
               (double)n_floats * 4e-6, spent_s / (double)n_steps * 1e3,
               cpu_s / (double)n_steps * 1e3);
    return status;
}

/* One rank leaves after a step, with or without a word; the others must say who and why. */
static enum status check_loss(struct reduce *r, struct transport *t, int leaver, bool is_silent,
                              struct err *err)
{
    const float *sum = NULL;
    fill(r, t, 0, 1000);
    struct err found = {0};
    enum status status = reduce_sum(r, 0, &sum, &found);
    if (t->rank == leaver) {
        if (status != STATUS_OK)
            return err_set(err, status, "%s", found.message);
        const struct timespec pause = {3, 0};
        struct err why = {STATUS_IO, "its disk is full"};
        if (is_silent)
            nanosleep(&pause, NULL);
        else
            reduce_fail(r, &why);
        return STATUS_OK;
    }
    char expected[64];
    snprintf(expected, sizeof expected,
             is_silent ? "rank %d has sent nothing" : "rank %d has stopped", leaver);
    /* The words may overtake the last sums of a third rank: then the first call has ended. */
    if (status == STATUS_OK) {
        fill(r, t, 1, 1000);
        status = reduce_sum(r, 1, &sum, &found);
    }
    if (status == STATUS_OK || strstr(found.message, expected) == NULL)
        return err_set(err, STATUS_INTERNAL, "expected \"%s\", found %s: %s", expected,
                       status_name(status), found.message);
    printf("rank %d saw it\n", t->rank);
    fflush(stdout);
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    struct transport *t = NULL;
    struct reduce *r = NULL;
    const struct grad_ops *ops = NULL;
    struct err err = {0};
    enum status status = transport_mpi_create(&t, &err);
    if (status == STATUS_OK)
        status = grad_find("auto", &ops, &err);
    const bool is_sum = argc == 5 && strcmp(argv[1], "sum") == 0;
    const bool is_loss =
        argc == 3 && (strcmp(argv[1], "fail") == 0 || strcmp(argv[1], "silent") == 0);
    if (status == STATUS_OK && !is_sum && !is_loss)
        status = err_set(&err, STATUS_INVALID,
                         "usage: mpi_reduce_check (sum FLOATS STEPS PAUSE_US | fail RANK | silent "
                         "RANK)");
    const size_t n_floats = is_sum ? strtoul(argv[2], NULL, 10) : 1000;
    if (status == STATUS_OK)
        status = reduce_create(t, ops, N_SHARDS, n_floats, &r, &err);
    if (status == STATUS_OK && is_sum)
        status = check_sum(r, t, n_floats, atol(argv[3]), atol(argv[4]), &err);
    if (status == STATUS_OK && is_loss) {
        reduce_set_deadline(r, UINT64_C(1000000000));
        status = check_loss(r, t, atoi(argv[2]), strcmp(argv[1], "silent") == 0, &err);
    }
    if (status != STATUS_OK)
        fprintf(stderr, "rank %d: %s\n", t != NULL ? t->rank : -1, err.message);
    reduce_destroy(r);
    transport_destroy(t);
    return status == STATUS_OK ? 0 : 1;
}
