/* One object of a recipe's JSON and where it lies, so that every message names the field by its
 * path: "demo.json: stages[1].lr: expected ..., found ...".
 *
 * A getter leaves *out alone when the field is absent; what must be there is asked for with
 * recipe_reader_require first. null is not absent: it is a value of the wrong type. */
#ifndef TRAIN_RECIPE_READER_H
#define TRAIN_RECIPE_READER_H

#include "proto/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RECIPE_READER_PATH_BYTES = 192 };

struct recipe_reader {
    json_t *object;
    const char *origin;                  /* the file */
    char path[RECIPE_READER_PATH_BYTES]; /* "" at the top, else "stages[1]." with the point */
    struct err *err;
};

/* A list of names with its length, for the functions below. */
struct recipe_names {
    const char *const *items;
    size_t n;
};
#define RECIPE_NAMES(array) ((struct recipe_names){array, sizeof(array) / sizeof(array)[0]})

bool recipe_reader_has(const struct recipe_reader *r, const char *key);
enum status recipe_reader_require(const struct recipe_reader *r, const char *key);
/* STATUS_INVALID for the first field that is in none of the lists; names the nearest that is. */
enum status recipe_reader_known(const struct recipe_reader *r, const struct recipe_names *lists,
                                size_t n_lists);
/* "FILE: PATH key: expected EXPECTED, found VALUE", STATUS_INVALID. value NULL: that of key. */
enum status recipe_reader_fail(const struct recipe_reader *r, const char *key, const json_t *value,
                               const char *expected, ...) __attribute__((format(printf, 4, 5)));
/* Likewise for a name that is none of the list; key NULL: the object itself holds it as a field. */
enum status recipe_reader_unknown(const struct recipe_reader *r, const char *key, const char *found,
                                  const char *what, const struct recipe_names *lists,
                                  size_t n_lists);

enum status recipe_reader_integer(const struct recipe_reader *r, const char *key, int64_t min,
                                  int64_t max, int64_t *out);
enum status recipe_reader_int(const struct recipe_reader *r, const char *key, int min, int max,
                              int *out);
enum status recipe_reader_count(const struct recipe_reader *r, const char *key, uint64_t max,
                                uint64_t *out);
enum status recipe_reader_float(const struct recipe_reader *r, const char *key, double min,
                                double max, float *out);
enum status recipe_reader_double(const struct recipe_reader *r, const char *key, double min,
                                 double max, double *out);
/* A number, or a list [begin, end] of two; *is_pair says which. */
enum status recipe_reader_range(const struct recipe_reader *r, const char *key, double min,
                                double max, float *begin, float *end, bool *is_pair);
enum status recipe_reader_bool(const struct recipe_reader *r, const char *key, bool *out);
/* Printable text of at most cap_bytes - 1 bytes, not empty. */
enum status recipe_reader_text(const struct recipe_reader *r, const char *key, size_t cap_bytes,
                               char *out);
/* One of the names; *out is its index. */
enum status recipe_reader_choice(const struct recipe_reader *r, const char *key,
                                 struct recipe_names names, int *out);
/* The object at key, or at key[i] of a list; it must be there. */
enum status recipe_reader_child(const struct recipe_reader *r, const char *key,
                                struct recipe_reader *out);
enum status recipe_reader_list(const struct recipe_reader *r, const char *key, size_t max,
                               size_t *n);
enum status recipe_reader_item(const struct recipe_reader *r, const char *key, size_t i,
                               struct recipe_reader *out);

#endif
