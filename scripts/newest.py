"""Run the notebooks on the newest releases, and name the release that breaks one.

newest.py NOTEBOOK …             # what the resolver gives today, as `make newest` does
newest.py --oldest NOTEBOOK …    # the lower bounds of requirements.in, as `make oldest`
newest.py --programs NOTEBOOK …  # newer programs than tools.toml names are built, too

The environments lie in build/; locks and .venv stay as they are. A notebook that fails
is run again on both sides; guilty.py then finds the smallest set of releases that breaks
it. build/newest/report.md has it all. When every notebook holds, build/newest/offer has
the new locks, and the date for the front page.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alone import lock_of, locked_versions, versions_in
from build_tool import PRELUDE, VENV, environment, tools, tools_of
from guilty import Mixtures, check, why
from newest_report import report
from pages import HELD, every_notebook, packages_of
from run import BUILD, MAKE, ROOT, Refused, named, say


def newer_programs():
    """Return {tool: newest version, or "" where nobody answers}, for those that moved.

    tools.toml says how each is asked.
    """
    found = {}
    for name, tool in tools().items():
        if "newest" not in tool:
            continue
        with tempfile.TemporaryDirectory(prefix="ask-") as folder:
            recipe = ["bash", "-euo", "pipefail", "-c", PRELUDE + tool["newest"]]
            done = subprocess.run(
                recipe, cwd=folder, env=environment(Path(folder), tool), text=True,
                capture_output=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        answer = done.stdout.strip().removeprefix("v") if done.returncode == 0 else ""
        if answer != tool["version"]:
            found[name] = answer if re.fullmatch(r"[\d.]+", answer) else ""
    return found


def compiled(path):
    """Tell whether a file is a program of the machine's own kind."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


