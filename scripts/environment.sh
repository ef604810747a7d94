#!/usr/bin/env bash
# Make or update the environment in .venv from environment/requirements.txt; at once done
# when nothing changed. Called by make.
set -euo pipefail
unset CDPATH && cd "$(dirname "$0")/.."
umask 022  # servers that drop root's rights must be able to read it
venv=.venv locked=environment/requirements.txt

stop() { echo "environment: $*" >&2; exit 1; }
# An environment knows its own path, so one that was moved or copied is made anew.
state() { cat $locked scripts/kernel.py | sha256sum; cd -P $venv 2>/dev/null && pwd; }
current() { [ "$(cat $venv/ready 2>/dev/null)" = "$(state)" ]; }

current && exit
mkdir -p build
exec 9>build/environment.lock
flock -n 9 || { echo "environment: another make is at it, waiting"; flock 9; }
current && exit

# uv: the one in the environment, the one on PATH, or the pinned one from PyPI.
if [ -x $venv/bin/uv ] && $venv/bin/uv --version >/dev/null 2>&1; then
    cp $venv/bin/uv build/uv-keep && uv=build/uv-keep  # $venv may be cleared away
elif command -v uv >/dev/null; then uv=uv
else
    command -v python3 >/dev/null || stop "python3 is missing: install Python 3.11 first"
    python3 -m venv build/uv ||
        stop "python3 cannot make environments: install its venv module (Debian: apt-get install python3-venv)"
    build/uv/bin/python -m pip install --quiet --disable-pip-version-check \
        "$(grep -o '^uv==[0-9.]*' $locked)" || stop "pip could not install uv: see its words above"
    uv=build/uv/bin/uv
fi

# uv does not read pip's settings; a mirror that only pip knows is used all the same.
mirror='' from=PyPI
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    told=$({ build/uv/bin/python -m pip config list || python3 -m pip config list; } 2>/dev/null) ||
        from="PyPI, as there is no pip whose settings could name a mirror"
    mirror=${PIP_INDEX_URL:-$(sed -nE "s/^(global|install)\.index-url='(.*)'$/\2/p" <<<"$told" | tail -n 1)}
    [ -z "$mirror" ] || export UV_DEFAULT_INDEX=$mirror
fi

here=$(cd -P $venv 2>/dev/null && pwd) || here=none
if [ "$(tail -n 1 $venv/ready 2>/dev/null)" != "$here" ] || ! $venv/bin/python -V >/dev/null 2>&1; then
    echo "environment: making .venv with Python 3.11 (3.7 GB, about a minute once downloaded)"
    $uv venv --quiet --clear --python 3.11 $venv ||
        stop "no Python 3.11: install it, or let uv fetch it (see its words above)"
fi
# An interrupted sync must not pass for one that was done.
[ ! -e $venv/ready ] || sed -i '1s/.*/unfinished/' $venv/ready
$uv pip sync --python $venv/bin/python --quiet --compile-bytecode --require-hashes $locked || {
    from=$(sed 's|//.*@|//|' <<<"${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$from}}")  # no password
    free=$(df -Pm . | awk 'NR==2 {print $4}')
    stop "uv could not install $locked: see its words above (free on this disk: $free MB of 5,000 needed;" \
         "packages from $from)"
}
rm -f build/uv-keep $venv/mirror
[ -z "$mirror" ] || (umask 077 && echo "$mirror" >$venv/mirror)
$venv/bin/python scripts/kernel.py --install
state >$venv/ready
