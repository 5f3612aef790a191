/* `carousel trace`: what a recorded trace says. */
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/trace_report.h"

#include <sys/stat.h>

static const char usage[] =

    "usage: carousel trace report FILE [options]\n"
    "Says where the time of a run went: per loop the hops, waits and batches of live rows, per\n"
    "worker its busy and idle time, and the way of the slowest tokens. FILE is what --trace of\n"
    "generate, batch, serve, bench engine or simulate has written; ui.perfetto.dev shows it.";

/* By whatever name: the page would replace the trace it is made of. */
static bool is_same_file(const char *a, const char *b)
{
    struct stat one, other;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

static enum status report(const char *path, bool as_json, const char *html, struct err *err)
{
    struct trace_set *set;
    struct trace_report r;
    if (html != NULL && is_same_file(path, html))
        return err_set(err, STATUS_INVALID,
                       "--html %s is the trace itself; give the page another name", html);
    enum status status = trace_set_read(path, &set, err);
    if (status != STATUS_OK)
        return status;
    status = trace_report_make(set, &r, err);
    if (status == STATUS_OK) {
        if (html != NULL)
            status = trace_page_write(&r, set, html, err);
        if (status == STATUS_OK && as_json)
            trace_report_print_json(&r, set);
        else if (status == STATUS_OK)
            trace_report_print(&r, set);
        trace_report_free(&r);
    }
    trace_set_destroy(set);
    return status;
}

int cli_trace(int argc, char **argv, char **program_argv)
{
    (void)program_argv;
    bool as_json = false;
    const char *html = NULL;
    const struct option_spec own[] = {
        {"json", 0, OPTION_FLAG, &as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
        {"html", 0, OPTION_STRING, &html, "OUT", NULL, 0, 0, "and write a page with the pictures",
         NULL},
    };
    struct option_group groups[] = {{own, sizeof own / sizeof own[0]}};
    struct options_result args;
    struct err err = {0};
    if (options_parse(groups, 1, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("trace", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 1, &args);
        return CLI_OK;
    }
    if (args.n_positionals != 2 || strcmp(args.positionals[0], "report") != 0) {
        if (args.n_positionals == 0 || strcmp(args.positionals[0], "report") == 0)
            err_set(&err, STATUS_INVALID,
                    "one FILE is needed; found %d: carousel trace report FILE",
                    args.n_positionals > 0 ? args.n_positionals - 1 : 0);
        else
            err_set(&err, STATUS_INVALID, "there is no '%s'; there is: carousel trace report FILE",
                    args.positionals[0]);
        return cli_fail_usage("trace", &err);
    }
    return report(args.positionals[1], as_json, html, &err) == STATUS_OK ? CLI_OK
                                                                         : cli_fail("trace", &err);
}
