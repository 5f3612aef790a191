/* launch: which environments make a process a rank, and what launch_mpirun refuses. */
#include "tests/unit.h"

#include "cluster/launch.h"

/* An environment as a list "NAME=value NAME=value". */
static const char *from_list(const void *context, const char *name)
{
    static char value[64];
    size_t n = strlen(name);
    for (const char *at = context; *at != '\0'; at += strcspn(at, " "), at += *at == ' ') {
        if (strncmp(at, name, n) != 0 || at[n] != '=')
            continue;
        size_t len = strcspn(at + n + 1, " ");
        assert_true(len < sizeof value);
        memcpy(value, at + n + 1, len);
        value[len] = '\0';
        return value;
    }
    return NULL;
}

static void test_launch_is_rank_follows_the_table(void **state)
{
    (void)state;
    static const struct {
        const char *what, *environment;
        bool is_rank;
    } cases[] = {
        {"a plain shell", "", false},
        {"mpirun -n 5", "OMPI_COMM_WORLD_SIZE=5 OMPI_COMM_WORLD_RANK=2 PMIX_RANK=2", true},
        {"mpirun -n 1 by the user", "OMPI_COMM_WORLD_SIZE=1 PMIX_RANK=0", false},
        {"mpirun -n 1 by launch_mpirun", "OMPI_COMM_WORLD_SIZE=1 CAROUSEL_LAUNCHED=1", true},
        {"only our mark, mpirun long gone", "CAROUSEL_LAUNCHED=1", false},
        {"a size that is no number", "OMPI_COMM_WORLD_SIZE=many", false},
        {"the shell of sbatch", "SLURM_JOB_ID=7 SLURM_PROCID=0 SLURM_NTASKS=5", false},
        {"the shell of salloc", "SLURM_JOB_ID=7 SLURM_NTASKS=5", false},
        {"srun -n 5 --mpi=pmix", "SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=5 PMIX_RANK=3", true},
        {"srun -n 1 --mpi=pmix", "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 PMIX_RANK=0", false},
        {"srun -n 5 --mpi=pmi2", "SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=5 PMI_RANK=3 PMI_SIZE=5",
         true},
        {"srun -n 1 --mpi=pmi2", "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 PMI_RANK=0 PMI_SIZE=1",
         false},
        {"srun -n 5 --mpi=none", "SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=5", false},
        {"mpirun -n 3 inside sbatch",
         "SLURM_JOB_ID=7 SLURM_PROCID=0 SLURM_NTASKS=1 OMPI_COMM_WORLD_SIZE=3", true},
        {"Hydra's mpiexec -n 4", "PMI_RANK=1 PMI_SIZE=4", true},
        {"a PMIx variable by itself", "PMIX_RANK=0", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (launch_is_rank_in(from_list, cases[i].environment) != cases[i].is_rank)
            fail_msg("%s (%s): expected %d", cases[i].what, cases[i].environment, cases[i].is_rank);
}

static void test_launch_reads_the_environment(void **state)
{
    (void)state;
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unsetenv(names[i]);
    assert_false(launch_is_rank());
    setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
    assert_true(launch_is_rank());
    unsetenv("OMPI_COMM_WORLD_SIZE");
}

static void test_launch_mpirun_explains_what_is_missing(void **state)
{
    (void)state;
    char *argv[] = {"carousel", NULL};
    struct err err = {0};
    assert_int_equal(launch_mpirun(0, argv, &err), STATUS_INVALID);
    setenv("PATH", "/nonexistent", 1);
    assert_int_equal(launch_mpirun(2, argv, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "openmpi-bin"));
    /* After a failure this process must not look like a rank. */
    assert_null(getenv("CAROUSEL_LAUNCHED"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_launch_is_rank_follows_the_table),
        cmocka_unit_test(test_launch_reads_the_environment),
        cmocka_unit_test(test_launch_mpirun_explains_what_is_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
