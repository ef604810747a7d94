"""Print the table that closes `make run-all`: what each run said, slowest first.

report.py data-versioning/dvc.ipynb …
"""

import json
import os
import sys
from pathlib import Path

from build_tool import VENV, tools_of
from run import BUILD, ROOT, failure_text, named, say
from sandbox import on_cluster


def outcome(notebook):
    """Return what run.py noted about a notebook, or {} without a note of it as it is now.

    When a program was not built, make skips a notebook whose older run may have gone well.
    """
    note, own = (BUILD / notebook).with_suffix(".json"), tools_of(notebook)
    locks = [ROOT / f"environment/{name}.txt" for name in ("requirements", *own)]
    ready = [VENV / f"tools/{n}-{tool['version']}.ready" for n, tool in own.items()]
    needs = [ROOT / notebook, note.with_suffix(".settings"), *ROOT.glob("data/*.csv"),
             ROOT / "scripts/kernel.py", *ready, *filter(Path.exists, locks)]  # fmt: skip
    if not all(p.exists() for p in [note, *needs]):
        return {}
    if max(p.stat().st_mtime for p in needs) > note.stat().st_mtime:
        return {}
    return json.loads(note.read_text(encoding="utf-8"))


def why(result):
    """Return the words for a notebook that did not run to its end."""
    if result.get("failure"):
        return failure_text(result["failure"])
    if result.get("status") == "stopped":
        return "the run was stopped"
    return "not run: a program that it needs was not built, or the cluster is not up"


def report(notebooks):
    """Print the table and what failed. Returns exit code."""
    results = {n: outcome(n) for n in notebooks}
    wide = max((len(str(n.with_suffix(""))) for n in notebooks), default=8)
    say(
        f"\n{'notebook':{wide}}  {'result':8} {'seconds':>7}  {'peak MB':>7}  read it in"
    )
    rows = sorted(results.items(), key=lambda row: (-row[1].get("seconds", 0), row[0]))
    for notebook, result in rows:
        status = result.get("status", "not run")
        where = {"ok": f"build/{notebook}", "not run": "-"}.get(
            status, f"build/{notebook.with_suffix('.failed.ipynb')}"
        )
        say(f"{str(notebook.with_suffix('')):{wide}}  {status:8} "
            f"{result.get('seconds', 0):7.1f}  {result.get('peak_mb', 0):7}  {where}")  # fmt: skip
    failed = [n for n, result in rows if result.get("status") != "ok"]
    for notebook in failed:
        say(f"\nFAILED       {notebook}, {why(results[notebook])}")
    reasons = {r["not_isolated"] for r in results.values() if r.get("not_isolated")}
    if reasons:
        say(
            f"\nThe kernels saw this machine's network and /tmp ({', '.join(reasons)})."
        )
    elif any(r.get("status") == "ok" for r in results.values()):
        others = ", those on Kubernetes this machine's" * any(map(on_cluster, results))
        say(
            f"\nThe kernels saw no network but loopback{others}, and no /tmp but their own."
        )
    say(f"{len(rows) - len(failed)} of {len(rows)} notebooks ran")
    left_out = os.environ.get("LEFT_OUT", "").split()
    for notebook in left_out:
        say(f"not run: {notebook} needs the cluster, `make cluster`")
    return int(bool(failed) or not rows)


if __name__ == "__main__":
    sys.exit(report([named(word) for word in sys.argv[1:]]))
