"""Run notebooks as somebody who copied them would: alone, with only what they say.

    alone.py data-versioning/dvc.ipynb     # these
    alone.py --since HEAD~1 …              # those of them whose code or packages changed
    alone.py --newest …                    # unpinned, as a reader's `pip install` is

The packages of a notebook's `pip install` go into a fresh environment, in the versions of
its lock. Programs that pip does not bring are linked from this collection's environment.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from build_tool import VENV, tools, tools_of
from pages import packages_of
from run import BUILD, ROOT, attempt, failure_text, named, say

LOCKS = ROOT / "environment"


def locked_versions(text):
    """Return {package: version} of a lock's text."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def versions_in(lock):
    """Return {package: version} of a lock file."""
    return locked_versions(lock.read_text(encoding="utf-8"))


def lock_of(notebook):
    """Return the lock of a notebook's packages.

    One that asks for old versions (`numpy<1.24`) runs with its tool's own.
    """
    own = LOCKS / f"{notebook.stem}.txt"
    bounded = any("<" in package for package in packages_of(notebook))
    return own if bounded and own.exists() else LOCKS / "requirements.txt"


def changed_since(revision, notebooks):
    """Return the notebooks whose code, packages or locks, their tools' too, changed."""

    def before(path):
        command = ["git", "show", f"{revision}:{path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout

    def says(text):
        cells = json.loads(text)["cells"] if text else []
        code = [c["source"] for c in cells if c["cell_type"] == "code"]
        return code + re.findall(r"`pip install [^`]+`", text)

    def moved(notebook):
        own = (LOCKS / f"{name}.txt" for name in tools_of(notebook))
        return any(
            locked_versions(before(path.relative_to(ROOT))) != versions_in(path)
            for path in (lock_of(notebook), *filter(Path.exists, own))
        )

    return [
        n for n in notebooks
        if says((ROOT / n).read_text(encoding="utf-8")) != says(before(n))
        or moved(n)
    ]  # fmt: skip


def make_environment(folder, notebook, newest):
    """Make an environment with a notebook's packages in `folder`.

    newest: unpinned. Raises subprocess.CalledProcessError when uv cannot install them.
    """
    python = folder / "env/bin/python"
    pins = folder / "pins.txt"
    versions = versions_in(lock_of(notebook))
    pins.write_text("".join(f"{k}=={v}\n" for k, v in versions.items() if not newest))
    quiet = {"check": True, "capture_output": True, "text": True}
    uv = VENV / "bin/uv"
    subprocess.run([uv, "venv", "-q", "--python", "3.11", folder / "env"], **quiet)
    install = [uv, "pip", "install", "-q", "--python", python, "-c", pins]
    subprocess.run([*install, "pip", "ipykernel", *packages_of(notebook)], **quiet)
    finish(folder / "env")


def finish(environment, source=lambda tool: VENV):
    """Link what pip does not bring into an environment; make it the kernel's.

    source: returns the environment that has a tool's programs.
    """
    links = [(VENV, "bin/node")]
    for name, tool in tools().items():
        links += [(source(name), f"bin/{program}") for program in tool["programs"]]
        links.append((source(name), f"tools/{name}-{tool['version']}"))  # its files
    for have, link in links:
        place = environment / link
        if place.is_symlink():
            place.unlink()
        if (have / link).exists() and not place.exists():
            place.parent.mkdir(exist_ok=True)
            place.symlink_to((have / link).resolve())
    kernel = [environment / "bin/python", ROOT / "scripts/kernel.py", "--install"]
    subprocess.run(kernel, check=True, capture_output=True, text=True)


def run_alone(notebook, newest):
    """Run one notebook; say how it went. Returns exit code."""
    name = notebook.with_suffix("")
    folder = BUILD / "alone" / name
    shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed has left
    folder.mkdir(parents=True)
    say(f"start    {name}: pip install {' '.join(packages_of(notebook))}")
    try:
        make_environment(folder, notebook, newest)
        os.environ["JUPYTER_PATH"] = str(folder / "env/share/jupyter")
        os.environ["PATH"] = os.defpath
        result = attempt(notebook, folder / "out.ipynb", {}, 300)
    except subprocess.CalledProcessError as error:
        say(f"FAILED   {name}: not installed: {error.stderr.strip()[-500:]}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if result["status"] != "ok":
        say(f"FAILED   {name}: {failure_text(result['failure'])}")
        return 1
    say(f"alone    {name}  {result['seconds']:.1f} s")
    return 0


def main():
    """Run the notebooks that the command line asks for. Returns exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="+")
    parser.add_argument("--since", metavar="REVISION")
    parser.add_argument("--newest", action="store_true")
    args = parser.parse_args()
    chosen = [named(word) for word in args.notebooks]
    if args.since:
        chosen = changed_since(args.since, chosen)
    failed = sum(run_alone(notebook, args.newest) for notebook in chosen)
    say(f"{len(chosen) - failed} of {len(chosen)} notebooks ran alone")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
