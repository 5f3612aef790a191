#!/bin/sh
# Prints the path of a promtool: the installed one, or one taken out of Debian's package into build/tools/
# (nothing is installed, no service starts; 19 MB to fetch, 48 MB kept). Exit code 3: there is none to be had, and why.
set -eu
cd "$(dirname "$0")/.."
if command -v promtool; then exit 0; fi
tool=$PWD/build/tools/promtool
if [ ! -x "$tool" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "no promtool, and no apt-get to fetch one: install prometheus" >&2
        exit 3
    fi
    mkdir -p build/tools
    fetch=$(mktemp -d build/tools/fetch.XXXXXX)
    trap 'rm -rf "$fetch"' EXIT
    (cd "$fetch" && timeout 120 apt-get download prometheus) >"$fetch/log" 2>&1 || {
        echo "no promtool, and it cannot be fetched: $(grep -E '^E:' "$fetch/log" | head -n 1)" >&2
        exit 3
    }
    dpkg-deb --fsys-tarfile "$fetch"/prometheus_*.deb | tar -xf - -C "$fetch" ./usr/bin/promtool
    # Renamed into place: two tests may fetch at once.
    mv "$fetch/usr/bin/promtool" "$tool"
fi
echo "$tool"
