/* `carousel simulate`: a cluster of any size in virtual time, with the real decisions. */
#include "cli/cli.h"
#include "cli/simulate_options.h"
#include "cli/simulate_report.h"
#include "cli/simulate_why.h"
#include "cli/simulate_world.h"
#include "cli/trace_report.h"
#include "cluster/host.h"

#include <inttypes.h>
#include <stdio.h>

static const char usage[] =
    "usage: carousel simulate [MODEL] [options]\n"
    "Runs requests through a simulated cluster: the real scheduler and stages, with a\n"
    "cost file in the place of machines. No weights are read: MODEL is a directory\n"
    "with config.json; without it the shape is Ouro-1.4B's. The same options and seed\n"
    "print the same bytes. docs/simulator.md says what is modelled.";

static enum status print_trace_report(const struct trace_set *set, bool as_json, struct err *err)
{
    struct trace_report report;
    enum status status = trace_report_make(set, &report, err);
    if (status != STATUS_OK)
        return status;
    if (as_json)
        trace_report_print_json(&report, set);
    else
        trace_report_print(&report, set);
    trace_report_free(&report);
    return STATUS_OK;
}

static enum status save_trace(const struct simulate_options *o, const struct simulate_world *world,
                              struct err *err)
{
    struct trace_set *set;
    enum status status = simulate_world_trace(world, &set, err);
    if (status != STATUS_OK)
        return status;
    if (o->trace != NULL)
        status = trace_set_write(set, o->trace, err);
    if (status == STATUS_OK && o->with_report)
        status = print_trace_report(set, o->as_json, err);
    trace_set_destroy(set);
    return status;
}

static int share_of(int n, uint32_t n_workers)
{
    int share = n / (int)n_workers;
    return share > 0 ? share : 1;
}

/* One worker with its share of the same load: requests, how many at once, how often. */
static enum status run_base(const struct simulate_config *config, const struct simulate_load *load,
                            uint32_t n_workers, struct simulate_world **world,
                            struct simulate_result *result, uint32_t *concurrency, struct err *err)
{
    struct simulate_config one = *config;
    one.n_workers = one.ring_size = 1;
    one.trace_bytes = 0;
    /* A ring's sequences are its workers' together. */
    one.max_sequences = config->max_sequences / config->ring_size;
    if (one.max_sequences == 0)
        one.max_sequences = 1;
    struct bench_workload workload = *load->workload;
    workload.n_requests = share_of(workload.n_requests, n_workers);
    workload.concurrency = share_of(workload.concurrency, n_workers);
    workload.n_warmup = workload.n_warmup > 0 ? share_of(workload.n_warmup, n_workers) : 0;
    struct simulate_load its = *load;
    its.workload = &workload;
    its.rate_per_s = load->rate_per_s / n_workers;
    its.n_burst = (uint32_t)share_of((int)load->n_burst, n_workers);
    *concurrency = (uint32_t)workload.concurrency;
    enum status status = simulate_world_create(&one, &its, world, err);
    if (status == STATUS_OK)
        status = simulate_world_run(*world, (uint32_t)workload.n_warmup,
                                    (uint32_t)workload.n_requests, result, err);
    return status == STATUS_OK ? status : err_wrap(err, "one worker, for --efficiency");
}

static enum status compare(const struct simulate_config *config, const struct simulate_load *load,
                           const struct simulate_result *result, struct simulate_why *why,
                           struct err *err)
{
    struct simulate_world *world = NULL;
    struct simulate_result base;
    uint32_t base_concurrency;
    enum status status =
        run_base(config, load, config->n_workers, &world, &base, &base_concurrency, err);
    bool is_closed = load->arrivals == ARRIVALS_CLOSED;
    if (status == STATUS_OK)
        simulate_why_make(result, config->n_workers,
                          is_closed ? (uint32_t)load->workload->concurrency : 0, &base,
                          is_closed ? base_concurrency : 0, why);
    simulate_world_destroy(world);
    return status;
}

static enum status simulate(struct simulate_options *o, const struct simulate_config *config,
                            const struct simulate_load *load, struct err *err)
{
    struct simulate_world *world = NULL;
    struct simulate_result result;
    struct simulate_why why;
    uint64_t from_ns = host_now_ns();
    enum status status = simulate_world_create(config, load, &world, err);
    if (status == STATUS_OK)
        status = simulate_world_run(world, (uint32_t)o->workload.n_warmup,
                                    (uint32_t)o->workload.n_requests, &result, err);
    double wall_s = (double)(host_now_ns() - from_ns) / 1e9;
    if (status == STATUS_OK && o->with_efficiency)
        status = compare(config, load, &result, &why, err);
    if (status == STATUS_OK) {
        const struct simulate_report report = {config, load, &result,
                                               o->with_efficiency ? &why : NULL, o->with_workers};
        if (o->as_json && !o->with_report)
            simulate_report_print_json(&report);
        else if (!o->as_json)
            simulate_report_print(&report);
        /* The wall's time is nobody's result: standard output is the same every time. */
        fprintf(stderr, "simulated %" PRIu64 " events in %.2f s: %.0f events/s\n", result.n_events,
                wall_s, (double)result.n_events / wall_s);
    }
    if (status == STATUS_OK && config->trace_bytes > 0)
        status = save_trace(o, world, err);
    simulate_world_destroy(world);
    return status;
}

int cli_simulate(int argc, char **argv, char **program_argv)
{
    (void)program_argv;
    struct simulate_options o;
    struct simulate_specs specs;
    struct option_group groups[SIMULATE_N_GROUPS];
    struct options_result args;
    struct err err = {0};
    simulate_options_init(&o);
    size_t n_groups = simulate_options_groups(&o, &specs, groups);
    if (options_parse(groups, n_groups, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("simulate", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, n_groups, &args);
        return CLI_OK;
    }
    if (simulate_options_check(&o, &args, &err) != STATUS_OK)
        return cli_fail_usage("simulate", &err);
    struct simulate_config config;
    struct simulate_load load;
    enum status status = simulate_options_apply(&o, &config, &load, &err);
    if (status == STATUS_OK)
        status = simulate(&o, &config, &load, &err);
    simulate_load_free(&load);
    return status == STATUS_OK ? CLI_OK : cli_fail("simulate", &err);
}
