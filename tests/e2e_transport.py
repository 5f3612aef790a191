"""The MPI transport in real jobs of 1 to 5 ranks on this host: content, order, wake, idle cost, latency, launching.

The checks themselves are in tests/mpi_transport_check.c, which this builds. BUILD names another build variant.
"""
import os
import shutil
import sys

from e2e_lib import ROOT, Checks, run, run_command

CHECK = ROOT / os.environ.get("BUILD", "build/release") / "tests" / "mpi_transport_check"
ROOT_ALLOWED = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_oob_tcp_if_include": "lo"}
TCP = {"OMPI_MCA_btl": "self,tcp"}
# What an allocation of two hosts looks like from inside.
ALLOCATION = ["SLURM_JOB_ID=1", "SLURM_JOBID=1", "SLURM_NNODES=2", "SLURM_NODELIST=n[1-2]",
              "SLURM_TASKS_PER_NODE=1(x2)"]
MOST_HOP_TO_RAW = 3.0


def mpirun(n, *args):
    return ["mpirun", "--quiet", "-n", n, "--oversubscribe", "--bind-to", "none", CHECK, *args]


def rank_check(c, n, *args, env=None):
    """A check that says itself, by its exit code, whether it went well."""
    result = run_command(mpirun(n, *args), timeout=90, env={**ROOT_ALLOWED, **(env or {})})
    for line in result.out.splitlines():
        c.note(line)
    c.check(result.code == 0 and not result.is_late, str(result))


def launch(n, *args, variables=()):
    """launch_mpirun, with nothing in the environment that would help it."""
    return ["env", "-i", f"PATH={os.environ['PATH']}", *variables, CHECK, "launch", n, *args]


def check_shared_memory(c):
    for n in (1, 2, 3, 5):
        rank_check(c, n, "mix", n + 10)
    rank_check(c, 1, "reject")
    for n in (1, 3):
        rank_check(c, n, "wake")
    rank_check(c, 5, "idle", 3)
    for n in (2, 5):
        rank_check(c, n, "latency")


def check_tcp(c):
    """What hosts use among each other; also with the library's poll, where no descriptor can be watched."""
    c.note("over TCP:")
    rank_check(c, 4, "mix", 21, env=TCP)
    rank_check(c, 5, "idle", 2, env=TCP)
    rank_check(c, 2, "latency", env=TCP)
    rank_check(c, 2, "mix", 22, env={**TCP, "OMPI_MCA_opal_event_include": "poll"})


def check_launch(c):
    result = run_command(launch(3, "stdin"), stdin="a line\n")
    c.equal(result.out.strip(), "stdin: 'a line', is a rank: 1, terminal: 0, columns: (null)",
            "rank 0 reads stdin")
    if shutil.which("script"):
        line = f"stty cols 93; echo x | env -i PATH='{os.environ['PATH']}' '{CHECK}' launch 2 stdin"
        result = run_command(["script", "-qec", line, "/dev/null"])
        c.check("terminal: 1, columns: 93" in result.out, f"the ranks know the terminal: {result.out}")
    result = run_command(launch(3, "exit", 7))
    c.equal((result.code, result.err), (7, "rank 0 has an error to tell\n"),
            "rank 0's exit code comes through, its message stands alone")
    result = run_command(["mpirun", "--quiet", "-n", 1, CHECK, "launch", 2, "mix", 5], env=ROOT_ALLOWED)
    c.check(result.code == 0, f"inside a job of one rank: {result}")
    result = run_command(launch(2, "mix", 6, variables=ALLOCATION))
    c.check(result.code == 0, f"inside an allocation: {result}")


def check_bench(c):
    """A hop of one row costs little more than the library itself; other load on the machine gets three tries."""
    ratio = None
    for _ in range(3):
        measured = run("bench", "net", "--sizes", "64,8k", "--iterations", 2000, "--json").json()
        ratio = max(r["hop_p50_us"] / r["raw_p50_us"] for r in measured["results"])
        if ratio <= MOST_HOP_TO_RAW:
            break
    c.note(f"hop to raw ping-pong: {ratio:.2f}")
    c.check(ratio <= MOST_HOP_TO_RAW, f"a hop costs {ratio:.2f} times the raw ping-pong")
    result = run("bench", "net", "--transport", "inproc", "--sizes", "1k", "--iterations", 100)
    c.check(result.code == 0 and "1024" in result.out, f"in one process: {result}")
    for args in (["--sizes", "8q"], ["--sizes", "2000m"], ["--iterations", "0"], ["--what"], ["more"],
                 ["--transport", "pigeon"]):
        result = run("bench", "net", *args)
        c.check(result.code == 2 and args[-1] in result.err, f"bench net {args}: {result}")


def main():
    c = Checks("e2e_transport")
    built = run_command(["make", "--no-print-directory", CHECK.relative_to(ROOT)], timeout=300)
    if built.code != 0:
        sys.exit(f"e2e_transport: {built}")
    for check in (check_shared_memory, check_tcp, check_launch, check_bench):
        c.attempt(check)
    c.close()


if __name__ == "__main__":
    main()
