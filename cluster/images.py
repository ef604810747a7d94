"""Make the images of images.toml that notebooks need, and put them into the registry.

images.py ADDRESS [NOTEBOOK…]    # ADDRESS of the registry; no notebook: all images

An image is made anew when its table, that of one below it, or a lock has changed.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from image import Registry, layer

ROOT = Path(__file__).resolve().parent.parent
STATE = (ROOT / ".cluster").resolve()
LAYERS = STATE / "layers"
PRELUDE = r"""
trap 'echo "FAILED: $BASH_COMMAND"' ERR
into() {  # install into a folder, without what depends on the time
    "$root/.venv/bin/uv" pip install --quiet --python-version 3.11 --link-mode copy \
        --python-platform x86_64-manylinux_2_31 --target "$@"
    find "$1" -name __pycache__ -prune -exec rm -rf {} +
    rm -rf "$1/bin" "$1/.lock"
    "$root/.venv/bin/python" -m compileall -q -j 2 --invalidation-mode unchecked-hash \
        -s "$1" -p / "$1" >/dev/null || true
}
packages() {
    into "$1" --only-binary :all: --constraints "$root/environment/requirements.txt" "${@:2}"
}
lock() {
    into "$1" --no-deps --require-hashes -r "$2" \
        --build-constraints <(echo 'setuptools<66')
}
"""


def images():
    """Return {key: table} of images.toml."""
    return tomllib.loads((ROOT / "cluster/images.toml").read_text(encoding="utf-8"))


def below(key):
    """Return the keys of an image's layers, the lowest first."""
    parent = images()[key].get("from")
    return [*(below(parent) if parent else []), key]


def wanted(notebooks):
    """Return the keys of the images that notebooks need, or of all; python in any case."""
    names = {str(Path(n).with_suffix("")) for n in notebooks}
    return [key for key, table in images().items()
            if not names or key == "python" or names & set(table["notebooks"])]  # fmt: skip


def state_of(key):
    """Return a digest of all that an image's layers are made from."""
    tables, text = images(), PRELUDE
    for part in below(key):
        text += json.dumps(tables[part], sort_keys=True)
        text += "".join(stamps(tables[part]))
    locks = ["environment/requirements.txt", "environment/bodywork.txt"]
    for path in [*locks, *re.findall(r"environment/[\w-]+/[\w.-]+", text)]:
        text += (ROOT / path).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def stamps(table):
    """Return "name-version" of the tools that an image takes programs from."""
    from build_tool import tools

    return [f"{name}-{tools()[name]['version']}" for name in table.get("tools", [])]


def made_layer(key, log):
    """Return the layer of one image, as layer() does; made anew when it has changed."""
    note = LAYERS / f"{state_of(key)}.json"
    if note.exists():
        blob, *digests = json.loads(note.read_text())
        if (LAYERS / blob).exists():
            return LAYERS / blob, *digests
    table = images()[key]
    for stamp in stamps(table):
        from build_tool import main

        if main(stamp):
            raise OSError(f"{stamp} was not built")
    LAYERS.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="layer-", dir=LAYERS))
    try:
        folder.chmod(0o755)
        subprocess.run(
            ["bash", "-Eeuo", "pipefail", "-c", PRELUDE + table["recipe"]], cwd=folder,
            env=os.environ | {"root": str(ROOT), "programs": str(ROOT / ".programs")},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)  # fmt: skip
        blob, *digests = layer(folder, LAYERS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    fresh = note.with_suffix(".new")  # a full disk must not leave half a note
    fresh.write_text(json.dumps([blob.name, *digests]))
    fresh.replace(note)
    return blob, *digests


def prune():
    """Remove layers that no table describes any more, and what was cut short."""
    notes = [LAYERS / f"{state_of(key)}.json" for key in images()]
    used = {note.name for note in notes}
    used |= {json.loads(note.read_text())[0] for note in notes if note.exists()}
    for path in LAYERS.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in used:
            path.unlink()


def make(key, registry):
    """Make an image and put it into the registry, unless it is there. Returns exit code."""
    table, state = images()[key], state_of(key)
    name, tag = table["name"].split(":")
    if registry.label(name, tag, "state") == state:
        return 0
    started, path = time.monotonic(), ROOT / f"build/images/{key}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"image {table['name']}: {table['holds']}", flush=True)
    try:
        with path.open("w", encoding="utf-8") as log:
            layers = [made_layer(part, log) for part in below(key)]
        size = registry.put(name, tag, layers, Labels={"state": state},
                            **table.get("config", {}))  # fmt: skip
    except (subprocess.CalledProcessError, OSError) as error:
        said = path.read_text(encoding="utf-8", errors="replace").splitlines()
        end = "\n    ".join([*said[-6:], *[str(error)] * isinstance(error, OSError)])
        print(f"image {table['name']}: not made; its log ends:\n    {end}\nimage "
              f"{table['name']}: the whole log is {path.relative_to(ROOT)}; `make cluster` "
              "tries again", flush=True)  # fmt: skip
        return 1
    print(f"image {table['name']}: there after {time.monotonic() - started:.0f} s, "
          f"{size:.0f} MB", flush=True)  # fmt: skip
    return 0


def main(address, *notebooks):
    """Do what the command line asks."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    with open(STATE / "images.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prune()
        registry = Registry(address)
        return max([make(key, registry) for key in wanted(notebooks)], default=0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "scripts"))  # for build_tool
    os.umask(0o022)
    sys.exit(main(*sys.argv[1:]))
