/* Chooses, keeps and runs algorithms of cuBLASLt.
 *
 * cuBLASLt's matrices are column-major, so row-major y = x w^T is its y' = w x': A is w as [k, m]
 * with lda k, transposed; B is x as [k, n] with ldb k; D is y as [m, n] with ldd ld. */
#include "kernels/cuda_plan.h"

#include "kernels/cuda_backend.h"
#include "kernels/cuda_linear_kernels.h"

#include <stdlib.h>
#include <string.h>

enum {
    PLAN_CHAINS = 256,
    PLAN_TIMED_RUNS = 3,
    PLAN_FEW_UNTIMED = 8, /* rows up to which our own kernel is taken unseen */
};

struct cuda_plans {
    struct cuda_library library;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t operation;
    cudaEvent_t before, after;
    struct cuda_plan *chains[PLAN_CHAINS];
};

/* ---- the objects of cuBLASLt --------------------------------------------------------------------
 */

enum status cuda_plans_create(struct cuda_plans **out, struct err *err)
{
    struct cuda_plans *plans = calloc(1, sizeof *plans);
    if (plans == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the table of products");
    enum status st = cuda_library_open(&plans->library, err);
    if (st != STATUS_OK) {
        free(plans);
        return st;
    }
    const struct cuda_library *lt = &plans->library;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    st = cuda_library_check(lt, lt->cublasLtCreate(&plans->handle), "a handle", err);
    if (st == STATUS_OK)
        st = cuda_library_check(
            lt, lt->cublasLtMatmulDescCreate(&plans->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
            "the product's description", err);
    if (st == STATUS_OK)
        st = cuda_library_check(lt,
                                lt->cublasLtMatmulDescSetAttribute(plans->operation,
                                                                   CUBLASLT_MATMUL_DESC_TRANSA,
                                                                   &transposed, sizeof transposed),
                                "the product's description", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaEventCreate(&plans->before), "an event", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaEventCreate(&plans->after), "an event", err);
    if (st == STATUS_OK)
        *out = plans;
    else
        cuda_plans_destroy(plans);
    return st;
}

static void plan_free(const struct cuda_library *lt, struct cuda_plan *plan)
{
    const cublasLtMatrixLayout_t layouts[] = {plan->y, plan->x, plan->w};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        if (layouts[i] != NULL)
            lt->cublasLtMatrixLayoutDestroy(layouts[i]);
    free(plan);
}

void cuda_plans_destroy(struct cuda_plans *plans)
{
    if (plans == NULL)
        return;
    const struct cuda_library *lt = &plans->library;
    for (int i = 0; i < PLAN_CHAINS; i++)
        for (struct cuda_plan *plan = plans->chains[i], *next; plan != NULL; plan = next) {
            next = plan->next;
            plan_free(lt, plan);
        }
    if (plans->after != NULL)
        cudaEventDestroy(plans->after);
    if (plans->before != NULL)
        cudaEventDestroy(plans->before);
    if (plans->operation != NULL)
        lt->cublasLtMatmulDescDestroy(plans->operation);
    if (plans->handle != NULL)
        lt->cublasLtDestroy(plans->handle);
    cuda_library_close(&plans->library);
    free(plans);
}

/* ---- choosing -----------------------------------------------------------------------------------
 */

static enum status plan_error(struct err *err, const struct cuda_plan_shape *shape)
{
    return err_wrap(err, "linear: y [%d, %d] %s = x [%d, %d] . w [%d, %d]^T", (int)shape->n,
                    (int)shape->m, shape->y_is_f32 ? "f32" : "bf16", (int)shape->n, (int)shape->k,
                    (int)shape->m, (int)shape->k);
}

static enum status plan_layouts(struct cuda_plans *plans, struct cuda_plan *plan, struct err *err)
{
    const struct cuda_library *lt = &plans->library;
    const struct cuda_plan_shape *shape = &plan->shape;
    const uint64_t m = (uint64_t)shape->m, k = (uint64_t)shape->k, n = (uint64_t)shape->n;
    cublasStatus_t code = lt->cublasLtMatrixLayoutCreate(&plan->w, CUDA_R_16BF, k, m, (int64_t)k);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = lt->cublasLtMatrixLayoutCreate(&plan->x, CUDA_R_16BF, k, n, (int64_t)k);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = lt->cublasLtMatrixLayoutCreate(&plan->y, shape->y_is_f32 ? CUDA_R_32F : CUDA_R_16BF,
                                              m, n, shape->ld);
    plan->n_laid_out = shape->n;
    return cuda_library_check(lt, code, "a matrix's layout", err);
}

static void plan_offer_few(struct cuda_plan *plan)
{
    const struct cuda_plan_shape *shape = &plan->shape;
    plan->has_few = shape->n <= CUDA_LINEAR_FEW && shape->k % 8 == 0 && shape->align_x == 16 &&
                    shape->align_w == 16;
    if (plan->has_few && (plan->n_candidates == 0 || shape->n <= PLAN_FEW_UNTIMED))
        plan->chosen = plan->n_candidates;
}

/* Asks the heuristics for algorithms of the plan's shape. */
static enum status plan_candidates(struct cuda_plans *plans, struct cuda_plan *plan,
                                   struct err *err)
{
    const struct cuda_library *lt = &plans->library;
    const struct cuda_plan_shape *shape = &plan->shape;
    const uint64_t workspace = cuda_plan_workspace_bytes;
    const uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint32_t align_w = shape->align_w, align_x = shape->align_x, align_y = shape->align_y;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t len_bytes;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_reduction, sizeof no_reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_w, sizeof align_w},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_x, sizeof align_x},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_y, sizeof align_y},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_y, sizeof align_y},
    };
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found[CUDA_PLAN_MAX_CANDIDATES];
    int n_found = 0;
    cublasStatus_t code = lt->cublasLtMatmulPreferenceCreate(&preference);
    for (size_t i = 0; i < sizeof wishes / sizeof wishes[0] && code == CUBLAS_STATUS_SUCCESS; i++)
        code = lt->cublasLtMatmulPreferenceSetAttribute(preference, wishes[i].attribute,
                                                        wishes[i].value, wishes[i].len_bytes);
    enum status st = cuda_library_check(lt, code, "the preferences", err);
    if (st == STATUS_OK)
        code = lt->cublasLtMatmulAlgoGetHeuristic(plans->handle, plans->operation, plan->w, plan->x,
                                                  plan->y, plan->y, preference,
                                                  CUDA_PLAN_MAX_CANDIDATES, found, &n_found);
    if (preference != NULL)
        lt->cublasLtMatmulPreferenceDestroy(preference);
    if (st != STATUS_OK)
        return st;
    if (code == CUBLAS_STATUS_SUCCESS)
        for (int i = 0; i < n_found; i++)
            if (found[i].state == CUBLAS_STATUS_SUCCESS &&
                found[i].workspaceSize <= cuda_plan_workspace_bytes)
                plan->candidates[plan->n_candidates++] = found[i].algo;
    plan_offer_few(plan);
    if (plan->n_candidates > 0 || plan->has_few)
        return STATUS_OK;
    if (code == CUBLAS_STATUS_SUCCESS || code == CUBLAS_STATUS_NOT_SUPPORTED)
        return err_set(err, STATUS_UNSUPPORTED,
                       "cuBLASLt %zu has no algorithm for it (addresses are multiples of %u, %u "
                       "and %u bytes, rows of y %d elements apart): install a newer cuBLAS or use "
                       "--backend cpu",
                       lt->cublasLtGetVersion(), align_w, align_x, align_y, (int)shape->ld);
    return cuda_library_check(lt, code, "the heuristics", err);
}

