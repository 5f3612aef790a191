/* Reads fields of a recipe's JSON; every refusal names file, path, what was expected and found. */
#include "train/recipe_reader.h"

#include "model/json_input.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { EXPECTED_BYTES = 256, LIST_BYTES = 320 };

bool recipe_reader_has(const struct recipe_reader *r, const char *key)
{
    return json_object_get(r->object, key) != NULL;
}

enum status recipe_reader_require(const struct recipe_reader *r, const char *key)
{
    if (recipe_reader_has(r, key))
        return STATUS_OK;
    return err_set(r->err, STATUS_INVALID, "%s: %s%s is missing", r->origin, r->path, key);
}

enum status recipe_reader_fail(const struct recipe_reader *r, const char *key, const json_t *value,
                               const char *expected, ...)
{
    char text[EXPECTED_BYTES], shown[JSON_INPUT_SHOWN_BYTES];
    va_list arguments;
    va_start(arguments, expected);
    vsnprintf(text, sizeof text, expected, arguments);
    va_end(arguments);
    if (value == NULL)
        value = json_object_get(r->object, key);
    /* As somebody would write it: 0.1, where JSON's exact form is 0.10000000000000001. */
    if (json_is_real(value))
        return err_set(r->err, STATUS_INVALID, "%s: %s%s: expected %s, found %.9g", r->origin,
                       r->path, key, text, json_real_value(value));
    return err_set(r->err, STATUS_INVALID, "%s: %s%s: expected %s, found %s", r->origin, r->path,
                   key, text, json_input_show(value, shown));
}

/* How many letters to change, insert or take away. Longer names than the table are cut: they are
 * no misspelling of ours. */
static int distance(const char *a, const char *b)
{
    enum { MAX = 48 };
    int row[MAX + 1];
    int n = (int)strnlen(a, MAX), m = (int)strnlen(b, MAX);
    for (int j = 0; j <= m; j++)
        row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int changed = diagonal + (a[i - 1] != b[j - 1]);
            int shorter = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = changed < shorter ? changed : shorter;
        }
    }
    return row[m];
}

/* Writes the nearest name when it is near, else all of them. */
static void advise(const char *found, const struct recipe_names *lists, size_t n_lists,
                   char advice[LIST_BYTES])
{
    const char *nearest = NULL, *comma = "";
    int least = (int)strnlen(found, 48) / 3 + 2;
    int used = snprintf(advice, LIST_BYTES, "known are");
    for (size_t l = 0; l < n_lists; l++)
        for (size_t i = 0; i < lists[l].n; i++) {
            const char *name = lists[l].items[i];
            int changes = distance(found, name);
            if (changes < least) {
                least = changes;
                nearest = name;
            }
            if (used < LIST_BYTES)
                used += snprintf(advice + used, (size_t)(LIST_BYTES - used), "%s %s", comma, name);
            comma = ",";
        }
    if (nearest != NULL)
        snprintf(advice, LIST_BYTES, "the nearest known is %s", nearest);
    else if (comma[0] == '\0')
        snprintf(advice, LIST_BYTES, "there are none at all");
}

enum status recipe_reader_unknown(const struct recipe_reader *r, const char *key, const char *found,
                                  const char *what, const struct recipe_names *lists,
                                  size_t n_lists)
{
    char advice[LIST_BYTES], shown[JSON_INPUT_SHOWN_BYTES];
    advise(found, lists, n_lists, advice);
    json_t *value = json_string(found); /* shown like any value: printable, cut when long */
    json_input_show(value, shown);
    json_decref(value);
    size_t len = strlen(r->path);
    bool is_field = key == NULL;
    /* The path of an object ends in a point; alone it reads better without. */
    return err_set(r->err, STATUS_INVALID, "%s: %.*s%s%sthere is no %s %s; %s", r->origin,
                   (int)(is_field && len > 0 ? len - 1 : len), r->path, is_field ? "" : key,
                   is_field && len == 0 ? "" : ": ", what, shown, advice);
}

enum status recipe_reader_known(const struct recipe_reader *r, const struct recipe_names *lists,
                                size_t n_lists)
{
    json_t *object = r->object;
    for (void *at = json_object_iter(object); at != NULL; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        bool is_known = false;
        for (size_t l = 0; l < n_lists && !is_known; l++)
            for (size_t i = 0; i < lists[l].n && !is_known; i++)
                is_known = strcmp(lists[l].items[i], key) == 0;
        if (!is_known)
            return recipe_reader_unknown(r, NULL, key, "field", lists, n_lists);
    }
    return STATUS_OK;
}

enum status recipe_reader_integer(const struct recipe_reader *r, const char *key, int64_t min,
                                  int64_t max, int64_t *out)
{
    const json_t *value = json_object_get(r->object, key);
    if (value == NULL)
        return STATUS_OK;
    json_int_t v = json_integer_value(value);
    if (!json_is_integer(value) || v < min || v > max)
        return recipe_reader_fail(r, key, value, "an integer from %lld to %lld", (long long)min,
                                  (long long)max);
    *out = v;
    return STATUS_OK;
}

enum status recipe_reader_int(const struct recipe_reader *r, const char *key, int min, int max,
                              int *out)
{
    int64_t v = *out;
    enum status status = recipe_reader_integer(r, key, min, max, &v);
    if (status == STATUS_OK)
        *out = (int)v;
    return status;
}

