/* Copies a model directory with some tensors replaced, or links what is too big to copy. */
#include "model/checkpoint_patch.h"

#include "model/atomic_file.h"
#include "model/checkpoint_files.h"
#include "model/safetensors_write.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATCH_NAME  "patched.safetensors"
#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME  "model.safetensors.index.json"
enum { COPY_BYTES = 1 << 16, MAX_COPIED_BYTES = 256 << 20 };

struct patch {
    const struct checkpoint *source;
    const struct checkpoint_files *files;
    const char *dir;
    const struct safetensors_tensor *tensors;
    size_t n_tensors;
};

static enum status join(char path[PATH_MAX], const char *dir, const char *name, struct err *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, name);
    if (n < 0 || n >= PATH_MAX)
        return err_set(err, STATUS_INVALID, "the path %.80s.../%.80s is too long", dir, name);
    return STATUS_OK;
}

static const struct safetensors_tensor *find_patch(const struct patch *p, const char *name)
{
    for (size_t i = 0; i < p->n_tensors; i++)
        if (strcmp(p->tensors[i].name, name) == 0)
            return &p->tensors[i];
    return NULL;
}

static enum status check_tensors(const struct patch *p, struct err *err)
{
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct safetensors_tensor *t = &p->tensors[i];
        const struct checkpoint_entry *entry = checkpoint_files_find(p->files, t->name);
        if (entry == NULL)
            return err_set(err, STATUS_NOT_FOUND, "tensor %s is not in %s", t->name,
                           p->files->origin);
        if (entry->tensor->rank != t->rank ||
            memcmp(entry->tensor->shape, t->shape, (size_t)t->rank * sizeof *t->shape) != 0)
            return err_set(err, STATUS_MISMATCH, "tensor %s has another shape than in %s", t->name,
                           entry->path);
    }
    return STATUS_OK;
}

static enum status make_directory(const struct patch *p, struct err *err)
{
    struct stat own, other;
    if (mkdir(p->dir, 0777) != 0 && errno != EEXIST)
        return err_set(err, STATUS_IO, "cannot make %s: %s", p->dir, strerror(errno));
    if (stat(p->dir, &own) != 0 || stat(p->source->dir, &other) != 0)
        return err_set(err, STATUS_IO, "cannot look at %s and %s: %s", p->dir, p->source->dir,
                       strerror(errno));
    if (own.st_dev == other.st_dev && own.st_ino == other.st_ino)
        return err_set(err, STATUS_INVALID,
                       "%s is the model's own directory; write the new model beside it", p->dir);
    return STATUS_OK;
}

/* ---- what is not a weight ------------------------------------------------------------------- */

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

static bool is_copied(const char *name)
{
    static const char *const ends[] = {".json", ".txt", ".model", ".jinja", ".py"};
    if (ends_with(name, ".index.json"))
        return false;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (ends_with(name, ends[i]))
            return true;
    return false;
}

static enum status copy_file(const char *from, const char *to, struct err *err)
{
    static const char cannot[] = "cannot read %s: %s";
    enum status st = STATUS_OK;
    struct stat info;
    struct atomic_file out = {.fd = -1};
    char *buffer = NULL;
    int fd = open(from, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) {
        st = err_set(err, STATUS_IO, cannot, from, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode) || info.st_size > MAX_COPIED_BYTES)
        goto out; /* no text, whatever its name says */
    if ((buffer = malloc(COPY_BYTES)) == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "no memory to copy %s", from);
        goto out;
    }
    st = atomic_file_create(&out, to, (uint64_t)info.st_size, err);
    ssize_t n = 1;
    while (st == STATUS_OK && n != 0) {
        n = read(fd, buffer, COPY_BYTES);
        if (n < 0 && errno != EINTR)
            st = err_set(err, STATUS_IO, cannot, from, strerror(errno));
        else if (n > 0)
            st = atomic_file_append(&out, buffer, (size_t)n, err);
    }
    if (st == STATUS_OK)
        st = atomic_file_commit(&out, err);
    else
        atomic_file_discard(&out);
out:
    free(buffer);
    if (fd >= 0)
        close(fd);
    return st;
}

static enum status copy_texts(const struct patch *p, struct err *err)
{
    DIR *directory = opendir(p->source->dir);
    if (directory == NULL)
        return err_set(err, STATUS_IO, "cannot list %s: %s", p->source->dir, strerror(errno));
    enum status st = STATUS_OK;
    const struct dirent *entry;
    while (st == STATUS_OK && (entry = readdir(directory)) != NULL) {
        char from[PATH_MAX], to[PATH_MAX];
        if (!is_copied(entry->d_name))
            continue;
        st = join(from, p->source->dir, entry->d_name, err);
        if (st == STATUS_OK)
            st = join(to, p->dir, entry->d_name, err);
        if (st == STATUS_OK)
            st = copy_file(from, to, err);
    }
    closedir(directory);
    return st;
}

