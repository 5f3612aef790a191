/* config.json of a model, as Hugging Face libraries and config_load read it. */
#ifndef MODEL_CONFIG_WRITE_H
#define MODEL_CONFIG_WRITE_H

#include "model/config.h"

/* The text, NUL-terminated; the caller frees. Numbers are the shortest decimals that read back to
 * the same value. A Llama file has no field for loops: n_loops is not in it then.
 * STATUS_NO_MEMORY. */
enum status config_format(const struct model_config *config, char **out, struct err *err);
/* Writes <dir>/config.json, whole or not at all. STATUS_IO, STATUS_INVALID (path too long). */
enum status config_write(const char *dir, const struct model_config *config, struct err *err);

#endif
