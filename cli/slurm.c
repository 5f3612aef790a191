/* `carousel slurm`: where a job of scripts/slurm/ stands, where it listens, and its orderly end. */
#include "cli/child.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/slurm_job.h"
#include "cluster/host.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static const char usage[] =
    "usage: carousel slurm status|endpoint|drain JOBID [options]\n"
    "Jobs that scripts/slurm/ has started: status tells how one stands, endpoint prints\n"
    "the URL of a service that is ready, drain finishes what runs and waits until the\n"
    "job is gone. docs/slurm.md has more.";

/* From one look at a job to the next: soon at first, and then as seldom as a busy controller, which
 * others ask as well, can bear. */
#define FIRST_POLL_NS   UINT64_C(200000000)
#define SLOWEST_POLL_NS UINT64_C(5000000000)
#define CURL_S          "5"
#define COMMAND_S       30.0
/* The drain of serve.sbatch takes 90 s at most, then ranks and nodes are given back. */
#define DRAIN_S 150.0
enum { ENDPOINT_MAX_BYTES = 65536 };

struct slurm_options {
    double wait_s; /* below 0: not given */
    bool is_no_wait, as_json;
    const char *run_dir;
};

/* ---- the endpoint --------------------------------------------------------------------------- */

/* The endpoint file's object. STATUS_NOT_FOUND: there is none (yet). */
static enum status read_endpoint(const struct slurm_job *job, json_t **out, struct err *err)
{
    char path[PATH_MAX + 32];
    struct stat info;
    json_error_t error;
    if (job->run_dir[0] == '\0')
        return err_set(err, STATUS_NOT_FOUND,
                       "job %llu names no run directory in its comment, as jobs of scripts/slurm/ "
                       "do when they start: give --run-dir DIR",
                       (unsigned long long)job->id);
    snprintf(path, sizeof path, "%s/endpoint.json", job->run_dir);
    if (stat(path, &info) != 0)
        return err_set(err, STATUS_NOT_FOUND,
                       "job %llu has no endpoint file %s: it is no service, or has not started "
                       "yet, or this host does not see that directory",
                       (unsigned long long)job->id, path);
    /* Reading a pipe would wait for whoever writes to it. */
    if (!S_ISREG(info.st_mode) || info.st_size > ENDPOINT_MAX_BYTES)
        return err_set(err, STATUS_CORRUPT,
                       "%s is no endpoint file: that is a plain file of at most %d bytes", path,
                       (int)ENDPOINT_MAX_BYTES);
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    const char *url = json_string_value(json_object_get(root, "url"));
    if (url == NULL || json_string_value(json_object_get(root, "state")) == NULL ||
        (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)) {
        json_decref(root);
        return err_set(err, STATUS_CORRUPT, "%s is no endpoint file: url and state are missing",
                       path);
    }
    *out = root;
    return STATUS_OK;
}

/* What GET /ready answers: 200, 503, ...; 0: nobody answers there; below 0: it cannot be asked. */
static int ask_ready(const char *url)
{
    char ready[4096];
    struct child *child = malloc(sizeof *child);
    snprintf(ready, sizeof ready, "%s/ready", url);
    /* --insecure: nothing is told to it, and a certificate may be the site's own. --globoff: a URL
     * with [1-9] in it is one, not nine. */
    const char *const args[] = {
        "curl",      "--silent",    "--globoff",    "--insecure", "--noproxy", "*",   "--output",
        "/dev/null", "--write-out", "%{http_code}", "--max-time", CURL_S,      ready, NULL};
    int code = -1;
    if (child != NULL && child_run(args, NULL, COMMAND_S, child, NULL) == STATUS_OK)
        code = atoi(child->out);
    free(child);
    return code;
}

static enum status query(uint64_t id, const struct slurm_options *o, struct slurm_job *job,
                         struct err *err)
{
    enum status status = slurm_job_query(id, job, err);
    if (status == STATUS_OK && o->run_dir != NULL)
        snprintf(job->run_dir, sizeof job->run_dir, "%s", o->run_dir);
    return status;
}

