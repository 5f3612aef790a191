/* Asks squeue about one job and believes nothing of its answer unchecked. */
#include "cli/slurm_job.h"

#include "cli/child.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What scripts/slurm/ puts in front of RUN_DIR in the job's comment. */
#define COMMENT_PREFIX "carousel:"
/* A busy controller answers late. */
#define ANSWER_S 30.0

enum status slurm_job_parse_id(const char *text, uint64_t *id, struct err *err)
{
    char *end = NULL;
    bool is_number = text[0] >= '1' && text[0] <= '9' && strlen(text) <= 10;
    uint64_t value = is_number ? strtoull(text, &end, 10) : 0;
    if (!is_number || *end != '\0')
        return err_set(err, STATUS_INVALID,
                       "JOBID '%s' is not a job's number, as sbatch prints it (squeue --me lists "
                       "yours)",
                       text);
    *id = value;
    return STATUS_OK;
}

/* The next field of a line split by '|', or false. */
static bool take_field(const char **rest, char *out, size_t cap_bytes)
{
    size_t n = strcspn(*rest, "|\n");
    if ((*rest)[n] != '|' || n == 0 || n >= cap_bytes)
        return false;
    memcpy(out, *rest, n);
    out[n] = '\0';
    *rest += n + 1;
    return true;
}

static bool parse_count(const char *text, int *out)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < 0 || value > INT_MAX)
        return false;
    *out = (int)value;
    return true;
}

enum status slurm_job_parse(const char *line, struct slurm_job *out, struct err *err)
{
    struct slurm_job job = {0};
    char id[16], n_nodes[16];
    const char *rest = line;
    struct err ignored;
    if (!take_field(&rest, id, sizeof id) ||
        slurm_job_parse_id(id, &job.id, &ignored) != STATUS_OK ||
        !take_field(&rest, job.state, sizeof job.state) ||
        !take_field(&rest, n_nodes, sizeof n_nodes) || !parse_count(n_nodes, &job.n_nodes) ||
        !take_field(&rest, job.time_left, sizeof job.time_left) ||
        !take_field(&rest, job.reason, sizeof job.reason))
        return err_set(err, STATUS_CORRUPT, "squeue's answer is not what was asked for: '%.*s'",
                       (int)strcspn(line, "\n") < 200 ? (int)strcspn(line, "\n") : 200, line);
    /* The comment is the user's: the last field, whatever is in it. */
    size_t n_prefix = strlen(COMMENT_PREFIX), n = strcspn(rest, "\n");
    if (strncmp(rest, COMMENT_PREFIX, n_prefix) == 0 && rest[n_prefix] == '/' &&
        n - n_prefix < sizeof job.run_dir)
        memcpy(job.run_dir, rest + n_prefix, n - n_prefix);
    *out = job;
    return STATUS_OK;
}

/* squeue about one job in one format; its words when it has none of it. */
static enum status ask_squeue(uint64_t id, const char *format, struct child *child, struct err *err)
{
    char which[40];
    snprintf(which, sizeof which, "--jobs=%llu", (unsigned long long)id);
    /* --noconvert: 1024 nodes are not "1K". */
    const char *const args[] = {"squeue", "--noheader", "--noconvert", "--states=all",
                                which,    format,       NULL};
    enum status status = child_run(args, "SQUEUE_", ANSWER_S, child, err);
    if (status == STATUS_NOT_FOUND)
        return err_set(err, status,
                       "there is no Slurm here: squeue is not on PATH (use a login node)");
    if (status == STATUS_TIMEOUT && child->errors[0] != '\0')
        return err_set(err, status, "Slurm does not answer within %.0f s: %.*s", ANSWER_S,
                       (int)strcspn(child->errors, "\n"), child->errors);
    if (status != STATUS_OK)
        return status;
    bool is_unknown = strstr(child->errors, "Invalid job id") != NULL;
    if (is_unknown || (child->code == 0 && child->out[0] == '\0'))
        return err_set(err, STATUS_NOT_FOUND,
                       "Slurm knows no job %llu, or not any more (sacct has what ended long ago)",
                       (unsigned long long)id);
    if (child->code != 0)
        return err_set(err, STATUS_IO, "Slurm does not answer: %.*s",
                       (int)strcspn(child->errors, "\n"),
                       child->errors[0] != '\0' ? child->errors : "squeue failed without a word");
    return STATUS_OK;
}

enum status slurm_job_query(uint64_t id, struct slurm_job *out, struct err *err)
{
    struct slurm_job job;
    struct child *child = malloc(sizeof *child);
    if (child == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for squeue's answer");
    enum status status = ask_squeue(id, "--format=" SLURM_JOB_FORMAT, child, err);
    const char *newline = strchr(child->out, '\n');
    if (status == STATUS_OK && newline != NULL && newline[1] != '\0')
        status = err_set(err, STATUS_UNSUPPORTED,
                         "job %llu is an array of jobs: name one of them (squeue --array lists "
                         "their numbers)",
                         (unsigned long long)id);
    if (status == STATUS_OK)
        status = slurm_job_parse(child->out, &job, err);
    if (status == STATUS_OK)
        status = ask_squeue(id, "--Format=RestartCnt:12", child, err);
    if (status == STATUS_OK) {
        child->out[strcspn(child->out, " \n")] = '\0';
        if (!parse_count(child->out, &job.n_requeues))
            status =
                err_set(err, STATUS_CORRUPT, "squeue's count of restarts is '%.40s'", child->out);
    }
    free(child);
    if (status == STATUS_OK)
        *out = job;
    return status;
}

bool slurm_job_is_waiting(const struct slurm_job *job)
{
    return strcmp(job->state, "PENDING") == 0 || strncmp(job->state, "REQUEUE", 7) == 0 ||
           strcmp(job->state, "CONFIGURING") == 0 || strcmp(job->state, "SPECIAL_EXIT") == 0;
}

bool slurm_job_is_alive(const struct slurm_job *job)
{
    static const char *const alive[] = {"RUNNING",   "COMPLETING", "SUSPENDED", "STOPPED",
                                        "SIGNALING", "RESIZING",   "STAGE_OUT"};
    for (size_t i = 0; i < sizeof alive / sizeof alive[0]; i++)
        if (strcmp(job->state, alive[i]) == 0)
            return true;
    return false;
}