/* ---- weights -------------------------------------------------------------------------------- */

static enum status write_single(const struct patch *p, const char *path, struct err *err)
{
    static const struct safetensors_pair format = {"format", "pt"};
    struct safetensors_tensor *all = malloc(p->files->n_entries * sizeof *all);
    if (all == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu tensors", p->files->n_entries);
    for (size_t i = 0; i < p->files->n_entries; i++) {
        const struct safetensors_tensor *own = p->files->entries[i].tensor;
        const struct safetensors_tensor *patched = find_patch(p, own->name);
        all[i] = patched != NULL ? *patched : *own;
    }
    enum status st = safetensors_write(path, all, p->files->n_entries, &format, 1, err);
    free(all);
    return st;
}

/* Links must lead somewhere from `dir`, so they name the file by its whole path. */
static enum status link_file(const char *from, const char *to, struct err *err)
{
    char real[PATH_MAX];
    if (realpath(from, real) == NULL)
        return err_set(err, STATUS_IO, "cannot follow %s: %s", from, strerror(errno));
    if (unlink(to) != 0 && errno != ENOENT)
        return err_set(err, STATUS_IO, "cannot replace %s: %s", to, strerror(errno));
    if (link(real, to) != 0 && symlink(real, to) != 0)
        return err_set(err, STATUS_IO, "cannot link %s to %s: %s", to, real, strerror(errno));
    return STATUS_OK;
}

enum { SHARD_NAME_BYTES = 80 };

static void shard_name(char name[SHARD_NAME_BYTES], size_t i, size_t n)
{
    snprintf(name, SHARD_NAME_BYTES, "weights-%05zu-of-%05zu.safetensors", i + 1, n);
}

/* {"metadata": {"total_size"}, "weight_map": {tensor: file}} */
static enum status write_index(const struct patch *p, const char *path, struct err *err)
{
    json_t *map = json_object();
    json_int_t total = 0;
    bool is_lost = map == NULL;
    for (size_t i = 0; i < p->files->n_entries && !is_lost; i++) {
        const struct checkpoint_entry *entry = &p->files->entries[i];
        const struct safetensors_tensor *patched = find_patch(p, entry->tensor->name);
        char name[SHARD_NAME_BYTES] = PATCH_NAME;
        size_t shard = 0;
        while (p->files->paths[shard] != entry->path)
            shard++;
        if (patched == NULL)
            shard_name(name, shard, p->files->n_files);
        total += (json_int_t)(patched != NULL ? patched : entry->tensor)->len_bytes;
        is_lost = json_object_set_new(map, entry->tensor->name, json_string(name)) != 0;
    }
    json_t *root =
        is_lost ? NULL
                : json_pack("{s:{s:I}, s:O}", "metadata", "total_size", total, "weight_map", map);
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    enum status st = text != NULL
                         ? atomic_file_write(path, text, strlen(text), err)
                         : err_set(err, STATUS_NO_MEMORY, "no memory for the index %s", path);
    free(text);
    json_decref(root);
    json_decref(map);
    return st;
}

static enum status write_links(const struct patch *p, const char *index, struct err *err)
{
    static const struct safetensors_pair format = {"format", "pt"};
    char path[PATH_MAX], name[SHARD_NAME_BYTES];
    enum status st = join(path, p->dir, PATCH_NAME, err);
    if (st == STATUS_OK)
        st = safetensors_write(path, p->tensors, p->n_tensors, &format, 1, err);
    for (size_t i = 0; i < p->files->n_files && st == STATUS_OK; i++) {
        shard_name(name, i, p->files->n_files);
        st = join(path, p->dir, name, err);
        if (st == STATUS_OK)
            st = link_file(p->files->paths[i], path, err);
    }
    return st == STATUS_OK ? write_index(p, index, err) : st;
}

enum status checkpoint_patch(const struct checkpoint *source, const char *dir,
                             const struct safetensors_tensor *tensors, size_t n_tensors,
                             uint64_t max_file_bytes, struct err *err)
{
    const struct patch p = {source, source->files, dir, tensors, n_tensors};
    char single[PATH_MAX], index[PATH_MAX];
    enum status st;
    if ((st = check_tensors(&p, err)) || (st = make_directory(&p, err)) ||
        (st = join(single, dir, SINGLE_NAME, err)) || (st = join(index, dir, INDEX_NAME, err)) ||
        (st = copy_texts(&p, err)))
        return st;
    bool is_single = source->len_bytes <= max_file_bytes;
    st = is_single ? write_single(&p, single, err) : write_links(&p, index, err);
    /* A reader takes model.safetensors before an index: what an earlier call left must go. */
    const char *stale = is_single ? index : single;
    if (st == STATUS_OK && unlink(stale) != 0 && errno != ENOENT)
        st = err_set(err, STATUS_IO, "cannot remove the earlier %s: %s", stale, strerror(errno));
    return st;
}
