/* Memory for one unpacked protobuf message: bounded by the length of its bytes, freed at once.
 *
 * protobuf-c allocates a struct of about 100 bytes for an item that takes 2 on the wire. An honest
 * item has a sequence id and more, so the bound costs nobody anything and a hostile message fails
 * to parse instead of taking fifty times its size. Small messages never leave the stack. */
#ifndef PROTO_CONTROL_ARENA_H
#define PROTO_CONTROL_ARENA_H

#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

enum { CONTROL_ARENA_INLINE_BYTES = 8192 };

struct control_arena {
    ProtobufCAllocator allocator; /* points back here: the arena does not move */
    struct control_arena_chunk *chunks;
    unsigned char *at;
    size_t left_bytes;   /* in the chunk at `at` */
    size_t budget_bytes; /* that further chunks may take */
    _Alignas(16) unsigned char first[CONTROL_ARENA_INLINE_BYTES];
};

void control_arena_init(struct control_arena *a, size_t message_bytes);
/* Frees all that was allocated. */
void control_arena_clear(struct control_arena *a);

#endif
