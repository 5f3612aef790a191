/* Writes tensors as a safetensors file that any reader of the format takes. */
#include "model/safetensors_write.h"

#include "model/atomic_file.h"

#include <assert.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX_BYTES = 8, DATA_ALIGNMENT = 64 };

static int compare_order(const void *a, const void *b)
{
    const struct safetensors_tensor *const *x = a, *const *y = b;
    size_t wide = dtype_bytes((*x)->dtype), other = dtype_bytes((*y)->dtype);
    return wide != other ? (wide < other) - (wide > other) : strcmp((*x)->name, (*y)->name);
}

static const char *file_dtype(enum dtype t)
{
    return t == DTYPE_F32 ? "F32" : t == DTYPE_BF16 ? "BF16" : "F16";
}

static json_t *describe(const struct safetensors_tensor *t, uint64_t begin)
{
    uint64_t n = dtype_bytes(t->dtype);
    json_t *shape = json_array();
    for (int i = 0; i < t->rank; i++) {
        json_array_append_new(shape, json_integer(t->shape[i]));
        n *= (uint64_t)t->shape[i];
    }
    assert(n == t->len_bytes);
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", file_dtype(t->dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)(begin + t->len_bytes));
}

/* *text is the header with spaces up to the alignment; the caller frees. */
static enum status make_header(const char *path, const struct safetensors_tensor *const *order,
                               size_t n_tensors, const struct safetensors_pair *metadata,
                               size_t n_metadata, char **text, size_t *len_bytes, struct err *err)
{
    enum status status = STATUS_OK;
    json_t *header = json_object(), *strings = json_object();
    for (size_t i = 0; i < n_metadata && status == STATUS_OK; i++)
        if (json_object_set_new(strings, metadata[i].key, json_string(metadata[i].value)) != 0)
            status = err_set(err, STATUS_INVALID, "%s: metadata %.64s is not UTF-8", path,
                             metadata[i].key);
    if (n_metadata > 0)
        json_object_set(header, "__metadata__", strings);
    uint64_t begin = 0;
    for (size_t i = 0; i < n_tensors && status == STATUS_OK; i++) {
        const struct safetensors_tensor *t = order[i];
        if (json_object_get(header, t->name) != NULL)
            status = err_set(err, STATUS_INVALID, "%s: tensor %s is there twice", path, t->name);
        else if (json_object_set_new(header, t->name, describe(t, begin)) != 0)
            status =
                err_set(err, STATUS_INVALID, "%s: the name of tensor %zu is not UTF-8", path, i);
        begin += t->len_bytes;
    }
    char *compact = status == STATUS_OK ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    json_decref(strings);
    if (status != STATUS_OK)
        return status;
    size_t n = compact != NULL ? strlen(compact) : 0;
    size_t padded =
        (PREFIX_BYTES + n + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT - PREFIX_BYTES;
    char *out = malloc(padded);
    if (compact == NULL || out == NULL) {
        free(compact);
        free(out);
        return err_set(err, STATUS_NO_MEMORY, "no memory for the header of %s", path);
    }
    memset(out, ' ', padded);
    memcpy(out, compact, n);
    free(compact);
    *text = out;
    *len_bytes = padded;
    return STATUS_OK;
}

enum status safetensors_write(const char *path, const struct safetensors_tensor *tensors,
                              size_t n_tensors, const struct safetensors_pair *metadata,
                              size_t n_metadata, struct err *err)
{
    char *header = NULL;
    size_t header_bytes = 0;
    uint64_t n_wanted = PREFIX_BYTES;
    struct atomic_file file = {.fd = -1};
    const struct safetensors_tensor **order = calloc(n_tensors + 1, sizeof *order);
    if (order == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to write the %zu tensors of %s", n_tensors,
                       path);
    for (size_t i = 0; i < n_tensors; i++) {
        order[i] = &tensors[i];
        n_wanted += tensors[i].len_bytes;
    }
    qsort(order, n_tensors, sizeof *order, compare_order);
    enum status status =
        make_header(path, order, n_tensors, metadata, n_metadata, &header, &header_bytes, err);
    if (status != STATUS_OK)
        goto out;
    unsigned char prefix[PREFIX_BYTES];
    for (int i = 0; i < PREFIX_BYTES; i++)
        prefix[i] = (unsigned char)((uint64_t)header_bytes >> 8 * i);
    status = atomic_file_create(&file, path, n_wanted + header_bytes, err);
    if (status == STATUS_OK)
        status = atomic_file_append(&file, prefix, sizeof prefix, err);
    if (status == STATUS_OK)
        status = atomic_file_append(&file, header, header_bytes, err);
    for (size_t i = 0; i < n_tensors && status == STATUS_OK; i++)
        status = atomic_file_append(&file, order[i]->data, order[i]->len_bytes, err);
    if (status == STATUS_OK)
        status = atomic_file_commit(&file, err);

out:
    free(header);
    free(order);
    return status;
}
