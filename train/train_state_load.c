/* Loads a state file only when it is whole and belongs to this model, recipe and seed. */
#include "train/train_state.h"

#include "train/train_state_file.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the metadata says beside the curriculum. */
struct numbers {
    uint64_t seed, recipe, optimizer_step, content_hash;
};

static enum status read_number(const struct safetensors *file, const char *path, const char *key,
                               int base, uint64_t *out, struct err *err)
{
    const char *text = safetensors_metadata(file, key);
    char *end = NULL;
    errno = 0;
    unsigned long long value = text != NULL ? strtoull(text, &end, base) : 0;
    if (text == NULL || end == text || *end != '\0' || errno != 0)
        return err_set(err, STATUS_CORRUPT, "%s: %s in its metadata is %.40s, expected a number",
                       path, key, text != NULL ? text : "missing");
    *out = value;
    return STATUS_OK;
}

/* Hashes what the file holds; everything that was hashed when it was written, in the same order. */
static enum status check_content(const struct safetensors *file, const char *path,
                                 uint64_t expected, struct err *err)
{
    /* The writer's own text of the curriculum has the keys; the values come from the file. */
    static const struct curriculum_state nothing;
    struct safetensors_pair pairs[TRAIN_STATE_PAIRS] = {
        {"format", NULL}, {"seed", NULL}, {"recipe", NULL}, {"optimizer.step", NULL}};
    char *text = NULL;
    size_t n = 4, n_curriculum = 0;
    enum status status =
        train_state_format_curriculum(&nothing, pairs + n, &n_curriculum, &text, err);
    if (status != STATUS_OK)
        return status;
    free(text);
    n += n_curriculum;
    for (size_t i = 0; i < n; i++) {
        pairs[i].value = safetensors_metadata(file, pairs[i].key);
        if (pairs[i].value == NULL)
            return err_set(err, STATUS_CORRUPT, "%s has no %s in its metadata", path, pairs[i].key);
    }
    size_t n_tensors = safetensors_count(file);
    uint64_t found = train_state_hash(pairs, n, safetensors_at(file, 0), n_tensors);
    if (found != expected)
        return err_set(err, STATUS_CORRUPT,
                       "%s is damaged: the hash of its content is %016" PRIx64
                       ", it was written with %016" PRIx64,
                       path, found, expected);
    return STATUS_OK;
}

/* Opens and verifies; the caller closes. */
static enum status open_whole(const char *path, struct safetensors **out, struct numbers *numbers,
                              struct err *err)
{
    struct safetensors *file = NULL;
    struct err why = {0};
    enum status status = safetensors_open(path, &file, &why);
    /* A tensor of a kind that no state has is damage as well. */
    if (status != STATUS_OK)
        return err_set(err, status == STATUS_UNSUPPORTED ? STATUS_CORRUPT : status, "%s",
                       why.message);
    const char *format = safetensors_metadata(file, "format");
    if (format == NULL || strcmp(format, TRAIN_STATE_FORMAT) != 0)
        status = err_set(err, STATUS_CORRUPT,
                         "%s is not a training state: its format is %.40s, expected %s", path,
                         format != NULL ? format : "missing", TRAIN_STATE_FORMAT);
    if (status == STATUS_OK)
        status = read_number(file, path, "seed", 10, &numbers->seed, err);
    if (status == STATUS_OK)
        status = read_number(file, path, "recipe", 16, &numbers->recipe, err);
    if (status == STATUS_OK)
        status = read_number(file, path, "optimizer.step", 10, &numbers->optimizer_step, err);
    if (status == STATUS_OK)
        status = read_number(file, path, "content_hash", 16, &numbers->content_hash, err);
    if (status == STATUS_OK)
        status = check_content(file, path, numbers->content_hash, err);
    if (status == STATUS_OK)
        *out = file;
    else
        safetensors_close(file);
    return status;
}

/* Adds to a message about a damaged file what to do: the newest other state that is whole. */
static void advise(const char *path, struct err *err)
{
    char dir[PATH_MAX], other[PATH_MAX];
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    uint64_t *steps = NULL, own = UINT64_MAX;
    size_t n = 0;
    bool is_found = false;
    if (err == NULL)
        return;
    snprintf(dir, sizeof dir, "%.*s", slash != NULL ? (int)(slash - path) : 1,
             slash != NULL ? path : ".");
    if (train_state_parse_name(name, &own) &&
        train_state_list(dir, &steps, &n, NULL) == STATUS_OK) {
        for (size_t i = 0; i < n && !is_found; i++) {
            struct safetensors *file = NULL;
            struct numbers numbers;
            if (steps[i] == own ||
                train_state_path(dir, steps[i], other, sizeof other, NULL) != STATUS_OK ||
                open_whole(other, &file, &numbers, NULL) != STATUS_OK)
                continue;
            safetensors_close(file);
            is_found = true;
        }
    }
    free(steps);
    struct err first = *err;
    if (is_found)
        err_set(err, first.code, "%.*s; resume from %s", 300, first.message, other);
    else
        err_set(err, first.code, "%.*s; there is no other good state beside it, start anew", 400,
                first.message);
}

