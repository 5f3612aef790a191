/* Answers what decisions ask about this host: time, name, cores, memory. */
#include "cluster/host.h"

#include "cluster/host_cgroup.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

uint64_t host_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The scheduler lets who has the nearer deadline go first, and a deadline is the end of a turn that
 * long: 0.1 ms is the least it takes. What else the thread has (its nice value) stays. */
void host_prefer_short_turns(void)
{
    /* sched_setattr(2); the C library has no header for it that goes with its own <sched.h>. */
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = sizeof attr};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0 ||
        (attr.policy != SCHED_OTHER && attr.policy != SCHED_BATCH))
        return;
    attr.runtime = 100 * 1000; /* ns */
    syscall(SYS_sched_setattr, 0, &attr, 0);
}

void host_boot_id(char *out, size_t cap_bytes)
{
    if (cap_bytes == 0)
        return;
    out[0] = '\0';
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file == NULL)
        return;
    if (cap_bytes > 1 && fgets(out, cap_bytes < 4096 ? (int)cap_bytes : 4096, file) == NULL)
        out[0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    fclose(file);
    /* A time namespace has a CLOCK_MONOTONIC of its own. Kernels before 5.6 know none. */
    char space[64];
    ssize_t n = readlink("/proc/self/ns/time", space, sizeof space - 1);
    size_t len = strlen(out);
    if (n > 0 && len > 0) {
        space[n] = '\0';
        snprintf(out + len, cap_bytes - len, "/%s", space);
    }
}

void host_name(char *out, size_t cap_bytes)
{
    if (cap_bytes == 0)
        return;
    if (gethostname(out, cap_bytes) != 0 && cap_bytes > 1)
        out[0] = '?', out[1] = '\0';
    out[cap_bytes - 1] = '\0'; /* gethostname need not end what it had to cut */
}

/* The kernel's mask can be longer than cpu_set_t's 1024 bits: grow until it fits. */
static int n_affinity_cores(void)
{
    for (int n_bits = 1024; n_bits <= 1 << 20; n_bits *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)n_bits);
        if (set == NULL)
            break;
        size_t size = CPU_ALLOC_SIZE((size_t)n_bits);
        int n = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (n > 0)
            return n;
    }
    long n_online = sysconf(_SC_NPROCESSORS_ONLN);
    return n_online > 0 ? (int)n_online : 1;
}

int host_n_cores(void)
{
    int n_cores = n_affinity_cores(), n_quota = host_cgroup_n_cores("");
    return n_quota > 0 && n_quota < n_cores ? n_quota : n_cores;
}

uint64_t host_memory_available_bytes(void)
{
    uint64_t available = host_meminfo_available_bytes("");
    uint64_t left = host_cgroup_memory_left_bytes("");
    return left < available ? left : available;
}
