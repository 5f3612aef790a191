/* Stands in for the backend "cuda" in a build without CUDA: says so. */
#ifndef CAROUSEL_CUDA
#include "kernels/kernels.h"
#include "kernels/kernels_ops.h"

int kernels_cuda_devices(void)
{
    return 0;
}

static enum status refuse(struct err *err)
{
    return err_set(err, STATUS_UNSUPPORTED,
                   "this build has no backend 'cuda': it was made without nvcc; use --backend cpu");
}

enum status kernels_cuda_device(int device, struct kernels_device *out, struct err *err)
{
    (void)device;
    (void)out;
    return refuse(err);
}

enum status kernels_cuda_create(const struct kernels_options *options, struct kernels **out,
                                struct err *err)
{
    (void)options;
    (void)out;
    return refuse(err);
}
#else
extern const int cuda_none_is_empty; /* an empty file is no C */
#endif
