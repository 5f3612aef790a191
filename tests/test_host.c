/* host: the clock goes on, cores and memory are plausible, cgroup limits are read from a made-up
 * tree. */
#include "tests/unit.h"

#include "cluster/host.h"
#include "cluster/host_cgroup.h"

#include <errno.h>
#include <ftw.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[64];

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/test_host.XXXXXX");
    return mkdtemp(root) != NULL ? 0 : -1;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static int remove_root(void **state)
{
    (void)state;
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Writes root/path, with its directories. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_host_says_plausible_things(void **state)
{
    (void)state;
    char name[256], cut[3] = "xx";
    uint64_t first_ns = host_now_ns();
    assert_true(host_now_ns() >= first_ns);
    host_name(name, sizeof name);
    assert_true(strlen(name) > 0);
    host_name(cut, sizeof cut);
    assert_true(strlen(cut) <= 2);
    assert_in_range(host_n_cores(), 1, sysconf(_SC_NPROCESSORS_CONF));
    assert_true(host_memory_available_bytes() > 1u << 20);
}

static void test_host_without_any_file_knows_no_limit(void **state)
{
    (void)state;
    assert_int_equal(host_cgroup_n_cores(root), 0);
    assert_true(host_cgroup_memory_left_bytes(root) == UINT64_MAX);
    assert_int_equal(host_meminfo_available_bytes(root), 0);
}

static void test_host_takes_the_tightest_limit_of_version_2(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/job/step\n");
    put("/sys/fs/cgroup/job/cpu.max", "250000 100000\n");
    put("/sys/fs/cgroup/job/step/cpu.max", "max 100000\n");
    assert_int_equal(host_cgroup_n_cores(root), 3); /* two and a half, rounded up */
    put("/sys/fs/cgroup/job/step/cpu.max", "50000 100000\n");
    assert_int_equal(host_cgroup_n_cores(root), 1);

    put("/sys/fs/cgroup/job/step/memory.max", "max\n");
    assert_true(host_cgroup_memory_left_bytes(root) == UINT64_MAX);
    put("/sys/fs/cgroup/job/memory.max", "1000000\n");
    put("/sys/fs/cgroup/job/memory.current", "600000\n");
    put("/sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 100000\n");
    assert_int_equal(host_cgroup_memory_left_bytes(root), 500000);
    put("/sys/fs/cgroup/job/step/memory.max", "300000\n");
    put("/sys/fs/cgroup/job/step/memory.current", "400000\n");
    assert_int_equal(host_cgroup_memory_left_bytes(root), 0);
}

static void test_host_reads_version_1(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "7:memory:/m\n4:cpu,cpuacct:/c\n");
    put("/sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
    assert_int_equal(host_cgroup_n_cores(root), 0);
    put("/sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "400000\n");
    assert_int_equal(host_cgroup_n_cores(root), 4);
    put("/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "5000\n");
    put("/sys/fs/cgroup/memory/m/memory.usage_in_bytes", "2000\n");
    assert_int_equal(host_cgroup_memory_left_bytes(root), 3000);
}

static void test_host_reads_meminfo(void **state)
{
    (void)state;
    put("/proc/meminfo", "MemTotal:       4000 kB\nMemAvailable:   3000 kB\n");
    assert_int_equal(host_meminfo_available_bytes(root), 3000 * 1024);
}

static void test_host_boot_id_is_one_line(void **state)
{
    (void)state;
    char all[64], again[64], cut[5];
    host_boot_id(all, sizeof all);
    host_boot_id(again, sizeof again);
    host_boot_id(cut, sizeof cut);
    assert_true(strlen(all) >= 36); /* a UUID, and the time namespace where there are any */
    assert_true(all[36] == '\0' || strncmp(all + 36, "/time:[", 7) == 0);
    assert_null(strchr(all, '\n'));
    assert_string_equal(all, again);
    assert_int_equal(strlen(cut), 4);
    assert_memory_equal(cut, all, 4);
    host_boot_id(cut, 1);
    assert_string_equal(cut, "");
}

static void test_host_short_turns_leave_the_rest_of_a_thread_alone(void **state)
{
    (void)state;
    const int policy = sched_getscheduler(0);
    errno = 0;
    const int nice_value = getpriority(PRIO_PROCESS, 0);
    assert_int_equal(errno, 0);
    host_prefer_short_turns();
    assert_int_equal(sched_getscheduler(0), policy);
    assert_int_equal(getpriority(PRIO_PROCESS, 0), nice_value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_says_plausible_things),
        cmocka_unit_test(test_host_boot_id_is_one_line),
        cmocka_unit_test(test_host_short_turns_leave_the_rest_of_a_thread_alone),
        cmocka_unit_test_setup_teardown(test_host_without_any_file_knows_no_limit, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(test_host_takes_the_tightest_limit_of_version_2, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(test_host_reads_version_1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_host_reads_meminfo, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
