/* A stand-in for cuBLASLt: bf16 products with fp32 sums on the CPU, in stream order.
 *
 * It has four algorithms, so that what the backend must know about the real ones matters here, too:
 *   STEPS   in steps of 32 along k; needs 16-byte alignment, n % 8 == 0 and a workspace
 *   BY_N    in steps whose length depends on n: its bits change with the number of rows
 *   SPLIT   two halves of k, put together by a reduction; only where the caller allows one
 *   PLAIN   k ascending, any alignment
 * and offers them in an order that depends on the shape. Column-major, as the library. */
#include <cublasLt.h>

#include "tests/emulator/emulator.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum algorithm { PLAIN, STEPS, BY_N, SPLIT };
enum { STEPS_WORKSPACE = 4 << 20, STEPS_LENGTH = 32 };

struct cublasLtContext {
    int unused;
};
struct cublasLtMatmulDescOpaque {
    cublasOperation_t transpose_a, transpose_b;
};
struct cublasLtMatrixLayoutOpaque {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};
struct cublasLtMatmulPreferenceOpaque {
    uint64_t workspace_bytes;
    uint32_t reduction_mask;
    uint32_t align_a, align_b, align_c, align_d;
};

/* ---- objects ------------------------------------------------------------------------------------
 */

static cublasStatus_t object_create(void **out, size_t len)
{
    *out = calloc(1, len);
    return *out != NULL ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

static cublasStatus_t object_destroy(void *object)
{
    if (object == NULL)
        return CUBLAS_STATUS_INVALID_VALUE;
    free(object);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t attribute_set(void *field, size_t field_len, const void *value, size_t len)
{
    if (field == NULL || value == NULL || len != field_len)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, len);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    return object_create((void **)handle, sizeof **handle);
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    return object_destroy(handle);
}

size_t cublasLtGetVersion(void)
{
    return 0;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "invalid value";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "execution failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "not supported";
    }
    return "unknown status";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return object_create((void **)desc, sizeof **desc);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    return object_destroy(desc);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t len)
{
    cublasOperation_t *field = attribute == CUBLASLT_MATMUL_DESC_TRANSA   ? &desc->transpose_a
                               : attribute == CUBLASLT_MATMUL_DESC_TRANSB ? &desc->transpose_b
                                                                          : NULL;
    return attribute_set(field, sizeof *field, value, len);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    cublasStatus_t code = object_create((void **)layout, sizeof **layout);
    if (code == CUBLAS_STATUS_SUCCESS)
        **layout = (struct cublasLtMatrixLayoutOpaque){type, rows, cols, ld};
    return code;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    return object_destroy(layout);
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t len)
{
    if (attribute == CUBLASLT_MATRIX_LAYOUT_LD)
        return attribute_set(&layout->ld, sizeof layout->ld, value, len);
    uint64_t *field = attribute == CUBLASLT_MATRIX_LAYOUT_ROWS   ? &layout->rows
                      : attribute == CUBLASLT_MATRIX_LAYOUT_COLS ? &layout->cols
                                                                 : NULL;
    return attribute_set(field, sizeof *field, value, len);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    cublasStatus_t code = object_create((void **)preference, sizeof **preference);
    if (code == CUBLAS_STATUS_SUCCESS) /* the library's defaults */
        **preference = (struct cublasLtMatmulPreferenceOpaque){
            0, CUBLASLT_REDUCTION_SCHEME_MASK, 256, 256, 256, 256};
    return code;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    return object_destroy(preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t len)
{
    uint32_t *field = NULL;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return attribute_set(&preference->workspace_bytes, sizeof preference->workspace_bytes,
                             value, len);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        field = &preference->reduction_mask;
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        field = &preference->align_a;
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        field = &preference->align_b;
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        field = &preference->align_c;
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        field = &preference->align_d;
        break;
    }
    return attribute_set(field, sizeof *field, value, len);
}

/* ---- shapes -------------------------------------------------------------------------------------
 */

/* d [m, n] = op(a) [m, k] op(b) [k, n]; element (i, l) of op(a) is at i * a_row + l * a_col. */
struct product {
    enum algorithm algorithm;
    uint64_t m, n, k;
    uint64_t a_row, a_col, b_row, b_col, d_col;
    bool d_is_f32;
    const uint16_t *a, *b;
    void *d, *workspace;
    float alpha;
};

