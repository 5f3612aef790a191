/* cuBLASLt as it was found on this machine: a table of the functions that the backend uses.
 *
 * The library is opened by name when a GPU backend is created, so that the program starts on
 * machines that have no CUDA, and serves with whichever version is installed. */
#ifndef KERNELS_CUDA_LIBRARY_H
#define KERNELS_CUDA_LIBRARY_H

#include "proto/status.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

/* Each as cublasLt.h declares it. */
#define CUDA_LIBRARY_FUNCTIONS(FUNCTION)                                                           \
    FUNCTION(cublasLtCreate)                                                                       \
    FUNCTION(cublasLtDestroy)                                                                      \
    FUNCTION(cublasLtGetVersion)                                                                   \
    FUNCTION(cublasLtGetStatusString)                                                              \
    FUNCTION(cublasLtMatmul)                                                                       \
    FUNCTION(cublasLtMatmulAlgoCheck)                                                              \
    FUNCTION(cublasLtMatmulAlgoGetHeuristic)                                                       \
    FUNCTION(cublasLtMatmulDescCreate)                                                             \
    FUNCTION(cublasLtMatmulDescDestroy)                                                            \
    FUNCTION(cublasLtMatmulDescSetAttribute)                                                       \
    FUNCTION(cublasLtMatmulPreferenceCreate)                                                       \
    FUNCTION(cublasLtMatmulPreferenceDestroy)                                                      \
    FUNCTION(cublasLtMatmulPreferenceSetAttribute)                                                 \
    FUNCTION(cublasLtMatrixLayoutCreate)                                                           \
    FUNCTION(cublasLtMatrixLayoutDestroy)                                                          \
    FUNCTION(cublasLtMatrixLayoutSetAttribute)

struct cuda_library {
    void *handle; /* of dlopen; NULL where the functions are linked in */
#define CUDA_LIBRARY_MEMBER(name) __typeof__(&name) name;
    CUDA_LIBRARY_FUNCTIONS(CUDA_LIBRARY_MEMBER)
#undef CUDA_LIBRARY_MEMBER
};

/* UNSUPPORTED, with what was tried, when none is found or a function is missing. */
enum status cuda_library_open(struct cuda_library *out, struct err *err);
void cuda_library_close(struct cuda_library *library);

/* STATUS_OK, or NO_MEMORY or INTERNAL with what was tried and what cuBLASLt says. */
enum status cuda_library_check(const struct cuda_library *library, cublasStatus_t code,
                               const char *what, struct err *err);

#endif
