/* Facts about this host that decisions need: its name, cores, free memory, and the monotonic clock.
 */
#ifndef CLUSTER_HOST_H
#define CLUSTER_HOST_H

#include <stddef.h>
#include <stdint.h>

/* CLOCK_MONOTONIC in nanoseconds. Never compare the values of two hosts. */
uint64_t host_now_ns(void);
/* The name of this run of the kernel and of this process's time namespace, cut to cap_bytes; ""
 * when unknown. CLOCK_MONOTONIC counts from the kernel's start, shifted by the namespace, so
 * processes with the same name share that clock. A host's name says less: containers of one machine
 * have several, and two machines may have the same. */
void host_boot_id(char *out, size_t cap_bytes);
/* The host's name, cut to cap_bytes. */
void host_name(char *out, size_t cap_bytes);
/* Cores this process may use (affinity mask and cgroup quota), at least 1. */
int host_n_cores(void);
/* Asks for short turns of a core for the calling thread: one that works little and often then runs
 * soon after it is woken, also where others compute on every core. Linux 6.12 and newer keep it; on
 * others it has no effect. */
void host_prefer_short_turns(void);
/* Bytes that can be allocated without swapping: MemAvailable and the cgroup limit, whichever is
 * less; 0 when unknown. */
uint64_t host_memory_available_bytes(void);

#endif
