/* Hands out the tensors of one mapped safetensors file only after its whole table was checked. */
#include "model/safetensors.h"

#include "model/json_input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PREFIX_BYTES = 8, MAX_NAME_BYTES = 256 };

struct safetensors {
    json_t *header; /* owns the names */
    char *origin;
    const unsigned char *bytes;
    size_t len_bytes;
    const unsigned char *data; /* where offset 0 of the table points */
    size_t data_bytes;
    bool is_mapped; /* bytes are ours to unmap */
    size_t n_tensors;
    struct safetensors_tensor *tensors; /* sorted by name */
};

static uint64_t read_le64(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static enum status parse_header(struct safetensors *file, struct err *err)
{
    if (file->len_bytes < PREFIX_BYTES)
        return err_set(err, STATUS_CORRUPT,
                       "%s has %zu bytes, a safetensors file starts with 8 bytes of header length",
                       file->origin, file->len_bytes);
    uint64_t header_bytes = read_le64(file->bytes);
    if (header_bytes > SAFETENSORS_MAX_HEADER_BYTES)
        return err_set(err, STATUS_CORRUPT,
                       "%s: header length %llu is above the format's limit of %d; not a "
                       "safetensors file?",
                       file->origin, (unsigned long long)header_bytes,
                       SAFETENSORS_MAX_HEADER_BYTES);
    if (header_bytes > file->len_bytes - PREFIX_BYTES)
        return err_set(err, STATUS_CORRUPT,
                       "%s: header of %llu bytes does not fit into the file's %zu bytes; the file "
                       "is truncated",
                       file->origin, (unsigned long long)header_bytes, file->len_bytes);
    file->data = file->bytes + PREFIX_BYTES + header_bytes;
    file->data_bytes = file->len_bytes - PREFIX_BYTES - (size_t)header_bytes;
    enum status status = json_input_parse((const char *)file->bytes + PREFIX_BYTES,
                                          (size_t)header_bytes, file->origin, &file->header, err);
    return status == STATUS_CORRUPT ? err_wrap(err, "safetensors header") : status;
}

/* Messages and tables carry tensor names: they must be short and printable. */
static enum status check_name(const struct safetensors *file, const char *name, struct err *err)
{
    size_t len = strlen(name);
    if (len > MAX_NAME_BYTES)
        return err_set(err, STATUS_CORRUPT, "%s: tensor name %.40s... has %zu bytes, limit %d",
                       file->origin, name, len, MAX_NAME_BYTES);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return err_set(
                err, STATUS_CORRUPT,
                "%s: a tensor name of %zu bytes has control character 0x%02x at byte %zu",
                file->origin, len, (unsigned)(unsigned char)name[i], i);
    return STATUS_OK;
}

static enum status parse_dtype(const struct safetensors *file, const char *name,
                               const json_t *value, enum dtype *out, struct err *err)
{
    const char *text = json_string_value(value);
    if (text != NULL && strcmp(text, "F32") == 0)
        *out = DTYPE_F32;
    else if (text != NULL && strcmp(text, "BF16") == 0)
        *out = DTYPE_BF16;
    else if (text != NULL && strcmp(text, "F16") == 0)
        *out = DTYPE_F16;
    else {
        char shown[JSON_INPUT_SHOWN_BYTES];
        return err_set(err, text != NULL ? STATUS_UNSUPPORTED : STATUS_CORRUPT,
                       "tensor %s in %s: expected dtype F32, BF16 or F16, found %s", name,
                       file->origin, json_input_show(value, shown));
    }
    return STATUS_OK;
}

/* shape [n0, n1, ...] into t; *len_bytes = product * element size, checked for overflow. */
static enum status parse_shape(const struct safetensors *file, const json_t *value,
                               struct safetensors_tensor *t, size_t *len_bytes, struct err *err)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    if (!json_is_array(value))
        return err_set(err, STATUS_CORRUPT, "tensor %s in %s: expected a list as shape, found %s",
                       t->name, file->origin, json_input_show(value, shown));
    if (json_array_size(value) > SAFETENSORS_MAX_RANK)
        return err_set(err, STATUS_UNSUPPORTED, "tensor %s in %s: %zu dimensions, at most %d",
                       t->name, file->origin, json_array_size(value), SAFETENSORS_MAX_RANK);
    t->rank = (int)json_array_size(value);
    size_t product = dtype_bytes(t->dtype);
    for (int i = 0; i < t->rank; i++) {
        const json_t *dim = json_array_get(value, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return err_set(err, STATUS_CORRUPT,
                           "tensor %s in %s: dimension %d of its shape is %s, expected a count",
                           t->name, file->origin, i, json_input_show(dim, shown));
        t->shape[i] = json_integer_value(dim);
        if (__builtin_mul_overflow(product, (size_t)t->shape[i], &product))
            return err_set(err, STATUS_CORRUPT,
                           "tensor %s in %s: shape %s has more bytes than an address can count",
                           t->name, file->origin, json_input_show(value, shown));
    }
    *len_bytes = product;
    return STATUS_OK;
}

static enum status parse_offsets(const struct safetensors *file, const json_t *value,
                                 struct safetensors_tensor *t, size_t shape_bytes, struct err *err)
{
    const json_t *first = json_array_get(value, 0), *last = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        json_integer_value(first) < 0 || json_integer_value(last) < json_integer_value(first)) {
        char shown[JSON_INPUT_SHOWN_BYTES];
        return err_set(err, STATUS_CORRUPT,
                       "tensor %s in %s: expected data_offsets [begin, end], found %s", t->name,
                       file->origin, json_input_show(value, shown));
    }
    uint64_t begin = (uint64_t)json_integer_value(first);
    uint64_t end = (uint64_t)json_integer_value(last);
    if (end - begin != shape_bytes)
        return err_set(err, STATUS_CORRUPT,
                       "tensor %s in %s: its shape in %s takes %zu bytes, its data_offsets "
                       "[%llu, %llu] hold %llu",
                       t->name, file->origin, dtype_name(t->dtype), shape_bytes,
                       (unsigned long long)begin, (unsigned long long)end,
                       (unsigned long long)(end - begin));
    if (end > file->data_bytes)
        return err_set(err, STATUS_CORRUPT,
                       "tensor %s in %s ends at byte %llu of the data, the file has only %zu; it "
                       "is truncated, copy it again",
                       t->name, file->origin, (unsigned long long)end, file->data_bytes);
    t->data = file->data + begin;
    t->len_bytes = shape_bytes;
    return STATUS_OK;
}

