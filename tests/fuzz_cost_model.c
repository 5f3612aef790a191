/* cost_model: any bytes give an error or costs that are finite, ordered and never negative. */
#include "cluster/cost_model.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void check(double ns)
{
    if (!(ns >= 0) || !isfinite(ns) || ns > 1e21)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct cost_model m;
    struct err err = {0};
    if (cost_model_parse((const char *)bytes, len, "input", &m, &err) != STATUS_OK) {
        if (err.code == STATUS_OK || err.message[0] == '\0')
            abort();
        for (const char *p = err.message; *p != '\0'; p++)
            if ((unsigned char)*p < 0x20)
                abort(); /* a message is one line */
        return 0;
    }
    static const uint32_t rows[] = {1, 2, 31, 32, 33, 4096, 65536};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double head_ns;
        check(cost_model_batch_ns(&m, rows[i], 1e5 * rows[i], rows[i], &head_ns));
        check(head_ns);
    }
    uint64_t batch_ns, row_ns;
    cost_model_knee(&m, &batch_ns, &row_ns);
    if (row_ns == 0)
        abort();
    check(cost_model_link_ns(&m, 0, 4095, 1 << 30));
    check(m.worker_message_ns + m.worker_row_ns + m.coordinator_request_ns);
    check(m.coordinator_token_ns + m.batch_overhead_ns);
    if (m.jitter > COST_MODEL_MAX_JITTER || m.ranks_per_host < 1)
        abort();
    return 0;
}