static const char *text_of(const json_t *endpoint, const char *key)
{
    return json_string_value(json_object_get(endpoint, key));
}

/* ---- status --------------------------------------------------------------------------------- */

static enum status print_status_json(const struct slurm_job *job, json_t *endpoint, int ready,
                                     struct err *err)
{
    json_t *root =
        json_pack("{s:I, s:s, s:s, s:i, s:s, s:i, s:s, s:O?, s:o}", "job", (json_int_t)job->id,
                  "state", job->state, "reason", job->reason, "nodes", job->n_nodes, "time_left",
                  job->time_left, "requeues", job->n_requeues, "run_dir", job->run_dir, "endpoint",
                  endpoint, "ready", ready < 0 ? json_null() : json_boolean(ready == 200));
    if (root == NULL)
        return err_set(err, STATUS_UNSUPPORTED,
                       "job %llu's run directory is no UTF-8 text, so it has no JSON: leave out "
                       "--json",
                       (unsigned long long)job->id);
    json_dumpf(root, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(root);
    return STATUS_OK;
}

static enum status show_status(uint64_t id, const struct slurm_options *o, struct err *err)
{
    struct slurm_job job;
    json_t *endpoint = NULL;
    struct err no_endpoint = {0};
    enum status status = query(id, o, &job, err);
    if (status != STATUS_OK)
        return status;
    /* A batch has none. A broken one is told, and the rest is true even so. */
    enum status found = read_endpoint(&job, &endpoint, &no_endpoint);
    int ready = -1;
    if (endpoint != NULL && slurm_job_is_alive(&job))
        ready = ask_ready(text_of(endpoint, "url"));
    if (o->as_json) {
        status = print_status_json(&job, endpoint, ready, err);
        json_decref(endpoint);
        return status;
    }
    bool has_reason = strcmp(job.reason, "None") != 0;
    printf("job        %llu\n", (unsigned long long)job.id);
    printf("state      %s%s%s%s\n", job.state, has_reason ? " (" : "", has_reason ? job.reason : "",
           has_reason ? ")" : "");
    printf("nodes      %d\n", job.n_nodes);
    if (slurm_job_is_alive(&job))
        printf("time left  %s\n", job.time_left);
    printf("requeues   %d\n", job.n_requeues);
    printf("run dir    %s\n", job.run_dir[0] != '\0' ? job.run_dir : "unknown");
    if (endpoint != NULL)
        printf("endpoint   %s (%s)\n", text_of(endpoint, "url"), text_of(endpoint, "state"));
    else
        printf("endpoint   %s\n", found == STATUS_NOT_FOUND ? "none" : no_endpoint.message);
    if (ready > 0)
        printf("ready      %s (GET /ready says %d)\n", ready == 200 ? "yes" : "no", ready);
    else if (endpoint != NULL)
        printf("ready      %s\n", ready == 0 ? "no (nobody answers there)" : "not asked");
    json_decref(endpoint);
    return STATUS_OK;
}

/* ---- endpoint ------------------------------------------------------------------------------- */

/* Until the next look, but not beyond the deadline; each pause is half longer than the one before.
 */
static void pause_before_asking(uint64_t *pause_ns, uint64_t deadline_ns)
{
    uint64_t now_ns = host_now_ns(), left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    uint64_t ns = *pause_ns < left_ns ? *pause_ns : left_ns;
    const struct timespec pause = {.tv_sec = (time_t)(ns / 1000000000u),
                                   .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&pause, NULL);
    *pause_ns += *pause_ns / 2;
    if (*pause_ns > SLOWEST_POLL_NS)
        *pause_ns = SLOWEST_POLL_NS;
}

/* STATUS_FULL: not yet, and the message says what is missing. */
static enum status look_for_endpoint(uint64_t id, const struct slurm_options *o, json_t **out,
                                     struct err *err)
{
    struct slurm_job job;
    json_t *endpoint = NULL;
    enum status status = query(id, o, &job, err);
    if (status != STATUS_OK)
        return status;
    if (slurm_job_is_waiting(&job))
        return err_set(err, STATUS_FULL, "job %llu does not run yet: %s (%s); --wait S waits",
                       (unsigned long long)id, job.state, job.reason);
    if (!slurm_job_is_alive(&job))
        return err_set(err, STATUS_NOT_FOUND, "job %llu does not run any more: %s",
                       (unsigned long long)id, job.state);
    status = read_endpoint(&job, &endpoint, err);
    if (status != STATUS_OK)
        return status == STATUS_NOT_FOUND ? STATUS_FULL : status;
    const char *state = text_of(endpoint, "state");
    if (strcmp(state, "ready") != 0) {
        status = err_set(err, strcmp(state, "loading") == 0 ? STATUS_FULL : STATUS_NOT_FOUND,
                         "the service of job %llu is not ready: it is %s", (unsigned long long)id,
                         state);
        json_decref(endpoint);
        return status;
    }
    *out = endpoint;
    return STATUS_OK;
}

static enum status show_endpoint(uint64_t id, const struct slurm_options *o, struct err *err)
{
    json_t *endpoint = NULL;
    uint64_t wait_ns = o->wait_s > 0 ? (uint64_t)(o->wait_s * 1e9) : 0;
    uint64_t deadline_ns = host_now_ns() + wait_ns, pause_ns = FIRST_POLL_NS;
    enum status status;
    while ((status = look_for_endpoint(id, o, &endpoint, err)) == STATUS_FULL &&
           host_now_ns() < deadline_ns)
        pause_before_asking(&pause_ns, deadline_ns);
    if (status == STATUS_OK && o->as_json) {
        json_dumpf(endpoint, stdout, JSON_COMPACT);
        putchar('\n');
    } else if (status == STATUS_OK) {
        printf("%s\n", text_of(endpoint, "url"));
    }
    json_decref(endpoint);
    return status;
}

/* ---- drain ---------------------------------------------------------------------------------- */

static enum status run_slurm(const char *const *args, struct err *err)
{
    struct child *child = malloc(sizeof *child);
    if (child == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the answer of %s", args[0]);
    enum status status = child_run(args, NULL, COMMAND_S, child, err);
    if (status == STATUS_OK && child->code != 0)
        status =
            err_set(err, STATUS_IO, "%s failed: %.*s", args[0], (int)strcspn(child->errors, "\n"),
                    child->errors[0] != '\0' ? child->errors : "without a word");
    free(child);
    return status;
}

static enum status send_drain(uint64_t id, struct err *err)
{
    char number[24], which[32];
    snprintf(number, sizeof number, "%llu", (unsigned long long)id);
    snprintf(which, sizeof which, "JobId=%llu", (unsigned long long)id);
    /* First this: a batch that drains would start again. */
    const char *const stay[] = {"scontrol", "update", which, "Requeue=0", NULL};
    const char *const drain[] = {"scancel", "--signal=USR1", "--batch", number, NULL};
    enum status status = run_slurm(stay, err);
    return status == STATUS_OK ? run_slurm(drain, err) : status;
}

static enum status drain_job(uint64_t id, const struct slurm_options *o, struct err *err)
{
    struct slurm_job job;
    enum status status = query(id, o, &job, err);
    if (status != STATUS_OK)
        return status;
    if (slurm_job_is_waiting(&job))
        return err_set(err, STATUS_INVALID,
                       "job %llu does not run, so nothing is to be drained: %s (%s); scancel %llu "
                       "takes it out of the queue",
                       (unsigned long long)id, job.state, job.reason, (unsigned long long)id);
    if (!slurm_job_is_alive(&job))
        return err_set(err, STATUS_NOT_FOUND, "job %llu does not run any more: %s",
                       (unsigned long long)id, job.state);
    if (job.run_dir[0] == '\0') /* USR1 would end somebody else's script */
        return err_set(err, STATUS_INVALID,
                       "job %llu does not say that it runs carousel (its comment names no run "
                       "directory); give --run-dir DIR if it does",
                       (unsigned long long)id);
    uint64_t started_ns = host_now_ns();
    status = send_drain(id, err);
    if (status != STATUS_OK)
        return status;
    if (o->is_no_wait) {
        printf("job %llu drains\n", (unsigned long long)id);
        return STATUS_OK;
    }
    double wait_s = o->wait_s >= 0 ? o->wait_s : DRAIN_S;
    uint64_t deadline_ns = started_ns + (uint64_t)(wait_s * 1e9), pause_ns = FIRST_POLL_NS;
    for (;;) {
        double elapsed_s = (double)(host_now_ns() - started_ns) / 1e9;
        status = slurm_job_query(id, &job, err);
        /* Slurm forgets jobs that have ended. */
        bool is_forgotten = status == STATUS_NOT_FOUND;
        if (status != STATUS_OK && !is_forgotten)
            return status;
        if (is_forgotten || !slurm_job_is_alive(&job)) {
            printf("job %llu has ended after %.1f s: %s\n", (unsigned long long)id, elapsed_s,
                   is_forgotten ? "Slurm has forgotten it" : job.state);
            return STATUS_OK;
        }
        if (elapsed_s >= wait_s)
            return err_set(err, STATUS_TIMEOUT,
                           "job %llu still drains after %.0f s (%s): wait on, or scancel %llu",
                           (unsigned long long)id, elapsed_s, job.state, (unsigned long long)id);
        pause_before_asking(&pause_ns, deadline_ns);
    }
}

/* ---- the command line ----------------------------------------------------------------------- */

static const struct action {
    const char *name;
    enum status (*run)(uint64_t id, const struct slurm_options *o, struct err *err);
} actions[] = {{"status", show_status}, {"endpoint", show_endpoint}, {"drain", drain_job}};

int cli_slurm(int argc, char **argv, char **program_argv)
{
    (void)program_argv;
    struct slurm_options o = {.wait_s = -1};
    const struct option_spec specs[] = {
        {"wait", 0, OPTION_FLOAT, &o.wait_s, "S", NULL, 0, 1e6,
         "endpoint: until it is ready (default 0); drain: until it is gone (default 150)", NULL},
        {"no-wait", 0, OPTION_FLAG, &o.is_no_wait, NULL, NULL, 0, 0, "drain: only ask for it",
         NULL},
        {"run-dir", 0, OPTION_STRING, &o.run_dir, "DIR", NULL, 0, 0,
         "of the job (default: what its comment says)", NULL},
        {"json", 0, OPTION_FLAG, &o.as_json, NULL, NULL, 0, 0, "status, endpoint: one JSON object",
         NULL},
    };
    const struct option_group groups[] = {{specs, sizeof specs / sizeof specs[0]}};
    struct options_result args;
    struct err err = {0};
    uint64_t id;
    if (options_parse(groups, 1, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("slurm", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 1, &args);
        return CLI_OK;
    }
    const struct action *action = NULL;
    for (size_t i = 0; args.n_positionals > 0 && i < sizeof actions / sizeof actions[0]; i++)
        if (strcmp(args.positionals[0], actions[i].name) == 0)
            action = &actions[i];
    if (action == NULL || args.n_positionals != 2) {
        err_set(&err, STATUS_INVALID,
                "what and which job? carousel slurm status|endpoint|drain JOBID");
        return cli_fail_usage("slurm", &err);
    }
    if (slurm_job_parse_id(args.positionals[1], &id, &err) != STATUS_OK)
        return cli_fail_usage("slurm", &err);
    return action->run(id, &o, &err) == STATUS_OK ? CLI_OK : cli_fail("slurm", &err);
}
