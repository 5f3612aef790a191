/* Serves protobuf-c's allocations from a few chunks, never more in total than the message deserves.
 */
#include "proto/control_arena.h"

#include <stdlib.h>

/* The dearest honest item is a token of about 44 bytes, 300 bytes unpacked, twice that while
 * protobuf-c doubles its lists. */
enum { BUDGET_PER_BYTE = 32, BUDGET_BASE = 1 << 16, ALIGNMENT = 16, MIN_CHUNK_BYTES = 1 << 16 };

struct control_arena_chunk {
    struct control_arena_chunk *next;
    size_t reserved; /* keeps what follows aligned */
};
_Static_assert(sizeof(struct control_arena_chunk) % ALIGNMENT == 0, "what follows is aligned");

static void *arena_alloc(void *data, size_t size_bytes)
{
    struct control_arena *a = data;
    if (size_bytes > SIZE_MAX - ALIGNMENT)
        return NULL;
    size_t need = (size_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (need > a->left_bytes) {
        size_t room = need > MIN_CHUNK_BYTES ? need : MIN_CHUNK_BYTES;
        if (room > a->budget_bytes)
            return NULL;
        struct control_arena_chunk *chunk = malloc(sizeof *chunk + room);
        if (chunk == NULL)
            return NULL;
        a->budget_bytes -= room;
        chunk->next = a->chunks;
        a->chunks = chunk;
        a->at = (unsigned char *)(chunk + 1);
        a->left_bytes = room;
    }
    void *place = a->at;
    a->at += need;
    a->left_bytes -= need;
    return place;
}

/* All is freed at once. */
static void arena_free(void *data, void *place)
{
    (void)data;
    (void)place;
}

void control_arena_init(struct control_arena *a, size_t message_bytes)
{
    a->allocator =
        (ProtobufCAllocator){.alloc = arena_alloc, .free = arena_free, .allocator_data = a};
    a->chunks = NULL;
    a->at = a->first;
    a->left_bytes = sizeof a->first;
    a->budget_bytes = message_bytes * BUDGET_PER_BYTE + BUDGET_BASE;
}

void control_arena_clear(struct control_arena *a)
{
    while (a->chunks != NULL) {
        struct control_arena_chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
}
