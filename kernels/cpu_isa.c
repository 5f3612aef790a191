/* Chooses the instruction-set level: the best this CPU runs, or the one asked for by name. */
#include "kernels/cpu_backend.h"

#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Ascending: a CPU that runs one runs those before it. */
static const struct cpu_level *const cpu_levels[] = {
    &cpu_level_portable,
#if defined(__x86_64__)
    &cpu_level_avx2,
    &cpu_level_avx512,
    &cpu_level_amx,
#endif
};
enum { N_CPU_LEVELS = sizeof cpu_levels / sizeof cpu_levels[0] };

/* Every name that exists anywhere, for clusters of different machines. */
static const char *const level_names[] = {"portable", "avx2", "avx512", "amx"};
enum { N_LEVEL_NAMES = sizeof level_names / sizeof level_names[0] };

#if defined(__x86_64__)
/* Whether the CPU has tiles of bf16, and the system lets this process use them: it reserves the 8
 * KiB of their state only for processes that ask, which all threads then share. Asking twice is
 * harmless. */
static bool cpu_has_amx(void)
{
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, OSXSAVE = 1 << 27 };
    enum { XCR0_TILES = 3 << 17, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned eax, ebx, ecx, edx, xcr0, high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & OSXSAVE) == 0)
        return false;
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & AMX_BF16) == 0 ||
        (edx & AMX_TILE) == 0 || (xcr0 & XCR0_TILES) != XCR0_TILES)
        return false;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

static int cpu_best_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    /* The compiler's test includes whether the operating system saves the wide registers. Not all
     * compilers know f16c by name. */
    unsigned eax, ebx, ecx = 0, edx;
    bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c))
        return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return cpu_has_amx() ? 3 : 2;
    return 1;
#else
    return 0;
#endif
}

enum status cpu_level_find(const char *isa, const struct cpu_level **out, struct err *err)
{
    int best = cpu_best_level();
    if (isa == NULL || strcmp(isa, "auto") == 0) {
        *out = cpu_levels[best];
        return STATUS_OK;
    }
    for (int i = 0; i < N_CPU_LEVELS; i++) {
        if (strcmp(isa, cpu_levels[i]->name) != 0)
            continue;
        if (i > best)
            return err_set(err, STATUS_UNSUPPORTED,
                           "this CPU cannot run the instruction set '%s'; its best is '%s'", isa,
                           cpu_levels[best]->name);
        *out = cpu_levels[i];
        return STATUS_OK;
    }
    return err_set(err, STATUS_INVALID,
                   "unknown instruction set '%s'; use auto, portable, avx2, avx512 or amx", isa);
}

const char *kernels_cpu_best_isa(void)
{
    return cpu_levels[cpu_best_level()]->name;
}

static int level_rank(const char *name)
{
    for (int i = 0; name != NULL && i < N_LEVEL_NAMES; i++)
        if (strcmp(name, level_names[i]) == 0)
            return i;
    return -1;
}

const char *kernels_cpu_lesser_isa(const char *a, const char *b)
{
    int rank_a = level_rank(a), rank_b = level_rank(b);
    if (rank_a < 0 || rank_b < 0)
        return NULL;
    return level_names[rank_a < rank_b ? rank_a : rank_b];
}
