/* Finds, maps and lists the safetensors files of a model directory. */
#include "model/checkpoint_files.h"

#include "model/json_input.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_INDEX_BYTES = 100 * 1000 * 1000 };

static char *join(const char *dir, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static enum status no_memory(struct err *err, const char *dir)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory for the tensor table of %s", dir);
}

static const void *lowest_data(const struct safetensors *file)
{
    const void *lowest = NULL;
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const void *data = safetensors_at(file, i)->data;
        if (lowest == NULL || (const char *)data < (const char *)lowest)
            lowest = data;
    }
    return lowest;
}

/* Opens dir/name as the next file and returns its place, or an existing one of that name. */
static enum status add_file(struct checkpoint_files *files, const char *dir, const char *name,
                            size_t *place, struct err *err)
{
    char *path = join(dir, name);
    if (path == NULL)
        return no_memory(err, dir);
    for (size_t i = 0; i < files->n_files; i++) {
        if (strcmp(files->paths[i], path) == 0) {
            *place = i;
            free(path);
            return STATUS_OK;
        }
    }
    struct safetensors *file;
    enum status status = safetensors_open(path, &file, err);
    if (status != STATUS_OK) {
        free(path);
        return status;
    }
    *place = files->n_files++;
    files->paths[*place] = path;
    files->files[*place] = file;
    return STATUS_OK;
}

static enum status reserve(struct checkpoint_files *files, size_t n_files, size_t n_entries,
                           const char *dir, struct err *err)
{
    files->paths = calloc(n_files, sizeof *files->paths);
    files->files = calloc(n_files, sizeof *files->files);
    files->entries = calloc(n_entries + 1, sizeof *files->entries);
    if (files->paths == NULL || files->files == NULL || files->entries == NULL)
        return no_memory(err, dir);
    return STATUS_OK;
}

static enum status open_single(struct checkpoint_files *files, const char *dir, struct err *err)
{
    struct safetensors *file;
    enum status status = safetensors_open(files->origin, &file, err);
    if (status != STATUS_OK)
        return status;
    status = reserve(files, 1, safetensors_count(file), dir, err);
    char *path = strdup(files->origin);
    if (status != STATUS_OK || path == NULL) {
        free(path);
        safetensors_close(file);
        return no_memory(err, dir);
    }
    files->paths[0] = path;
    files->files[0] = file;
    files->n_files = 1;
    files->n_entries = safetensors_count(file);
    const void *start = lowest_data(file);
    for (size_t i = 0; i < files->n_entries; i++)
        files->entries[i] = (struct checkpoint_entry){safetensors_at(file, i), path, start, false};
    return STATUS_OK;
}

static int compare_entries(const void *a, const void *b)
{
    const struct checkpoint_entry *x = a, *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

static bool is_printable(const char *name)
{
    for (; *name != '\0'; name++)
        if ((unsigned char)*name < 0x20 || *name == 0x7f)
            return false;
    return true;
}

/* A shard lies beside its index: a name with a slash could reach any file of the machine. */
static bool is_plain_name(const char *name)
{
    size_t len = strlen(name);
    return len > 0 && len <= NAME_MAX && name[0] != '.' && strchr(name, '/') == NULL &&
           is_printable(name);
}

static enum status place_tensor(struct checkpoint_files *files, const char *dir, const char *name,
                                const json_t *value, struct err *err)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    const char *shard = json_string_value(value);
    if (!is_printable(name))
        return err_set(err, STATUS_CORRUPT,
                       "weight_map in %s has a tensor name with control characters", files->origin);
    if (shard == NULL || !is_plain_name(shard))
        return err_set(
            err, STATUS_CORRUPT,
            "weight_map in %s: expected a file name beside it for tensor %.200s, found %s",
            files->origin, name, json_input_show(value, shown));
    size_t place = 0;
    enum status status = add_file(files, dir, shard, &place, err);
    if (status == STATUS_NOT_FOUND)
        return err_wrap(err, "shard of tensor %.200s", name);
    if (status != STATUS_OK)
        return status;
    const struct safetensors_tensor *tensor = safetensors_find(files->files[place], name);
    if (tensor == NULL)
        return err_set(err, STATUS_CORRUPT,
                       "tensor %.200s is not in %s, where %s places it; copy the shards again",
                       name, files->paths[place], files->origin);
    files->entries[files->n_entries++] =
        (struct checkpoint_entry){tensor, files->paths[place], NULL, false};
    return STATUS_OK;
}

