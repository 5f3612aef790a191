/* The options of one request: lengths, exit, sampling, stops; and the completion_request they make.
 */
#ifndef CLI_REQUEST_OPTIONS_H
#define CLI_REQUEST_OPTIONS_H

#include "cli/options.h"
#include "cli/session.h"
#include "coordinator/coordinator.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct request_options {
    int max_tokens, min_tokens;
    bool has_max_tokens;
    int exit_mode; /* enum exit_mode */
    bool has_exit_mode;
    double exit_threshold;
    bool has_exit_threshold;
    int min_loops;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    int top_k;
    uint64_t seed;
    bool has_seed;
    bool ignore_eos;
    const char *stop;     /* one stop string */
    const char *stop_ids; /* "1,2" */
    int n_logprobs;
};

enum { REQUEST_N_SPECS = 20, REQUEST_DEFAULT_MAX_TOKENS = 128 };
void request_options_init(struct request_options *o);
struct option_group request_options_group(struct request_options *o, struct option_spec *specs);

/* Fills params, stops and their count of *request; prompt, callbacks and user stay the caller's.
 * Where the user chose no exit mode or threshold the checkpoint's threshold holds. STATUS_INVALID
 * as sequence_params_check says. */
enum status request_options_apply(const struct request_options *o, const struct session *s,
                                  uint32_t n_prompt, struct completion_request *request,
                                  struct err *err);

/* max_tokens when the user gave none: the default, cut to what the context has left (at least 1).
 */
uint32_t request_default_max_tokens(const struct model_config *config, uint32_t n_prompt);

#endif
