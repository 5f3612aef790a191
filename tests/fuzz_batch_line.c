/* Fuzzes batch lines: whatever a line holds, it has an id, and is refused with a message or carries
 * a body. What a body holds is fuzz_body's. */
#include "cli/batch_line.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct batch_line line;
    struct fault fault = {0};
    enum status status = batch_line_parse((const char *)data, size, 7, &line, &fault);
    require(line.custom_id[0] != '\0' && strlen(line.custom_id) <= BATCH_MAX_CUSTOM_ID_BYTES);
    if (status != STATUS_OK)
        require(fault.err.code == status && fault.err.message[0] != '\0' &&
                fault.http_status == 400 && line.body.root == NULL);
    else
        require(line.body.n_prompts >= 1 && body_n_choices(&line.body) >= 1);
    batch_line_clear(&line);
    return 0;
}
