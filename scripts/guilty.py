"""Name the releases that break a notebook: halve what moved between two locks.

Used by newest.py. The notebook runs alone, in an environment of its own packages, some in
the versions of one lock, the others in those of the other.
"""

import json
import os
import subprocess
import sys
from functools import partial

from alone import finish, locked_versions
from build_tool import VENV, tools
from packaging.version import Version
from run import ROOT

# As `make lock` resolves; what is tried is what a lock would hold.
COMPILE = ["uv", "pip", "compile", "-q", "--python-version", "3.11", "--no-header",
           "--no-annotate", "--python-platform", "x86_64-manylinux_2_31"]  # fmt: skip
NONE = {"cell": 0, "kind": "no such mixture", "old": "", "new": ""}
NOTE = "NEWEST_NOTE"  # the file in which the plugin for pytest, below, notes failures


def shown(outputs):
    """Return what a cell shows as text, short enough to read in a report."""
    parts = []
    for output in outputs or []:
        if "ename" in output:
            parts.append(f"{output['ename']}: {output['evalue']}")
        parts.append(output.get("text", ""))
        data = output.get("data", {})
        parts += [v for k, v in data.items() if k in ("text/plain", "text/markdown")]
        parts += [f"[picture, {len(v)} bytes]" for k, v in data.items() if "image" in k]
    return "\n".join("".join(part).rstrip() for part in parts if part)


def pytest_runtest_makereport(item, call):
    """Note a failing cell: this file is a plugin of the pytest that `check` starts."""
    if call.excinfo is None or call.excinfo.typename == "Skipped":
        return
    ran = call.when == "call"
    kinds = [o["ename"] for o in item.test_outputs or [] if "ename" in o]
    note = {
        "cell": item.cell_num + 1 if ran else 0,
        "kind": (kinds or [str(call.excinfo.value).partition("\n")[0][:200]])[0],
        "old": shown(item.cell.outputs) if ran else "",
        "new": shown(item.test_outputs) if ran else "",
    }
    with open(os.environ[NOTE], "a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")


def check(notebook, environment, note, timeout):
    """Compare a notebook's outputs with those of a run in `environment`, as nbval does.

    Returns None when all hold, else the first failure: {cell, kind, old, new}.
    """
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--nbval", "-p", "conftest",
               "-p", "guilty", "-p", "no:cacheprovider",
               "--nbval-cell-timeout", timeout, notebook]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MAKE"))}
    surroundings = kept | {
        NOTE: str(note), "JUPYTER_PATH": str(environment / "share/jupyter"),
        "PATH": os.defpath, "PYTHONPATH": f"{ROOT}/scripts:{ROOT}/tests",
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True
    )
    failures = note.read_text(encoding="utf-8").splitlines()
    if failures:
        return json.loads(failures[0])
    if done.returncode:
        last = (done.stdout + done.stderr).strip()[-500:]
        return {"cell": 0, "kind": "not run", "old": "", "new": last}
    return None


def why(failure):
    """Return the words for a failure."""
    kind = failure["kind"]
    if not failure["cell"]:
        return f"fails around its cells: {kind}"
    verb = "differs in" if kind == "Cell outputs differ" else f"{kind} in"
    return f"{verb} cell {failure['cell']}"


def same(one, other):
    """Tell whether two runs failed in the same way."""
    return one and other and all(one[k] == other[k] for k in ("cell", "kind"))


def narrow(items, fails):
    """Return the smallest part of `items` that fails.

    Delta debugging by halves: the shortest beginning that fails ends with an item that is
    needed; so on, in what is before it. Some log2(n) calls of `fails` an item of the
    result. fails(items) must be true, fails([]) false.
    """
    needed, rest = [], list(items)
    while not fails(needed):
        low, high = 0, len(rest)
        while high - low > 1:
            middle = (low + high) // 2
            if fails(needed + rest[:middle]):
                high = middle
            else:
                low = middle
        needed, rest = needed + [rest[high - 1]], rest[: high - 1]
    for item in needed if len(needed) > 1 else []:
        fewer = [n for n in needed if n != item]
        if fails(fewer):
            needed = fewer
    return sorted(needed)


