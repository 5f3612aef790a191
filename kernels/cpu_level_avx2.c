/* The inner loops for CPUs with AVX2, FMA and F16C; eight lanes. */
#if defined(__x86_64__)
#define CPU_LEVEL_AVX2
#define CPU_LEVEL_NAME "avx2"
#include "kernels/cpu_level.inc"
#else
extern const int cpu_level_avx2_is_empty; /* an empty file is no C */
#endif
