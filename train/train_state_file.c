/* Names of state files and the exact text of a curriculum in their metadata. */
#include "train/train_state_file.h"

#include "model/content_hash.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "state-"
#define SUFFIX ".safetensors"

enum { STEP_DIGITS = 9, MAX_STEP_DIGITS = 18 };

bool train_state_parse_name(const char *name, uint64_t *step)
{
    const size_t n_prefix = strlen(PREFIX);
    if (strncmp(name, PREFIX, n_prefix) != 0)
        return false;
    size_t n_digits = strspn(name + n_prefix, "0123456789");
    if (n_digits < STEP_DIGITS || n_digits > MAX_STEP_DIGITS ||
        (n_digits > STEP_DIGITS && name[n_prefix] == '0') ||
        strcmp(name + n_prefix + n_digits, SUFFIX) != 0)
        return false;
    *step = strtoull(name + n_prefix, NULL, 10);
    return true;
}

enum status train_state_path(const char *dir, uint64_t step, char *path, size_t cap_bytes,
                             struct err *err)
{
    int n = snprintf(path, cap_bytes, "%s/" PREFIX "%09" PRIu64 SUFFIX, dir, step);
    if (n < 0 || (size_t)n >= cap_bytes)
        return err_set(err, STATUS_INVALID, "the path of %.100s... is too long for a state file",
                       dir);
    return STATUS_OK;
}

static int compare_newest_first(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x < *y) - (*x > *y);
}

enum status train_state_list(const char *dir, uint64_t **steps, size_t *n, struct err *err)
{
    DIR *d = opendir(dir);
    if (d == NULL)
        return err_set(err, errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_IO,
                       "cannot look for state files in %s: %s", dir, strerror(errno));
    enum status status = STATUS_OK;
    uint64_t *found = NULL;
    size_t count = 0, cap = 0;
    for (;;) {
        uint64_t step;
        errno = 0;
        const struct dirent *entry = readdir(d);
        if (entry == NULL)
            break;
        if (!train_state_parse_name(entry->d_name, &step))
            continue;
        if (count == cap) {
            cap = cap == 0 ? 16 : 2 * cap;
            uint64_t *more = realloc(found, cap * sizeof *found);
            if (more == NULL) {
                status = err_set(err, STATUS_NO_MEMORY, "no memory to list %s", dir);
                goto out;
            }
            found = more;
        }
        found[count++] = step;
    }
    if (errno != 0) {
        status = err_set(err, STATUS_IO, "cannot list %s: %s", dir, strerror(errno));
        goto out;
    }
    if (count > 0)
        qsort(found, count, sizeof *found, compare_newest_first);
    *steps = found;
    *n = count;
    found = NULL;

out:
    free(found);
    closedir(d);
    return status;
}

/* ---- the curriculum ------------------------------------------------------------------------- */

enum kind { KIND_U64, KIND_I32, KIND_F32 };

/* One member of struct curriculum_state. */
struct field {
    const char *key;
    size_t offset;
    size_t n;
    enum kind kind;
};
#define FIELD(member, count, kind_of)                                                              \
    {                                                                                              \
        "curriculum." #member, offsetof(struct curriculum_state, member), count, kind_of           \
    }
static const struct field FIELDS[] = {
    FIELD(step, 1, KIND_U64),
    FIELD(attempt_step, 1, KIND_U64),
    FIELD(stage_step, 1, KIND_U64),
    FIELD(track_begins, RECIPE_MAX_TRACKS, KIND_U64),
    FIELD(stage, 1, KIND_I32),
    FIELD(attempt, 1, KIND_I32),
    FIELD(loops, 1, KIND_I32),
    FIELD(track_steps, RECIPE_MAX_TRACKS, KIND_I32),
    FIELD(knobs, RECIPE_MAX_DATA *TASK_MAX_KNOBS, KIND_I32),
    FIELD(is_finished, 1, KIND_I32),
    FIELD(accuracy, METRICS_MAX_LEVELS *METRICS_MAX_LOOPS, KIND_F32),
};
#undef FIELD
enum { N_FIELDS = sizeof FIELDS / sizeof FIELDS[0], NUMBER_BYTES = 21 };

/* A member that is not in the table would not come back after a resume: whoever adds one to the
 * struct adds it there and here. */
struct saved_members {
    uint64_t steps[3 + RECIPE_MAX_TRACKS];
    int32_t counts[4 + RECIPE_MAX_TRACKS + RECIPE_MAX_DATA * TASK_MAX_KNOBS];
    float accuracy[METRICS_MAX_LEVELS * METRICS_MAX_LOOPS];
};
_Static_assert(sizeof(struct curriculum_state) == sizeof(struct saved_members),
               "FIELDS must name every member of struct curriculum_state");
_Static_assert((int)N_FIELDS <= (int)TRAIN_STATE_FIELDS, "room for every field");

static size_t field_bytes(const struct field *f)
{
    return f->kind == KIND_U64 ? 8 : 4;
}

