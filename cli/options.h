/* Command-line options from one table: parsing, environment variables, help and range checks.
 *
 * Every option `--some-name` can also be set as CAROUSEL_SOME_NAME; the command line wins. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_type {
    OPTION_FLAG,    /* bool *target: true when given; the variable is true for 1, yes, true, on */
    OPTION_INT,     /* int *target, min..max */
    OPTION_U64,     /* uint64_t *target */
    OPTION_FLOAT,   /* double *target, min..max */
    OPTION_BYTES,   /* uint64_t *target: 1073741824, 512M, 2G, 1.5GiB */
    OPTION_STRING,  /* const char **target, borrowed from argv or the environment */
    OPTION_CHOICE,  /* int *target: index of the value in `choices`, words split by '|' */
    OPTION_HEADING, /* no option: `help` starts a new group in --help */
    OPTION_MORE     /* no option: what follows in this table is listed by --help-all only */
};

struct option_spec {
    const char *name; /* without dashes */
    char letter;      /* short form, 0 = none */
    enum option_type type;
    void *target;
    const char *argument; /* in help: N, Q, FILE, ...; NULL for flags and choices */
    const char *choices;
    double min, max; /* INT and FLOAT; both 0 = no limit */
    const char *help;
    bool *is_given; /* may be NULL: set when the user gave it */
};

struct option_group {
    const struct option_spec *specs;
    size_t n_specs;
};

enum { OPTIONS_MAX_POSITIONALS = 4 };
struct options_result {
    const char *positionals[OPTIONS_MAX_POSITIONALS];
    int n_positionals;
    bool wants_help;
    bool wants_all_help; /* --help-all: wants_help is set, too */
};

/* Reads the environment, then argv[1..argc). STATUS_INVALID: one line that says which option, what
 * was found, what is accepted. */
enum status options_parse(const struct option_group *groups, size_t n_groups, int argc, char **argv,
                          struct options_result *out, struct err *err);

/* Prints `usage` and the tables to stdout; a screenful, or every option when args->wants_all_help.
 */
void options_print_help(const char *usage, const struct option_group *groups, size_t n_groups,
                        const struct options_result *args);

/* "1,2,3" to ids; *out is malloc'd. "0.1,0.3" to at most cap floats. STATUS_INVALID names the piece
 * that is not a number. */
enum status options_parse_ids(const char *text, int32_t **out, size_t *n, struct err *err);
enum status options_parse_floats(const char *text, float *out, size_t cap, size_t *n,
                                 struct err *err);

#endif
