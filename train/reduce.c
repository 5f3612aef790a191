/* Adds up the shards of all ranks in one fixed tree, whoever holds them.
 *
 * The array is cut into one piece a rank. Every rank first adds its own shards as far as the tree
 * allows (its nodes), sends each piece of these nodes to the piece's owner; the owner adds up the
 * rest of the tree over its piece and sends the result to everybody. So each number crosses the
 * network twice, in two hops, and all ranks share the additions. Pieces go in rounds of chunks, a
 * few rounds at a time, which bounds the memory in flight. */
#include "train/reduce.h"

#include "train/reduce_wire.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGNMENT = 64,
    LINE_FLOATS = 16,     /* pieces begin at cache lines */
    BLOCK_FLOATS = 8192,  /* of all shards at once in the caches */
    LONG_WINDOW = 2,      /* rounds in flight: bounds the memory of messages */
    MAX_SHARDS = 1 << 16, /* a node's index and level stay small */
    MAX_LEVELS = 17
};
#define DEADLINE_NS (600 * UINT64_C(1000000000))

/* Node (level, index) of the tree: the sum of shards [index << level, (index + 1) << level). */
struct node {
    int level, index, rank;
};

struct reduce {
    struct reduce_link link;
    const struct grad_ops *ops;
    int n_shards, n_ranks, rank;
    int first_shard, n_own; /* shards of this rank */
    size_t n_floats, stride;
    float *shards;           /* [n_own][stride]; the first one becomes the sum */
    struct node *nodes;      /* [n_nodes] the largest that ranks can add up alone, by first shard */
    int n_nodes, n_others;   /* those of other ranks */
    size_t n_rounds, window; /* at most `window` rounds at a time */
    size_t chunk_floats;
    struct transport_message **parts; /* [n_rounds][n_nodes] of this rank's piece */
    int *n_parts, *n_sums;            /* [n_rounds] that have come */
    bool *has_sum;                    /* [n_rounds][n_ranks] */
};

int reduce_first_shard(int n_shards, int n_ranks, int rank)
{
    return (int)((int64_t)n_shards * rank / n_ranks);
}

void reduce_set_deadline(struct reduce *r, uint64_t deadline_ns)
{
    r->link.deadline_ns = deadline_ns;
}

float *reduce_shard(struct reduce *r, int shard)
{
    assert(shard >= r->first_shard && shard < r->first_shard + r->n_own);
    return r->shards + (size_t)(shard - r->first_shard) * r->stride;
}

/* ---- the cut -------------------------------------------------------------------------------- */

/* The largest nodes that tile shards [first, last), in order; returns how many. */
static int tile(int first, int last, int rank, struct node *out)
{
    int n = 0;
    while (first < last) {
        int level = 0;
        while (first % (2 << level) == 0 && first + (2 << level) <= last)
            level++;
        if (out != NULL)
            out[n] = (struct node){level, first >> level, rank};
        n++;
        first += 1 << level;
    }
    return n;
}

static size_t piece_begin(const struct reduce *r, int rank)
{
    if (rank == r->n_ranks)
        return r->n_floats;
    /* In lines first: n_floats * rank could overflow only beyond any memory. */
    return r->n_floats / LINE_FLOATS * (size_t)rank / (size_t)r->n_ranks * LINE_FLOATS;
}

/* Floats [*begin, *begin + return value) are round `round` of the piece of `rank`. */
static size_t chunk(const struct reduce *r, int rank, size_t round, size_t *begin)
{
    const size_t first = piece_begin(r, rank), end = piece_begin(r, rank + 1);
    const size_t skip = round * r->chunk_floats;
    *begin = skip < end - first ? first + skip : end;
    return end - *begin < r->chunk_floats ? end - *begin : r->chunk_floats;
}

