/* Parses options from one table: environment first, then the command line, each value checked. */
#include "cli/options.h"

#include "cluster/launch.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_one_of(const char *value, const char *const *words)
{
    for (; *words != NULL; words++)
        if (strcasecmp(value, *words) == 0)
            return true;
    return false;
}

static enum status parse_bytes(const char *text, uint64_t *out)
{
    static const char units[] = "kmgt";
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || errno != 0 || !(value >= 0))
        return STATUS_INVALID;
    const char *unit = *end != '\0' ? strchr(units, tolower((unsigned char)*end)) : NULL;
    if (unit != NULL) {
        value *= pow(1024, (double)(unit - units + 1));
        end++;
        if (strcasecmp(end, "ib") == 0)
            end += 2;
    }
    if (strcasecmp(end, "b") == 0)
        end++;
    if (*end != '\0' || value > 9e18)
        return STATUS_INVALID;
    *out = (uint64_t)value;
    return STATUS_OK;
}

static int choice_index(const char *choices, const char *value)
{
    size_t len = strlen(value);
    int index = 0;
    for (const char *at = choices; *at != '\0'; index++) {
        size_t n = strcspn(at, "|");
        if (n == len && memcmp(at, value, n) == 0)
            return index;
        at += n + (at[n] == '|');
    }
    return -1;
}

static enum status store_flag(const char *origin, const char *value, bool *out, struct err *err)
{
    static const char *const yes[] = {"1", "yes", "true", "on", NULL};
    static const char *const no[] = {"0", "no", "false", "off", "", NULL};
    if (!is_one_of(value, yes) && !is_one_of(value, no))
        return err_set(err, STATUS_INVALID, "%s: '%s' is not yes or no", origin, value);
    *out = is_one_of(value, yes);
    return STATUS_OK;
}

static enum status check_range(const struct option_spec *spec, const char *origin, double number,
                               struct err *err)
{
    if ((spec->min != 0 || spec->max != 0) && (number < spec->min || number > spec->max))
        return err_set(err, STATUS_INVALID, "%s: %.10g is out of range, accepted is %.10g to %.10g",
                       origin, number, spec->min, spec->max);
    return STATUS_OK;
}

static enum status store_number(const struct option_spec *spec, const char *origin,
                                const char *value, struct err *err)
{
    char *end;
    errno = 0;
    if (spec->type == OPTION_U64) {
        unsigned long long n = strtoull(value, &end, 0);
        if (end == value || *end != '\0' || errno != 0 || strchr(value, '-') != NULL)
            return err_set(err, STATUS_INVALID, "%s: '%s' is not a whole number from 0 to 2^64-1",
                           origin, value);
        *(uint64_t *)spec->target = n;
        return STATUS_OK;
    }
    double number = strtod(value, &end);
    bool is_whole = spec->type == OPTION_INT;
    if (end == value || *end != '\0' || !isfinite(number) ||
        (is_whole && (number != floor(number) || fabs(number) > INT32_MAX)))
        return err_set(err, STATUS_INVALID, "%s: '%s' is not a %snumber", origin, value,
                       is_whole ? "whole " : "");
    enum status status = check_range(spec, origin, number, err);
    if (status != STATUS_OK)
        return status;
    if (is_whole)
        *(int *)spec->target = (int)number;
    else
        *(double *)spec->target = number;
    return STATUS_OK;
}

