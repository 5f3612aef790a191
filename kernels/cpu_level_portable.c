/* The inner loops in plain C, for any CPU; eight lanes, product and sum rounded apart. */
#define CPU_LEVEL_NAME "portable"
#include "kernels/cpu_level.inc"
