/* Fuzzes control messages: what decodes is in range, and comes back the same when it is sent again.
 */
#include "proto/control.h"
#include "proto/frame.h"
#include "proto/wire_bytes.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Encodes m into a block of exactly its size. */
static uint8_t *encode(const struct control_message *m, size_t *len)
{
    *len = control_size(m);
    uint8_t *bytes = malloc(*len);
    if (bytes == NULL || control_encode(m, bytes, *len) != *len)
        abort();
    return bytes;
}

static void check_round_trip(const uint8_t *data, size_t size)
{
    struct control_message first, second;
    struct err err;
    if (control_decode(data, size, &first, &err) != STATUS_OK)
        return;
    if (first.kind < CONTROL_HELLO || first.kind > CONTROL_TRACE)
        abort();
    size_t len, again_len;
    uint8_t *bytes = encode(&first, &len);
    if (control_decode(bytes, len, &second, &err) != STATUS_OK)
        abort();
    uint8_t *again = encode(&second, &again_len);
    if (again_len != len || memcmp(bytes, again, len) != 0)
        abort();
    free(bytes);
    free(again);
    control_clear(&first);
    control_clear(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_round_trip(data, size);
    /* And as a body: the head costs the fuzzer eight bytes it should not have to find. */
    uint8_t *bytes = malloc(MESSAGE_HEAD_BYTES + size);
    if (bytes == NULL)
        return 0;
    wire_store_head(bytes, FRAME_PROTOCOL_VERSION, MESSAGE_CONTROL);
    if (size > 0)
        memcpy(bytes + MESSAGE_HEAD_BYTES, data, size);
    check_round_trip(bytes, MESSAGE_HEAD_BYTES + size);
    free(bytes);
    return 0;
}