static enum status make_tables(struct reduce *r, struct err *err)
{
    int n = 0;
    for (int rank = 0; rank < r->n_ranks; rank++)
        n += tile(reduce_first_shard(r->n_shards, r->n_ranks, rank),
                  reduce_first_shard(r->n_shards, r->n_ranks, rank + 1), rank, NULL);
    r->nodes = calloc((size_t)n, sizeof *r->nodes);
    if (r->nodes == NULL)
        goto no_memory;
    for (int rank = 0; rank < r->n_ranks; rank++)
        r->n_nodes += tile(reduce_first_shard(r->n_shards, r->n_ranks, rank),
                           reduce_first_shard(r->n_shards, r->n_ranks, rank + 1), rank,
                           r->nodes + r->n_nodes);
    size_t longest = 0;
    for (int rank = 0; rank < r->n_ranks; rank++) {
        const size_t piece = piece_begin(r, rank + 1) - piece_begin(r, rank);
        longest = piece > longest ? piece : longest;
    }
    const size_t header = sizeof(struct reduce_header);
    r->chunk_floats = (REDUCE_SHORT_MESSAGE_BYTES - header) / sizeof(float);
    r->window = REDUCE_SHORT_MESSAGES;
    if (longest > r->chunk_floats * REDUCE_SHORT_MESSAGES) {
        r->chunk_floats = (REDUCE_LONG_MESSAGE_BYTES - header) / sizeof(float);
        r->window = LONG_WINDOW;
    }
    /* At least one, so that ranks meet and compare their steps also over an empty array. */
    r->n_rounds = longest > 0 ? (longest + r->chunk_floats - 1) / r->chunk_floats : 1;
    for (int i = 0; i < r->n_nodes; i++)
        r->n_others += r->nodes[i].rank != r->rank;
    r->parts = calloc(r->n_rounds * (size_t)r->n_nodes, sizeof *r->parts);
    r->n_parts = calloc(r->n_rounds, sizeof *r->n_parts);
    r->n_sums = calloc(r->n_rounds, sizeof *r->n_sums);
    r->has_sum = calloc(r->n_rounds * (size_t)r->n_ranks, sizeof *r->has_sum);
    if (r->parts != NULL && r->n_parts != NULL && r->n_sums != NULL && r->has_sum != NULL)
        return STATUS_OK;

no_memory:
    return err_set(err, STATUS_NO_MEMORY, "no memory for the tables of %d shards", r->n_shards);
}

enum status reduce_create(struct transport *transport, const struct grad_ops *ops, int n_shards,
                          size_t n_floats, struct reduce **out, struct err *err)
{
    const int n_ranks = transport != NULL ? transport->n_ranks : 1;
    if (n_shards < 1 || n_shards > MAX_SHARDS || (n_shards & (n_shards - 1)) != 0)
        return err_set(err, STATUS_INVALID, "%d shards: a power of two up to %d is needed",
                       n_shards, MAX_SHARDS);
    if (n_ranks > n_shards)
        return err_set(err, STATUS_INVALID,
                       "%d ranks for %d shards: start at most %d ranks, or set the recipe's shards "
                       "to a power of two from %d (another number of shards gives other bits)",
                       n_ranks, n_shards, n_shards, n_ranks);
    struct reduce *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a reduction");
    r->link.transport = n_ranks > 1 ? transport : NULL;
    r->link.deadline_ns = DEADLINE_NS;
    r->ops = ops;
    r->n_shards = n_shards;
    r->n_ranks = n_ranks;
    r->rank = transport != NULL ? transport->rank : 0;
    r->first_shard = reduce_first_shard(n_shards, n_ranks, r->rank);
    r->n_own = reduce_first_shard(n_shards, n_ranks, r->rank + 1) - r->first_shard;
    r->n_floats = n_floats;
    r->stride = (n_floats / LINE_FLOATS + 1) * LINE_FLOATS;
    enum status status = STATUS_OK;
    size_t bytes;
    if (__builtin_mul_overflow(r->stride * sizeof(float), (size_t)r->n_own, &bytes) ||
        (r->shards = aligned_alloc(ALIGNMENT, bytes)) == NULL)
        status = err_set(err, STATUS_NO_MEMORY,
                         "no memory for the gradients of %d shards of %zu numbers; start more "
                         "ranks on other hosts, or use fewer shards",
                         r->n_own, n_floats);
    if (status == STATUS_OK)
        status = make_tables(r, err);
    if (status == STATUS_OK)
        *out = r;
    else
        reduce_destroy(r);
    return status;
}