enum status recipe_reader_count(const struct recipe_reader *r, const char *key, uint64_t max,
                                uint64_t *out)
{
    int64_t v = (int64_t)*out;
    enum status status = recipe_reader_integer(r, key, 0, (int64_t)max, &v);
    if (status == STATUS_OK)
        *out = (uint64_t)v;
    return status;
}

static enum status convert(const struct recipe_reader *r, const char *key, const json_t *value,
                           double min, double max, double *out)
{
    double v = json_number_value(value);
    if (!json_is_number(value) || !(v >= min && v <= max))
        return recipe_reader_fail(r, key, NULL, "a number from %g to %g", min, max);
    *out = v;
    return STATUS_OK;
}

enum status recipe_reader_double(const struct recipe_reader *r, const char *key, double min,
                                 double max, double *out)
{
    const json_t *value = json_object_get(r->object, key);
    return value == NULL ? STATUS_OK : convert(r, key, value, min, max, out);
}

enum status recipe_reader_float(const struct recipe_reader *r, const char *key, double min,
                                double max, float *out)
{
    double v = *out;
    enum status status = recipe_reader_double(r, key, min, max, &v);
    if (status == STATUS_OK && recipe_reader_has(r, key))
        *out = (float)v;
    return status;
}

enum status recipe_reader_range(const struct recipe_reader *r, const char *key, double min,
                                double max, float *begin, float *end, bool *is_pair)
{
    const json_t *value = json_object_get(r->object, key);
    if (value == NULL)
        return STATUS_OK;
    bool is_list = json_is_array(value);
    if (is_list ? json_array_size(value) != 2 : !json_is_number(value))
        return recipe_reader_fail(r, key, value, "a number or a list [begin, end]");
    double from = 0, to = 0;
    enum status status =
        convert(r, key, is_list ? json_array_get(value, 0) : value, min, max, &from);
    if (status == STATUS_OK)
        status = convert(r, key, is_list ? json_array_get(value, 1) : value, min, max, &to);
    if (status != STATUS_OK)
        return status;
    *begin = (float)from;
    *end = (float)to;
    *is_pair = is_list;
    return STATUS_OK;
}

enum status recipe_reader_bool(const struct recipe_reader *r, const char *key, bool *out)
{
    const json_t *value = json_object_get(r->object, key);
    if (value == NULL)
        return STATUS_OK;
    if (!json_is_boolean(value))
        return recipe_reader_fail(r, key, value, "true or false");
    *out = json_is_true(value);
    return STATUS_OK;
}

enum status recipe_reader_text(const struct recipe_reader *r, const char *key, size_t cap_bytes,
                               char *out)
{
    const json_t *value = json_object_get(r->object, key);
    if (value == NULL)
        return STATUS_OK;
    const char *text = json_string_value(value);
    size_t len = text == NULL ? 0 : strlen(text);
    bool is_good = len > 0 && len < cap_bytes;
    for (size_t i = 0; i < len && is_good; i++)
        is_good = (unsigned char)text[i] >= 0x20 && text[i] != 0x7f;
    if (!is_good)
        return recipe_reader_fail(r, key, value, "1 to %zu printable bytes of text", cap_bytes - 1);
    memcpy(out, text, len + 1);
    return STATUS_OK;
}

enum status recipe_reader_choice(const struct recipe_reader *r, const char *key,
                                 struct recipe_names names, int *out)
{
    const json_t *value = json_object_get(r->object, key);
    if (value == NULL)
        return STATUS_OK;
    if (!json_is_string(value))
        return recipe_reader_fail(r, key, value, "a name, such as \"%s\"", names.items[0]);
    for (size_t i = 0; i < names.n; i++)
        if (strcmp(names.items[i], json_string_value(value)) == 0) {
            *out = (int)i;
            return STATUS_OK;
        }
    return recipe_reader_unknown(r, key, json_string_value(value), "choice", &names, 1);
}

static enum status enter(const struct recipe_reader *r, const char *place, json_t *value,
                         struct recipe_reader *out)
{
    if (!json_is_object(value))
        return recipe_reader_fail(r, place, value, "an object");
    struct recipe_reader child = *r;
    child.object = value;
    /* Our own names and indices fit; a user's name of a source is shorter than its limit. */
    snprintf(child.path, sizeof child.path, "%.100s%.80s.", r->path, place);
    *out = child;
    return STATUS_OK;
}

enum status recipe_reader_child(const struct recipe_reader *r, const char *key,
                                struct recipe_reader *out)
{
    enum status status = recipe_reader_require(r, key);
    return status == STATUS_OK ? enter(r, key, json_object_get(r->object, key), out) : status;
}

enum status recipe_reader_list(const struct recipe_reader *r, const char *key, size_t max,
                               size_t *n)
{
    enum status status = recipe_reader_require(r, key);
    if (status != STATUS_OK)
        return status;
    const json_t *value = json_object_get(r->object, key);
    size_t size = json_array_size(value);
    if (!json_is_array(value) || size < 1 || size > max)
        return recipe_reader_fail(r, key, value, "a list of 1 to %zu objects", max);
    *n = size;
    return STATUS_OK;
}

enum status recipe_reader_item(const struct recipe_reader *r, const char *key, size_t i,
                               struct recipe_reader *out)
{
    char place[80];
    snprintf(place, sizeof place, "%.60s[%zu]", key, i);
    return enter(r, place, json_array_get(json_object_get(r->object, key), i), out);
}
