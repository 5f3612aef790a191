/* `carousel bench kernels --training`: the training kernels beside the multiply-add peak. */
#ifndef CLI_BENCH_GRAD_H
#define CLI_BENCH_GRAD_H

#include <stdbool.h>

/* One thread at that level. Prints to stdout; returns the exit code: 0, 1 on failure. */
int cli_bench_grad(const char *isa, bool is_json, bool is_quick);

#endif
