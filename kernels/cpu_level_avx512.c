/* The inner loops for CPUs with AVX-512 F, BW, VL and DQ; sixteen lanes. */
#if defined(__x86_64__)
#define CPU_LEVEL_AVX512
#define CPU_LEVEL_NAME "avx512"
#include "kernels/cpu_level.inc"
#else
extern const int cpu_level_avx512_is_empty; /* an empty file is no C */
#endif
