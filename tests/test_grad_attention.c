/* Attention of training against plain double: masks, groups of heads, strides, gradients. */
#include "tests/grad_reference.h"

struct attention_case {
    int n, n_heads, n_kv_heads, head_dim, n_prefix;
    int branch; /* rows of a branch; 0: branch_start is NULL */
    int sample; /* every how many-th gradient is compared */
};

static const struct attention_case cases[] = {
    {1, 1, 1, 1, 1, 0, 1},      {3, 2, 1, 4, 1, 1, 1},         {17, 2, 2, 8, 5, 3, 1},
    {17, 2, 1, 8, 17, 0, 1},    {33, 1, 1, 20, 0, 7, 7},       {65, 4, 2, 32, 40, 4, 211},
    {40, 2, 2, 16, 3, 0, 31},   {64, 3, 3, 32, 64, 1, 211},    {50, 4, 1, 33, 12, 12, 131},
    {90, 1, 1, 64, 18, 9, 307}, {66, 2, 1, 130, 47, 30, 1201},
};
enum { N_CASES = sizeof cases / sizeof cases[0] };

/* Everything of one case; the gradients are of sum of r * out. */
struct attention_data {
    struct grad_attention shape;
    int32_t *branch_start;
    size_t len, out_len; /* of q (k and v have as much), of out */
    float *q, *k, *v, *r;
    double *wide_q, *wide_k, *wide_v, *wide_r, *out, *lse;
};

static bool sees(const struct grad_attention *s, int i, int j)
{
    if (s->branch_start == NULL)
        return j <= i;
    return j <= i && (j < s->n_prefix || j >= s->branch_start[i]);
}

static double score(const struct attention_data *a, int h, int i, int j)
{
    const struct grad_attention *s = &a->shape;
    const int g = h / (s->n_heads / s->n_kv_heads);
    const double *q = a->wide_q + s->stride * (size_t)i + (size_t)(h * s->head_dim);
    const double *k = a->wide_k + s->stride * (size_t)j + (size_t)(g * s->head_dim);
    double sum = 0.0;
    for (int d = 0; d < s->head_dim; d++)
        sum += q[d] * k[d];
    return sum / sqrt(s->head_dim);
}

/* Fills out and lse. */
static void plain_attention(const struct attention_data *a)
{
    const struct grad_attention *s = &a->shape;
    const int group = s->n_heads / s->n_kv_heads;
    for (int h = 0; h < s->n_heads; h++)
        for (int i = 0; i < s->n; i++) {
            double *out = a->out + s->out_stride * (size_t)i + (size_t)(h * s->head_dim);
            double sum = 0.0;
            for (int d = 0; d < s->head_dim; d++)
                out[d] = 0.0;
            for (int j = 0; j < s->n; j++) {
                if (!sees(s, i, j))
                    continue;
                const double p = exp(score(a, h, i, j));
                const double *v =
                    a->wide_v + s->stride * (size_t)j + (size_t)(h / group * s->head_dim);
                sum += p;
                for (int d = 0; d < s->head_dim; d++)
                    out[d] += p * v[d];
            }
            for (int d = 0; d < s->head_dim; d++)
                out[d] /= sum;
            a->lse[h * s->n + i] = log(sum);
        }
}

static double attention_loss(void *context)
{
    const struct attention_data *a = context;
    const struct grad_attention *s = &a->shape;
    plain_attention(a);
    double loss = 0.0;
    for (int i = 0; i < s->n; i++)
        for (int d = 0; d < s->n_heads * s->head_dim; d++) {
            size_t at = s->out_stride * (size_t)i + (size_t)d;
            loss += a->wide_r[at] * a->out[at];
        }
    return loss;
}

static struct attention_data data_create(const struct attention_case *c)
{
    struct attention_data a = {.shape = {.n = c->n,
                                         .n_heads = c->n_heads,
                                         .n_kv_heads = c->n_kv_heads,
                                         .head_dim = c->head_dim,
                                         .n_prefix = c->n_prefix,
                                         /* Rows with gaps, as in one matrix of q, k and v. */
                                         .stride = (size_t)(c->n_heads * c->head_dim) + 5,
                                         .out_stride = (size_t)(c->n_heads * c->head_dim) + 2}};
    a.len = a.shape.stride * (size_t)c->n;
    a.out_len = a.shape.out_stride * (size_t)c->n;
    a.branch_start = calloc((size_t)c->n, sizeof *a.branch_start);
    assert_non_null(a.branch_start);
    for (int i = c->n_prefix; i < c->n && c->branch > 0; i++)
        a.branch_start[i] = c->n_prefix + (i - c->n_prefix) / c->branch * c->branch;
    a.shape.branch_start = c->branch > 0 ? a.branch_start : NULL;
    a.q = random_floats(1, a.len);
    a.k = random_floats(2, a.len);
    a.v = random_floats(3, a.len);
    a.r = random_floats(4, a.out_len);
    for (size_t i = 0; i < a.len; i++)
        a.q[i] *= 3.0f;
    a.wide_q = widened(a.q, a.len);
    a.wide_k = widened(a.k, a.len);
    a.wide_v = widened(a.v, a.len);
    a.wide_r = widened(a.r, a.out_len);
    a.out = calloc(a.out_len, sizeof *a.out);
    a.lse = calloc((size_t)(c->n_heads * c->n), sizeof *a.lse);
    assert_true(a.out != NULL && a.lse != NULL);
    return a;
}