class Mixtures:
    """One notebook in mixtures of two locks: some packages as there, the others as here.

    lane: where the other lock is (newest.py); requirements: what the environment is for;
    lock: the name of the lock.
    """

    def __init__(self, lane, notebook, requirements, lock):
        self.lane, self.notebook, self.requirements = lane, notebook, requirements
        self.here, self.there = lane.locks(lock)
        self.programs = [f"program {name}" for name in lane.programs_of(notebook)]
        self.folder = lane.folder / "mixtures" / notebook.with_suffix("")
        every = sorted(self.here.keys() | self.there)
        self.moved = [p for p in every if self.here.get(p) != self.there.get(p)]
        self.moved += self.programs
        self.resolved, self.outcomes, self.runs = {}, {}, 0

    def resolve(self, chosen):
        """Return {package: version} with those `chosen` as there; None if none exists.

        A chosen package that cannot be as there beside the others stays as here.
        """
        lines = []
        for name in self.here.keys() | self.there:
            old, new = self.here.get(name), self.there.get(name)
            if old is None or new is None or name not in chosen or old == new:
                lines.append(f"{name}=={old or new}")
            elif (Version(new) < Version(old)) == self.lane.oldest:
                low, high = sorted([old, new], key=Version)
                lines.append(f"{name}>={low},<={high}")
            else:
                lines.append(f"{name}=={new}")
        constraints = self.folder / "constraints.txt"
        for _ in range(20):
            constraints.parent.mkdir(parents=True, exist_ok=True)
            constraints.write_text("\n".join(lines), encoding="utf-8")
            how = ["--resolution", "lowest" if self.lane.oldest else "highest", "-"]
            done = subprocess.run([*COMPILE, "-c", constraints, *how], text=True,
                                  input=self.requirements, capture_output=True)  # fmt: skip
            if done.returncode:
                return None
            found = locked_versions(done.stdout)
            between = [p for p, v in found.items() if p in self.moved and v not in
                       (self.here.get(p), self.there.get(p))]  # fmt: skip
            if not between:
                return found
            lines += [f"{p}!={found[p]}" for p in between]  # neither here nor there
        return None

    def reached(self, chosen):
        """Return those of `chosen` that the environment then has as there, or None."""
        key = frozenset(chosen)
        if key not in self.resolved:
            found = self.resolve(key)
            self.resolved[key] = found
            if found is not None:
                at = {p for p in key if found.get(p) and found[p] == self.there.get(p)}
                self.resolved[key] = found, frozenset(at | (key & set(self.programs)))
        return self.resolved[key] and self.resolved[key][1]

    def fill(self, chosen):
        """Make the environment hold this mixture."""
        own = self.folder / "env"
        if not own.exists():
            subprocess.run(["uv", "venv", "-q", "--python", "3.11", own], check=True)
        pins = self.folder / "pins.txt"
        versions = self.resolved[frozenset(chosen)][0]
        pins.write_text("".join(f"{k}=={v}\n" for k, v in versions.items()))
        sync = ["uv", "pip", "sync", "-q", "--compile-bytecode", pins, "--python", own]
        subprocess.run(sync, check=True, capture_output=True, text=True)
        finish(own, lambda t: self.lane.venv if f"program {t}" in chosen else VENV)

    def outcome(self, chosen, again=False):
        """Return check()'s answer for a mixture, or NONE when there is no such mixture.

        What was run before is not run again, unless `again`.
        """
        reached = self.reached(chosen)
        if reached is None:
            return NONE
        if again or reached not in self.outcomes:
            try:
                self.fill(chosen)
            except subprocess.CalledProcessError:  # a release that cannot be installed
                self.outcomes[reached] = NONE
                return NONE
            self.runs += 1
            where = self.folder / "env", self.folder / "note", self.lane.timeout
            self.outcomes[reached] = check(self.notebook, *where)
        return self.outcomes[reached]

    def guilty(self):
        """Return (verdict, [(packages, failure)], None or what still fails).

        The list has a set of packages for each way in which the notebook breaks. With an
        empty list the verdict says why nothing is blamed.
        """
        if self.outcome([]) and self.outcome([], again=True):
            return f"fails on the lock, too: {why(self.outcome([]))}", [], None
        found, rest = [], self.moved
        while (failure := self.outcome(rest)) and failure != NONE:
            broken = partial(self.breaks, failure)
            named = self.reached(narrow(sorted(self.reached(rest)), broken))
            if not same(self.outcome(named, again=True), failure):
                return "flaky: the same releases fail, then hold", [], None
            found.append((sorted(named), failure))
            rest = [p for p in rest if p not in named]
        if found and self.outcome([], again=True):
            return "flaky: the lock holds, then fails", [], None
        return "" if found else "holds", found, failure

    def versions(self, name):
        """Return the name of what moved, its version here and there."""
        if name not in self.programs:
            return name, self.here.get(name), self.there.get(name)
        tool = name.removeprefix("program ")
        found = [table[tool]["version"] for table in (tools(), self.lane.tools())]
        if found[0] == found[1]:
            return name, f"{found[0]} with its lock", "the newest of its packages"
        return name, *found

    def breaks(self, failure, chosen):
        """Tell whether a mixture fails in this way."""
        return same(self.outcome(chosen), failure)
