/* `carousel bench engine`: drives the whole engine with synthetic requests and measures it. */
#include "cli/bench_report.h"
#include "cli/bench_trace.h"
#include "cli/bench_workload.h"
#include "cli/cli.h"
#include "cli/request_options.h"
#include "cli/session.h"
#include "cluster/host.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct bench_engine;

/* One request in flight; a record is reused when its request has ended. */
struct bench_slot {
    struct bench_engine *bench;
    uint32_t index; /* of the request, warm-up first */
    uint64_t id;
    struct bench_request request;
    uint32_t n_tokens;
    bool is_cancelling;
    int32_t *tokens;
    uint8_t *exits;
    struct bench_slot *next_free;
};

struct bench_engine {
    struct session *session;
    const struct bench_workload *workload;
    struct sequence_params base;
    struct bench_slot *slots, *free_slots;
    int32_t *prompt;
    uint32_t n_submitted, n_ended, n_limit; /* of this phase */
    uint32_t n_open_max;
    struct bench_measure *measure;
    FILE *outputs;
    enum status status;
    struct err err;
};

static const char usage[] =

    "usage: carousel bench engine [MODEL] [options]\n"
    "Runs synthetic requests through coordinator and workers: tokens/s, loops/s,\n"
    "TTFT, TPOT, exits, rows per batch, idle time. Tokens are drawn at random, so use\n"
    "--force-exits for a chosen exit mix.";

static void bench_write_output(struct bench_engine *b, const struct bench_slot *slot,
                               enum finish_reason reason)
{
    if (b->outputs == NULL)
        return;
    fprintf(b->outputs, "{\"request\":%u,\"finish_reason\":\"%s\",\"tokens\":[", slot->index,
            finish_reason_name(reason));
    for (uint32_t i = 0; i < slot->n_tokens; i++)
        fprintf(b->outputs, "%s%d", i ? "," : "", (int)slot->tokens[i]);
    fprintf(b->outputs, "],\"exit_loops\":[");
    for (uint32_t i = 0; i < slot->n_tokens; i++)
        fprintf(b->outputs, "%s%u", i ? "," : "", slot->exits[i]);
    fprintf(b->outputs, "]}\n");
}

static void bench_on_token(void *user, const struct completion_token *t)
{
    struct bench_slot *slot = user;
    slot->tokens[slot->n_tokens] = t->token->id;
    slot->exits[slot->n_tokens] = (uint8_t)t->token->exit_loop;
    slot->n_tokens++;
    bench_measure_token(slot->bench->measure);
    if (slot->n_tokens > slot->request.cancel_at && !slot->is_cancelling) {
        slot->is_cancelling = true;
        coordinator_cancel(slot->bench->session->coordinator, slot->id);
    }
}

static void bench_submit(struct bench_engine *b);

static void bench_on_end(void *user, const struct completion_end *end)
{
    struct bench_slot *slot = user;
    struct bench_engine *b = slot->bench;
    if (end->reason == FINISH_ERROR && b->status == STATUS_OK)
        b->status = err_set(&b->err, end->failure, "request %u: %s", slot->index, end->message);
    bench_measure_request(b->measure, slot->index, end, slot->tokens, slot->exits, slot->n_tokens);
    bench_write_output(b, slot, end->reason);
    slot->next_free = b->free_slots;
    b->free_slots = slot;
    b->n_ended++;
    bench_measure_begin_steady(b->measure, host_now_ns()); /* those before it have all started */
    bench_submit(b);
}

/* Fills the free slots with the next requests. */
static void bench_submit(struct bench_engine *b)
{
    while (b->free_slots != NULL && b->n_submitted < b->n_limit && b->status == STATUS_OK) {
        struct bench_slot *slot = b->free_slots;
        b->free_slots = slot->next_free;
        slot->index = b->n_submitted++;
        slot->n_tokens = 0;
        slot->is_cancelling = false;
        bench_workload_draw(b->workload, slot->index, &b->session->checkpoint->config, &b->base,
                            &slot->request, b->prompt);
        struct completion_request request = {
            .prompt_ids = b->prompt,
            .n_prompt = slot->request.n_prompt,
            .params = slot->request.params,
            .user = slot,
            .on_token = bench_on_token,
            .on_end = bench_on_end,
        };
        enum status status =
            coordinator_submit(b->session->coordinator, &request, &slot->id, &b->err);
        if (status == STATUS_FULL) { /* more in flight than fit: the next end makes room */
            b->n_submitted--;
            slot->next_free = b->free_slots;
            b->free_slots = slot;
            return;
        }
        if (b->n_submitted == b->n_limit)
            bench_measure_end_steady(b->measure, host_now_ns());
        if (status != STATUS_OK)
            b->status = status;
        else if (slot->request.cancel_at == 0) {
            slot->is_cancelling = true;
            coordinator_cancel(b->session->coordinator, slot->id);
        }
    }
}