static uint64_t element_bytes(const struct cublasLtMatrixLayoutOpaque *layout)
{
    return layout->type == CUDA_R_32F ? 4 : 2;
}

static cublasStatus_t product_shape(const struct cublasLtMatmulDescOpaque *desc,
                                    const struct cublasLtMatrixLayoutOpaque *a,
                                    const struct cublasLtMatrixLayoutOpaque *b,
                                    const struct cublasLtMatrixLayoutOpaque *c,
                                    const struct cublasLtMatrixLayoutOpaque *d, struct product *out)
{
    const struct cublasLtMatrixLayoutOpaque *const all[] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (all[i]->rows == 0 || all[i]->cols == 0 || all[i]->ld < (int64_t)all[i]->rows)
            return CUBLAS_STATUS_INVALID_VALUE;
    if (a->type != CUDA_R_16BF || b->type != CUDA_R_16BF || c->type != d->type ||
        (d->type != CUDA_R_16BF && d->type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const bool ta = desc->transpose_a == CUBLAS_OP_T, tb = desc->transpose_b == CUBLAS_OP_T;
    *out = (struct product){.m = ta ? a->cols : a->rows,
                            .k = ta ? a->rows : a->cols,
                            .n = tb ? b->rows : b->cols,
                            .a_row = ta ? (uint64_t)a->ld : 1,
                            .a_col = ta ? 1 : (uint64_t)a->ld,
                            .b_row = tb ? (uint64_t)b->ld : 1,
                            .b_col = tb ? 1 : (uint64_t)b->ld,
                            .d_col = (uint64_t)d->ld,
                            .d_is_f32 = d->type == CUDA_R_32F};
    if ((tb ? b->cols : b->rows) != out->k || d->rows != out->m || d->cols != out->n ||
        c->rows != out->m || c->cols != out->n)
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

static bool is_multiple_of_16(const struct cublasLtMatrixLayoutOpaque *layout)
{
    return (uint64_t)layout->ld * element_bytes(layout) % 16 == 0;
}

static bool algorithm_fits(enum algorithm algorithm, const struct product *p,
                           const struct cublasLtMatrixLayoutOpaque *a,
                           const struct cublasLtMatrixLayoutOpaque *b,
                           const struct cublasLtMatrixLayoutOpaque *d)
{
    return algorithm != STEPS ||
           (p->n % 8 == 0 && is_multiple_of_16(a) && is_multiple_of_16(b) && is_multiple_of_16(d));
}

static size_t algorithm_workspace(enum algorithm algorithm)
{
    return algorithm == STEPS ? STEPS_WORKSPACE : 0;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int n_wanted,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *n_found)
{
    static const enum algorithm orders[2][4] = {{SPLIT, STEPS, BY_N, PLAIN},
                                                {SPLIT, BY_N, STEPS, PLAIN}};
    struct product p;
    *n_found = 0;
    if (handle == NULL)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t code = product_shape(desc, a, b, c, d, &p);
    if (code != CUBLAS_STATUS_SUCCESS)
        return code;
    for (int i = 0; i < 4 && *n_found < n_wanted; i++) {
        const enum algorithm algorithm = orders[p.m % 3 == 0][i];
        if (!algorithm_fits(algorithm, &p, a, b, d) ||
            algorithm_workspace(algorithm) > preference->workspace_bytes ||
            (algorithm == SPLIT && preference->reduction_mask == 0) ||
            (algorithm == STEPS && (preference->align_a < 16 || preference->align_b < 16 ||
                                    preference->align_c < 16 || preference->align_d < 16)))
            continue;
        results[(*n_found)++] = (cublasLtMatmulHeuristicResult_t){
            .algo = {{(uint64_t)algorithm + 1}}, .workspaceSize = algorithm_workspace(algorithm)};
    }
    return *n_found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result)
{
    struct product p;
    if (handle == NULL)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (algo->data[0] < PLAIN + 1 || algo->data[0] > SPLIT + 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    const enum algorithm algorithm = (enum algorithm)(algo->data[0] - 1);
    cublasStatus_t code = product_shape(desc, a, b, c, d, &p);
    if (code == CUBLAS_STATUS_SUCCESS && !algorithm_fits(algorithm, &p, a, b, d))
        code = CUBLAS_STATUS_NOT_SUPPORTED;
    *result = (cublasLtMatmulHeuristicResult_t){
        .algo = *algo, .workspaceSize = algorithm_workspace(algorithm), .state = code};
    return code;
}

/* ---- products -----------------------------------------------------------------------------------
 */

static float from_bf16(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint16_t to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* How many elements of k an algorithm adds up before it adds the sum to the rest. */
static uint64_t step_length(const struct product *p)
{
    switch (p->algorithm) {
    case STEPS:
        return STEPS_LENGTH;
    case BY_N:
        return 3 + p->n % 61;
    case SPLIT:
        return (p->k + 1) / 2;
    case PLAIN:
        break;
    }
    return p->k;
}

static float product_element(const struct product *p, uint64_t i, uint64_t j, uint64_t step)
{
    const uint16_t *a = p->a + i * p->a_row, *b = p->b + j * p->b_col;
    float sum = 0.0f;
    for (uint64_t first = 0; first < p->k; first += step) {
        const uint64_t end = first + step < p->k ? first + step : p->k;
        float part = 0.0f;
        for (uint64_t l = first; l < end; l++)
            part += from_bf16(a[l * p->a_col]) * from_bf16(b[l * p->b_row]);
        sum += part;
    }
    return sum * p->alpha;
}

static void product_run(const void *arguments)
{
    const struct product *p = arguments;
    const uint64_t step = step_length(p);
    /* Whoever else keeps something there finds out. */
    if (p->workspace != NULL)
        memset(p->workspace, 0xff, algorithm_workspace(p->algorithm));
    for (uint64_t j = 0; j < p->n; j++)
        for (uint64_t i = 0; i < p->m; i++) {
            const float value = product_element(p, i, j, step);
            if (p->d_is_f32)
                ((float *)p->d)[i + j * p->d_col] = value;
            else
                ((uint16_t *)p->d)[i + j * p->d_col] = to_bf16(value);
        }
}

static bool matrix_is_there(const void *data, const struct cublasLtMatrixLayoutOpaque *layout)
{
    const uint64_t bytes = element_bytes(layout);
    const uint64_t elements = (layout->cols - 1) * (uint64_t)layout->ld + layout->rows;
    return (uintptr_t)data % bytes == 0 && emulator_is_device(data, elements * bytes);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    cublasLtMatmulHeuristicResult_t checked;
    cublasStatus_t code = cublasLtMatmulAlgoCheck(handle, desc, a_layout, b_layout, c_layout,
                                                  d_layout, algo, &checked);
    if (code != CUBLAS_STATUS_SUCCESS)
        return code;
    float factor, other;
    memcpy(&factor, alpha, sizeof factor);
    memcpy(&other, beta, sizeof other);
    if (other != 0.0f)
        return CUBLAS_STATUS_NOT_SUPPORTED; /* the backend adds nothing to what was there */
    if (c != d || !matrix_is_there(a, a_layout) || !matrix_is_there(b, b_layout) ||
        !matrix_is_there(d, d_layout) || checked.workspaceSize > workspace_bytes ||
        (checked.workspaceSize > 0 && !emulator_is_device(workspace, workspace_bytes)))
        return CUBLAS_STATUS_INVALID_VALUE;
    struct product p;
    product_shape(desc, a_layout, b_layout, c_layout, d_layout, &p);
    p.algorithm = (enum algorithm)(algo->data[0] - 1);
    if (p.algorithm == STEPS && ((uintptr_t)a | (uintptr_t)b | (uintptr_t)d) % 16 != 0)
        return CUBLAS_STATUS_INVALID_VALUE;
    p.a = a;
    p.b = b;
    p.d = d;
    p.workspace = workspace;
    p.alpha = factor;
    switch (emulator_enqueue(stream, "cublasLtMatmul", product_run, &p, sizeof p)) {
    case cudaSuccess:
        return CUBLAS_STATUS_SUCCESS;
    case cudaErrorMemoryAllocation:
        return CUBLAS_STATUS_ALLOC_FAILED;
    default:
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
}
