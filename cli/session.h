/* A cluster for the length of one command: opens the model, starts or joins the ranks, hands out
 * the coordinator.
 *
 * Every subcommand that runs the model does: session_options_group() in its option tables,
 * session_open, submit to session->coordinator, session_run, session_close. On a worker rank
 * session_open runs the worker until shutdown: it returns STATUS_OK with *out NULL, and *exit_code
 * is what the process should return. */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include "cli/options.h"
#include "coordinator/coordinator.h"
#include "model/checkpoint.h"
#include "model/tokenizer.h"
#include "worker/worker.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct session_options {
    const char *model; /* the MODEL argument; NULL = the bundled demo model */
    int n_workers;
    bool has_workers; /* --workers was given */
    int transport;    /* 0 auto, 1 inproc, 2 mpi */
    int n_loops;
    int backend; /* enum session_backend */
    int device;  /* of --device; -1: none was given */
    double gpu_memory_fraction;
    bool has_fraction, is_deterministic;
    int cuda_aware; /* enum worker_cuda_aware */
    const char *isa;
    int n_threads;
    uint64_t kv_bytes;
    int kv_dtype; /* 0 auto, 1 f32, 2 bf16 */
    int block_size, max_batch_rows, prefill_chunk, max_sequences, ring_size, n_in_flight;
    int batching; /* enum batching */
    int prefill;  /* enum prefill_policy: for the sequences the subcommand submits */
    double wait_ms;
    bool no_verify;
    const char *trace; /* --trace: where the session's trace goes when it ends; NULL: nowhere */
    uint64_t
        trace_bytes; /* --trace-buffer: records are kept in so many bytes a rank; 0: none are */
    const char *cost_file; /* --cost: of the timed backend */
    bool is_quiet;         /* set by the subcommand: no line about GPUs at the start */
    bool needs_tokenizer;  /* set by the subcommand: fail early when the model has none */
    /* Set by a server. */
    uint32_t max_queue;        /* of the coordinator; 0 = default */
    double answer_timeout_s;   /* of the coordinator; 0 = default */
    bool is_server;            /* mpirun passes signals on as launch_mpirun_server says */
    const struct err *refusal; /* rank 0 cannot go on, and why: it joins the job only to tell the
                                  workers; NULL: all is well */
};

/* In the order of --backend's choices. */
enum session_backend { BACKEND_AUTO = 0, BACKEND_CPU, BACKEND_CUDA, BACKEND_TIMED };
const char *session_backend_name(const struct session_options *o);
/* Options that make no sense together, before anything is started. STATUS_INVALID. */
enum status session_check_backend(const struct session_options *o, struct err *err);

enum { SESSION_N_SPECS = 31 };
/* Defaults; then the option table that fills it: specs[] has room for SESSION_N_SPECS. */
void session_options_init(struct session_options *o);
struct option_group session_options_group(struct session_options *o, struct option_spec *specs);

struct session_worker_thread;
struct session {
    struct session_options options;
    char model_dir[4096];
    char cost_file[4096]; /* the path that --cost means; empty: none */
    struct checkpoint *checkpoint;
    struct tokenizer *tokenizer; /* NULL: the directory has no tokenizer.json */
    struct transport *transport;
    struct coordinator *coordinator;
    struct trace *trace; /* rank 0's records; NULL: none are kept */
    int n_workers;
    struct session_worker_thread *threads; /* inproc: one a worker */
    struct transport **transports;         /* inproc: one a rank */
};

/* argv is the whole program's, for starting mpirun. Messages are ready to be shown to the user. */
enum status session_open(const struct session_options *options, char **argv, struct session **out,
                         int *exit_code, struct err *err);
/* Of the KV pools; known once the session is open, because a GPU has one kind of its own. */
enum dtype session_kv_dtype(const struct session *s);
/* Where this process's place is: the front coordinates, the launcher becomes mpirun. */
enum session_place { SESSION_FRONT = 1, SESSION_LAUNCHER, SESSION_WORKER };
enum session_place session_find_place(const struct session_options *options);
/* Whether FILE of --trace can be written, asked before the work and not hours later: STATUS_IO,
 * STATUS_INVALID. */
enum status session_check_trace(const struct session_options *options, struct err *err);
/* Where --trace was given: writes the trace of the work that ended with `outcome`, before
 * session_close, and says so on stderr. When it succeeded or was interrupted (STATUS_CANCELLED)
 * that is the trace of all ranks; when it failed, or they cannot be asked any more, the records of
 * rank 0. Returns the outcome; of STATUS_OK what went wrong here, with *err, which else stays. */
enum status session_save_trace(struct session *s, enum status outcome, struct err *err);
struct session_trace_summary {
    uint64_t n_records, n_lost, n_most; /* n_most: made by the rank that made most */
    uint32_t n_ranks, n_missing;
};
/* Aligns the set and writes it; any thread, as nothing of a session is used. */
enum status session_write_trace(struct trace_set *set, const char *path,
                                struct session_trace_summary *out, struct err *err);
/* Orderly end; NULL is fine. */
void session_close(struct session *s);

/* The one argument of subcommands that take no prompt; *model NULL: none given. STATUS_INVALID. */
enum status session_take_model(const struct options_result *args, const char **model,
                               struct err *err);

/* Where the bundled demo model lies, next to the build or installed. STATUS_NOT_FOUND. */
enum status session_find_demo(char *out, size_t cap_bytes, struct err *err);
/* The prompt's ids from "1,2,3" or from text with the tokenizer (as one chat turn when chat is
 * set), checked against the vocabulary. *ids is malloc'd. */
enum status session_prompt_ids(const struct session *s, const char *ids_text, const char *text,
                               bool chat, bool thinking, int32_t **ids, size_t *n_ids,
                               struct err *err);
/* Sorts `[MODEL] [PROMPT]`: two arguments are both; a single one is the MODEL when it is a
 * directory or when the prompt comes as ids (ids_text, may be NULL), else the PROMPT.
 * STATUS_INVALID when there is no prompt, ids that are none, or too many arguments. */
enum status session_split_arguments(const struct options_result *args, const char *ids_text,
                                    const char **model, const char **prompt, struct err *err);
/* Turns the coordinator until it is idle, or *is_done (may be NULL) is set. */
enum status session_run(struct session *s, const bool *is_done, struct err *err);

#endif
