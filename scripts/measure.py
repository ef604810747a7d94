"""Measure the collection; every figure is one run beside what it is compared with.

measure.py growth [NOTEBOOK …]   # at 5,000, 20,000 and all 327,346 flights
measure.py cold [REVISION [NOTEBOOK …]]   # a first run with nothing compiled, beside
                                          # REVISION's; "" is none
measure.py takes [NOTEBOOK …]    # write the last run's seconds into the facts
"""

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import outcome
from run import (
    BUILD,
    MAKE,
    ROOT,
    attempt,
    failure_text,
    named,
    parameters_of,
    say,
    write_whole,
)

SIZES = [5_000, 20_000, 327_346]
# A fixed part and a share that grows with the rows give less than 1; more is worse.
TOO_FAST = 1.05


def make_data(rows):
    """Return a folder with flights.csv and delivery.csv of `rows` flights."""
    folder = BUILD / f"data-{rows}"
    if not (folder / "delivery.csv").exists():
        script = [sys.executable, ROOT / "data/make_flights.py", "--rows", str(rows)]
        subprocess.run(
            [*script, "--out", folder], check=True, stdout=subprocess.DEVNULL
        )
    return folder


def growth(notebooks):
    """Run each notebook at all sizes; print seconds, memory and exponents.

    The exponent e says that going from the middle to the largest size multiplied the
    seconds by (ratio of the rows) to the power e. Returns 1 when a notebook fails or
    grows faster than its rows.
    """
    head = "".join(f"{size:>10,} s {'MB':>6}" for size in SIZES)
    say(f"{'notebook':34}{head}  exponent")
    bad = []
    for notebook in notebooks:
        if "rows" not in parameters_of(notebook):
            continue
        results = []
        for rows in SIZES:
            partial = (BUILD / notebook).with_suffix(".growth.ipynb")
            given = {"rows": rows}
            results.append(
                attempt(notebook, partial, given, 1800, data=make_data(rows))
            )
        cells = "".join(f"{r['seconds']:10.1f} s {r['peak_mb']:6}" for r in results)
        middle, largest = results[-2:]
        ratio = math.log(largest["seconds"] / middle["seconds"])
        exponent = ratio / math.log(SIZES[-1] / SIZES[-2])
        say(f"{str(notebook.with_suffix('')):34}{cells}  {exponent:.2f}")
        for rows, result in zip(SIZES, results, strict=True):
            if result["status"] != "ok":
                say(f"  FAILED at {rows:,}: {failure_text(result['failure'])}")
                bad.append(notebook)
        if exponent > TOO_FAST:
            say("  grows faster than its rows")
            bad.append(notebook)
    return int(bool(bad))


def first_run(revision, notebooks):
    """Clone `revision` into an empty folder, run it; return (seconds, to the first).

    notebooks: these, or all when there are none.

    Packages come from the caches; what is compiled is compiled anew.
    """
    with tempfile.TemporaryDirectory(prefix="cold-") as folder:
        clone = Path(folder) / "a clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        subprocess.run(["git", "checkout", "-q", revision], cwd=clone, check=True)
        # Not the programs that this environment has.
        path = [p for p in os.get_exec_path() if not Path(p).is_relative_to(ROOT)]
        surroundings = os.environ | {"GOCACHE": f"{folder}/go", "PATH": ":".join(path)}
        started, first = time.monotonic(), None
        words = ["run-all", *[f"NOTEBOOKS={' '.join(notebooks)}"] * bool(notebooks)]
        make = subprocess.Popen([*MAKE, *words], cwd=clone, env=surroundings, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        for line in make.stdout:
            print(f"  {time.monotonic() - started:6.0f} s  {line}", end="", flush=True)
            if first is None and line.startswith("ok "):
                first = time.monotonic() - started
        make.wait()
        return time.monotonic() - started, first or float("nan")


def cold(revision, *notebooks):
    """Time a first run of HEAD, and of `revision`, "" for none, in the same session."""
    total, first = first_run("HEAD", notebooks)
    say(f"HEAD: all in {total:.0f} s, the first notebook after {first:.0f} s")
    if revision:
        other, other_first = first_run(revision, notebooks)
        say(f"{revision}: all in {other:.0f} s, the first after {other_first:.0f} s; "
            f"HEAD takes {total / other:.2f} of that")  # fmt: skip
    return 0


def takes(notebooks):
    """Write how long the last run in build/ took into each notebook's facts."""
    for notebook in notebooks:
        result = outcome(notebook)
        if result.get("status") != "ok" or result["parameters"]:
            say(f"{notebook}: no complete run with the defaults in build/")
            continue
        seconds = max(5, 5 * round(result["seconds"] / 5))
        path = ROOT / notebook
        text = path.read_text(encoding="utf-8")
        row = re.compile(r"(\| \*\*Takes\*\* \| )[^|]*( \|)")
        write_whole(path, row.sub(rf"\g<1>{seconds} s\g<2>", text))
    return 0


def main():
    """Do what the command line asks. Returns exit code."""
    what, words = (sys.argv + [""])[1], sys.argv[2:]
    if what == "cold":
        return cold(*words or [""])
    if what in ("growth", "takes"):
        do = {"growth": growth, "takes": takes}[what]
        return do([named(word) for word in words])
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
