#!/usr/bin/env bash
# Make or update the environment in .venv from requirements.txt. Called by make.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
uv_version=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.txt)

stop() { echo "environment: $*" >&2; exit 1; }

# uv: the one in the environment, the one on PATH, or the pinned one from PyPI.
if [ -x $venv/bin/uv ] && $venv/bin/uv --version >/dev/null 2>&1; then uv=$venv/bin/uv
elif command -v uv >/dev/null; then uv=uv
else
    command -v python3 >/dev/null || stop "python3 is missing: install Python 3.11 first"
    python3 -m venv build/uv ||
        stop "python3 cannot make environments: install its venv module (Debian: apt-get install python3-venv)"
    build/uv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version" ||
        stop "uv could not be installed from PyPI: is there a network?"
    uv=build/uv/bin/uv
fi

# An environment knows its own path; a clone that was moved needs a new one.
here=$(cd -P $venv 2>/dev/null && pwd) || here=none
if [ "$(cat $venv/location 2>/dev/null)" != "$here" ] || ! $venv/bin/python -V >/dev/null 2>&1; then
    echo "environment: making .venv with Python 3.11 (3.1 GB, about a minute once downloaded)"
    if [ $uv = $venv/bin/uv ]; then  # about to be cleared away
        cp $uv build/uv-keep && uv=build/uv-keep
    fi
    $uv venv --quiet --clear --python 3.11 $venv ||
        stop "no Python 3.11: install it, or let uv fetch it (network)"
fi
VIRTUAL_ENV=$venv $uv pip sync --quiet --compile-bytecode --require-hashes requirements.txt ||
    stop "the packages of requirements.txt could not be installed: is there a network, and 5 GB of disk?"
rm -f build/uv-keep
$venv/bin/python scripts/kernel.py
(cd -P $venv && pwd | tee location >ready)
