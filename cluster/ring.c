/* Answers which worker of which ring runs a loop, by arithmetic alone. */
#include "cluster/ring.h"

#include <assert.h>

/* Up to this many workers one ring is fine: everybody may talk to everybody. */
enum { ONE_RING_WORKERS = 8 };

int ring_default_size(int n_workers, int n_loops)
{
    assert(n_workers >= 1 && n_loops >= 1);
    if (n_workers <= ONE_RING_WORKERS)
        return n_workers;
    for (int size = n_loops; size < n_workers; size++) {
        if (n_workers % size == 0)
            return size;
    }
    return n_workers;
}

bool ring_size_is_valid(int n_workers, int ring_size)
{
    return ring_size >= 1 && ring_size <= n_workers && n_workers % ring_size == 0;
}

int ring_count(int n_workers, int ring_size)
{
    assert(ring_size_is_valid(n_workers, ring_size));
    return n_workers / ring_size;
}

int ring_worker(int ring_size, uint32_t ring_offset, uint32_t loop)
{
    assert(ring_size >= 1 && loop >= 1);
    /* In 64 bits: offset + loop must not wrap, 2^32 is no multiple of most ring sizes. */
    return (int)(((uint64_t)ring_offset + loop - 1) % (uint64_t)ring_size);
}

int ring_loops_on(int ring_size, uint32_t ring_offset, uint32_t n_loops, int index)
{
    assert(ring_size >= 1 && index >= 0 && index < ring_size);
    uint32_t size = (uint32_t)ring_size;
    /* The loops of this index are first, first + G, ...; counted from 0. */
    uint32_t first = ((uint32_t)index + size - ring_offset % size) % size;
    return n_loops > first ? (int)((n_loops - 1 - first) / size + 1) : 0;
}

int ring_rank(int ring_size, int ring, int index)
{
    assert(ring_size >= 1 && ring >= 0 && index >= 0 && index < ring_size);
    return ring * ring_size + index + 1;
}

int ring_of_rank(int ring_size, int rank)
{
    assert(ring_size >= 1 && rank >= 1);
    return (rank - 1) / ring_size;
}

int ring_index_of_rank(int ring_size, int rank)
{
    assert(ring_size >= 1 && rank >= 1);
    return (rank - 1) % ring_size;
}