static void forget_parts(struct reduce *r)
{
    for (size_t i = 0; r->parts != NULL && i < r->n_rounds * (size_t)r->n_nodes; i++)
        if (r->parts[i] != NULL) {
            transport_release(r->link.transport, r->parts[i]);
            r->parts[i] = NULL;
        }
}

void reduce_destroy(struct reduce *r)
{
    if (r == NULL)
        return;
    forget_parts(r);
    reduce_link_free(&r->link);
    free(r->shards);
    free(r->nodes);
    free(r->parts);
    free(r->n_parts);
    free(r->n_sums);
    free(r->has_sum);
    free(r);
}

/* ---- sums ----------------------------------------------------------------------------------- */

/* shards [node] become their sum, in place of the first; block by block, so that what one level
 * wrote is still in the cache for the next. */
static void sum_own(struct reduce *r, const struct node *node)
{
    float *first = reduce_shard(r, node->index << node->level);
    for (size_t begin = 0; begin < r->n_floats; begin += BLOCK_FLOATS) {
        const size_t left = r->n_floats - begin, n = left < BLOCK_FLOATS ? left : BLOCK_FLOATS;
        for (int level = 0; level < node->level; level++)
            for (size_t i = 0; i < (size_t)1 << node->level; i += (size_t)2 << level)
                r->ops->add(first + i * r->stride + begin,
                            first + (i + ((size_t)1 << level)) * r->stride + begin, n);
    }
}

/* Adds up all nodes over a chunk of this rank's piece; the result is where the first node is. */
static float *sum_nodes(struct reduce *r, size_t round, size_t begin, size_t n)
{
    struct {
        float *values;
        int level, index;
    } stack[MAX_LEVELS + 1];
    int depth = 0;
    for (int i = 0; i < r->n_nodes; i++) {
        const struct node *node = &r->nodes[i];
        struct transport_message *part = r->parts[round * (size_t)r->n_nodes + (size_t)i];
        stack[depth].values = part != NULL ? reduce_payload_of(part)
                                           : reduce_shard(r, node->index << node->level) + begin;
        stack[depth].level = node->level;
        stack[depth].index = node->index;
        depth++;
        /* Two of one level on top are siblings, as nodes come in order: the left becomes their
         * parent. */
        while (depth > 1 && stack[depth - 1].level == stack[depth - 2].level) {
            assert(stack[depth - 1].index == (stack[depth - 2].index | 1));
            r->ops->add(stack[depth - 2].values, stack[depth - 1].values, n);
            depth--;
            stack[depth - 1].level++;
            stack[depth - 1].index >>= 1;
        }
    }
    assert(depth == 1);
    return stack[0].values;
}

static struct reduce_header make_header(const struct reduce *r, enum reduce_kind kind,
                                        uint64_t step, size_t first, size_t count)
{
    return (struct reduce_header){.magic = REDUCE_MAGIC,
                                  .kind = kind,
                                  .call = r->link.call,
                                  .step = step,
                                  .total = r->n_floats,
                                  .first = first,
                                  .count = count,
                                  .n_shards = (uint32_t)r->n_shards};
}

