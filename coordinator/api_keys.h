/* The keys clients must show: read from a file, compared in constant time. */
#ifndef COORDINATOR_API_KEYS_H
#define COORDINATOR_API_KEYS_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { API_KEY_MAX_BYTES = 512, API_KEYS_MAX = 1024 };

struct api_keys;

/* One key a line, optionally "name key" (the name goes into logs); empty lines and lines that start
 * with # are skipped. STATUS_NOT_FOUND, STATUS_IO, STATUS_INVALID (no key, too long, too many, a
 * character outside printable ASCII; the message has the line), STATUS_NO_MEMORY. A file that
 * others can read is STATUS_INVALID, too. */
enum status api_keys_load(const char *path, struct api_keys **out, struct err *err);
void api_keys_free(struct api_keys *keys); /* NULL is fine */
/* The name of the key, or "key-N" by its place; NULL: it is none. Takes the same time for every key
 * of that length, whichever matches. */
const char *api_keys_find(const struct api_keys *keys, const char *key, size_t len_bytes);

#endif
