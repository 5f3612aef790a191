"""Sums over the ranks of real MPI jobs: the bits of the plain tree, a rank that fails, one that falls silent.

The checks themselves are in tests/mpi_reduce_check.c, which this builds. BUILD names another build variant.
"""
import os
import sys

from e2e_lib import ROOT, Checks, run_command

CHECK = ROOT / os.environ.get("BUILD", "build/release") / "tests" / "mpi_reduce_check"
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_oob_tcp_if_include": "lo"}
TCP = {"OMPI_MCA_btl": "self,tcp"}


def run_ranks(n, *args, env=None):
    command = ["mpirun", "--quiet", "-n", n, "--oversubscribe", "--bind-to", "none", CHECK, *args]
    return run_command(command, timeout=90, env={**ENVIRONMENT, **(env or {})})


def rank_check(c, n, *args, env=None):
    """A check that says itself, by its exit code, whether it went well."""
    result = run_ranks(n, *args, env=env)
    for line in result.out.splitlines():
        c.note(line)
    c.check(result.code == 0 and not result.is_late, str(result))


def check_sums(c):
    for n in (1, 2, 3, 4):
        rank_check(c, n, "sum", 113409, 20, 0)
    rank_check(c, 2, "sum", 5000000, 3, 0)
    rank_check(c, 3, "sum", 113409, 10, 5000)
    rank_check(c, 3, "sum", 1, 3, 0)
    c.note("over TCP:")
    rank_check(c, 3, "sum", 113409, 20, 0, env=TCP)
    rank_check(c, 2, "sum", 5000000, 2, 0, env=TCP)


def loss_check(c, n, how, leaver):
    """Every other rank says that it ended with the right words. The exit code is mpirun's: a rank with a message
    under way to one that listens no more cannot take leave of MPI in order."""
    result = run_ranks(n, how, leaver)
    seen = sorted(line for line in result.out.splitlines() if line.endswith("saw it"))
    expected = [f"rank {rank} saw it" for rank in range(n) if rank != leaver]
    c.check(seen == expected and "expected" not in result.err and not result.is_late, f"{seen}: {result}")


def check_losses(c):
    for n in (2, 4):
        for leaver in (0, n - 1):
            loss_check(c, n, "fail", leaver)
    loss_check(c, 3, "silent", 1)


def main():
    c = Checks("e2e_reduce")
    built = run_command(["make", "--no-print-directory", CHECK.relative_to(ROOT)], timeout=300)
    if built.code != 0:
        sys.exit(f"e2e_reduce: {built}")
    for check in (check_sums, check_losses):
        c.attempt(check)
    c.close()


if __name__ == "__main__":
    main()