/* Sends this rank's nodes of a round to the owners of the pieces. */
static enum status send_parts(struct reduce *r, uint64_t step, size_t round, struct err *err)
{
    /* From the next rank on, so that not everybody talks to rank 0 first. */
    for (int k = 1; k < r->n_ranks; k++) {
        const int owner = (r->rank + k) % r->n_ranks;
        size_t begin;
        const size_t n = chunk(r, owner, round, &begin);
        if (n == 0 && round > 0)
            continue;
        for (int i = 0; i < r->n_nodes; i++) {
            const struct node *node = &r->nodes[i];
            if (node->rank != r->rank)
                continue;
            struct reduce_header header = make_header(r, REDUCE_PART, step, begin, n);
            header.node = (uint32_t)i;
            enum status status = reduce_link_send(
                &r->link, owner, &header, reduce_shard(r, node->index << node->level) + begin,
                n * sizeof(float), err);
            if (status != STATUS_OK)
                return status;
        }
    }
    return STATUS_OK;
}

/* All parts of a chunk are there: adds them up and hands the sums out. */
static enum status finish_chunk(struct reduce *r, uint64_t step, size_t round, struct err *err)
{
    size_t begin;
    const size_t n = chunk(r, r->rank, round, &begin);
    float *sum = sum_nodes(r, round, begin, n), *own = r->shards + begin;
    if (sum != own)
        memcpy(own, sum, n * sizeof(float));
    for (int i = 0; i < r->n_nodes; i++) {
        struct transport_message **part = &r->parts[round * (size_t)r->n_nodes + (size_t)i];
        if (*part != NULL)
            transport_release(r->link.transport, *part);
        *part = NULL;
    }
    const struct reduce_header header = make_header(r, REDUCE_SUM, step, begin, n);
    for (int k = 1; k < r->n_ranks; k++) {
        enum status status = reduce_link_send(&r->link, (r->rank + k) % r->n_ranks, &header, own,
                                              n * sizeof(float), err);
        if (status != STATUS_OK)
            return status;
    }
    r->has_sum[round * (size_t)r->n_ranks + (size_t)r->rank] = true;
    r->n_sums[round]++;
    return STATUS_OK;
}

/* Sums a round waits for: pieces end at different rounds. */
static int count_sums(const struct reduce *r, size_t round)
{
    int n = 0;
    for (int rank = 0; rank < r->n_ranks; rank++) {
        size_t begin;
        n += chunk(r, rank, round, &begin) > 0 || round == 0;
    }
    return n;
}

/* ---- messages ------------------------------------------------------------------------------- */

/* Takes the message over: releases it or keeps it in the table. */
static enum status take(struct reduce *r, uint64_t step, struct transport_message *m,
                        struct err *err)
{
    const struct reduce_header *h = reduce_header_of(m);
    const int owner = h->kind == REDUCE_PART ? r->rank : m->source;
    /* Below the piece it wraps around and is no round. */
    const size_t round = ((size_t)h->first - piece_begin(r, owner)) / r->chunk_floats;
    enum status status = STATUS_OK;
    size_t begin = 0;
    if ((h->kind != REDUCE_PART && h->kind != REDUCE_SUM) || h->step != step ||
        h->total != r->n_floats || h->n_shards != (uint32_t)r->n_shards) {
        status = err_set(err, STATUS_MISMATCH,
                         "rank %d is at step %" PRIu64 " with %u shards of %" PRIu64
                         " numbers, this rank at step %" PRIu64 " with %d of %zu; all ranks need "
                         "the same recipe and resume point",
                         m->source, h->step, h->n_shards, h->total, step, r->n_shards, r->n_floats);
        goto release;
    }
    if (round >= r->n_rounds || chunk(r, owner, round, &begin) != h->count || begin != h->first)
        goto strange;
    if (h->kind == REDUCE_PART) {
        if (h->node >= (uint32_t)r->n_nodes || r->nodes[h->node].rank != m->source)
            goto strange;
        struct transport_message **slot = &r->parts[round * (size_t)r->n_nodes + h->node];
        if (*slot != NULL)
            goto strange;
        *slot = m;
        return ++r->n_parts[round] == r->n_others ? finish_chunk(r, step, round, err) : STATUS_OK;
    }
    bool *has_sum = &r->has_sum[round * (size_t)r->n_ranks + (size_t)m->source];
    if (*has_sum)
        goto strange;
    memcpy(r->shards + begin, reduce_payload_of(m), h->count * sizeof(float));
    *has_sum = true;
    r->n_sums[round]++;
    goto release;

strange:
    status =
        err_set(err, STATUS_CORRUPT,
                "rank %d sent numbers %" PRIu64 " to %" PRIu64
                " of a step, which this rank does not expect; do all ranks run the same build?",
                m->source, h->first, h->first + h->count);
release:
    transport_release(r->link.transport, m);
    return status;
}