static void bench_look_at_load(struct bench_engine *b)
{
    struct scheduler_load load;
    coordinator_get_load(b->session->coordinator, &load);
    uint32_t n_open = load.n_opening + load.n_running;
    if (n_open > b->n_open_max)
        b->n_open_max = n_open;
}

/* Runs requests [n_submitted, limit) to their end. */
static enum status bench_phase(struct bench_engine *b, uint32_t limit, struct err *err)
{
    b->n_limit = limit;
    b->n_open_max = 0;
    bench_submit(b);
    enum status status = STATUS_OK;
    while (status == STATUS_OK && b->status == STATUS_OK &&
           (b->n_ended < b->n_limit || !coordinator_is_idle(b->session->coordinator))) {
        bench_look_at_load(b);
        status = coordinator_step(b->session->coordinator, 200ull * 1000 * 1000, err);
    }
    if (status == STATUS_OK && b->status != STATUS_OK) {
        *err = b->err;
        status = b->status;
    }
    return status;
}

static enum status bench_allocate(struct bench_engine *b, struct err *err)
{
    const struct bench_workload *w = b->workload;
    size_t n = (size_t)w->concurrency, cap = (size_t)w->output_max + 1;
    b->slots = calloc(n, sizeof *b->slots);
    b->prompt = calloc((size_t)w->prompt_max, sizeof *b->prompt);
    if (b->slots == NULL || b->prompt == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu requests in flight", n);
    for (size_t i = n; i-- > 0;) {
        struct bench_slot *slot = &b->slots[i];
        slot->bench = b;
        slot->tokens = calloc(cap, sizeof *slot->tokens);
        slot->exits = calloc(cap, sizeof *slot->exits);
        if (slot->tokens == NULL || slot->exits == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu requests in flight", n);
        slot->next_free = b->free_slots;
        b->free_slots = slot;
    }
    return STATUS_OK;
}

static void bench_release(struct bench_engine *b)
{
    for (int i = 0; b->slots != NULL && i < b->workload->concurrency; i++) {
        free(b->slots[i].tokens);
        free(b->slots[i].exits);
    }
    free(b->slots);
    free(b->prompt);
}

/* The machine's own limits, with as many threads as a worker computes with. */
static enum status bench_machine(const struct session *s, struct kernels_machine *out,
                                 struct err *err)
{
    int n_mates = s->transport->n_local_ranks - 1; /* rank 0 does not compute */
    struct kernels_options options = {.n_threads = s->options.n_threads, .isa = s->options.isa};
    if (options.n_threads == 0)
        options.n_threads = n_mates > 0 && n_mates < host_n_cores() ? host_n_cores() / n_mates : 1;
    struct kernels *k;
    enum status status = kernels_create("cpu", &options, &k, err);
    if (status != STATUS_OK)
        return status;
    status = kernels_measure_machine(k, out, err);
    kernels_destroy(k);
    return status;
}

static uint64_t cpu_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static enum status bench_run(struct bench_engine *b, bool with_bound, struct bench_report *report,
                             struct err *err)
{
    const struct bench_workload *w = b->workload;
    struct coordinator *c = b->session->coordinator;
    enum status status = bench_allocate(b, err);
    if (status == STATUS_OK && with_bound)
        status = bench_machine(b->session, &report->machine, err);
    if (status == STATUS_OK)
        status = bench_measure_create((uint32_t)(w->n_warmup + w->n_requests), &b->measure, err);
    if (status == STATUS_OK && w->n_warmup > 0)
        status = bench_phase(b, (uint32_t)w->n_warmup, err);
    if (status == STATUS_OK)
        status = coordinator_collect_stats(c, true, report->stats, err);
    if (status != STATUS_OK)
        return status;
    bench_measure_begin(b->measure);
    report->began_ns = host_now_ns();
    uint64_t began_cpu_ns = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t began_thread_ns = cpu_ns(CLOCK_THREAD_CPUTIME_ID);
    status = bench_phase(b, (uint32_t)(w->n_warmup + w->n_requests), err);
    report->ended_ns = host_now_ns();
    report->cpu_ns = cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - began_cpu_ns;
    report->coordinator_cpu_ns = cpu_ns(CLOCK_THREAD_CPUTIME_ID) - began_thread_ns;
    report->n_open_max = b->n_open_max;
    if (status == STATUS_OK)
        status = coordinator_collect_stats(c, false, report->stats, err);
    /* After the run: a message's record is the dearest, and there are fewer of those than of rows.
     */
    struct bench_trace_figures record;
    const uint64_t trace_bytes = b->session->options.trace_bytes;
    if (status == STATUS_OK && trace_bytes > 0 &&
        (status = bench_trace_measure(trace_bytes, &record, err)) == STATUS_OK)
        report->trace_record_ns = record.message_ns;
    return status;
}

/* The lengths are the workload's, and no text is made: options about those would do nothing. */
static struct option_group bench_request_group(struct request_options *o, struct option_spec *specs)
{
    static const char *const unused[] = {"max-tokens", "ignore-eos", "stop"};
    const size_t n_unused = sizeof unused / sizeof unused[0];
    size_t n = 0, n_all = request_options_group(o, specs).n_specs;
    for (size_t i = 0; i < n_all; i++) {
        size_t k = 0;
        while (k < n_unused && (specs[i].name == NULL || strcmp(specs[i].name, unused[k]) != 0))
            k++;
        if (k == n_unused)
            specs[n++] = specs[i];
    }
    return (struct option_group){specs, n};
}

int cli_bench_engine(int argc, char **argv, char **program_argv)
{
    struct session_options so;
    struct request_options ro;
    struct bench_workload workload;
    session_options_init(&so);
    request_options_init(&ro);
    bench_workload_init(&workload);
    bool as_json = false, with_bound = false;
    const char *outputs = NULL;
    const struct option_spec own[] = {
        {"json", 0, OPTION_FLAG, &as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
        {"bound", 0, OPTION_FLAG, &with_bound, NULL, NULL, 0, 0,
         "one stream, compared with read bandwidth", NULL},
        {"outputs", 0, OPTION_STRING, &outputs, "FILE", NULL, 0, 0,
         "write every request's tokens, a JSON line each", NULL},
    };
    struct option_spec request_specs[REQUEST_N_SPECS], session_specs[SESSION_N_SPECS],
        workload_specs[BENCH_WORKLOAD_N_SPECS];
    struct option_group groups[] = {
        {own, sizeof own / sizeof own[0]},
        bench_workload_group(&workload, workload_specs),
        bench_request_group(&ro, request_specs),
        session_options_group(&so, session_specs),
    };
    struct options_result args;
    struct err err = {0};
    if (options_parse(groups, 4, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("bench engine", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 4, &args);
        return CLI_OK;
    }
    if (session_take_model(&args, &so.model, &err) != STATUS_OK ||
        bench_workload_parse(&workload, &err) != STATUS_OK)
        return cli_fail_usage("bench engine", &err);
    if (with_bound)
        workload.concurrency = 1; /* the bound is one stream's */
    struct bench_engine b = {.workload = &workload};
    struct bench_report report = {0};
    int exit_code;
    enum status status = session_open(&so, program_argv, &b.session, &exit_code, &err);
    if (status != STATUS_OK)
        return cli_fail("bench engine", &err);
    if (b.session == NULL)
        return exit_code;
    const struct model_config *config = &b.session->checkpoint->config;
    struct completion_request base = {0};
    /* Lengths are the workload's, and random tokens must not end a request early. */
    ro.ignore_eos = true;
    status = bench_workload_check(&workload, config, &err);
    if (status == STATUS_OK)
        status = request_options_apply(&ro, b.session, (uint32_t)workload.prompt_max, &base, &err);
    b.base = base.params;
    report.stats = calloc((size_t)b.session->n_workers, sizeof *report.stats);
    if (status == STATUS_OK && report.stats == NULL)
        status = err_set(&err, STATUS_NO_MEMORY, "no memory for %d workers", b.session->n_workers);
    if (status == STATUS_OK && outputs != NULL && (b.outputs = fopen(outputs, "w")) == NULL)
        status = err_set(&err, STATUS_IO, "cannot write %s: %m", outputs);
    if (status == STATUS_OK)
        status = bench_run(&b, with_bound, &report, &err);
    if (b.outputs != NULL && fclose(b.outputs) != 0 && status == STATUS_OK)
        status = err_set(&err, STATUS_IO, "cannot write %s: %m", outputs);
    b.outputs = NULL; /* requests that the session's end cancels still call back */
    if (status == STATUS_OK)
        bench_report_print(&report, b.measure, b.session, &workload, as_json);
    status = session_save_trace(b.session, status, &err);
    exit_code = status == STATUS_OK ? CLI_OK : cli_fail("bench engine", &err);
    session_close(b.session);
    bench_measure_destroy(b.measure);
    bench_release(&b);
    free(report.stats);
    return exit_code;
}
