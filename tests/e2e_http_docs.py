#!/usr/bin/python3
"""Every curl line of docs/http.md works, and the answers have what the page shows of them.

A command stands in an indented block and may go on over several lines; JSON below it is part of the answer: every field
shown must be there, with a value of that type. Limits that the page names are those of --help-all.
"""
import json
import re
import shlex
import shutil

from e2e_lib import DEMO, ROOT, Checks, Failure, run_command, run_ok
from http_lib import Server, make_chat_model

PAGE = ROOT / "docs" / "http.md"


def blocks():
    """Indented blocks that begin with curl, without their indent."""
    for block in re.findall(r"(?:^    .*\n)+", PAGE.read_text(), re.M):
        text = "".join(line[4:] for line in block.splitlines(True))
        if text.startswith("curl "):
            yield text


def split_block(text):
    """(arguments of curl, what the answer shows or None)"""
    for end in [m.start() for m in re.finditer(r"\n(?=\{)", text)] + [len(text)]:
        try:
            arguments = shlex.split(text[:end].replace("\\\n", " "))
        except ValueError:
            continue  # a { inside the quotes of the command
        rest = text[end:].strip()
        return arguments, json.loads(rest) if rest else None
    raise Failure(f"docs/http.md: no end of the command in {text[:200]!r}")


def lacks(found, shown, where="answer"):
    """What of `shown` is not in `found`; numbers are one type, null is any."""
    if shown is None or found is None and where.endswith("logprobs"):
        return None
    kinds = ((dict,), (list,), (str,), (bool,), (int, float))
    kind = next(k for k in kinds if isinstance(shown, k))
    if not isinstance(found, kind):
        return f"{where} is {str(found)[:100]}, the page shows {str(shown)[:100]}"
    if isinstance(shown, dict):
        for key, value in shown.items():
            if key not in found:
                return f"{where} has no {key}: {str(found)[:200]}"
            problem = lacks(found[key], value, f"{where}.{key}")
            if problem:
                return problem
    if isinstance(shown, list):
        if len(found) < len(shown):
            return f"{where} has {len(found)} items, the page shows {len(shown)}"
        for i, value in enumerate(shown):
            problem = lacks(found[i], value, f"{where}[{i}]")
            if problem:
                return problem
    return None


def test_curl(c, servers, text):
    arguments, shown = split_block(text)
    is_chat = any("/chat/" in x for x in arguments)
    url = servers["chat" if is_chat else "demo"].url
    arguments = [x.replace("http://127.0.0.1:8000", url) for x in arguments]
    done = run_command([*arguments, "--silent", "--show-error", "--fail-with-body", "--max-time", "20"])
    what = re.sub(r"\s+", " ", text)[:110]
    if not c.check(done.code == 0, f"{what}: {done}: {done.out[:300]}"):
        return
    if "stream\": true" in text:
        c.check(done.out.endswith("data: [DONE]\n\n"), f"{what}: the stream ends with {done.out[-60:]!r}")
    if shown is not None:
        c.equal(lacks(json.loads(done.out), shown), None, what)
    if "return_exit_loops" in text:
        c.equal(json.loads(done.out)["loop_stats"]["exit_loops"], shown["loop_stats"]["exit_loops"], f"{what}: exit loops")


def test_options(c):
    """The options named on the page are the program's."""
    known = set(re.findall(r"--[a-z][a-z-]+", run_ok("serve", "--help-all").out))
    for option in sorted(set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text())) - {"--mpi"}):
        c.check(option in known or option == "--help-all", f"docs/http.md names {option}, which `carousel serve` does not know")


def test_errors(c):
    """Every code of the table of errors is asked for somewhere in the tests."""
    codes = set(re.findall(r"^\| [0-9]{3} \| .*?\| (.*?) \|", PAGE.read_text(), re.M))
    names = {name for cell in codes for name in re.findall(r"`([a-z_]+)`", cell)}
    files = [*(ROOT / "tests").glob("*.py"), *(ROOT / "tests").glob("test_http*.c"), ROOT / "tests/data/http_bad.jsonl"]
    tests = "".join(p.read_text() for p in files)
    for name in sorted(names):
        c.check(re.search(rf'[^a-z_]{name}[^a-z_]', tests), f"no test asks for the error code {name}")


def main():
    c = Checks("e2e_http_docs")
    if not shutil.which("curl"):
        raise SystemExit("e2e_http_docs: curl is missing; scripts/setup.sh installs it")
    servers = {"demo": Server(DEMO), "chat": Server(make_chat_model())}
    commands = list(blocks())
    c.check(len(commands) >= 15, f"docs/http.md has {len(commands)} curl lines")
    for text in commands:
        c.attempt(test_curl, servers, text)
    for server in servers.values():
        server.stop()
    c.attempt(test_options)
    c.attempt(test_errors)
    c.close()


if __name__ == "__main__":
    main()
