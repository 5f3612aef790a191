/* Reads every weight once at memory speed and finds the first that is not a finite number. */
#include "model/checkpoint.h"

#include "model/checkpoint_files.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* A thread's turn: long enough that taking one costs nothing, short enough to share evenly. */
enum { CHUNK_BYTES = 1 << 20, MAX_THREADS = 64 };

struct chunk {
    const struct checkpoint_entry *entry;
    size_t first_byte, len_bytes;
};

struct scan {
    const struct chunk *chunks;
    size_t n_chunks;
    atomic_size_t next;
    atomic_size_t first_bad; /* n_chunks: none so far */
};

/* Exponent bits all set = infinity or NaN. No branch in the loop, so that it becomes vector code;
 * memcpy, because a tensor may lie unaligned in its file. */
static bool has_bad16(const unsigned char *bytes, size_t len_bytes, uint16_t exponent)
{
    uint16_t bad = 0;
    for (size_t i = 0; i < len_bytes / 2; i++) {
        uint16_t v;
        memcpy(&v, bytes + 2 * i, sizeof v);
        bad |= (uint16_t)((v & exponent) == exponent);
    }
    return bad != 0;
}

static bool has_bad32(const unsigned char *bytes, size_t len_bytes)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < len_bytes / 4; i++) {
        uint32_t v;
        memcpy(&v, bytes + 4 * i, sizeof v);
        bad |= (uint32_t)((v & 0x7f800000u) == 0x7f800000u);
    }
    return bad != 0;
}

static bool has_bad(enum dtype dtype, const unsigned char *bytes, size_t len_bytes)
{
    if (dtype == DTYPE_F32)
        return has_bad32(bytes, len_bytes);
    return has_bad16(bytes, len_bytes, dtype == DTYPE_BF16 ? 0x7f80 : 0x7c00);
}

static const unsigned char *chunk_bytes(const struct chunk *chunk)
{
    return (const unsigned char *)chunk->entry->tensor->data + chunk->first_byte;
}

static void *run_scan(void *arg)
{
    struct scan *scan = arg;
    for (;;) {
        size_t i = atomic_fetch_add(&scan->next, 1);
        /* Chunks below a bad one are all taken already, so the lowest bad one is always found. */
        if (i >= scan->n_chunks || i > atomic_load(&scan->first_bad))
            return NULL;
        const struct chunk *chunk = &scan->chunks[i];
        if (!has_bad(chunk->entry->tensor->dtype, chunk_bytes(chunk), chunk->len_bytes))
            continue;
        size_t seen = atomic_load(&scan->first_bad);
        while (i < seen && !atomic_compare_exchange_weak(&scan->first_bad, &seen, i))
            ;
    }
}

static size_t list_chunks(const struct checkpoint_files *files, struct chunk *chunks)
{
    size_t n = 0;
    for (size_t i = 0; i < files->n_entries; i++) {
        const struct checkpoint_entry *entry = &files->entries[i];
        if (!entry->is_used)
            continue;
        size_t len = entry->tensor->len_bytes;
        for (size_t at = 0; at < len; at += CHUNK_BYTES, n++)
            if (chunks != NULL)
                chunks[n] =
                    (struct chunk){entry, at, len - at < CHUNK_BYTES ? len - at : CHUNK_BYTES};
    }
    return n;
}

static enum status fail_at(const struct chunk *chunk, struct err *err)
{
    const struct safetensors_tensor *t = chunk->entry->tensor;
    const size_t width = dtype_bytes(t->dtype);
    size_t at = 0;
    while (at + width < chunk->len_bytes && !has_bad(t->dtype, chunk_bytes(chunk) + at, width))
        at += width;
    uint16_t half;
    float value;
    memcpy(&half, chunk_bytes(chunk) + at, sizeof half);
    if (t->dtype == DTYPE_F32)
        memcpy(&value, chunk_bytes(chunk) + at, sizeof value);
    else
        value = t->dtype == DTYPE_BF16 ? dtype_from_bf16(half) : dtype_from_f16(half);
    return err_set(err, STATUS_CORRUPT,
                   "tensor %s in %s: element %zu is %f, expected a finite number", t->name,
                   chunk->entry->path, (chunk->first_byte + at) / width, (double)value);
}

enum status checkpoint_verify_finite(const struct checkpoint *checkpoint, int n_threads,
                                     struct err *err)
{
    if (n_threads < 1)
        return err_set(err, STATUS_INVALID, "verify needs at least 1 thread, found %d", n_threads);
    const struct checkpoint_files *files = checkpoint->files;
    struct scan scan = {.n_chunks = list_chunks(files, NULL)};
    struct chunk *chunks = calloc(scan.n_chunks + 1, sizeof *chunks);
    if (chunks == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to verify %s", checkpoint->dir);
    list_chunks(files, chunks);
    scan.chunks = chunks;
    atomic_init(&scan.next, 0);
    atomic_init(&scan.first_bad, scan.n_chunks);

    pthread_t threads[MAX_THREADS];
    int n_started = 0;
    while (n_started < n_threads - 1 && n_started < MAX_THREADS &&
           pthread_create(&threads[n_started], NULL, run_scan, &scan) == 0)
        n_started++;
    run_scan(&scan); /* does all of it when no thread could be started */
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);

    size_t bad = atomic_load(&scan.first_bad);
    enum status status = bad < scan.n_chunks ? fail_at(&chunks[bad], err) : STATUS_OK;
    free(chunks);
    return status;
}
