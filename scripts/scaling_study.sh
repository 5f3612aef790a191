#!/bin/sh
# Measures how Carousel scales over worker counts and draws it: docs/scaling.md.
#
#   scripts/scaling_study.sh run --workers 1,2,3,4 --series strong,weak,kv,single --out DIR [options] [-- carousel options]
#   scripts/scaling_study.sh plot DIR
#   scripts/scaling_study.sh all ...          both; --help lists the options
#
# numpy and matplotlib come from Debian (scripts/setup.sh plots), hence this interpreter.
exec "${PYTHON:-/usr/bin/python3}" "$(dirname "$0")/scaling_study.py" "$@"
