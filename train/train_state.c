/* Saves a run so that a crash at any moment leaves the newest whole state in place. */
#include "train/train_state.h"

#include "model/atomic_file.h"
#include "train/train_state_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { COPIES = 3, FULL_NAME_BYTES = PARAMS_NAME_BYTES + 8 }; /* values, m, v */

struct table {
    struct safetensors_tensor *tensors;
    char (*names)[FULL_NAME_BYTES];
    size_t n;
};

static int compare_names(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static void table_free(struct table *t)
{
    free(t->tensors);
    free(t->names);
}

static enum status table_create(const struct params *p, const struct optimizer *o,
                                struct table *out, struct err *err)
{
    const float *const values[COPIES] = {p->values, o->m, o->v};
    static const char *const prefixes[COPIES] = {"", TRAIN_STATE_M, TRAIN_STATE_V};
    struct table t = {.n = COPIES * p->n_tensors};
    t.tensors = calloc(t.n, sizeof *t.tensors);
    t.names = calloc(t.n, sizeof *t.names);
    if (t.tensors == NULL || t.names == NULL) {
        table_free(&t);
        return err_set(err, STATUS_NO_MEMORY, "no memory to save %zu tensors", t.n);
    }
    for (size_t i = 0; i < t.n; i++) {
        const struct params_tensor *from = &p->tensors[i / COPIES];
        const size_t copy = i % COPIES;
        snprintf(t.names[i], FULL_NAME_BYTES, "%s%s", prefixes[copy], from->name);
        struct safetensors_tensor *to = &t.tensors[i];
        *to = (struct safetensors_tensor){
            .name = t.names[i],
            .dtype = DTYPE_F32,
            .rank = from->is_vector ? 1 : 2,
            .shape = {from->is_vector ? from->cols : from->rows, from->is_vector ? 0 : from->cols},
            .data = values[copy] + from->offset,
            .len_bytes = (size_t)from->rows * (size_t)from->cols * sizeof(float),
        };
    }
    qsort(t.tensors, t.n, sizeof *t.tensors, compare_names);
    *out = t;
    return STATUS_OK;
}

/* Of the files up to this step the newest `keep` stay; those of later steps belong to whoever wrote
 * them. Temporary files are what a killed process left. That a file cannot be removed is no reason
 * to stop a training. */
static void remove_old(const char *dir, uint64_t step, int keep)
{
    uint64_t *steps = NULL;
    size_t n = 0;
    char path[PATH_MAX];
    if (train_state_list(dir, &steps, &n, NULL) != STATUS_OK)
        return;
    int n_kept = 0;
    for (size_t i = 0; i < n; i++)
        if (steps[i] <= step && n_kept++ >= keep &&
            train_state_path(dir, steps[i], path, sizeof path, NULL) == STATUS_OK)
            unlink(path);
    free(steps);

    DIR *d = opendir(dir);
    if (d == NULL)
        return;
    for (const struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d)) {
        const size_t n_suffix = strlen(ATOMIC_FILE_SUFFIX), len = strlen(entry->d_name);
        char name[NAME_MAX + 1];
        uint64_t ignored;
        if (len <= n_suffix || strcmp(entry->d_name + len - n_suffix, ATOMIC_FILE_SUFFIX) != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(len - n_suffix), entry->d_name);
        if (train_state_parse_name(name, &ignored))
            unlinkat(dirfd(d), entry->d_name, 0);
    }
    closedir(d);
}

enum status train_state_save(const char *dir, int keep, const struct train_state_head *head,
                             const struct params *p, const struct optimizer *o, struct err *err)
{
    char path[PATH_MAX];
    char seed[24], recipe[24], taken[24], hash[24];
    char *curriculum = NULL;
    struct table table = {0};
    struct safetensors_pair pairs[TRAIN_STATE_PAIRS];
    size_t n = 0, n_curriculum = 0;
    enum status status = train_state_path(dir, head->curriculum.step, path, sizeof path, err);
    if (status != STATUS_OK)
        return status;
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return err_set(err, STATUS_IO, "cannot make directory %s: %s", dir, strerror(errno));

    snprintf(seed, sizeof seed, "%" PRIu64, head->seed);
    snprintf(recipe, sizeof recipe, "%016" PRIx64, head->recipe_fingerprint);
    snprintf(taken, sizeof taken, "%" PRIu64, o->step);
    pairs[n++] = (struct safetensors_pair){"format", TRAIN_STATE_FORMAT};
    pairs[n++] = (struct safetensors_pair){"seed", seed};
    pairs[n++] = (struct safetensors_pair){"recipe", recipe};
    pairs[n++] = (struct safetensors_pair){"optimizer.step", taken};
    status = train_state_format_curriculum(&head->curriculum, pairs + n, &n_curriculum, &curriculum,
                                           err);
    n += n_curriculum;
    if (status == STATUS_OK)
        status = table_create(p, o, &table, err);
    if (status != STATUS_OK)
        goto out;
    snprintf(hash, sizeof hash, "%016" PRIx64, train_state_hash(pairs, n, table.tensors, table.n));
    pairs[n++] = (struct safetensors_pair){"content_hash", hash};
    status = safetensors_write(path, table.tensors, table.n, pairs, n, err);
    if (status == STATUS_OK)
        remove_old(dir, head->curriculum.step, keep > 1 ? keep : 1);

out:
    table_free(&table);
    free(curriculum);
    return status;
}

enum status train_state_newest(const char *dir, char *path, size_t cap_bytes, struct err *err)
{
    uint64_t *steps = NULL;
    size_t n = 0;
    enum status status = train_state_list(dir, &steps, &n, err);
    if (status != STATUS_OK)
        return status;
    if (n == 0)
        status = err_set(err, STATUS_NOT_FOUND,
                         "%s has no state file (state-<step>.safetensors) to resume from", dir);
    else
        status = train_state_path(dir, steps[0], path, cap_bytes, err);
    free(steps);
    return status;
}
