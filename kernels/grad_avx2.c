/* The arithmetic of training for CPUs with AVX2 and FMA; eight lanes. */
#if defined(__x86_64__)
#define CPU_LEVEL_AVX2
#define CPU_LEVEL_NAME "avx2"
#include "kernels/grad_table.inc"
#else
extern const int grad_avx2_is_empty; /* an empty file is no C */
#endif
