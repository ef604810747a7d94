"""Measure what `make run-all` adds to the notebooks themselves; write BENCHMARK.md.

    python scripts/benchmark.py data-versioning/delta-lake.ipynb --copies 10

Runs copies of one notebook in a temporary copy of the collection: with make on two
cores, with papermill in a loop, and with pytest --nbmake -n2, one after the other, and
`repeat` times round, since the speed of a machine changes. The best that two kernels
could do is the larger of half the sum of kernel seconds and the longest kernel.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv/bin"


def seconds(command, folder):
    """Run a command to its end and return its wall time in seconds.

    Raises RuntimeError with the end of its output when it fails.
    """
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return time.monotonic() - started


def copy_of_collection(folder, notebook, copies):
    """Set up machinery, data and copies of the notebook in `folder`; return their names."""
    for name in ("Makefile", "requirements.txt", "scripts"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    (folder / "data").mkdir()
    shutil.copy2(ROOT / "data/flights.csv", folder / "data")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    category = folder / notebook.parent
    category.mkdir()
    names = [notebook.parent / f"copy-{i:02d}.ipynb" for i in range(copies)]
    for name in names:
        shutil.copy2(ROOT / notebook, folder / name)
    return names


def measure(folder, names):
    """Return {what: seconds} of one round."""
    shutil.rmtree(folder / "build", ignore_errors=True)
    found = {"make run-all -j2": seconds(["make", "-j2", "run-all"], folder)}
    kernels = [
        json.loads((folder / "build" / name.with_suffix(".json")).read_text())[
            "kernel_seconds"
        ]
        for name in names
    ]
    found["best that two kernels could do"] = max(sum(kernels) / 2, max(kernels))
    found["make run-all, nothing changed"] = seconds(["make", "run-all"], folder)
    started = time.monotonic()
    for name in names:
        seconds(
            [str(BIN / "papermill"), "--cwd", str(name.parent), str(name), "/dev/null"],
            folder,
        )
    found["papermill in a loop"] = time.monotonic() - started
    found["pytest --nbmake -n2"] = seconds(
        [str(BIN / "pytest"), "--nbmake", "-n2", "-q", *map(str, names)], folder
    )
    return found


def main():
    """Measure and write BENCHMARK.md beside this script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        names = copy_of_collection(folder, args.notebook, args.copies)
        rounds = [measure(folder, names) for _ in range(args.repeat)]
    best = [r["best that two kernels could do"] for r in rounds]
    lines = [
        "# What the engine costs",
        "",
        f"{args.copies} copies of `{args.notebook}` on 2 cores, {args.repeat} rounds, written by",
        f"`python scripts/benchmark.py {args.notebook} --copies {args.copies}`. The ratio is",
        "to the best that two kernels could do in the same round: half the sum of the",
        "kernels' seconds, or the longest one.",
        "",
        "| What | Median seconds | Ratio to the best (median, min to max) |",
        "|---|---|---|",
    ]
    for what in rounds[0]:
        times = [r[what] for r in rounds]
        ratios = [t / b for t, b in zip(times, best, strict=True)]
        lines.append(
            f"| {what} | {statistics.median(times):.1f} | {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    text = "\n".join(lines) + "\n"
    (ROOT / "scripts/BENCHMARK.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