static enum status check_metadata(const struct safetensors *file, const json_t *value,
                                  struct err *err)
{
    bool is_good = json_is_object(value);
    const char *key;
    json_t *text;
    if (is_good)
        json_object_foreach((json_t *)value, key, text)
        {
            is_good = is_good && json_is_string(text);
        }
    if (is_good)
        return STATUS_OK;
    char shown[JSON_INPUT_SHOWN_BYTES];
    return err_set(err, STATUS_CORRUPT,
                   "%s: expected __metadata__ as an object of strings, found %s", file->origin,
                   json_input_show(value, shown));
}

static int compare_names(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static enum status parse_table(struct safetensors *file, struct err *err)
{
    const char *name;
    json_t *value;
    size_t n_keys = json_object_size(file->header);
    file->tensors = calloc(n_keys + 1, sizeof *file->tensors);
    if (file->tensors == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the %zu tensors of %s", n_keys,
                       file->origin);
    json_object_foreach(file->header, name, value)
    {
        enum status status;
        if (strcmp(name, "__metadata__") == 0) {
            status = check_metadata(file, value, err);
            if (status != STATUS_OK)
                return status;
            continue;
        }
        struct safetensors_tensor t = {.name = name};
        size_t shape_bytes = 0;
        status = check_name(file, name, err);
        if (status == STATUS_OK)
            status = parse_dtype(file, name, json_object_get(value, "dtype"), &t.dtype, err);
        if (status == STATUS_OK)
            status = parse_shape(file, json_object_get(value, "shape"), &t, &shape_bytes, err);
        if (status == STATUS_OK)
            status =
                parse_offsets(file, json_object_get(value, "data_offsets"), &t, shape_bytes, err);
        if (status != STATUS_OK)
            return status;
        file->tensors[file->n_tensors++] = t;
    }
    qsort(file->tensors, file->n_tensors, sizeof *file->tensors, compare_names);
    return STATUS_OK;
}

static int compare_places(const void *a, const void *b)
{
    const struct safetensors_tensor *const *x = a, *const *y = b;
    uintptr_t p = (uintptr_t)(*x)->data, q = (uintptr_t)(*y)->data;
    if (p != q)
        return p < q ? -1 : 1;
    /* Empty tensors come before the one that starts where they are. */
    return ((*x)->len_bytes > (*y)->len_bytes) - ((*x)->len_bytes < (*y)->len_bytes);
}

/* Every byte of the data section belongs to exactly one tensor. */
static enum status check_tiling(const struct safetensors *file, struct err *err)
{
    const struct safetensors_tensor **order = calloc(file->n_tensors + 1, sizeof *order);
    if (order == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to check the %zu tensors of %s",
                       file->n_tensors, file->origin);
    for (size_t i = 0; i < file->n_tensors; i++)
        order[i] = &file->tensors[i];
    qsort(order, file->n_tensors, sizeof *order, compare_places);

    enum status status = STATUS_OK;
    size_t end = 0;
    for (size_t i = 0; i < file->n_tensors && status == STATUS_OK; i++) {
        size_t begin = (size_t)((const unsigned char *)order[i]->data - file->data);
        if (begin < end)
            status =
                err_set(err, STATUS_CORRUPT,
                        "tensor %s in %s begins at byte %zu and overlaps tensor %s, which ends "
                        "at %zu",
                        order[i]->name, file->origin, begin, order[i - 1]->name, end);
        else if (begin > end)
            status =
                err_set(err, STATUS_CORRUPT,
                        "tensor %s in %s begins at byte %zu, bytes %zu to %zu before it belong "
                        "to no tensor",
                        order[i]->name, file->origin, begin, end, begin);
        end = begin + order[i]->len_bytes;
    }
    if (status == STATUS_OK && end != file->data_bytes)
        status =
            err_set(err, STATUS_CORRUPT, "%s: the last %zu of %zu data bytes belong to no tensor",
                    file->origin, file->data_bytes - end, file->data_bytes);
    free(order);
    return status;
}

/* Takes over the mapping when is_mapped, also on failure. */
static enum status open_checked(const void *bytes, size_t len_bytes, bool is_mapped,
                                const char *origin, struct safetensors **out, struct err *err)
{
    enum status status;
    struct safetensors *file = calloc(1, sizeof *file);
    char *origin_copy = strdup(origin);
    if (file == NULL || origin_copy == NULL) {
        free(file);
        free(origin_copy);
        if (is_mapped)
            munmap((void *)bytes, len_bytes);
        return err_set(err, STATUS_NO_MEMORY, "no memory to open %s", origin);
    }
    file->origin = origin_copy;
    file->bytes = bytes;
    file->len_bytes = len_bytes;
    file->is_mapped = is_mapped;
    status = parse_header(file, err);
    if (status == STATUS_OK)
        status = parse_table(file, err);
    if (status == STATUS_OK)
        status = check_tiling(file, err);
    if (status == STATUS_OK)
        *out = file;
    else
        safetensors_close(file);
    return status;
}

enum status safetensors_open_bytes(const void *bytes, size_t len_bytes, const char *origin,
                                   struct safetensors **out, struct err *err)
{
    return open_checked(bytes, len_bytes, false, origin, out, err);
}

enum status safetensors_open(const char *path, struct safetensors **out, struct err *err)
{
    enum status status = STATUS_OK;
    void *bytes = MAP_FAILED;
    struct stat info;
    /* O_NONBLOCK: a FIFO of that name must not hang us. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return err_set(err, STATUS_NOT_FOUND, "%s does not exist", path);
    if (fd < 0)
        return err_set(err, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0)
        status = err_set(err, STATUS_IO, "cannot stat %s: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = err_set(err, STATUS_IO, "%s is not a regular file", path);
    else if (info.st_size < PREFIX_BYTES)
        status = err_set(err, STATUS_CORRUPT, "%s has %lld bytes, too short for a safetensors file",
                         path, (long long)info.st_size);
    else {
        bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (bytes == MAP_FAILED)
            status = err_set(err, STATUS_IO, "cannot map the %lld bytes of %s: %s",
                             (long long)info.st_size, path, strerror(errno));
    }
    close(fd);
    if (status != STATUS_OK)
        return status;
    return open_checked(bytes, (size_t)info.st_size, true, path, out, err);
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL)
        return;
    if (file->is_mapped)
        munmap((void *)file->bytes, file->len_bytes);
    json_decref(file->header);
    free(file->tensors);
    free(file->origin);
    free(file);
}

void safetensors_expect_scattered(const struct safetensors *file, bool is_scattered)
{
    if (file->is_mapped)
        madvise((void *)file->bytes, file->len_bytes, is_scattered ? MADV_RANDOM : MADV_NORMAL);
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->n_tensors;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t i)
{
    return i < file->n_tensors ? &file->tensors[i] : NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    const struct safetensors_tensor key = {.name = name};
    return bsearch(&key, file->tensors, file->n_tensors, sizeof key, compare_names);
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    return json_string_value(json_object_get(json_object_get(file->header, "__metadata__"), key));
}
