#!/bin/sh
# Looped against not looped: trains the models of arXiv 2502.17416's tables and writes build/seed_tables/tables.md.
# Reduced sizes by default; --full: the paper's. --estimate: how long. --help: the rest.
set -eu
cd "$(dirname "$0")/.."
[ -x build/carousel ] || make build/carousel >&2
exec /usr/bin/python3 scripts/seed_tables.py "$@"
