/* Reads CPU and memory limits from the cgroup tree. */
#include "cluster/host_cgroup.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = PATH_MAX };

/* The first line of dir/file without its end; false when it can't be read. */
static bool read_line(const char *dir, const char *file, char *out, size_t cap)
{
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return false;
    bool has_line = fgets(out, (int)cap, f) != NULL;
    fclose(f);
    if (has_line)
        out[strcspn(out, "\n")] = '\0';
    return has_line;
}

static uint64_t read_number(const char *dir, const char *file, uint64_t fallback)
{
    char line[64];
    char *end = NULL;
    if (!read_line(dir, file, line, sizeof line))
        return fallback;
    unsigned long long value = strtoull(line, &end, 10);
    return end == line || line[0] == '-' ? fallback : value; /* "max" and -1 are no limit */
}

/* The value after "key" in a file of "key value" lines. */
static uint64_t read_field(const char *dir, const char *file, const char *key)
{
    char path[PATH_BYTES + 64], line[256];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "re");
    uint64_t value = 0;
    size_t n = strlen(key);
    if (f == NULL)
        return 0;
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, key, n) == 0 && (line[n] == ' ' || line[n] == ':')) {
            value = strtoull(line + n + 1, NULL, 10);
            break;
        }
    }
    fclose(f);
    return value;
}

/* The directory of this process's cgroup; controller NULL asks for version 2. *mount_len: where the
 * walk up ends. A container that sees only its own tree has paths that do not exist there; its root
 * is all it can see. */
static bool find_group(const char *root, const char *controller, char out[PATH_BYTES],
                       size_t *mount_len)
{
    char line[1024], path[PATH_BYTES];
    int n_mount = controller == NULL
                      ? snprintf(out, PATH_BYTES, "%s/sys/fs/cgroup", root)
                      : snprintf(out, PATH_BYTES, "%s/sys/fs/cgroup/%s", root, controller);
    if (n_mount < 0 || n_mount >= PATH_BYTES)
        return false;
    *mount_len = (size_t)n_mount;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return false;
    bool found = false;
    while (!found && fgets(line, sizeof line, f) != NULL) {
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL)
            continue;
        line[strcspn(line, "\n")] = '\0';
        *group++ = '\0';
        controllers++;
        if (controller == NULL) {
            found = controllers[0] == '\0';
        } else {
            for (char *save = NULL, *name = strtok_r(controllers, ",", &save); name != NULL;
                 name = strtok_r(NULL, ",", &save))
                found = found || strcmp(name, controller) == 0;
        }
        if (found && strcmp(group, "/") != 0 && *mount_len + strlen(group) < PATH_BYTES)
            strcpy(out + *mount_len, group);
    }
    fclose(f);
    return found;
}

/* Cuts the last part off; false at the mount point. */
static bool go_up(char *dir, size_t mount_len)
{
    char *slash = strrchr(dir, '/');
    if (strlen(dir) <= mount_len || slash == NULL || (size_t)(slash - dir) < mount_len)
        return false;
    *slash = '\0';
    return true;
}

static int tighter_cores(int n_cores, uint64_t quota, uint64_t period)
{
    if (quota == 0 || period == 0)
        return n_cores;
    uint64_t n = (quota + period - 1) / period;
    if (n > INT_MAX)
        return n_cores;
    return n_cores == 0 || (int)n < n_cores ? (int)n : n_cores;
}

int host_cgroup_n_cores(const char *root)
{
    char dir[PATH_BYTES], line[64];
    size_t mount_len = 0;
    int n_cores = 0;
    if (find_group(root, NULL, dir, &mount_len)) {
        do {
            unsigned long long quota = 0, period = 0;
            if (read_line(dir, "cpu.max", line, sizeof line) &&
                sscanf(line, "%llu %llu", &quota, &period) == 2)
                n_cores = tighter_cores(n_cores, quota, period);
        } while (go_up(dir, mount_len));
    }
    if (find_group(root, "cpu", dir, &mount_len)) {
        do {
            n_cores = tighter_cores(n_cores, read_number(dir, "cpu.cfs_quota_us", 0),
                                    read_number(dir, "cpu.cfs_period_us", 0));
        } while (go_up(dir, mount_len));
    }
    return n_cores;
}

static uint64_t tighter_memory(uint64_t left, uint64_t limit, uint64_t used, uint64_t cache)
{
    if (limit == UINT64_MAX)
        return left;
    used = used > cache ? used - cache : 0;
    uint64_t here = limit > used ? limit - used : 0;
    return here < left ? here : left;
}

uint64_t host_cgroup_memory_left_bytes(const char *root)
{
    char dir[PATH_BYTES];
    size_t mount_len = 0;
    uint64_t left = UINT64_MAX;
    if (find_group(root, NULL, dir, &mount_len)) {
        do {
            left = tighter_memory(left, read_number(dir, "memory.max", UINT64_MAX),
                                  read_number(dir, "memory.current", 0),
                                  read_field(dir, "memory.stat", "inactive_file"));
        } while (go_up(dir, mount_len));
    }
    if (find_group(root, "memory", dir, &mount_len)) {
        do {
            left = tighter_memory(left, read_number(dir, "memory.limit_in_bytes", UINT64_MAX),
                                  read_number(dir, "memory.usage_in_bytes", 0),
                                  read_field(dir, "memory.stat", "total_inactive_file"));
        } while (go_up(dir, mount_len));
    }
    return left;
}

uint64_t host_meminfo_available_bytes(const char *root)
{
    char dir[PATH_BYTES];
    snprintf(dir, sizeof dir, "%s/proc", root);
    return read_field(dir, "meminfo", "MemAvailable") * 1024;
}