class Lane:
    """One run: a copy of the machinery with other locks and an environment of its own."""

    def __init__(self, oldest, notebooks, timeout):
        self.kind = "oldest" if oldest else "newest"
        self.oldest, self.notebooks, self.timeout = oldest, notebooks, timeout
        self.folder = BUILD / self.kind
        self.clone = self.folder / "clone"
        self.venv = self.clone / ".venv"
        self.tools_here = tools()
        self.newer, self.tried, self.unbuilt = {}, set(), set()

    def make(self, folder, *words):
        """Run make in a copy; return whether all went well. Its words go into a log."""
        with open(self.folder / "make.log", "a", encoding="utf-8") as log:
            done = subprocess.run(
                [*MAKE, "--no-print-directory", *words], cwd=folder,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return done.returncode == 0

    def prepare(self, programs):
        """Resolve; make the environment and the programs, when something moved.

        Raises Refused when the releases cannot be resolved or installed.
        """
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        (self.folder / "make.log").unlink(missing_ok=True)
        shutil.copy(ROOT / "Makefile", fresh)
        for name in ("environment", "scripts"):
            shutil.copytree(ROOT / name, fresh / name,
                            ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        if not self.oldest:
            self.newer = newer_programs()
        for name, version in self.newer.items() if programs else ():
            self.try_program(fresh / "environment", name, version)
        what = ["resolve/requirements", "RESOLUTION=lowest-direct"] * self.oldest
        if not self.make(fresh, *(what or ["resolve"])):
            raise Refused(f"not resolved: see {self.folder / 'make.log'}")
        if self.same_as_here(fresh):
            say("nothing moved: the notebooks run in the environment that is there")
            self.clone, self.venv = ROOT, VENV
        else:
            self.install(fresh)
        self.unbuilt = {
            (name, notebook) for name, tool in self.tools().items()
            for notebook in tool["notebooks"]
            if not (self.venv / f"tools/{name}-{tool['version']}.ready").exists()
        }  # fmt: skip

    def same_as_here(self, fresh):
        """Tell whether a copy of the machinery has no other release than this one."""
        locks = [p.relative_to(ROOT) for p in (ROOT / "environment").rglob("*")
                 if p.suffix == ".txt" or p.name == "package-lock.json"]  # fmt: skip
        texts = [[(root / p).read_text(encoding="utf-8") for p in locks]
                 for root in (ROOT, fresh)]  # fmt: skip
        here, there = [[locked_versions(t) or t for t in many] for many in texts]
        return not self.tried and here == there

    def install(self, fresh):
        """Make the environment and the programs of `fresh` in the lane's own clone.

        Raises Refused when a release cannot be installed.
        """
        ignored = ["-x", ".venv", "-x", ".programs", "-x", "build", "-x", "__pycache__"]
        if subprocess.run(["diff", "-rq", *ignored, fresh, self.clone],
                          capture_output=True).returncode:  # fmt: skip
            for old in ("environment", "scripts", ".programs", ".venv/tools"):
                shutil.rmtree(self.clone / old, ignore_errors=True)
            shutil.copytree(fresh, self.clone, dirs_exist_ok=True)
        (self.clone / ".programs").mkdir(exist_ok=True)
        for kept in (ROOT / ".programs").glob("*"):
            # What is compiled does not know its environment and needs no second build.
            files, link = list(kept.glob("*")), self.clone / ".programs" / kept.name
            own = any(f.is_symlink() or f.is_file() and not compiled(f) for f in files)
            if files and not own and not link.exists():
                link.symlink_to(kept.resolve())
        if not self.make(self.clone, "environment"):
            raise Refused(f"not installed: see {self.folder / 'make.log'}")
        words = " ".join(map(str, self.notebooks))
        self.make(self.clone, "-k", "tools", f"NOTEBOOKS={words}")

    def tools(self):
        """Return the copy's table of programs."""
        return tomllib.loads((self.clone / "environment/tools.toml").read_text("utf-8"))

    def try_program(self, folder, name, version):
        """Have a newer program built, where its recipe goes by the version alone."""
        tool = tools()[name]
        package = folder / name / "package.json"
        pinned = "sha256sum" in tool["recipe"] or (folder / name / "go.mod").exists()
        by_version = "$version" in tool["recipe"] and not pinned
        if not version or not by_version and not package.exists():
            return
        for path in (folder / "tools.toml", package):
            if path.exists():
                text, old = path.read_text(encoding="utf-8"), f'"{tool["version"]}"'
                place = text.index(f"[{name}]") if path.suffix == ".toml" else 0
                rest = text[place:].replace(old, f'"{version}"', 1)
                path.write_text(text[:place] + rest, encoding="utf-8")
        self.tried.add(name)

    def locks(self, lock="requirements.txt"):
        """Return ({package: version} of a lock here, the same there)."""
        return [versions_in(c / "environment" / lock) for c in (ROOT, self.clone)]

    def programs_of(self, notebook):
        """Return the notebook's tools that moved, or whose own packages did."""
        names = list(tools_of(notebook))
        own = [n for n in names if (ROOT / f"environment/{n}.txt").exists()]
        return [n for n in names if n in self.tried
                or n in own and len({str(m) for m in self.locks(f"{n}.txt")}) > 1]  # fmt: skip

    def run(self, notebook):
        """Run one notebook; return its row of the table and, if guilty, more."""
        started = time.monotonic()
        note = self.folder / "notes" / notebook.with_suffix(".json")
        lacks = [n for n, nb in self.unbuilt if nb == str(notebook.with_suffix(""))]
        if lacks:
            verdict = f"not run: {', '.join(lacks)} was not built"
            result = {"verdict": verdict, "found": []}
        elif not (failure := check(notebook, self.venv, note, self.timeout)):
            result = {"verdict": "holds", "found": []}
        elif not check(notebook, self.venv, note, self.timeout):
            result = {"verdict": f"flaky: {why(failure)} once, then holds", "found": []}
        else:
            try:
                result = self.judge(notebook) | {"failure": failure}
            except Exception as error:  # it is named, and the others go on
                verdict = f"not judged: {error!r}"
                result = {"verdict": verdict, "found": [], "failure": failure}
        result |= {"notebook": str(notebook), "seconds": time.monotonic() - started}
        names = [
            f"{p} {new}" for row in result["found"] for p, _, new in row["packages"]
        ]
        told = f"{result['verdict']}{', by ' * bool(names)}{', '.join(names)}"
        say(f"{result['seconds']:6.0f} s  {notebook.with_suffix('')}: {told}")
        return result

    def judge(self, notebook):
        """Find what breaks a notebook: with its own packages, else with all there are."""
        runs = 0
        everything = (ROOT / "environment/requirements.in").read_text(encoding="utf-8")
        own = "\n".join([*packages_of(notebook), "pip", "ipykernel"])
        for words, lock in (
            (own, lock_of(notebook).name),
            (everything, "requirements.txt"),
        ):
            mixtures = Mixtures(self, notebook, words, lock)
            verdict, found, rest = mixtures.guilty()
            runs += mixtures.runs
            if found or verdict.startswith("flaky"):
                break
        if found:
            verdict = why(found[0][1])
        elif verdict == "holds":
            verdict = "flaky: fails, then holds in an environment made anew"
        rows = [
            {"packages": list(map(mixtures.versions, names)), "failure": failure}
            for names, failure in found
        ]
        shutil.rmtree(mixtures.folder, ignore_errors=True)
        return {"verdict": verdict, "found": rows, "rest": rest, "runs": runs}


def offer(lane, results):
    """Lay out the new locks and the date, when every notebook holds. Returns exit code."""
    failed = [r for r in results if r["verdict"] != "holds"]
    place = lane.folder / "offer"
    shutil.rmtree(place, ignore_errors=True)
    every = set(every_notebook())
    left_out = every & {Path(n) for n in os.environ.get("LEFT_OUT", "").split()}
    if failed or lane.oldest or set(lane.notebooks) != every - left_out:
        return int(bool(failed))
    shutil.copytree(lane.clone / "environment", place / "environment")
    note = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "notebooks": len(results),
        "left out": len(left_out),
        "packages": len(lane.locks()[1]),
    }
    held = place / HELD.relative_to(ROOT)
    held.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    say(f"the new locks and the date are in {place}")
    return 0


def main():
    """Run what the command line asks for. Returns exit code: 0 when all hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="+")
    parser.add_argument("--oldest", action="store_true")
    parser.add_argument("--programs", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cell-timeout", default="120")
    args = parser.parse_args()
    os.environ["PATH"] = f"{VENV}/bin:{os.environ['PATH']}"
    lane = Lane(
        args.oldest, [named(word) for word in args.notebooks], args.cell_timeout
    )
    started = time.monotonic()
    lane.prepare(args.programs)
    say(f"{time.monotonic() - started:6.0f} s  resolved and installed")
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lane.run, lane.notebooks))
    text = report(lane, results, time.monotonic() - started)
    (lane.folder / "report.md").write_text(text, encoding="utf-8")
    say("", text)
    return offer(lane, results)


if __name__ == "__main__":
    sys.exit(main())
