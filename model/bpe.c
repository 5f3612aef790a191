/* One piece of text becomes the ids that greedy lowest-rank-first merging gives. */
#include "model/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    SEEN_MAX_PIECE_BYTES = 64, /* longer pieces hardly repeat */
    SEEN_MAX_SLOTS = 1 << 15   /* 640 KiB: stays in the second-level cache */
};

/* Where a piece stood in the text and where its ids stand in the result: both outlive the call, so
 * remembering costs no copy. */
struct bpe_seen {
    uint32_t text_at, ids_at;
    uint32_t n_ids;
    uint8_t n_bytes; /* 0 = free */
    uint8_t n_dropped;
};

static uint32_t hash_pair(uint64_t pair)
{
    pair *= 0x9E3779B97F4A7C15u;
    pair ^= pair >> 32;
    return (uint32_t)(pair * 0xD6E8FEB86659FD93u >> 32);
}

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

enum status bpe_init(struct bpe *bpe, size_t n_merges, struct err *err)
{
    size_t n_slots = 16;
    while (n_slots < 2 * n_merges)
        n_slots *= 2;
    *bpe = (struct bpe){.merge_mask = (uint32_t)(n_slots - 1)};
    for (int b = 0; b < 256; b++)
        bpe->byte_ids[b] = -1;
    bpe->merges = malloc(n_slots * sizeof *bpe->merges);
    if (!bpe->merges)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu merges", n_merges);
    for (size_t i = 0; i < n_slots; i++)
        bpe->merges[i] = (struct bpe_merge){.rank = BPE_NO_RANK};
    return STATUS_OK;
}

void bpe_clear(struct bpe *bpe)
{
    free(bpe->merges);
    *bpe = (struct bpe){0};
}

/* The slot of the pair, or the free one where it belongs. */
static struct bpe_merge *find_merge(const struct bpe *bpe, uint64_t pair)
{
    uint32_t i = hash_pair(pair) & bpe->merge_mask;
    while (bpe->merges[i].rank != BPE_NO_RANK && bpe->merges[i].pair != pair)
        i = (i + 1) & bpe->merge_mask;
    return &bpe->merges[i];
}

void bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint64_t pair = pair_of(left, right);
    *find_merge(bpe, pair) = (struct bpe_merge){.pair = pair, .rank = rank, .id = id};
}

enum status bpe_work_init(struct bpe_work *work, const struct bpe *bpe, const struct vocab *vocab,
                          const char *text, size_t len_bytes, struct err *err)
{
    size_t n_seen = 16;
    while (n_seen < len_bytes / 8 && n_seen < SEEN_MAX_SLOTS)
        n_seen *= 2;
    *work = (struct bpe_work){.bpe = bpe, .vocab = vocab, .text = text};
    work->seen_mask = (uint32_t)(n_seen - 1);
    work->seen = calloc(n_seen, sizeof *work->seen);
    if (!work->seen)
        return err_set(err, STATUS_NO_MEMORY, "no memory to encode %zu bytes", len_bytes);
    return STATUS_OK;
}

void bpe_work_clear(struct bpe_work *work)
{
    free(work->ids);
    free(work->symbols);
    free(work->heap);
    free(work->seen);
    *work = (struct bpe_work){0};
}

static enum status reserve_ids(struct bpe_work *work, size_t more, struct err *err)
{
    if (work->n_ids + more <= work->cap_ids)
        return STATUS_OK;
    size_t cap = 2 * work->cap_ids + more + 64;
    int32_t *grown = realloc(work->ids, cap * sizeof *grown);
    if (!grown)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu token ids", cap);
    work->ids = grown;
    work->cap_ids = cap;
    return STATUS_OK;
}

enum status bpe_append(struct bpe_work *work, int32_t id, struct err *err)
{
    enum status status = reserve_ids(work, 1, err);
    if (status == STATUS_OK)
        work->ids[work->n_ids++] = id;
    return status;
}

static enum status reserve_symbols(struct bpe_work *work, size_t n, struct err *err)
{
    if (n <= work->cap_symbols)
        return STATUS_OK;
    size_t cap = n + n / 2 + 64;
    free(work->symbols);
    free(work->heap);
    work->cap_symbols = 0;
    work->symbols = malloc(cap * sizeof *work->symbols);
    /* n - 1 pairs at first; every merge takes one out and puts two in, and there are n - 1 merges.
     */
    work->heap = malloc(2 * cap * sizeof *work->heap);
    if (!work->symbols || !work->heap)
        return err_set(err, STATUS_NO_MEMORY, "no memory to merge a piece of %zu bytes", n);
    work->cap_symbols = cap;
    return STATUS_OK;
}

/* The heap holds rank << 32 | position, smallest first: the lowest rank, then the leftmost. */
static void heap_push(struct bpe_work *work, uint64_t key)
{
    uint64_t *heap = work->heap;
    size_t i = work->n_heap++;
    assert(work->n_heap <= 2 * work->cap_symbols);
    while (i > 0 && heap[(i - 1) / 2] > key) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = key;
}