/* Names a rank that this one waits for in this round. */
static enum status fail_silent(const struct reduce *r, uint64_t step, size_t round, struct err *err)
{
    int silent = -1;
    /* A missing part is that rank's own doing; a missing sum may be for want of another's part. */
    for (int i = 0; i < r->n_nodes && silent < 0; i++)
        if (r->nodes[i].rank != r->rank && r->parts[round * (size_t)r->n_nodes + (size_t)i] == NULL)
            silent = r->nodes[i].rank;
    if (r->n_parts[round] == r->n_others)
        silent = -1;
    for (int rank = 0; rank < r->n_ranks && silent < 0; rank++)
        if (!r->has_sum[round * (size_t)r->n_ranks + (size_t)rank])
            silent = rank;
    return err_set(err, STATUS_TIMEOUT,
                   "rank %d has sent nothing for %.3g s at step %" PRIu64
                   "; look at its host, then resume from the last saved state",
                   silent, (double)r->link.deadline_ns * 1e-9, step);
}

static enum status exchange(struct reduce *r, uint64_t step, struct err *err)
{
    size_t n_begun = 0, n_done = 0;
    memset(r->n_parts, 0, r->n_rounds * sizeof *r->n_parts);
    memset(r->n_sums, 0, r->n_rounds * sizeof *r->n_sums);
    memset(r->has_sum, 0, r->n_rounds * (size_t)r->n_ranks * sizeof *r->has_sum);
    while (n_done < r->n_rounds) {
        enum status status;
        if (n_begun < r->n_rounds && n_begun < n_done + r->window) {
            status = send_parts(r, step, n_begun++, err);
            if (status != STATUS_OK)
                return status;
            continue;
        }
        if (r->n_sums[n_done] == count_sums(r, n_done)) {
            n_done++;
            continue;
        }
        struct transport_message *m = NULL;
        status = reduce_link_receive(&r->link, &m, err);
        if (status == STATUS_OK)
            status = m != NULL ? take(r, step, m, err) : fail_silent(r, step, n_done, err);
        if (status != STATUS_OK)
            return status;
    }
    return reduce_link_flush(&r->link, err);
}

enum status reduce_sum(struct reduce *r, uint64_t step, const float **sum, struct err *err)
{
    for (int i = 0; i < r->n_nodes; i++)
        if (r->nodes[i].rank == r->rank)
            sum_own(r, &r->nodes[i]);
    if (r->n_ranks > 1) {
        struct err own = {0};
        enum status status = exchange(r, step, &own);
        if (status != STATUS_OK) {
            reduce_link_fail(&r->link, &own);
            forget_parts(r);
            return err_set(err, status, "%s", own.message);
        }
        r->link.call++;
    }
    *sum = r->shards;
    return STATUS_OK;
}

void reduce_fail(struct reduce *r, const struct err *why)
{
    reduce_link_fail(&r->link, why);
}

enum status reduce_broadcast(struct reduce *r, void *bytes, size_t n_bytes, struct err *err)
{
    if (r->n_ranks == 1)
        return STATUS_OK;
    struct err own = {0};
    enum status status = reduce_link_broadcast(&r->link, bytes, n_bytes, &own);
    if (status == STATUS_OK)
        return STATUS_OK;
    reduce_link_fail(&r->link, &own);
    return err_set(err, status, "%s", own.message);
}
