/* Tells whether this process is a rank, or makes it the start of a local MPI job. */
#include "cluster/launch.h"

#include "cluster/launch_exec.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- am I a rank? --------------------------------------------------------------------------- */

static const char *from_environment(const void *context, const char *name)
{
    (void)context;
    return getenv(name);
}

static bool is_several(const char *count)
{
    return count != NULL && strtol(count, NULL, 10) > 1;
}

bool launch_is_rank_in(const char *(*get)(const void *context, const char *name),
                       const void *context)
{
    const char *n_world = get(context, "OMPI_COMM_WORLD_SIZE");
    if (n_world != NULL)
        return is_several(n_world) || get(context, "CAROUSEL_LAUNCHED") != NULL;
    bool has_pmi = get(context, "PMI_RANK") != NULL;
    if (has_pmi && is_several(get(context, "PMI_SIZE")))
        return true;
    return (has_pmi || get(context, "PMIX_RANK") != NULL) && get(context, "SLURM_PROCID") != NULL &&
           is_several(get(context, "SLURM_STEP_NUM_TASKS"));
}

bool launch_is_rank(void)
{
    return launch_is_rank_in(from_environment, NULL);
}

int launch_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID"};
    if (!launch_is_rank())
        return 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL)
            return atoi(value);
    }
    return 0;
}

/* ---- become mpirun -------------------------------------------------------------------------- */

static bool starts_with_any(const char *text, const char *const *prefixes)
{
    for (; *prefixes != NULL; prefixes++)
        if (strncmp(text, *prefixes, strlen(*prefixes)) == 0)
            return true;
    return false;
}

/* Inside a job of one rank mpirun would take itself for a part of it. Drops what the outer mpirun
 * or srun has set, and keeps what users set. */
static void forget_outer_job(void)
{
    static const char *const families[] = {"OMPI_", "PMIX_", "PMI_", NULL};
    static const char *const set_by_user[] = {"OMPI_ALLOW_", "OMPI_MCA_", "PMIX_MCA_", NULL};
    static const char *const set_by_job_even_so[] = {"OMPI_MCA_orte_",
                                                     "OMPI_MCA_ess",
                                                     "OMPI_MCA_pmix=",
                                                     "OMPI_MCA_initial_wdir=",
                                                     "OMPI_MCA_mpi_oversubscribe=",
                                                     NULL};
    extern char **environ;
    if (getenv("OMPI_COMM_WORLD_SIZE") == NULL && getenv("PMIX_RANK") == NULL &&
        getenv("PMI_RANK") == NULL)
        return;
    for (char **entry = environ; *entry != NULL;) {
        bool is_outer =
            starts_with_any(*entry, set_by_job_even_so) ||
            (starts_with_any(*entry, families) && !starts_with_any(*entry, set_by_user));
        char name[128];
        size_t n = strcspn(*entry, "=");
        if (is_outer && n < sizeof name) {
            memcpy(name, *entry, n);
            name[n] = '\0';
            unsetenv(name); /* moves the entries behind it up: look at this place again */
        } else {
            entry++;
        }
    }
}

/* Values the user has set stay. */
static void set_mpirun_defaults(void)
{
    static const char *const defaults[][2] = {
        {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
        {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
        {"OMPI_MCA_btl_tcp_if_include", "lo"},
        {"OMPI_MCA_oob_tcp_if_include", "lo"},
        /* This host only: neither ssh nor the hosts of a Slurm allocation around us. */
        {"OMPI_MCA_plm", "isolated"},
        {"OMPI_MCA_ras", "^slurm,gridengine"},
    };
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++)
        setenv(defaults[i][0], defaults[i][1], 0);
}

static void describe_terminal(void)
{
    struct winsize size = {0};
    char columns[16];
    unsetenv("CAROUSEL_TTY_OUT");
    unsetenv("CAROUSEL_TTY_ERR");
    if (isatty(STDOUT_FILENO))
        setenv("CAROUSEL_TTY_OUT", "1", 1);
    if (isatty(STDERR_FILENO))
        setenv("CAROUSEL_TTY_ERR", "1", 1);
    if ((ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ||
         ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0) &&
        size.ws_col > 0) {
        snprintf(columns, sizeof columns, "%d", size.ws_col);
        setenv("CAROUSEL_COLUMNS", columns, 1);
    }
}

static enum status become_mpirun(int n_ranks, char **argv, bool is_server, struct err *err)
{
    if (n_ranks < 1)
        return err_set(err, STATUS_INVALID, "mpirun with %d ranks, need 1 or more", n_ranks);
    char program[PATH_MAX], count[16];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n < 0)
        return err_set(err, STATUS_IO, "/proc/self/exe: %s", strerror(errno));
    program[n] = '\0';
    snprintf(count, sizeof count, "%d", n_ranks);
    /* --quiet: when a rank fails, its own message is what the user should see, not a banner around
     * it. */
    const char *const head[] = {"mpirun",    "--quiet", "-n",      count, "--oversubscribe",
                                "--bind-to", "none",    "--stdin", "0",   program};
    size_t n_head = sizeof head / sizeof head[0], n_args = 0;
    while (argv[n_args] != NULL)
        n_args++;
    char **args = calloc(n_head + n_args + 1, sizeof *args);
    if (args == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the arguments of mpirun");
    for (size_t i = 0; i < n_head; i++)
        args[i] = (char *)head[i];
    for (size_t i = 1; i < n_args; i++)
        args[n_head + i - 1] = argv[i];
    forget_outer_job();
    set_mpirun_defaults();
    describe_terminal();
    setenv("CAROUSEL_LAUNCHED", "1", 1);
    int why = launch_exec(args, is_server);
    unsetenv("CAROUSEL_LAUNCHED");
    free(args);
    if (why == ENOENT)
        return err_set(err, STATUS_NOT_FOUND,
                       "mpirun is not on PATH: install Open MPI (Debian: openmpi-bin), or use "
                       "--transport inproc");
    return err_set(err, STATUS_IO, "mpirun: %s", strerror(why));
}

enum status launch_mpirun(int n_ranks, char **argv, struct err *err)
{
    return become_mpirun(n_ranks, argv, false, err);
}

enum status launch_mpirun_server(int n_ranks, char **argv, struct err *err)
{
    return become_mpirun(n_ranks, argv, true, err);
}