static void data_destroy(struct attention_data *a)
{
    void *all[] = {a->branch_start, a->q,      a->k,      a->v,   a->r,  a->wide_q,
                   a->wide_k,       a->wide_v, a->wide_r, a->out, a->lse};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

/* Largest magnitude of an exact score of the case: errors of p grow with it. */
static double score_scale(const struct attention_data *a)
{
    return 1.0 + 3.0 * sqrt(a->shape.head_dim);
}

static void check_forward(const struct grad_ops *ops, const struct attention_data *a)
{
    const struct grad_attention *s = &a->shape;
    const size_t n_lse = (size_t)(s->n_heads * s->n);
    const size_t n_scratch = grad_attention_scratch(s->n, s->head_dim);
    float *out = guarded_floats(a->out_len), *lse = guarded_floats(n_lse);
    float *scratch = guarded_floats(n_scratch);
    ops->attention(out, lse, a->q, a->k, a->v, s, scratch);
    for (size_t i = 0; i < a->out_len; i++)
        if (i % s->out_stride < (size_t)(s->n_heads * s->head_dim))
            grad_close("attention", (double)out[i], a->out[i], score_scale(a));
        else
            assert_true(isnan(out[i]));
    for (size_t i = 0; i < n_lse; i++)
        grad_close("attention", (double)lse[i], a->lse[i], score_scale(a));
    guarded_free(out, a->out_len);
    guarded_free(lse, n_lse);
    guarded_free(scratch, n_scratch);
}

static void test_grad_attention_matches_double(void **state)
{
    (void)state;
    for (int c = 0; c < N_CASES; c++) {
        struct attention_data a = data_create(&cases[c]);
        plain_attention(&a);
        for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++)
            if (grad_level(i) != NULL)
                check_forward(grad_level(i), &a);
        data_destroy(&a);
    }
}

struct attention_gradients {
    float *d[3]; /* by q, k, v */
};

static struct attention_gradients run_back(const struct grad_ops *ops,
                                           const struct attention_data *a)
{
    const struct grad_attention *s = &a->shape;
    const size_t n_lse = (size_t)(s->n_heads * s->n);
    const size_t n_scratch = grad_attention_scratch(s->n, s->head_dim);
    struct attention_gradients g;
    float *out = guarded_floats(a->out_len), *lse = guarded_floats(n_lse);
    float *scratch = guarded_floats(n_scratch);
    for (int i = 0; i < 3; i++)
        g.d[i] = guarded_floats(a->len);
    ops->attention(out, lse, a->q, a->k, a->v, s, scratch);
    ops->attention_back(g.d[0], g.d[1], g.d[2], a->r, out, lse, a->q, a->k, a->v, s, scratch);
    guarded_free(out, a->out_len);
    guarded_free(lse, n_lse);
    guarded_free(scratch, n_scratch);
    return g;
}

static void test_grad_attention_back_matches_central_differences(void **state)
{
    (void)state;
    for (int c = 0; c < N_CASES; c++) {
        struct attention_data a = data_create(&cases[c]);
        const struct grad_attention *s = &a.shape;
        struct attention_gradients g[N_GRAD_LEVEL_NAMES];
        for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++)
            if (grad_level(i) != NULL)
                g[i] = run_back(grad_level(i), &a);
        double *wide[3] = {a.wide_q, a.wide_k, a.wide_v};
        for (int which = 0; which < 3; which++) {
            const int heads = which == 0 ? s->n_heads : s->n_kv_heads;
            for (size_t at = 0; at < a.len; at++) {
                const bool is_gap = at % s->stride >= (size_t)(heads * s->head_dim);
                if (!is_gap && at % (size_t)cases[c].sample != 0)
                    continue;
                double want =
                    is_gap ? 0.0 : central_difference(attention_loss, &a, &wide[which][at]);
                for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++) {
                    if (grad_level(i) == NULL)
                        continue;
                    float got = g[i].d[which][at];
                    if (is_gap)
                        assert_true(isnan(got));
                    else
                        grad_close("attention_back", (double)got, want,
                                   score_scale(&a) * (1.0 + fabs(want)));
                }
            }
        }
        for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++)
            for (int which = 0; which < 3 && grad_level(i) != NULL; which++)
                guarded_free(g[i].d[which], a.len);
        data_destroy(&a);
    }
}

/* What a row must not see changes no bit of what it computes. */
static void test_grad_attention_branches_do_not_see_each_other(void **state)
{
    (void)state;
    const struct attention_case c = {60, 2, 1, 32, 20, 8, 1};
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++) {
        if (grad_level(i) == NULL)
            continue;
        struct attention_data a = data_create(&c);
        struct attention_gradients before = run_back(grad_level(i), &a);
        /* Branch 1 (rows 28 .. 35) changes; its gradients and the prefix's may. */
        for (size_t at = a.shape.stride * 28; at < a.shape.stride * 36; at++) {
            a.q[at] += 1.0f;
            a.k[at] -= 0.5f;
            a.v[at] *= 2.0f;
        }
        struct attention_gradients after = run_back(grad_level(i), &a);
        for (int which = 0; which < 3; which++) {
            size_t from = a.shape.stride * 36, own = a.shape.stride * 20;
            assert_memory_equal(before.d[which] + from, after.d[which] + from,
                                (a.len - from) * sizeof(float));
            assert_memory_equal(before.d[which] + own, after.d[which] + own,
                                a.shape.stride * 8 * sizeof(float));
            assert_memory_not_equal(before.d[which] + a.shape.stride * 28,
                                    after.d[which] + a.shape.stride * 28,
                                    a.shape.stride * sizeof(float));
            guarded_free(before.d[which], a.len);
            guarded_free(after.d[which], a.len);
        }
        data_destroy(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grad_attention_matches_double),
        cmocka_unit_test(test_grad_attention_back_matches_central_differences),
        cmocka_unit_test(test_grad_attention_branches_do_not_see_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
