/* Finds a cost file by its path or by its name among those that come with carousel. */
#include "cli/cost_file.h"

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool ends_in_json(const char *name)
{
    size_t n = strlen(name), n_end = strlen(".json");
    return n > n_end && strcmp(name + n - n_end, ".json") == 0;
}

/* The directory with the cost files, next to the build or installed. */
static enum status find_directory(char out[PATH_MAX], struct err *err)
{
    static const char *const places[] = {"/../cluster/costs", "/../../cluster/costs",
                                         "/../share/carousel/costs"};
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return err_set(err, STATUS_IO,
                       "cannot find this program's own path; give --cost the path of a file");
    exe[n] = '\0';
    *strrchr(exe, '/') = '\0';
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char path[PATH_MAX + 64];
        snprintf(path, sizeof path, "%s%s", exe, places[i]);
        if (realpath(path, out) != NULL)
            return STATUS_OK;
    }
    return err_set(err, STATUS_NOT_FOUND,
                   "no cost files near %s; give --cost the path of a file that carousel bench "
                   "calibrate has written",
                   exe);
}

static int is_cost_file(const struct dirent *e)
{
    return ends_in_json(e->d_name);
}

/* "between, h200_ib" */
static void list_names(const char *directory, char *out, size_t cap_bytes)
{
    struct dirent **entries = NULL;
    int n = scandir(directory, &entries, is_cost_file, alphasort);
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < n; i++) {
        int len = (int)(strlen(entries[i]->d_name) - strlen(".json"));
        if (at + (size_t)len + 3 < cap_bytes)
            at += (size_t)snprintf(out + at, cap_bytes - at, "%s%.*s", i > 0 ? ", " : "", len,
                                   entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}

enum status cost_file_find(const char *name, char *out, size_t cap_bytes, struct err *err)
{
    char path[PATH_MAX + 512];
    bool is_path = strchr(name, '/') != NULL || ends_in_json(name);
    if (is_path) {
        snprintf(path, sizeof path, "%s", name);
    } else {
        char directory[PATH_MAX], names[256];
        enum status status = find_directory(directory, err);
        if (status != STATUS_OK)
            return status;
        snprintf(path, sizeof path, "%s/%.200s.json", directory, name);
        if (access(path, F_OK) != 0) {
            list_names(directory, names, sizeof names);
            return err_set(err, STATUS_NOT_FOUND,
                           "there is no cost file '%.200s'; there are %s; a file of your own is "
                           "named with its path",
                           name, names);
        }
    }
    if (strlen(name) >= PATH_MAX || strlen(path) >= cap_bytes)
        return err_set(err, STATUS_INVALID, "the path of the cost file has %zu bytes, accepted %zu",
                       strlen(is_path ? name : path), cap_bytes - 1);
    strcpy(out, path);
    return STATUS_OK;
}