static int print_number(char *text, size_t cap, const struct field *f, const unsigned char *at)
{
    uint64_t u;
    int32_t i;
    uint32_t bits;
    switch (f->kind) {
    case KIND_U64:
        memcpy(&u, at, sizeof u);
        return snprintf(text, cap, "%" PRIu64, u);
    case KIND_I32:
        memcpy(&i, at, sizeof i);
        return snprintf(text, cap, "%" PRId32, i);
    case KIND_F32:
        memcpy(&bits, at, sizeof bits);
        return snprintf(text, cap, "%08" PRIx32, bits);
    }
    return 0;
}

enum status train_state_format_curriculum(const struct curriculum_state *s,
                                          struct safetensors_pair *pairs, size_t *n, char **text,
                                          struct err *err)
{
    size_t cap = 1, used = 0;
    for (size_t i = 0; i < N_FIELDS; i++)
        cap += FIELDS[i].n * NUMBER_BYTES + 1;
    char *out = malloc(cap);
    if (out == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the metadata of a state file");
    for (size_t i = 0; i < N_FIELDS; i++) {
        const struct field *f = &FIELDS[i];
        const unsigned char *at = (const unsigned char *)s + f->offset;
        pairs[i] = (struct safetensors_pair){f->key, out + used};
        for (size_t k = 0; k < f->n; k++) {
            if (k > 0)
                out[used++] = ' ';
            used += (size_t)print_number(out + used, cap - used, f, at + k * field_bytes(f));
        }
        out[used++] = '\0';
    }
    *n = N_FIELDS;
    *text = out;
    return STATUS_OK;
}

/* *text moves behind the number; false when there is none in range. */
static bool parse_number(const char **text, const struct field *f, unsigned char *at)
{
    char *end;
    errno = 0;
    if (f->kind == KIND_I32) {
        long long value = strtoll(*text, &end, 10);
        int32_t i = (int32_t)value;
        memcpy(at, &i, sizeof i);
        if (value != i)
            return false;
    } else {
        unsigned long long value = strtoull(*text, &end, f->kind == KIND_F32 ? 16 : 10);
        uint32_t bits = (uint32_t)value;
        if (f->kind == KIND_F32)
            memcpy(at, &bits, sizeof bits);
        else
            memcpy(at, &value, sizeof value);
        if (f->kind == KIND_F32 && value != bits)
            return false;
    }
    bool is_good = end != *text && errno == 0;
    *text = end;
    return is_good;
}

enum status train_state_parse_curriculum(const struct safetensors *file, const char *origin,
                                         struct curriculum_state *out, struct err *err)
{
    struct curriculum_state s;
    memset(&s, 0, sizeof s);
    for (size_t i = 0; i < N_FIELDS; i++) {
        const struct field *f = &FIELDS[i];
        const char *text = safetensors_metadata(file, f->key);
        if (text == NULL)
            return err_set(err, STATUS_CORRUPT, "%s has no %s in its metadata", origin, f->key);
        for (size_t k = 0; k < f->n; k++)
            if (!parse_number(&text, f, (unsigned char *)&s + f->offset + k * field_bytes(f)))
                return err_set(err, STATUS_CORRUPT, "%s: value %zu of %s is not a number in range",
                               origin, k, f->key);
        if (*text != '\0')
            return err_set(err, STATUS_CORRUPT, "%s: %s has more than %zu values", origin, f->key,
                           f->n);
    }
    /* These index the recipe's arrays. */
    bool is_good = s.stage >= 0 && s.stage <= RECIPE_MAX_STAGES && s.attempt >= 0 && s.loops >= 0 &&
                   s.loops <= METRICS_MAX_LOOPS;
    for (int t = 0; t < RECIPE_MAX_TRACKS; t++)
        is_good = is_good && s.track_steps[t] >= -1 && s.track_steps[t] <= RECIPE_MAX_STEPS;
    if (!is_good)
        return err_set(err, STATUS_CORRUPT,
                       "%s: its curriculum is at stage %d, %d loops: no recipe "
                       "has that",
                       origin, s.stage, s.loops);
    *out = s;
    return STATUS_OK;
}

/* ---- the hash ------------------------------------------------------------------------------- */

uint64_t train_state_hash(const struct safetensors_pair *pairs, size_t n_pairs,
                          const struct safetensors_tensor *tensors, size_t n_tensors)
{
    uint64_t hash = CONTENT_HASH_START;
    for (size_t i = 0; i < n_pairs; i++) {
        hash = content_hash_text(hash, pairs[i].key);
        hash = content_hash_text(hash, pairs[i].value);
    }
    for (size_t i = 0; i < n_tensors; i++) {
        hash = content_hash_text(hash, tensors[i].name);
        hash = content_hash(hash, tensors[i].shape, (size_t)tensors[i].rank * sizeof(int64_t));
        hash = content_hash(hash, tensors[i].data, tensors[i].len_bytes);
    }
    return hash;
}