static unsigned plan_chain(const struct cuda_plan_shape *shape)
{
    uint32_t hash = 0;
    const int32_t parts[] = {shape->m, shape->k, shape->n, shape->ld, shape->y_is_f32};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        hash = (hash ^ (uint32_t)parts[i]) * 0x9e3779b1u;
    return hash >> 24;
}

static bool plan_is(const struct cuda_plan_shape *a, const struct cuda_plan_shape *b)
{
    return a->m == b->m && a->k == b->k && a->n == b->n && a->ld == b->ld &&
           a->y_is_f32 == b->y_is_f32 && a->align_y == b->align_y && a->align_x == b->align_x &&
           a->align_w == b->align_w;
}

enum status cuda_plan_find(struct cuda_plans *plans, const struct cuda_plan_shape *shape,
                           struct cuda_plan **out, struct err *err)
{
    struct cuda_plan **chain = &plans->chains[plan_chain(shape)];
    for (struct cuda_plan *plan = *chain; plan != NULL; plan = plan->next)
        if (plan_is(&plan->shape, shape)) {
            *out = plan;
            return STATUS_OK;
        }
    struct cuda_plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the plan of a product");
    plan->shape = *shape;
    enum status st = plan_layouts(plans, plan, err);
    if (st == STATUS_OK)
        st = plan_candidates(plans, plan, err);
    if (st != STATUS_OK) {
        plan_error(err, shape);
        plan_free(&plans->library, plan);
        return st;
    }
    plan->next = *chain;
    *chain = plan;
    *out = plan;
    return STATUS_OK;
}

/* ---- running ------------------------------------------------------------------------------------
 */

