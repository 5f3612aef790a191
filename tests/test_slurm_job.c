/* squeue's answer about a job: what it says is taken over, what it cannot mean is refused. */
#include "tests/unit.h"

#include "cli/child.h"
#include "cli/slurm_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void test_slurm_job_reads_a_line(void **state)
{
    (void)state;
    struct slurm_job job;
    assert_int_equal(
        slurm_job_parse("1234|RUNNING|3|1-02:03:04|None|carousel:/run dir/a|b\n", &job, NULL),
        STATUS_OK);
    assert_int_equal(job.id, 1234);
    assert_string_equal(job.state, "RUNNING");
    assert_int_equal(job.n_nodes, 3);
    assert_string_equal(job.time_left, "1-02:03:04");
    assert_string_equal(job.reason, "None");
    assert_string_equal(job.run_dir, "/run dir/a|b");
    assert_true(slurm_job_is_alive(&job));
    assert_false(slurm_job_is_waiting(&job));
}

static void test_slurm_job_takes_only_our_comment(void **state)
{
    (void)state;
    static const char *const comments[] = {"(null)", "", "carousel:", "carousel:relative",
                                           "my carousel:/x"};
    for (size_t i = 0; i < sizeof comments / sizeof comments[0]; i++) {
        char line[128];
        struct slurm_job job;
        snprintf(line, sizeof line, "7|PENDING|1|UNLIMITED|Resources|%s\n", comments[i]);
        assert_int_equal(slurm_job_parse(line, &job, NULL), STATUS_OK);
        assert_string_equal(job.run_dir, "");
        assert_true(slurm_job_is_waiting(&job));
        assert_false(slurm_job_is_alive(&job));
    }
}

static void test_slurm_job_refuses_what_it_cannot_mean(void **state)
{
    (void)state;
    char long_state[256], long_dir[PATH_MAX + 128];
    snprintf(long_state, sizeof long_state, "7|%0100d|1|0:10|None|\n", 0);
    static const char *const lines[] = {
        "",
        "\n",
        "7",
        "7|RUNNING|1|0:10|None\n",
        "7|RUNNING|\n1|0:10|None|\n",
        "seven|RUNNING|1|0:10|None|\n",
        "0|RUNNING|1|0:10|None|\n",
        "7||1|0:10|None|\n",
        "7|RUNNING|-1|0:10|None|\n",
        "7|RUNNING|1 node|0:10|None|\n",
        "7|RUNNING|99999999999|0:10|None|\n",
        "12345678901|RUNNING|1|0:10|None|\n",
        "slurm_load_jobs error: Unable to contact slurm controller\n",
    };
    struct slurm_job job = {.id = 99};
    struct err err;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        assert_int_equal(slurm_job_parse(lines[i], &job, &err), STATUS_CORRUPT);
        assert_null(strchr(err.message, '\n'));
    }
    assert_int_equal(slurm_job_parse(long_state, &job, &err), STATUS_CORRUPT);
    assert_int_equal(job.id, 99); /* nothing is written on failure */
    /* A directory that no path can be is none. */
    int n = snprintf(long_dir, sizeof long_dir, "7|RUNNING|1|0:10|None|carousel:/");
    memset(long_dir + n, 'x', sizeof long_dir - (size_t)n);
    long_dir[sizeof long_dir - 1] = '\0';
    assert_int_equal(slurm_job_parse(long_dir, &job, &err), STATUS_OK);
    assert_string_equal(job.run_dir, "");
}

static void test_slurm_job_id_is_a_plain_number(void **state)
{
    (void)state;
    static const char *const bad[] = {"",    "0",       "-1",   "+1",          " 1",   "1 ",
                                      "1_2", "1.batch", "0x10", "12345678901", "--all"};
    uint64_t id = 5;
    struct err err;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(slurm_job_parse_id(bad[i], &id, &err), STATUS_INVALID);
    assert_int_equal(id, 5);
    assert_int_equal(slurm_job_parse_id("4294967295", &id, &err), STATUS_OK);
    assert_int_equal(id, UINT64_C(4294967295));
}

