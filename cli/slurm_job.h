/* What Slurm knows of a job that one of scripts/slurm/ has started, and where its files are. */
#ifndef CLI_SLURM_JOB_H
#define CLI_SLURM_JOB_H

#include "proto/status.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

struct slurm_job {
    uint64_t id;
    char state[32]; /* Slurm's word: PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, ... */
    char reason[128];
    char time_left[32]; /* as squeue writes it: 1-02:03:04, UNLIMITED */
    int n_nodes;
    int n_requeues;
    char run_dir[PATH_MAX]; /* "" when the job's comment names none */
};

/* A job's number as users write it. STATUS_INVALID says what was found. */
enum status slurm_job_parse_id(const char *text, uint64_t *id, struct err *err);

/* One line of squeue --format=SLURM_JOB_FORMAT. STATUS_CORRUPT when it is none. n_requeues stays
 * 0. */
#define SLURM_JOB_FORMAT "%A|%T|%D|%L|%r|%k"
enum status slurm_job_parse(const char *line, struct slurm_job *out, struct err *err);

/* Asks squeue. STATUS_NOT_FOUND: no Slurm on this host, or no such job (any more); STATUS_IO: Slurm
 * does not answer, with its own words. */
enum status slurm_job_query(uint64_t id, struct slurm_job *out, struct err *err);

/* It has started and not ended: its processes may be there. */
bool slurm_job_is_alive(const struct slurm_job *job);
/* It waits for its first or its next start. */
bool slurm_job_is_waiting(const struct slurm_job *job);

#endif
