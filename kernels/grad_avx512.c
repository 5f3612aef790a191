/* The arithmetic of training for CPUs with AVX-512 F, BW, VL and DQ; sixteen lanes. */
#if defined(__x86_64__)
#define CPU_LEVEL_AVX512
#define CPU_LEVEL_NAME "avx512"
#include "kernels/grad_table.inc"
#else
extern const int grad_avx512_is_empty; /* an empty file is no C */
#endif
