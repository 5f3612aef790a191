/* config: any bytes give an error or dimensions whose products stay in range. */
#include "model/config.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct model_config c;
    struct err err = {0};
    if (config_parse((const char *)bytes, len, "input", &c, &err) != STATUS_OK) {
        if (err.code == STATUS_OK || err.message[0] == '\0')
            abort();
        for (const char *p = err.message; *p != '\0'; p++)
            if ((unsigned char)*p < 0x20)
                abort(); /* a message is one line */
        return 0;
    }
    if (c.n_layers < 1 || c.n_layers > MODEL_MAX_LAYERS || c.d_model < 1 || c.d_ffn < 1 ||
        c.n_kv_heads < 1 || c.n_heads % c.n_kv_heads != 0 || c.head_dim < 2 || c.head_dim % 2 ||
        c.vocab_size < 1 || c.max_positions < 1 || c.n_loops < 1 || c.n_loops > MODEL_MAX_LOOPS ||
        c.n_eos > MODEL_MAX_EOS || c.bos_id >= c.vocab_size || !(c.rms_norm_eps > 0))
        abort();
    int q = 0;
    if (__builtin_mul_overflow(c.n_heads, c.head_dim, &q) || config_count_parameters(&c) == 0 ||
        config_kv_bytes_per_position(&c, DTYPE_F32) == 0 || config_set_loops(&c, 8, &err) != 0)
        abort();
    return 0;
}
