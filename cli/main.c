/* The `carousel` program: finds the subcommand and hands it its arguments. */
#include "cli/cli.h"
#include "cluster/launch.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct subcommand {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv, char **program_argv);
};

static const struct subcommand subcommands[] = {
    {"generate", "continue a prompt, streaming the text", cli_generate},
    {"serve", "an HTTP server with OpenAI's API", cli_serve},
    {"batch", "run a file of requests, resumable", cli_batch},
    {"lens", "show how the model changes its mind from loop to loop", cli_lens},
    {"train", "train a looped model from a recipe", cli_train},
    {"gate", "fit the exit gate to texts", cli_gate},
    {"eval", "exact answers by difficulty, loop and exit threshold", cli_eval},
    {"bench", "measure: kernels, net, engine", cli_bench},
    {"simulate", "a cluster of any size in virtual time, with the real decisions", cli_simulate},
    {"trace", "where the time of a recorded run went", cli_trace},
    {"slurm", "status, endpoint and drain of a job under Slurm", cli_slurm},
    {"info", "dimensions and sizes of a model, and what fits here", cli_info},
    {"doctor", "check this machine, with a self-test of batch invariance", cli_doctor},
};

static void print_help(void)
{
    printf("carousel: an inference cluster for looped language models\n\n"
           "usage: carousel SUBCOMMAND [MODEL] [options]\n\n");
    for (size_t i = 0; i < sizeof subcommands / sizeof subcommands[0]; i++)
        printf("  %-10s %s\n", subcommands[i].name, subcommands[i].help);
    printf("\nMODEL is a directory with config.json and model.safetensors; without it the bundled\n"
           "demo model is used. Every option --some-name is also the variable CAROUSEL_SOME_NAME.\n"
           "`carousel SUBCOMMAND --help` lists the options; --version prints the version.\n");
}

int cli_fail(const char *name, const struct err *err)
{
    fflush(stdout);
    fprintf(stderr, "carousel %s: %s\n", name, err->message);
    return CLI_FAILURE;
}

int cli_fail_usage(const char *name, const struct err *err)
{
    /* All ranks of a job read the same command line: one of them says what is wrong with it. */
    if (launch_rank() == 0)
        cli_fail(name, err);
    return CLI_USAGE;
}

/* A full disk must not look like success. */
static int finish(int code)
{
    int why = fflush(stdout) != 0 ? errno : ferror(stdout) ? EIO : 0;
    if (why != 0 && code == CLI_OK) {
        fprintf(stderr, "carousel: cannot write standard output: %s\n", strerror(why));
        return CLI_FAILURE;
    }
    return code;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help();
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help();
        return CLI_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("carousel %s\n", CAROUSEL_VERSION);
        return CLI_OK;
    }
    for (size_t i = 0; i < sizeof subcommands / sizeof subcommands[0]; i++)
        if (strcmp(argv[1], subcommands[i].name) == 0)
            return finish(subcommands[i].run(argc - 1, argv + 1, argv));
    fprintf(stderr, "carousel: unknown subcommand '%s'; carousel --help lists them\n", argv[1]);
    return CLI_USAGE;
}
