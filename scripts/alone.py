"""Run a notebook as somebody who copied it would: alone, with only what it says.

    alone.py data-versioning/dvc.ipynb     # these
    alone.py --since HEAD~1 …              # those of them whose code or packages changed

The notebook and the data file go into an empty folder, and the packages of its
`pip install` into a fresh environment, in the versions of requirements.txt. Programs
that pip does not bring are linked from this collection's environment.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from notebooks import execute, explain, failure_text, name_of, say
from pages import ROOT, needs_of, packages_of

UV = ROOT / ".venv/bin/uv"
# Programs that a facts table names with `make tools`, and the file it names them by.
PROGRAMS = ("dolt", "lakefs", "lakectl", "testpachd", "pachctl", "oathkeeper",
            "guild", "bodywork", "configurable-http-proxy", "node")  # fmt: skip


def locked_versions(text):
    """Return {package: version} of a requirements.txt."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def changed_since(revision, notebooks):
    """Return the notebooks whose code, packages or packages' versions changed."""

    def before(name):
        shown = subprocess.run(
            ["git", "show", f"{revision}:{name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        return shown.stdout

    def sources(text):
        cells = json.loads(text)["cells"] if text else []
        code = [c["source"] for c in cells if c["cell_type"] == "code"]
        return code + re.findall(r"`pip install [^`]+`", text)

    old = locked_versions(before("requirements.txt"))
    new = locked_versions((ROOT / "requirements.txt").read_text())
    moved = {name for name in new if old.get(name) != new[name]}
    return [
        n for n in notebooks
        if sources(n.read_text()) != sources(before(n))
        or moved & set().union(*(needs_of(p) for p in packages_of(n)))
    ]  # fmt: skip


def lock_of(notebook):
    """Return the lock that a notebook's packages come from.

    One that asks for old versions (`numpy<1.24`) runs with its tool's own lock.
    """
    own = ROOT / f"scripts/{notebook.stem}.txt"
    bounded = any("<" in package for package in packages_of(notebook))
    return own if bounded and own.exists() else ROOT / "requirements.txt"


def make_environment(folder, notebook):
    """Make an environment with a notebook's packages; return the kernel spec's folder.

    Raises subprocess.CalledProcessError when uv cannot install them.
    """
    python = folder / "env/bin/python"
    locked = locked_versions(lock_of(notebook).read_text())
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{k}=={v}\n" for k, v in locked.items()))
    quiet = {"check": True, "capture_output": True, "text": True}
    subprocess.run([UV, "venv", "-q", "--python", "3.11", folder / "env"], **quiet)
    install = [UV, "pip", "install", "-q", "--python", python, "-c", pins]
    subprocess.run([*install, "pip", "ipykernel", *packages_of(notebook)], **quiet)
    for program in PROGRAMS:
        source, target = ROOT / ".venv/bin" / program, folder / "env/bin" / program
        if source.exists() and not target.exists():
            target.symlink_to(source.resolve())
    own = json.loads(
        (ROOT / ".venv/share/jupyter/kernels/python3/kernel.json").read_text()
    )
    own["argv"][0] = str(python)
    (folder / "home").mkdir()
    own["env"] |= {
        "HOME": str(folder / "home"),
        "PATH": f"{python.parent}:/usr/bin:/bin",
    }
    spec = folder / "kernels/alone"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps(own))
    return folder


def run_alone(notebook):
    """Run one notebook; say so. Returns exit code."""
    with tempfile.TemporaryDirectory(prefix="alone-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        partial = folder / "out.ipynb"
        say(
            f"start    {name_of(notebook)}: pip install {' '.join(packages_of(notebook))}"
        )
        try:
            os.environ["JUPYTER_PATH"] = str(make_environment(folder, notebook))
            _, problems = execute(notebook, partial, {}, 300, kernel_name="alone")
        except subprocess.CalledProcessError as error:
            problems = [f"not installed: {error.stderr.strip()[-500:]}"]
        except Exception as error:  # whatever it is, it is named and the rest go on
            problems = [failure_text(explain(error, partial, notebook, 300))]
    for problem in problems:
        say(f"FAILED   {name_of(notebook)}: {problem}")
    if not problems:
        say(f"alone    {name_of(notebook)}")
    return int(bool(problems))


def main():
    """Run the notebooks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--since", metavar="REVISION")
    args = parser.parse_args()
    chosen = args.notebooks
    if args.since:
        chosen = changed_since(args.since, chosen)
    failed = sum(run_alone(notebook) for notebook in chosen)
    say(f"{len(chosen) - failed} of {len(chosen)} notebooks ran alone")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
