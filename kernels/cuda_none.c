/* Stands for the CUDA backend in a build without it. */
#include "kernels/kernels_ops.h"

static enum status cuda_none_refuse(struct err *err)
{
    return err_set(err, STATUS_UNSUPPORTED,
                   "this build has no backend 'cuda': it was made without nvcc, or with CUDA=no; "
                   "use --backend cpu");
}

int kernels_cuda_devices(void)
{
    return 0;
}

enum status kernels_cuda_device(int device, struct kernels_device *out, struct err *err)
{
    (void)device;
    (void)out;
    return cuda_none_refuse(err);
}

enum status kernels_cuda_create(const struct kernels_options *options, struct kernels **out,
                                struct err *err)
{
    (void)options;
    (void)out;
    return cuda_none_refuse(err);
}
