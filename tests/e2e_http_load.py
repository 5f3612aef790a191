#!/usr/bin/python3
"""Ten seconds of 64 streams whose clients leave at random (scripts/load_streams.py): no error, nothing left behind."""
import json
import sys

from e2e_lib import DEMO, ROOT, Checks, run_command
from http_lib import PLACE


def test_load(c, *options):
    PLACE.mkdir(parents=True, exist_ok=True)
    numbers = PLACE / "load.json"
    numbers.unlink(missing_ok=True)
    done = run_command([sys.executable, ROOT / "scripts" / "load_streams.py", "--start", "--streams", 64, "--seconds", 10,
                        "--json", numbers, DEMO, "--", *options], timeout=90)
    if not c.check(numbers.exists(), f"load_streams.py: {done}\n{done.out}"):
        return
    r = json.loads(numbers.read_text())
    c.note(f"{r['started']} streams, {r['done']} done, {r['left']} left, {r['tokens_per_s']} tokens/s")
    c.equal((r["failed"], r["failures"]), (0, {}), f"streams that failed (seed {r['seed']})")
    c.equal((r["running_after"], r["waiting_after"], r["kv_usage_after"]), (0, 0, 0), "running, waiting, KV use afterwards")
    c.check(r["done"] >= 64 and r["left"] >= 64, f"{r['done']} done, {r['left']} left: too few to show anything")
    c.equal(r["server_exit_code"], 0, "the server's exit code")
    c.check(r["token_to_socket_p99_ms"] is not None, "token_to_socket_seconds has counted")
    c.equal(done.code, 0, "exit code of load_streams.py")


def main():
    c = Checks("e2e_http_load")
    c.attempt(test_load)
    c.close()


if __name__ == "__main__":
    main()