static uint64_t heap_pop(struct bpe_work *work)
{
    uint64_t *heap = work->heap;
    uint64_t top = heap[0], key = heap[--work->n_heap];
    size_t n = work->n_heap, i = 0;
    for (size_t child = 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= key)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
    return top;
}

/* Puts the pair that starts at symbol i on the heap, when a rule merges it. */
static void push_pair(struct bpe_work *work, int32_t i)
{
    int32_t next = i < 0 ? -1 : work->symbols[i].next;
    if (next < 0)
        return;
    const struct bpe_merge *merge =
        find_merge(work->bpe, pair_of(work->symbols[i].id, work->symbols[next].id));
    if (merge->rank != BPE_NO_RANK)
        heap_push(work, (uint64_t)merge->rank << 32 | (uint32_t)i);
}

/* One symbol per byte that has a token; the others are left out, so that their neighbours meet. */
static size_t fill_symbols(struct bpe_work *work, const char *piece, size_t len_bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < len_bytes; i++) {
        int32_t id = work->bpe->byte_ids[(unsigned char)piece[i]];
        if (id < 0)
            continue;
        work->symbols[n] =
            (struct bpe_symbol){.id = id, .prev = (int32_t)n - 1, .next = (int32_t)n + 1};
        n++;
    }
    if (n > 0)
        work->symbols[n - 1].next = -1;
    return n;
}

static void merge_symbols(struct bpe_work *work, size_t n)
{
    struct bpe_symbol *symbols = work->symbols;
    work->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++)
        push_pair(work, (int32_t)i);
    while (work->n_heap > 0) {
        uint64_t top = heap_pop(work);
        int32_t i = (int32_t)(uint32_t)top, next = symbols[i].next;
        if (symbols[i].id < 0 || next < 0)
            continue;
        const struct bpe_merge *merge =
            find_merge(work->bpe, pair_of(symbols[i].id, symbols[next].id));
        /* An entry whose pair has changed meanwhile is stale. */
        if (merge->rank != (uint32_t)(top >> 32))
            continue;
        symbols[i].id = merge->id;
        symbols[i].next = symbols[next].next;
        symbols[next].id = -1;
        if (symbols[i].next >= 0)
            symbols[symbols[i].next].prev = i;
        push_pair(work, symbols[i].prev);
        push_pair(work, i);
    }
}

static enum status encode_new(struct bpe_work *work, const char *piece, size_t len_bytes,
                              struct err *err)
{
    if (work->bpe->ignore_merges) {
        int32_t id = vocab_find_bytes(work->vocab, piece, len_bytes);
        if (id >= 0 && !work->vocab->tokens[id].is_special)
            return bpe_append(work, id, err);
    }
    enum status status = reserve_symbols(work, len_bytes, err);
    if (status != STATUS_OK)
        return status;
    size_t n = fill_symbols(work, piece, len_bytes);
    work->n_dropped += len_bytes - n;
    if (n == 0)
        return STATUS_OK;
    merge_symbols(work, n);
    status = reserve_ids(work, n, err);
    if (status != STATUS_OK)
        return status;
    for (int32_t i = 0; i >= 0; i = work->symbols[i].next)
        work->ids[work->n_ids++] = work->symbols[i].id;
    return STATUS_OK;
}

static struct bpe_seen *find_seen(const struct bpe_work *work, const char *piece, size_t len_bytes)
{
    uint64_t h = len_bytes;
    for (; len_bytes >= 8; len_bytes -= 8, piece += 8) {
        uint64_t word;
        memcpy(&word, piece, 8);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    uint64_t tail = 0;
    memcpy(&tail, piece, len_bytes);
    h = (h ^ tail) * 0x9E3779B97F4A7C15u;
    return &work->seen[(uint32_t)(h >> 32) & work->seen_mask];
}

enum status bpe_encode_piece(struct bpe_work *work, const char *piece, size_t len_bytes,
                             struct err *err)
{
    if (len_bytes > SEEN_MAX_PIECE_BYTES)
        return encode_new(work, piece, len_bytes, err);
    struct bpe_seen *seen = find_seen(work, piece, len_bytes);
    if (seen->n_bytes == len_bytes && memcmp(work->text + seen->text_at, piece, len_bytes) == 0) {
        enum status status = reserve_ids(work, seen->n_ids, err);
        if (status != STATUS_OK)
            return status;
        /* A loop, because a call of memcpy takes longer than the one or two ids it would copy. */
        for (uint32_t i = 0; i < seen->n_ids; i++)
            work->ids[work->n_ids + i] = work->ids[seen->ids_at + i];
        work->n_ids += seen->n_ids;
        work->n_dropped += seen->n_dropped;
        return STATUS_OK;
    }
    size_t n_ids = work->n_ids, n_dropped = work->n_dropped;
    enum status status = encode_new(work, piece, len_bytes, err);
    if (status == STATUS_OK)
        *seen = (struct bpe_seen){.text_at = (uint32_t)(piece - work->text),
                                  .ids_at = (uint32_t)n_ids,
                                  .n_ids = (uint32_t)(work->n_ids - n_ids),
                                  .n_bytes = (uint8_t)len_bytes,
                                  .n_dropped = (uint8_t)(work->n_dropped - n_dropped)};
    return status;
}
