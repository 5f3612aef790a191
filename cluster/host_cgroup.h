/* The limits that a cgroup (a container, a Slurm job) puts on this process. */
#ifndef CLUSTER_HOST_CGROUP_H
#define CLUSTER_HOST_CGROUP_H

#include <stdint.h>

/* root is put in front of /proc and /sys: "" for this host. Each walks from the process's cgroup up
 * to the root and returns the tightest limit it finds, version 1 or 2. */

/* Cores' worth of CPU time the quota allows, rounded up; 0: no quota. */
int host_cgroup_n_cores(const char *root);
/* Bytes that may still be allocated, counting cache that can be dropped as free; UINT64_MAX: no
 * limit. */
uint64_t host_cgroup_memory_left_bytes(const char *root);
/* MemAvailable of root/proc/meminfo; 0 when unknown. */
uint64_t host_meminfo_available_bytes(const char *root);

#endif
