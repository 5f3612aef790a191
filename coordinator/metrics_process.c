/* Reads what this process uses of the machine, as Prometheus' own clients report it. */
#include "coordinator/metrics_state.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static bool read_text(const char *path, char *text, size_t cap_bytes)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    size_t n = fread(text, 1, cap_bytes - 1, file);
    fclose(file);
    text[n] = '\0';
    return n > 0;
}

/* Unix time at which the host started, NAN when unknown. */
static double boot_time_s(void)
{
    char line[256];
    unsigned long long seconds;
    double found = NAN;
    FILE *file = fopen("/proc/stat", "re");
    if (file == NULL)
        return NAN;
    while (isnan(found) && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "btime %llu", &seconds) == 1)
            found = (double)seconds;
    fclose(file);
    return found;
}

static double count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL)
        return NAN;
    double n = -1; /* the directory's own */
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        n += entry->d_name[0] != '.' ? 1 : 0;
    closedir(dir);
    return n;
}

void metrics_read_process(double values[METRICS_N_PROCESS])
{
    enum {
        CPU = 0,
        RESIDENT = METRIC_PROCESS_RESIDENT - METRIC_PROCESS_CPU,
        VIRTUAL = METRIC_PROCESS_VIRTUAL - METRIC_PROCESS_CPU,
        START = METRIC_PROCESS_START - METRIC_PROCESS_CPU,
        OPEN_FDS = METRIC_PROCESS_OPEN_FDS - METRIC_PROCESS_CPU,
        MAX_FDS = METRIC_PROCESS_MAX_FDS - METRIC_PROCESS_CPU
    };
    char text[4096];
    struct rusage usage;
    struct rlimit limit;
    for (int i = 0; i < METRICS_N_PROCESS; i++)
        values[i] = NAN;
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        values[CPU] = (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
                      (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    /* Fields 22 .. 24 of stat, counted after the name, which may hold anything but ends with ")".
     */
    if (read_text("/proc/self/stat", text, sizeof text)) {
        unsigned long long start, virtual_bytes;
        long long resident_pages;
        const char *after = strrchr(text, ')');
        if (after != NULL && sscanf(after + 1,
                                    " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d "
                                    "%*d %*d %*d %*d %llu %llu %lld",
                                    &start, &virtual_bytes, &resident_pages) == 3) {
            values[START] = boot_time_s() + (double)start / (double)sysconf(_SC_CLK_TCK);
            values[VIRTUAL] = (double)virtual_bytes;
            values[RESIDENT] = (double)resident_pages * (double)sysconf(_SC_PAGESIZE);
        }
    }
    values[OPEN_FDS] = count_fds();
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        values[MAX_FDS] = limit.rlim_cur == RLIM_INFINITY ? INFINITY : (double)limit.rlim_cur;
}