/* Stores one value; `origin` is "--name" or the variable's name. */
static enum status option_store(const struct option_spec *spec, const char *origin,
                                const char *value, struct err *err)
{
    enum status status = STATUS_OK;
    switch (spec->type) {
    case OPTION_HEADING:
    case OPTION_MORE:
        return err_set(err, STATUS_INTERNAL, "%s is a heading", origin);
    case OPTION_FLAG:
        status = store_flag(origin, value, spec->target, err);
        break;
    case OPTION_INT:
    case OPTION_U64:
    case OPTION_FLOAT:
        status = store_number(spec, origin, value, err);
        break;
    case OPTION_BYTES:
        if (parse_bytes(value, spec->target) != STATUS_OK)
            status = err_set(err, STATUS_INVALID, "%s: '%s' is not a size such as 512M or 2G",
                             origin, value);
        break;
    case OPTION_STRING:
        *(const char **)spec->target = value;
        break;
    case OPTION_CHOICE: {
        int index = choice_index(spec->choices, value);
        if (index < 0)
            status = err_set(err, STATUS_INVALID, "%s: '%s' is none of %s", origin, value,
                             spec->choices);
        else
            *(int *)spec->target = index;
        break;
    }
    }
    if (status == STATUS_OK && spec->is_given != NULL)
        *spec->is_given = true;
    return status;
}

static enum status option_from_environment(const struct option_spec *spec, struct err *err)
{
    char name[64] = "CAROUSEL_";
    size_t n = strlen(name);
    for (const char *at = spec->name; *at != '\0' && n + 1 < sizeof name; at++)
        name[n++] = *at == '-' ? '_' : (char)toupper((unsigned char)*at);
    name[n] = '\0';
    const char *value = getenv(name);
    return value == NULL ? STATUS_OK : option_store(spec, name, value, err);
}

static bool is_no_option(const struct option_spec *spec)
{
    return spec->type == OPTION_HEADING || spec->type == OPTION_MORE;
}

static const struct option_spec *option_find(const struct option_group *groups, size_t n_groups,
                                             const char *name, size_t len, char letter)
{
    for (size_t g = 0; g < n_groups; g++)
        for (size_t i = 0; i < groups[g].n_specs; i++) {
            const struct option_spec *spec = &groups[g].specs[i];
            if (is_no_option(spec))
                continue;
            if (letter != 0 ? spec->letter == letter
                            : strlen(spec->name) == len && memcmp(spec->name, name, len) == 0)
                return spec;
        }
    return NULL;
}

/* Handles argv[*i], which begins with a dash; moves *i over its value. */
static enum status option_take(const struct option_group *groups, size_t n_groups, int argc,
                               char **argv, int *i, struct options_result *out, struct err *err)
{
    const char *arg = argv[*i];
    bool is_long = arg[1] == '-';
    const char *name = arg + (is_long ? 2 : 1);
    size_t len = is_long ? strcspn(name, "=") : 1;
    if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
        out->wants_help = true;
        return STATUS_OK;
    }
    if (strcmp(arg, "--help-all") == 0) {
        out->wants_help = out->wants_all_help = true;
        return STATUS_OK;
    }
    const struct option_spec *spec = option_find(groups, n_groups, name, len, is_long ? 0 : *name);
    if (spec == NULL)
        return err_set(err, STATUS_INVALID, "unknown option '%s'; --help lists the options", arg);
    char origin[80];
    snprintf(origin, sizeof origin, "--%s", spec->name);
    const char *value = NULL;
    if (is_long && name[len] == '=')
        value = name + len + 1;
    else if (!is_long && name[1] != '\0')
        value = name + 1;
    if (spec->type == OPTION_FLAG)
        return option_store(spec, origin, value != NULL ? value : "1", err);
    if (value == NULL && *i + 1 >= argc)
        return err_set(err, STATUS_INVALID, "%s needs a value: %s", origin,
                       spec->choices != NULL ? spec->choices : spec->argument);
    if (value == NULL)
        value = argv[++*i];
    return option_store(spec, origin, value, err);
}

