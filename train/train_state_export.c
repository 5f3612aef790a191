/* Writes a trained model as the directory that engines and Hugging Face libraries open. */
#include "train/train_state.h"

#include "model/atomic_file.h"
#include "model/config_write.h"
#include "model/json_input.h"
#include "model/safetensors_write.h"
#include "train/task.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_TOKENIZER_BYTES = 256 << 20 };

static enum status join(const char *dir, const char *name, char path[PATH_MAX], struct err *err)
{
    if ((size_t)snprintf(path, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
        return err_set(err, STATUS_INVALID, "the path of model directory %.100s... is too long",
                       dir);
    return STATUS_OK;
}

static enum status copy_file(const char *from, const char *dir, const char *name, struct err *err)
{
    char to[PATH_MAX];
    char *text = NULL;
    size_t len_bytes = 0;
    enum status status = join(dir, name, to, err);
    if (status == STATUS_OK)
        status = json_input_read(from, MAX_TOKENIZER_BYTES, &text, &len_bytes, err);
    if (status == STATUS_OK)
        status = atomic_file_write(to, text, len_bytes, err);
    free(text);
    return status;
}

/* tokenizer.json, and those of its neighbours that are there. */
static enum status copy_tokenizer(const char *tokenizer, const char *dir, struct err *err)
{
    static const char *const neighbours[] = {"tokenizer_config.json", "special_tokens_map.json",
                                             "chat_template.jinja"};
    enum status status = copy_file(tokenizer, dir, "tokenizer.json", err);
    const char *slash = strrchr(tokenizer, '/');
    const int n_dir = slash != NULL ? (int)(slash - tokenizer) + 1 : 0;
    for (size_t i = 0; i < sizeof neighbours / sizeof neighbours[0] && status == STATUS_OK; i++) {
        char from[PATH_MAX];
        struct stat info;
        int n = snprintf(from, sizeof from, "%.*s%s", n_dir, tokenizer, neighbours[i]);
        if ((size_t)n < sizeof from && stat(from, &info) == 0)
            status = copy_file(from, dir, neighbours[i], err);
    }
    return status;
}

static enum status write_weights(const char *dir, const struct params *p, struct err *err)
{
    static const struct safetensors_pair metadata[] = {{"format", "pt"}};
    char path[PATH_MAX];
    enum status status = join(dir, "model.safetensors", path, err);
    if (status != STATUS_OK)
        return status;
    struct safetensors_tensor *tensors = calloc(p->n_tensors + 1, sizeof *tensors);
    if (tensors == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to write %s", path);
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct params_tensor *t = &p->tensors[i];
        tensors[i] = (struct safetensors_tensor){
            .name = t->name,
            .dtype = DTYPE_F32,
            .rank = t->is_vector ? 1 : 2,
            .shape = {t->is_vector ? t->cols : t->rows, t->is_vector ? 0 : t->cols},
            .data = p->values + t->offset,
            .len_bytes = (size_t)t->rows * (size_t)t->cols * sizeof(float),
        };
    }
    status = safetensors_write(path, tensors, p->n_tensors, metadata, 1, err);
    free(tensors);
    return status;
}

enum status train_state_export(const char *dir, const struct params *p, const char *tokenizer,
                               struct err *err)
{
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return err_set(err, STATUS_IO, "cannot make directory %s: %s", dir, strerror(errno));
    enum status status = tokenizer != NULL && tokenizer[0] != '\0'
                             ? copy_tokenizer(tokenizer, dir, err)
                             : task_write_tokenizer(dir, err);
    if (status == STATUS_OK)
        status = config_write(dir, &p->config, err);
    if (status == STATUS_OK)
        status = write_weights(dir, p, err);
    return status;
}
