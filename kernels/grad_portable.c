/* The arithmetic of training in plain C, for any CPU; product and sum are rounded apart. */
#define CPU_LEVEL_NAME "portable"
#include "kernels/grad_table.inc"
