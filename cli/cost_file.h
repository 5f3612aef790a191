/* Where the cost file that --cost names lies. */
#ifndef CLI_COST_FILE_H
#define CLI_COST_FILE_H

#include "proto/status.h"

#include <stddef.h>

/* `name` is a path (it has a '/' or ends in ".json"), or the name of a cost file that comes with
 * carousel: h200_ib is <share>/costs/h200_ib.json. The file itself is checked by who loads it.
 * STATUS_NOT_FOUND lists the names there are. */
enum status cost_file_find(const char *name, char *out, size_t cap_bytes, struct err *err);

#endif
