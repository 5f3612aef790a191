/* safetensors: any bytes give an error or a table whose every byte can be read. */
#include "model/safetensors.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

/* Half of the runs put the input behind a right header length, so that mutations reach the table.
 */
static enum status open_input(const uint8_t *bytes, size_t len, uint8_t **copy,
                              struct safetensors **file)
{
    struct err err;
    if (len == 0 || bytes[0] % 2 == 0)
        return safetensors_open_bytes(bytes, len, "input", file, &err);
    size_t header = len - 1 < 64 ? len - 1 : len - 1 - bytes[0] / 4 % 64;
    *copy = malloc(8 + len - 1);
    if (*copy == NULL)
        abort();
    for (int i = 0; i < 8; i++)
        (*copy)[i] = (uint8_t)((uint64_t)header >> 8 * i);
    memcpy(*copy + 8, bytes + 1, len - 1);
    return safetensors_open_bytes(*copy, 8 + len - 1, "input", file, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct safetensors *file = NULL;
    uint8_t *copy = NULL;
    if (open_input(bytes, len, &copy, &file) == STATUS_OK) {
        volatile uint8_t sink = 0;
        for (size_t i = 0; i < safetensors_count(file); i++) {
            const struct safetensors_tensor *t = safetensors_at(file, i);
            if (safetensors_find(file, t->name) != t)
                abort();
            for (size_t k = 0; k < t->len_bytes; k++)
                sink = (uint8_t)(sink ^ ((const uint8_t *)t->data)[k]);
        }
        safetensors_close(file);
    } else if (file != NULL) {
        abort(); /* outputs are written on success only */
    }
    free(copy);
    return 0;
}
