/* Stands for the CUDA backend in a build without it. */
#include "kernels/kernels_ops.h"

int kernels_cuda_devices(void)
{
    return 0;
}

enum status kernels_cuda_create(const struct kernels_options *options, struct kernels **out,
                                struct err *err)
{
    (void)options;
    (void)out;
    return err_set(err, STATUS_UNSUPPORTED,
                   "this build has no backend 'cuda': nvcc was not found when it was built, or "
                   "CUDA=no was given; use --backend cpu");
}
