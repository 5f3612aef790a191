/* Turns the JSON text of a recipe into checked values. */
#include "train/recipe.h"

#include "model/json_input.h"
#include "train/recipe_parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RECIPE_BYTES = 1 << 20 };

static const char *const FIELDS[] = {"name", "model",     "init",   "optimizer", "shards",
                                     "data", "tokenizer", "stages", "curriculum"};

static enum status parse(const struct recipe_reader *top, struct recipe *out)
{
    const struct recipe_names known = RECIPE_NAMES(FIELDS);
    enum status status = recipe_reader_known(top, &known, 1);
    if (status == STATUS_OK)
        status = recipe_reader_text(top, "name", sizeof out->name, out->name);
    if (status == STATUS_OK)
        status = recipe_parse_data(top, out);
    if (status == STATUS_OK)
        status = recipe_parse_model(top, out);
    if (status == STATUS_OK)
        status = recipe_parse_init(top, out);
    if (status == STATUS_OK)
        status = recipe_parse_optimizer(top, out);
    if (status == STATUS_OK)
        status = recipe_parse_stages(top, out);
    return status == STATUS_OK ? recipe_parse_curriculum(top, out) : status;
}

enum status recipe_parse(const char *json, size_t len_bytes, const char *origin, struct recipe *out,
                         struct err *err)
{
    json_t *root;
    enum status status = json_input_parse(json, len_bytes, origin, &root, err);
    if (status != STATUS_OK)
        return status;
    struct recipe *r = calloc(1, sizeof *r);
    if (r == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for the recipe %s", origin);
        goto out;
    }
    const struct recipe_reader top = {root, origin, "", err};
    snprintf(r->name, sizeof r->name, "recipe");
    snprintf(r->directory, sizeof r->directory, ".");
    status = parse(&top, r);
    if (status == STATUS_OK)
        *out = *r;
out:
    free(r);
    json_decref(root);
    return status;
}

enum status recipe_load(const char *path, struct recipe *out, struct err *err)
{
    char *text, directory[RECIPE_PATH_BYTES] = ".";
    size_t len_bytes;
    const char *slash = strrchr(path, '/');
    if (slash != NULL) {
        size_t len = slash == path ? 1 : (size_t)(slash - path); /* of "/recipe.json": "/" */
        if (len >= sizeof directory)
            return err_set(err, STATUS_INVALID, "the path of recipe %.100s... is too long", path);
        memcpy(directory, path, len);
        directory[len] = '\0';
    }
    enum status status = json_input_read(path, MAX_RECIPE_BYTES, &text, &len_bytes, err);
    if (status != STATUS_OK)
        return status;
    status = recipe_parse(text, len_bytes, path, out, err);
    if (status == STATUS_OK)
        memcpy(out->directory, directory, sizeof directory);
    free(text);
    return status;
}

enum status recipe_file(const struct recipe *r, const char *name, char *path, size_t cap_bytes,
                        struct err *err)
{
    bool is_absolute = name[0] == '/';
    int len = snprintf(path, cap_bytes, "%s%s%s", is_absolute ? "" : r->directory,
                       is_absolute ? "" : "/", name);
    if (len < 0 || (size_t)len >= cap_bytes)
        return err_set(err, STATUS_INVALID, "the path of %.100s beside recipe %s is too long", name,
                       r->name);
    return STATUS_OK;
}
