/* What tests of the CUDA backend begin with: a backend on a GPU, or on the emulator in lazy mode,
 * where an operation runs as late as it may. */
#ifndef TESTS_CUDA_WORLD_H
#define TESTS_CUDA_WORLD_H

#include "tests/unit.h"

#include "kernels/cuda_backend.h"

#include <pthread.h>

#ifdef CAROUSEL_CUDA_EMULATED
#include "emulator.h"
#endif

static inline void cuda_must(enum status st, const struct err *err)
{
    if (st != STATUS_OK)
        fail_msg("%s: %s", status_name(st), err->message);
}

/* The code, and a message that has the word. */
static inline void cuda_must_fail(enum status st, enum status want, const struct err *err,
                                  const char *word)
{
    if (st != want || strstr(err->message, word) == NULL)
        fail_msg("%s '%s', expected %s with '%s'", status_name(st), err->message, status_name(want),
                 word);
}

static inline struct kernels *cuda_world_kernels(void)
{
    struct kernels *k = NULL;
    struct err err = {0};
    cuda_must(kernels_create("cuda", NULL, &k, &err), &err);
    return k;
}

static inline struct kernels_stream *cuda_world_stream(struct kernels *k)
{
    struct kernels_stream *s = NULL;
    struct err err = {0};
    cuda_must(kernels_stream_create(k, "test", &s, &err), &err);
    return s;
}

static inline uint64_t cuda_world_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static inline void cuda_world_fill(void *to, size_t len_bytes, uint64_t seed)
{
    unsigned char *bytes = to;
    for (size_t i = 0; i < len_bytes; i++)
        bytes[i] = (unsigned char)cuda_world_random(&seed);
}

/* For main: whether there is something to test on; says so when not. */
static inline bool cuda_world_is_there(const char *name)
{
#ifdef CAROUSEL_CUDA_EMULATED
    emulator_set_lazy(true);
#endif
    if (kernels_cuda_devices() > 0)
        return true;
    printf("%s: skipped, no GPU here; make CUDA=emulated runs it on the emulator\n", name);
    return false;
}

#ifdef CAROUSEL_CUDA_EMULATED
/* Whether the call that was to fail did; takes the order back. */
static inline bool cuda_world_has_failed(void)
{
    int device;
    bool is_waiting = false;
    /* As many as threads may have called more often the last time. */
    for (int i = 0; i < 64 && !is_waiting; i++)
        is_waiting = cudaGetDevice(&device) != cudaSuccess;
    (void)cudaGetLastError();
    emulator_fail_call(0, cudaSuccess);
    return !is_waiting;
}

/* Runs `work` with its first, second, ... call of CUDA failing until there is none left to fail.
 * Each failure becomes an error with a message, or is made up for; none leaves anything behind. */
static inline void cuda_world_fail_each(enum status (*work)(void *context, struct err *err),
                                        void *context, int n_at_least)
{
    int n_told = 0;
    for (int n = 1;; n++) {
        struct err err = {0};
        int n_before = emulator_n_live();
        emulator_fail_call(n, cudaErrorMemoryAllocation);
        enum status st = work(context, &err);
        bool has_failed = cuda_world_has_failed();
        if (emulator_n_live() != n_before)
            fail_msg("call %d (%s): %d objects were there, %d are left", n, err.message, n_before,
                     emulator_n_live());
        if (st != STATUS_OK && (!has_failed || err.code != st || err.message[0] == '\0'))
            fail_msg("call %d: %s '%s'", n, status_name(st), err.message);
        n_told += st != STATUS_OK;
        if (!has_failed)
            break;
        assert_true(n < 1000);
    }
    if (n_told < n_at_least)
        fail_msg("%d failures were told, expected %d", n_told, n_at_least);
}
#endif

#endif