static cublasStatus_t plan_lay_out(struct cuda_plans *plans, struct cuda_plan *plan, int32_t n)
{
    if (plan->n_laid_out == n)
        return CUBLAS_STATUS_SUCCESS;
    const struct cuda_library *lt = &plans->library;
    const uint64_t cols = (uint64_t)n;
    cublasStatus_t code = lt->cublasLtMatrixLayoutSetAttribute(plan->x, CUBLASLT_MATRIX_LAYOUT_COLS,
                                                               &cols, sizeof cols);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = lt->cublasLtMatrixLayoutSetAttribute(plan->y, CUBLASLT_MATRIX_LAYOUT_COLS, &cols,
                                                    sizeof cols);
    plan->n_laid_out = code == CUBLAS_STATUS_SUCCESS ? n : -1;
    return code;
}

static cublasStatus_t plan_launch(struct cuda_plans *plans, struct cuda_plan *plan, int candidate,
                                  const struct cuda_plan_place *place,
                                  const struct cuda_product *product)
{
    static const float one = 1.0f, zero = 0.0f;
    if (candidate == plan->n_candidates)
        return cuda_linear_few(place->stream, product->y, plan->shape.y_is_f32, product->x,
                               product->w, product->n, plan->shape.m, plan->shape.k,
                               plan->shape.ld) == cudaSuccess
                   ? CUBLAS_STATUS_SUCCESS
                   : CUBLAS_STATUS_EXECUTION_FAILED;
    cublasStatus_t code = plan_lay_out(plans, plan, product->n);
    if (code != CUBLAS_STATUS_SUCCESS)
        return code;
    return plans->library.cublasLtMatmul(
        plans->handle, plans->operation, &one, product->w, plan->w, product->x, plan->x, &zero,
        product->y, plan->y, product->y, plan->y, &plan->candidates[candidate], place->workspace,
        cuda_plan_workspace_bytes, place->stream);
}

bool cuda_plan_accepts(struct cuda_plans *plans, struct cuda_plan *plan, int32_t n)
{
    cublasLtMatmulHeuristicResult_t result = {0};
    if (plan->chosen == plan->n_candidates)
        return n <= CUDA_LINEAR_FEW;
    return plan_lay_out(plans, plan, n) == CUBLAS_STATUS_SUCCESS &&
           plans->library.cublasLtMatmulAlgoCheck(plans->handle, plans->operation, plan->w, plan->x,
                                                  plan->y, plan->y, &plan->candidates[plan->chosen],
                                                  &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= cuda_plan_workspace_bytes;
}

enum status cuda_plan_run(struct cuda_plans *plans, struct cuda_plan *plan,
                          const struct cuda_plan_place *place, const struct cuda_product *product,
                          struct err *err)
{
    cublasStatus_t code = plan_launch(plans, plan, plan->chosen, place, product);
    if (code == CUBLAS_STATUS_SUCCESS)
        return STATUS_OK;
    cuda_library_check(&plans->library, code, "the product", err);
    struct cuda_plan_shape shape = plan->shape;
    shape.n = product->n;
    return plan_error(err, &shape);
}

/* The candidate's best time; *ms is untouched when it does not run. */
static enum status plan_time_one(struct cuda_plans *plans, struct cuda_plan *plan, int candidate,
                                 const struct cuda_plan_place *place,
                                 const struct cuda_product *product, float *ms, struct err *err)
{
    float best = 0.0f;
    for (int run = 0; run < PLAN_TIMED_RUNS; run++) {
        float now = 0.0f;
        cudaError_t code = cudaMemsetAsync(place->workspace, 0, place->flush_bytes, place->stream);
        if (code == cudaSuccess)
            code = cudaEventRecord(plans->before, place->stream);
        if (code == cudaSuccess &&
            plan_launch(plans, plan, candidate, place, product) != CUBLAS_STATUS_SUCCESS)
            return STATUS_OK;
        if (code == cudaSuccess)
            code = cudaEventRecord(plans->after, place->stream);
        if (code == cudaSuccess)
            code = cudaEventSynchronize(plans->after);
        if (code == cudaSuccess)
            code = cudaEventElapsedTime(&now, plans->before, plans->after);
        if (code != cudaSuccess)
            return cuda_check(code, "timing a product", err);
        if (run == 0 || now < best)
            best = now;
    }
    *ms = best;
    return STATUS_OK;
}

enum status cuda_plan_time(struct cuda_plans *plans, struct cuda_plan *plan,
                           const struct cuda_plan_place *place, const struct cuda_product *product,
                           struct err *err)
{
    float best = -1.0f;
    int chosen = -1;
    for (int i = 0; i < plan->n_candidates + plan->has_few; i++) {
        float ms = -1.0f;
        enum status st = plan_time_one(plans, plan, i, place, product, &ms, err);
        if (st != STATUS_OK) {
            plan_error(err, &plan->shape);
            return st;
        }
        if (ms >= 0.0f && (chosen < 0 || ms < best)) {
            best = ms;
            chosen = i;
        }
    }
    plan->is_timed = true;
    if (chosen >= 0)
        plan->chosen = chosen;
    /* None ran: this says why. Else y gets what the chosen one gives, not the last. */
    return cuda_plan_run(plans, plan, place, product, err);
}