/* The tensor must have the shape of `t`; *data is its numbers. */
static enum status find_tensor(const struct safetensors *file, const char *path, const char *prefix,
                               const struct params_tensor *t, const float **data, struct err *err)
{
    char name[PARAMS_NAME_BYTES + 8];
    snprintf(name, sizeof name, "%s%s", prefix, t->name);
    const struct safetensors_tensor *found = safetensors_find(file, name);
    if (found == NULL)
        return err_set(err, STATUS_MISMATCH,
                       "%s has no tensor %s: it is a state of another model than the recipe's",
                       path, name);
    if (found->dtype != DTYPE_F32 || found->rank != (t->is_vector ? 1 : 2) ||
        found->shape[0] != (t->is_vector ? t->cols : t->rows) ||
        (!t->is_vector && found->shape[1] != t->cols))
        return err_set(
            err, STATUS_MISMATCH,
            "tensor %s in %s has %zu bytes, the recipe's model has f32 [%d, %d]: it is a "
            "state of another model",
            name, path, found->len_bytes, t->rows, t->cols);
    *data = found->data;
    return STATUS_OK;
}

/* Checks all tensors, and copies them when `is_copying`; o may be NULL when not. */
static enum status visit_tensors(const struct safetensors *file, const char *path, bool is_copying,
                                 struct params *p, struct optimizer *o, struct err *err)
{
    float *const to[] = {p->values, o != NULL ? o->m : NULL, o != NULL ? o->v : NULL};
    static const char *const prefixes[] = {"", TRAIN_STATE_M, TRAIN_STATE_V};
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct params_tensor *t = &p->tensors[i];
        for (int copy = 0; copy < 3; copy++) {
            const float *data = NULL;
            enum status status = find_tensor(file, path, prefixes[copy], t, &data, err);
            if (status != STATUS_OK)
                return status;
            if (is_copying)
                memcpy(to[copy] + t->offset, data,
                       (size_t)t->rows * (size_t)t->cols * sizeof(float));
        }
    }
    if (safetensors_count(file) != 3 * p->n_tensors)
        return err_set(err, STATUS_MISMATCH,
                       "%s has %zu tensors, the recipe's model and its moments have %zu: it is a "
                       "state of another model",
                       path, safetensors_count(file), 3 * p->n_tensors);
    return STATUS_OK;
}

enum status train_state_load_values(const char *path, struct params *p, uint64_t *content,
                                    struct err *err)
{
    struct safetensors *file = NULL;
    struct numbers numbers;
    enum status status = open_whole(path, &file, &numbers, err);
    if (status != STATUS_OK)
        return status;
    /* A visit that copies nothing checks all names and shapes, the moments' too. */
    status = visit_tensors(file, path, false, p, NULL, err);
    for (size_t i = 0; i < p->n_tensors && status == STATUS_OK; i++) {
        const struct params_tensor *t = &p->tensors[i];
        const float *data = NULL;
        status = find_tensor(file, path, "", t, &data, err);
        if (status == STATUS_OK)
            memcpy(p->values + t->offset, data, (size_t)t->rows * (size_t)t->cols * sizeof(float));
    }
    if (status == STATUS_OK)
        *content = numbers.content_hash;
    safetensors_close(file);
    return status;
}

enum status train_state_load(const char *path, uint64_t seed, uint64_t recipe_fingerprint,
                             struct train_state_head *head, struct params *p, struct optimizer *o,
                             struct err *err)
{
    struct safetensors *file = NULL;
    struct numbers numbers;
    struct curriculum_state curriculum;
    enum status status = open_whole(path, &file, &numbers, err);
    if (status == STATUS_CORRUPT)
        advise(path, err);
    if (status != STATUS_OK)
        return status;
    if (numbers.seed != seed)
        status = err_set(err, STATUS_MISMATCH,
                         "%s was trained from seed %" PRIu64 ", this run has seed %" PRIu64
                         "; resume with that seed",
                         path, numbers.seed, seed);
    if (status == STATUS_OK)
        status = visit_tensors(file, path, false, p, o, err);
    if (status == STATUS_OK && numbers.recipe != recipe_fingerprint)
        status = err_set(err, STATUS_MISMATCH,
                         "%s was trained with another recipe (hash %016" PRIx64
                         ", this one has %016" PRIx64 "); resume with that one (and the same "
                         "--init-from), or start a new run from this state: --init-from STATE",
                         path, numbers.recipe, recipe_fingerprint);
    if (status == STATUS_OK)
        status = train_state_parse_curriculum(file, path, &curriculum, err);
    if (status == STATUS_OK)
        status = visit_tensors(file, path, true, p, o, err);
    if (status == STATUS_OK) {
        o->step = numbers.optimizer_step;
        *head = (struct train_state_head){seed, recipe_fingerprint, curriculum};
    }
    safetensors_close(file);
    return status;
}
