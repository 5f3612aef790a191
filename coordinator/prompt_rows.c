/* Finds the loop where each row of a prompt leaves, and what it says there of the next token. */
#include "coordinator/prompt_rows.h"

#include "kernels/exit_rule.h"

#include <stdlib.h>
#include <string.h>

/* How far a row has come: loops are stepped in order, however they arrive. */
struct row_progress {
    uint32_t heard;     /* bit t - 1: loop t has spoken */
    uint32_t next_loop; /* the first not stepped; 1-based */
    struct exit_state state;
};

/* What loop t says of row i is cell i * n_loops + t - 1; all memory is taken at the start. */
struct prompt_rows {
    struct sequence_params params;
    uint32_t n_rows, n_loops, n_top, n_known; /* n_rows: n_prompt - 1 */
    int32_t *targets;                         /* [n_rows]: prompt token i + 1 */
    struct row_progress *progress;            /* [n_rows] */
    struct prompt_row *rows;                  /* [n_rows] */
    float *lambdas, *logprobs, *log_norms;    /* [n_rows * n_loops] */
    uint32_t *n_tops;                         /* [n_rows * n_loops] */
    int32_t *top_ids;                         /* [n_rows * n_loops][n_top] */
    float *top_logits;                        /* [n_rows * n_loops][n_top] */
};

/* n items, at least one, so that a prompt of a single token is no special case. */
static void *take_array(size_t n, size_t item_bytes, bool *ok)
{
    void *array = calloc(n > 0 ? n : 1, item_bytes);
    *ok = *ok && array != NULL;
    return array;
}

struct prompt_rows *prompt_rows_create(const int32_t *ids, uint32_t n_prompt,
                                       const struct sequence_params *params, uint32_t n_loops)
{
    struct prompt_rows *r = calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    bool ok = true;
    r->params = *params;
    r->n_rows = n_prompt - 1;
    r->n_loops = n_loops < params->max_loops ? n_loops : params->max_loops;
    r->n_top =
        params->observe_top < SEQUENCE_MAX_LOGPROBS ? params->observe_top : SEQUENCE_MAX_LOGPROBS;
    size_t n = r->n_rows, n_cells = n * r->n_loops, n_tops = n_cells * r->n_top;
    r->targets = take_array(n, sizeof *r->targets, &ok);
    r->progress = take_array(n, sizeof *r->progress, &ok);
    r->rows = take_array(n, sizeof *r->rows, &ok);
    r->lambdas = take_array(n_cells, sizeof *r->lambdas, &ok);
    r->logprobs = take_array(n_cells, sizeof *r->logprobs, &ok);
    r->log_norms = take_array(n_cells, sizeof *r->log_norms, &ok);
    r->n_tops = take_array(n_cells, sizeof *r->n_tops, &ok);
    r->top_ids = take_array(n_tops, sizeof *r->top_ids, &ok);
    r->top_logits = take_array(n_tops, sizeof *r->top_logits, &ok);
    if (!ok) {
        prompt_rows_free(r);
        return NULL;
    }
    if (n > 0)
        memcpy(r->targets, ids + 1, n * sizeof *r->targets);
    for (size_t i = 0; i < n; i++)
        r->progress[i] =
            (struct row_progress){.next_loop = 1, .state = {.survival = 1.0f, .cdf = 0.0f}};
    return r;
}

void prompt_rows_free(struct prompt_rows *r)
{
    if (r == NULL)
        return;
    free(r->targets);
    free(r->progress);
    free(r->rows);
    free(r->lambdas);
    free(r->logprobs);
    free(r->log_norms);
    free(r->n_tops);
    free(r->top_ids);
    free(r->top_logits);
    free(r);
}

/* The row leaves at `loop`: what that loop said is its answer. */
static void settle(struct prompt_rows *r, uint32_t i, uint32_t loop)
{
    size_t cell = (size_t)i * r->n_loops + loop - 1, at = cell * r->n_top;
    struct prompt_row *row = &r->rows[i];
    row->exit_loop = loop;
    row->logprob = r->logprobs[cell];
    row->n_top = r->n_tops[cell];
    for (uint32_t k = 0; k < row->n_top; k++) {
        row->top_ids[k] = r->top_ids[at + k];
        /* Of the prompt's own token one number is told, however often it is said. */
        row->top_logprobs[k] = row->top_ids[k] == r->targets[i]
                                   ? row->logprob
                                   : r->top_logits[at + k] - r->log_norms[cell];
    }
    r->n_known++;
}

void prompt_rows_take(struct prompt_rows *r, const struct control_observation *o)
{
    if (o->position >= r->n_rows || !o->has_target || o->loop < 1 || o->loop > r->n_loops)
        return;
    uint32_t i = o->position, bit = 1u << (o->loop - 1);
    struct row_progress *p = &r->progress[i];
    if (r->rows[i].exit_loop != 0 || (p->heard & bit))
        return; /* deeper than it leaves, or said twice by a replay: the same numbers */
    size_t cell = (size_t)i * r->n_loops + o->loop - 1, at = cell * r->n_top;
    p->heard |= bit;
    r->lambdas[cell] = o->lambda;
    r->logprobs[cell] = o->logprob;
    r->log_norms[cell] = o->log_norm;
    r->n_tops[cell] = o->n_top < r->n_top ? o->n_top : r->n_top;
    for (uint32_t k = 0; k < r->n_tops[cell]; k++) {
        r->top_ids[at + k] = o->top_ids[k];
        r->top_logits[at + k] = o->top_logits[k];
    }
    while (r->rows[i].exit_loop == 0 && (p->heard & (1u << (p->next_loop - 1)))) {
        uint32_t loop = p->next_loop++;
        float lambda = r->lambdas[(size_t)i * r->n_loops + loop - 1];
        if (exit_rule_step(&r->params, loop, i, lambda, &p->state))
            settle(r, i, loop);
    }
}

bool prompt_rows_are_complete(const struct prompt_rows *r)
{
    return r->n_known == r->n_rows;
}

const struct prompt_row *prompt_rows_get(const struct prompt_rows *r, uint32_t i)
{
    return &r->rows[i - 1];
}
