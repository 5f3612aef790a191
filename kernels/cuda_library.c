/* Finds cuBLASLt at run time. */
#include "kernels/cuda_library.h"

#include <string.h>

#ifdef CAROUSEL_CUDA_EMULATED

/* The tests' stand-in is linked in. */
enum status cuda_library_open(struct cuda_library *out, struct err *err)
{
    (void)err;
#define CUDA_LIBRARY_TAKE(name) .name = name,
    *out = (struct cuda_library){CUDA_LIBRARY_FUNCTIONS(CUDA_LIBRARY_TAKE)};
#undef CUDA_LIBRARY_TAKE
    return STATUS_OK;
}

void cuda_library_close(struct cuda_library *library)
{
    *library = (struct cuda_library){0};
}

#else

#include <dlfcn.h>

/* The newest first; then where the toolkit puts it when the loader's path does not name that. */
static const char *const library_names[] = {
    "libcublasLt.so.13",
    "libcublasLt.so.12",
    "libcublasLt.so.11",
    "libcublasLt.so",
    "/usr/local/cuda/lib64/libcublasLt.so",
};
enum { N_LIBRARY_NAMES = sizeof library_names / sizeof library_names[0] };

static enum status library_find(struct cuda_library *out, const char *name, const char *symbol,
                                void *function, struct err *err)
{
    void *address = dlsym(out->handle, symbol);
    if (address == NULL)
        return err_set(err, STATUS_UNSUPPORTED,
                       "%s has no function %s: install cuBLAS 11.8 or later", name, symbol);
    /* POSIX: a function's address fits a void *; C has no cast for it. */
    memcpy(function, &address, sizeof address);
    return STATUS_OK;
}

enum status cuda_library_open(struct cuda_library *out, struct err *err)
{
    struct cuda_library found = {0};
    const char *name = NULL;
    for (int i = 0; i < N_LIBRARY_NAMES && found.handle == NULL; i++) {
        name = library_names[i];
        /* It stays for good: its kernels are known to the driver, whose context outlives a handle
         * (a backend is created, given up and created again), and loading it takes long. */
        found.handle = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    }
    if (found.handle == NULL) {
        const char *why = dlerror();
        return err_set(err, STATUS_UNSUPPORTED,
                       "the backend 'cuda' needs cuBLASLt and found none of %s, %s, %s, %s, %s "
                       "(%.160s): install cuBLAS (libcublas of CUDA 11.8 or later) or set "
                       "LD_LIBRARY_PATH",
                       library_names[0], library_names[1], library_names[2], library_names[3],
                       library_names[4], why != NULL ? why : "no reason given");
    }
    enum status st = STATUS_OK;
#define CUDA_LIBRARY_FIND(function)                                                                \
    st = st == STATUS_OK ? library_find(&found, name, #function, &found.function, err) : st;
    CUDA_LIBRARY_FUNCTIONS(CUDA_LIBRARY_FIND)
#undef CUDA_LIBRARY_FIND
    if (st == STATUS_OK)
        *out = found;
    else
        dlclose(found.handle);
    return st;
}

void cuda_library_close(struct cuda_library *library)
{
    if (library->handle != NULL)
        dlclose(library->handle);
    *library = (struct cuda_library){0};
}

#endif

enum status cuda_library_check(const struct cuda_library *library, cublasStatus_t code,
                               const char *what, struct err *err)
{
    if (code == CUBLAS_STATUS_SUCCESS)
        return STATUS_OK;
    const char *why = library->cublasLtGetStatusString(code);
    return err_set(err, code == CUBLAS_STATUS_ALLOC_FAILED ? STATUS_NO_MEMORY : STATUS_INTERNAL,
                   "%s: cuBLASLt says %s (%d)", what, why != NULL ? why : "nothing", (int)code);
}