enum status options_parse(const struct option_group *groups, size_t n_groups, int argc, char **argv,
                          struct options_result *out, struct err *err)
{
    *out = (struct options_result){0};
    for (size_t g = 0; g < n_groups; g++)
        for (size_t i = 0; i < groups[g].n_specs; i++) {
            const struct option_spec *spec = &groups[g].specs[i];
            enum status status =
                is_no_option(spec) ? STATUS_OK : option_from_environment(spec, err);
            if (status != STATUS_OK)
                return status;
        }
    bool only_positionals = false;
    for (int i = 1; i < argc; i++) {
        if (!only_positionals && strcmp(argv[i], "--") == 0) {
            only_positionals = true;
        } else if (!only_positionals && argv[i][0] == '-' && argv[i][1] != '\0') {
            enum status status = option_take(groups, n_groups, argc, argv, &i, out, err);
            if (status != STATUS_OK)
                return status;
        } else {
            if (out->n_positionals == OPTIONS_MAX_POSITIONALS)
                return err_set(err, STATUS_INVALID,
                               "too many arguments from '%s' on; quote a prompt that has spaces",
                               argv[i]);
            out->positionals[out->n_positionals++] = argv[i];
        }
    }
    return STATUS_OK;
}

static void print_option(const struct option_spec *spec)
{
    const char *argument = spec->choices != NULL ? spec->choices : spec->argument;
    char left[96];
    int n = spec->letter != 0 ? snprintf(left, sizeof left, "-%c, ", spec->letter) : 0;
    snprintf(left + n, sizeof left - (size_t)n, "--%s%s%s", spec->name, argument != NULL ? " " : "",
             argument != NULL ? argument : "");
    printf("  %-29s %s\n", left, spec->help);
}

void options_print_help(const char *usage, const struct option_group *groups, size_t n_groups,
                        const struct options_result *args)
{
    if (launch_rank() != 0)
        return; /* rank 0 prints it */
    printf("%s\n", usage);
    bool is_cut = false;
    for (size_t g = 0; g < n_groups; g++)
        for (size_t i = 0; i < groups[g].n_specs; i++) {
            const struct option_spec *spec = &groups[g].specs[i];
            if (spec->type == OPTION_MORE && !args->wants_all_help) {
                is_cut = true;
                break;
            }
            if (spec->type == OPTION_HEADING)
                printf("%s\n", spec->help);
            else if (spec->type != OPTION_MORE)
                print_option(spec);
        }
    if (is_cut)
        printf("--help-all lists every option; each is a variable too (CAROUSEL_MAX_TOKENS=64).\n");
}

enum status options_parse_ids(const char *text, int32_t **out, size_t *n, struct err *err)
{
    size_t cap = strlen(text) / 2 + 1, count = 0;
    int32_t *ids = malloc(cap * sizeof *ids);
    if (ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu ids", cap);
    for (const char *at = text;;) {
        char *end;
        errno = 0;
        long value = strtol(at, &end, 10);
        bool is_number = end != at;
        while (isspace((unsigned char)*end))
            end++;
        if (!is_number || errno != 0 || value < INT32_MIN || value > INT32_MAX ||
            (*end != ',' && *end != '\0')) {
            free(ids);
            return err_set(err, STATUS_INVALID, "'%.20s' is not a token id; write ids as 1,2,3",
                           at);
        }
        ids[count++] = (int32_t)value;
        if (*end == '\0')
            break;
        at = end + 1;
    }
    *out = ids;
    *n = count;
    return STATUS_OK;
}

enum status options_parse_floats(const char *text, float *out, size_t cap, size_t *n,
                                 struct err *err)
{
    size_t count = 0;
    for (const char *at = text;;) {
        char *end;
        float value = strtof(at, &end);
        if (end == at || !isfinite(value) || (*end != ',' && *end != '\0'))
            return err_set(err, STATUS_INVALID, "'%.20s' is not a number; write 0.1,0.3,0.6", at);
        if (count == cap)
            return err_set(err, STATUS_INVALID, "'%s' has more than %zu numbers", text, cap);
        out[count++] = value;
        if (*end == '\0')
            break;
        at = end + 1;
    }
    *n = count;
    return STATUS_OK;
}