/* squeue shortens large numbers unless it is told not to. */
static void test_slurm_job_counts_a_thousand_nodes(void **state)
{
    (void)state;
    char dir[] = "/tmp/carousel_squeue_XXXXXX", path[64], search[4096];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/squeue", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("#!/bin/sh\n"
          "nodes=1K\n"
          "for word in \"$@\"; do [ \"$word\" != --noconvert ] || nodes=1024; done\n"
          "case \"$*\" in\n"
          "*RestartCnt*) echo 2 ;;\n"
          "*) echo \"7|RUNNING|$nodes|0:10|None|carousel:/x\" ;;\n"
          "esac\n",
          f);
    assert_int_equal(fchmod(fileno(f), 0700), 0);
    fclose(f);
    char *old = strdup(getenv("PATH"));
    snprintf(search, sizeof search, "%s:%s", dir, old);
    setenv("PATH", search, 1);
    struct slurm_job job;
    struct err err = {0};
    enum status status = slurm_job_query(7, &job, &err);
    setenv("PATH", old, 1);
    free(old);
    unlink(path);
    rmdir(dir);
    if (status != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(job.n_nodes, 1024);
    assert_int_equal(job.n_requeues, 2);
    assert_string_equal(job.run_dir, "/x");
}

static void test_child_gives_output_code_and_signal(void **state)
{
    (void)state;
    static struct child child;
    const char *const speaks[] = {"sh", "-c", "echo out; echo err >&2; exit 7", NULL};
    assert_int_equal(child_run(speaks, NULL, 10, &child, NULL), STATUS_OK);
    assert_int_equal(child.code, 7);
    assert_string_equal(child.out, "out\n");
    assert_string_equal(child.errors, "err\n");
    const char *const dies[] = {"sh", "-c", "kill -9 $$", NULL};
    assert_int_equal(child_run(dies, NULL, 10, &child, NULL), STATUS_OK);
    assert_int_equal(child.code, 128 + 9);
    const char *const floods[] = {"sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x", NULL};
    assert_int_equal(child_run(floods, NULL, 10, &child, NULL), STATUS_OK);
    assert_int_equal(strlen(child.out), CHILD_OUTPUT_BYTES - 1);
}

static void test_child_leaves_variables_out(void **state)
{
    (void)state;
    static struct child child;
    setenv("UNITCHILD_A", "1", 1);
    setenv("UNITCHILD_B", "1", 1);
    const char *const args[] = {"sh", "-c", "env | grep -c ^UNITCHILD_", NULL};
    assert_int_equal(child_run(args, NULL, 10, &child, NULL), STATUS_OK);
    assert_string_equal(child.out, "2\n");
    assert_int_equal(child_run(args, "UNITCHILD_", 10, &child, NULL), STATUS_OK);
    assert_string_equal(child.out, "0\n");
}

static void test_child_is_ended_at_its_deadline(void **state)
{
    (void)state;
    static struct child child;
    struct err err;
    const char *const hangs[] = {"sh", "-c", "sleep 60 & sleep 60", NULL};
    assert_int_equal(child_run(hangs, NULL, 0.1, &child, &err), STATUS_TIMEOUT);
    const char *const silent[] = {"sh", "-c", "exec >&- 2>&-; sleep 60", NULL};
    assert_int_equal(child_run(silent, NULL, 0.1, &child, &err), STATUS_TIMEOUT);
    const char *const missing[] = {"no-such-program-here", NULL};
    assert_int_equal(child_run(missing, NULL, 10, &child, &err), STATUS_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slurm_job_reads_a_line),
        cmocka_unit_test(test_slurm_job_takes_only_our_comment),
        cmocka_unit_test(test_slurm_job_refuses_what_it_cannot_mean),
        cmocka_unit_test(test_slurm_job_id_is_a_plain_number),
        cmocka_unit_test(test_slurm_job_counts_a_thousand_nodes),
        cmocka_unit_test(test_child_gives_output_code_and_signal),
        cmocka_unit_test(test_child_leaves_variables_out),
        cmocka_unit_test(test_child_is_ended_at_its_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
