"""What a scaling study is told to have run on: machine, versions, commit, environment, command."""
import os
import platform
import shlex
import subprocess
import sys

ENVIRONMENT = ("CAROUSEL_", "OMPI_MCA_", "SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_NNODES", "SLURM_NTASKS")


def said(*command, **options):
    """What a command prints, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def first_line(text):
    return text.splitlines()[0] if text else None


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def git_facts(root):
    """The commit, and whether tracked files differ from it; nulls outside a checkout."""
    commit = said("git", "-C", str(root), "rev-parse", "HEAD")
    changes = said("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": bool(changes) if commit else None}


def gather(a, root):
    program = os.environ.get("CAROUSEL", str(root / "build" / "carousel"))
    gpus = said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return {
        "git": git_facts(root),
        "carousel": said(program, "--version"),
        "mpi": first_line(said("mpirun", "--version")),
        "cpu": {"model": cpu_model(), "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory_bytes()},
        "gpu": gpus.splitlines() if gpus else [],
        "kernel": platform.release(),
        "nodes": int(os.environ.get("SLURM_NNODES", "1")) if a.launcher == "slurm" else 1,
        "launcher": a.mpirun or a.launcher,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT)},
        "command": shlex.join(["scripts/scaling_study.sh", *sys.argv[1:]]),
        "python": platform.python_version(),
    }
