"""Several hosts in network namespaces: a job across three of them answers as one host does, and what the network
between them costs is what its hops show. Skipped where there is no root or the kernel lacks the means.
"""
import json
import os
import subprocess
import sys

from e2e_lib import DEMO, PROGRAM, ROOT, WORK, Checks, Failure, run_command, run_json, run_ok

HOSTS = ROOT / "scripts" / "netns_hosts.sh"
NAME = f"e2e{os.getpid()}"
PLACE = WORK / "netns"
N_HOSTS, N_RANKS = 3, 4
DELAY_MS, RATE_MBIT = 20, 50
# Beside the delay a hop is a bit of kernel and the wait for a core that others use, which gets three tries. The first
# hop between two ranks opens their connection and takes several ways: medians do not see it.
MOST_EXTRA_MS = 12
OPTIONS = ["-q", "0.5", "-n", "32", "--ignore-eos", "--stats"]


def hosts(*args, name=NAME, **options):
    return run_command([HOSTS, "--name", name, *args], **options)


def hosts_ok(*args, **options):
    result = hosts(*args, **options)
    if result.code != 0 or result.is_late:
        raise Failure(str(result))
    return result


def why_not():
    """What this machine lacks, or None; asked without the script under test."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"{NAME}-probe"
    made = run_command(["ip", "netns", "add", probe])
    if made.code != 0:
        return f"no network namespaces here: {made.err.strip()}"
    links = run_command(["ip", "-n", probe, "link", "add", "name", "br", "type", "bridge"])
    limits = run_command(["tc", "-n", probe, "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1mbit",
                          "burst", "32kb", "latency", "400ms"])
    run_command(["ip", "netns", "delete", probe])
    if links.code != 0 or limits.code != 0:
        return f"the kernel has no bridge or tbf: {links.err}{limits.err}".strip()
    return None if os.path.exists("/dev/net/tun") else "no /dev/net/tun"


def batch(name, prompts, across):
    """One batch; returns what must not depend on the hosts, and the report of its trace."""
    out, trace = PLACE / f"{name}.jsonl", PLACE / f"{name}.json"
    out.unlink(missing_ok=True)
    arguments = ["batch", "-i", prompts, "-o", out, "--trace", trace, *OPTIONS]
    if across:
        hosts_ok("mpirun", "-n", N_RANKS, PROGRAM, *arguments)
    else:
        run_ok(*arguments)
    answers = {}
    for line in out.read_text().splitlines():
        record = json.loads(line)
        if record["error"]:
            raise Failure(f"{name}: {record['custom_id']}: {record['error']}")
        body = record["response"]["body"]
        answers[record["custom_id"]] = ([c["text"] for c in body["choices"]], body["usage"],
                                        body["loop_stats"]["exit_loops"])
    return answers, run_json("trace", "report", trace)


def hops_ms(report):
    """The median hop of the loops that begin on another host: with a worker on each, all but the first."""
    return [loop["hop"]["p50_s"] * 1e3 for loop in report["by_loop"][1:]]


def check_hosts(c):
    """Names, addresses and hostnames; errors that say what to do."""
    listed = hosts_ok("up", N_HOSTS).out.splitlines()
    c.equal(listed[:N_HOSTS], [f"{NAME}-{i} 10.77.0.{i}" for i in range(1, N_HOSTS + 1)], "hosts")
    for i in range(1, N_HOSTS + 1):
        found = hosts_ok("exec", i, "sh", "-c", f"uname -n; getent hosts {NAME}-1").out.split()
        c.equal(found, [f"{NAME}-{i}", "10.77.0.1", f"{NAME}-1"], f"host {i}: its name, and another's address")
    ranks = hosts_ok("mpirun", "-n", N_RANKS, "uname", "-n").out.split()
    c.equal(sorted(ranks), sorted(f"{NAME}-{i % N_HOSTS + 1}" for i in range(N_RANKS)), "ranks over hosts")
    devices = hosts_ok("exec", 1, "ip", "-o", "link").out
    c.equal(len(devices.splitlines()), 2, f"a host has its own network only: {devices}")
    for args, word in ((["up", 2], "up already"), (["exec", 4, "true"], f"{NAME}-1 to {NAME}-3"),
                       (["up", 2, "--delay", "long"], "'long'"), (["up", 0], "'0'"),
                       (["up", 2, "--loss", "1"], "'--loss'"), (["leave"], "'leave'"), (["mpirun"], "mpirun -n")):
        result = hosts(*args)
        c.check(result.code in (1, 2) and word in result.err, f"{args}: {result}")
    result = hosts("exec", 1, "true", name=f"{NAME}-none")
    c.check(result.code == 1 and "up N" in result.err, f"a network that is not there: {result}")


def check_two_networks(c):
    """Two of them at once, with the same addresses."""
    other = f"{NAME}-b"
    try:
        c.check(hosts("up", 2, name=other).code == 0, "a second network")
        c.equal(hosts("exec", 2, "getent", "hosts", f"{other}-1", name=other).out.split(),
                ["10.77.0.1", f"{other}-1"], "the second network's names")
        c.equal(hosts("exec", 3, "uname", "-n").out.strip(), f"{NAME}-3", "the first is as it was")
    finally:
        hosts("down", name=other)
    c.equal(hosts("exec", 3, "uname", "-n").out.strip(), f"{NAME}-3", "the first outlives the second")


def check_others(c):
    """Namespaces that somebody else has made are not ours to end, whatever they are called."""
    other = f"{NAME}-o"
    run_command(["ip", "netns", "add", f"{other}-1"])
    with subprocess.Popen(["ip", "netns", "exec", f"{other}-1", "sleep", "60"]) as sleeper:
        try:
            for args, code, word in ((["down"], 0, ""), (["up", 1], 1, "somebody else's"), (["down"], 0, "")):
                result = hosts(*args, name=other)
                c.check(result.code == code and word in result.err, f"{args}, the namespace is another's: {result}")
                c.check(sleeper.poll() is None, f"{args}: another's process goes on")
                c.check(f"{other}-1" in run_command(["ip", "netns", "list"]).out, f"{args}: another's namespace is there")
        finally:
            sleeper.kill()
            sleeper.wait()
            run_command(["ip", "netns", "delete", f"{other}-1"])


def check_answers_and_delay(c):
    prompts = PLACE / "prompts.jsonl"
    prompts.write_text("".join((DEMO / "prompts.jsonl").read_text().splitlines(keepends=True)[:16]))
    one_host, _ = batch("one_host", prompts, False)
    c.equal(len(one_host), 16, "answers")
    for _ in range(3):
        plain, report = batch("plain", prompts, True)
        c.equal(plain, one_host, "three hosts answer as one does")
        plain_hops = hops_ms(report)
        if max(plain_hops) < DELAY_MS / 2:
            break
    c.equal([w["host"] for w in report["workers"]], [f"{NAME}-2", f"{NAME}-3", f"{NAME}-1"], "the trace's hosts")
    c.check(all(loop["hop"]["n"] > 20 for loop in report["by_loop"]), f"all loops were run: {report['by_loop']}")
    hosts_ok("down")
    said = hosts_ok("up", N_HOSTS, "--delay", DELAY_MS, "--rate", RATE_MBIT).out
    c.check(f"delay_ms={DELAY_MS} " in said and "delay_by=nothing" not in said, f"up says what delays: {said}")
    c.note(said.splitlines()[-1])
    for _ in range(3):
        slow, report = batch("slow", prompts, True)
        c.equal(slow, one_host, "with a delay and a limit the answers are the same")
        slow_hops = hops_ms(report)
        if max(slow_hops) <= DELAY_MS + MOST_EXTRA_MS:
            break
    for loop, before, after in zip((2, 3, 4), plain_hops, slow_hops):
        c.note(f"loop {loop}: hop p50 {before:.2f} ms, with {DELAY_MS} ms delay {after:.2f} ms")
        c.check(before < DELAY_MS / 2, f"loop {loop}: a hop without delay takes {before:.2f} ms")
        c.check(DELAY_MS <= after <= DELAY_MS + before + MOST_EXTRA_MS,
                f"loop {loop}: with {DELAY_MS} ms delay the hop takes {after:.2f} ms")


def check_link(c):
    """The delay and the limit by themselves, as `bench net` sees them between two hosts."""
    n_bytes = 262144
    for _ in range(3):
        net = hosts_ok("mpirun", "-n", 2, PROGRAM, "bench", "net", "--iterations", 12, "--sizes", f"64,{n_bytes}",
                       "--json").json()
        small, large = net["results"]
        if small["hop_p50_us"] / 1e3 <= DELAY_MS + MOST_EXTRA_MS:
            break
    c.equal(net["local_ranks"], 1, "one rank on this host")
    c.check(DELAY_MS <= small["hop_p50_us"] / 1e3 <= DELAY_MS + MOST_EXTRA_MS, f"64 bytes took {small['hop_p50_us']:.0f} us")
    least_ms = DELAY_MS + n_bytes * 8 / RATE_MBIT / 1e3 * 0.8  # the bucket holds some
    c.check(large["hop_p50_us"] / 1e3 >= least_ms,
            f"{n_bytes} bytes took {large['hop_p50_us'] / 1e3:.1f} ms, at least {least_ms:.1f} at {RATE_MBIT} Mbit/s")
    c.check(large["stream_mb_per_s"] <= RATE_MBIT / 8 * 1.1, f"{large['stream_mb_per_s']} MB/s through the limit")


def check_nothing_left(c):
    hosts_ok("down")
    c.check(NAME not in run_command(["ip", "netns", "list"]).out, "namespaces are gone")
    for path in (f"/run/carousel-netns/{NAME}", f"/etc/netns/{NAME}-1"):
        c.check(not os.path.exists(path), f"{path} is gone")
    relays = [open(f"/proc/{p}/cmdline", "rb").read() for p in os.listdir("/proc") if p.isdigit()
              and os.path.exists(f"/proc/{p}/cmdline")]
    c.check(not any(f"{NAME}-1".encode() in line for line in relays), "no process of it is left")
    c.equal(hosts("down").code, 0, "down of what is not up")


def main():
    missing = why_not()
    if missing:
        print(f"e2e_netns: skipped: {missing}")
        sys.exit(0)
    c = Checks("e2e_netns")
    PLACE.mkdir(parents=True, exist_ok=True)
    try:
        for check in (check_hosts, check_two_networks, check_others, check_answers_and_delay, check_link, check_nothing_left):
            c.attempt(check)
    finally:
        hosts("down")
    c.close()


if __name__ == "__main__":
    main()