/* Counted before anything is opened, so that an index with thousands of names opens nothing. */
static enum status count_shards(const struct checkpoint_files *files, const json_t *map,
                                size_t *n_shards, struct err *err)
{
    json_t *names = json_object();
    if (names == NULL)
        return no_memory(err, files->origin);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)map, key, value)
    {
        const char *shard = json_string_value(value);
        if (shard != NULL && json_object_set_new(names, shard, json_true()) != 0) {
            json_decref(names);
            return no_memory(err, files->origin);
        }
    }
    *n_shards = json_object_size(names);
    json_decref(names);
    if (*n_shards > CHECKPOINT_MAX_SHARDS)
        return err_set(err, STATUS_UNSUPPORTED, "weight_map in %s names %zu files, at most %d",
                       files->origin, *n_shards, CHECKPOINT_MAX_SHARDS);
    return STATUS_OK;
}

static enum status open_sharded(struct checkpoint_files *files, const char *dir, struct err *err)
{
    char *text = NULL;
    json_t *root = NULL;
    size_t len_bytes;
    enum status status = json_input_read(files->origin, MAX_INDEX_BYTES, &text, &len_bytes, err);
    if (status == STATUS_OK)
        status = json_input_parse(text, len_bytes, files->origin, &root, err);
    if (status != STATUS_OK)
        goto out;
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        char shown[JSON_INPUT_SHOWN_BYTES];
        status = err_set(err, STATUS_CORRUPT,
                         "field weight_map in %s: expected an object of tensor names, found %s",
                         files->origin, json_input_show(map, shown));
        goto out;
    }
    size_t n_shards = 0;
    status = count_shards(files, map, &n_shards, err);
    if (status == STATUS_OK)
        status = reserve(files, n_shards + 1, json_object_size(map), dir, err);
    const char *name;
    json_t *value;
    if (status == STATUS_OK)
        json_object_foreach((json_t *)map, name, value)
        {
            status = place_tensor(files, dir, name, value, err);
            if (status != STATUS_OK)
                goto out;
        }
    for (size_t i = 0; status == STATUS_OK && i < files->n_files; i++) {
        const void *start = lowest_data(files->files[i]);
        for (size_t j = 0; j < files->n_entries; j++)
            if (files->entries[j].path == files->paths[i])
                files->entries[j].file_start = start;
    }
    qsort(files->entries, files->n_entries, sizeof *files->entries, compare_entries);
out:
    json_decref(root);
    free(text);
    return status;
}

enum status checkpoint_files_open(const char *dir, struct checkpoint_files **out, struct err *err)
{
    struct checkpoint_files *files = calloc(1, sizeof *files);
    char *single = join(dir, "model.safetensors");
    char *index = join(dir, "model.safetensors.index.json");
    enum status status;
    if (files == NULL || single == NULL || index == NULL) {
        status = no_memory(err, dir);
    } else if (access(single, F_OK) == 0) {
        files->origin = single;
        single = NULL;
        status = open_single(files, dir, err);
    } else if (access(index, F_OK) == 0) {
        files->origin = index;
        index = NULL;
        status = open_sharded(files, dir, err);
    } else {
        status = err_set(err, STATUS_NOT_FOUND,
                         "%s has neither model.safetensors nor model.safetensors.index.json", dir);
    }
    free(single);
    free(index);
    if (status == STATUS_OK)
        *out = files;
    else
        checkpoint_files_close(files);
    return status;
}

void checkpoint_files_close(struct checkpoint_files *files)
{
    if (files == NULL)
        return;
    for (size_t i = 0; i < files->n_files; i++) {
        safetensors_close(files->files[i]);
        free(files->paths[i]);
    }
    free(files->files);
    free(files->paths);
    free(files->entries);
    free(files->origin);
    free(files);
}

struct checkpoint_entry *checkpoint_files_find(const struct checkpoint_files *files,
                                               const char *name)
{
    const struct safetensors_tensor wanted = {.name = name};
    const struct checkpoint_entry key = {.tensor = &wanted};
    return bsearch(&key, files->entries, files->n_entries, sizeof key, compare_entries);
}
