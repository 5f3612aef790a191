/* The inner loops for CPUs with AVX-512 F, BW, VL and DQ; sixteen lanes; the amx level shares them.
 */
#if defined(__x86_64__)
#define CPU_LEVEL_AVX512
#define CPU_LEVEL_NAME "avx512"
#include "kernels/cpu_level.inc"

const struct cpu_level cpu_level_amx = CPU_LEVEL_TABLE("amx", &cpu_linear_amx);
#else
extern const int cpu_level_avx512_is_empty; /* an empty file is no C */
#endif
