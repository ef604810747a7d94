"""Put into words, as Markdown, what newest.py found; called by it."""

import json
import os
import re
import subprocess
from importlib import metadata

from guilty import COMPILE, why
from run import ROOT


def changelog(name, environment):
    """Return the address of a package's list of changes, or of its page on PyPI."""
    folder = str(next(environment.glob("lib/python3*/site-packages")))
    for found in metadata.distributions(name=name, path=[folder]):
        for line in found.metadata.get_all("Project-URL") or []:
            label, _, address = line.partition(", ")
            if re.search(r"change|release|history|news", label, re.IGNORECASE):
                return address
    return f"https://pypi.org/project/{name}/#history"


def held_back(environment):
    """Return sentences: our packages that are not the newest, and who holds them."""
    text = (ROOT / "environment/requirements.in").read_text(encoding="utf-8")
    ours = dict(re.findall(r"^([a-z0-9-]+)(.*)$", text, re.MULTILINE))
    ask = "uv pip list --outdated --format json --python".split()
    told = subprocess.run([*ask, environment], capture_output=True, text=True)
    sentences = []
    for package in json.loads(told.stdout or "[]"):
        name, latest = package["name"], package["latest_version"]
        if name not in ours:
            continue
        bound, _, reason = ours[name].partition("#")
        if "<" in bound:
            holder = f"our own bound: {reason.strip()}"
        else:
            done = subprocess.run([*COMPILE, "-"], input=f"{text}\n{name}=={latest}\n",
                                  capture_output=True, text=True)  # fmt: skip
            words = re.sub(r"\[[^]]*\]", "", " ".join(done.stderr.split()))  # no extras
            others = set(re.findall(r"[a-z][a-z0-9-]+", words)) & ours.keys() - {name}
            first = re.search(r"Because (.*?)(?: and |,|$)", words)
            holder = ", ".join(sorted(others)) or (
                first.group(1) if first else "unknown"
            )
        sentences.append(f"`{name}` {package['version']} ({latest} is out): {holder}")
    return sentences


def quoted(text, most=12):
    """Return a text as a Markdown block, its middle left out when it is long."""
    lines = [line[:160] for line in text.splitlines()] or ["(nothing)"]
    if len(lines) > most:
        lines = [*lines[: most // 2], "…", *lines[-most // 2 :]]
    return "\n".join(["~~~", *lines, "~~~"])


def different(old, new):
    """Return both texts from the first line in which they differ."""
    pairs = zip(old.splitlines(), new.splitlines(), strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    return ["\n".join(text.splitlines()[start:]) for text in (old, new)]


def accusation(result, environment):
    """Return the Markdown about one notebook that does not hold."""
    lines = [f"### {result['notebook']}: {result['verdict']}", ""]
    for row in result["found"]:
        for name, old, new in row["packages"]:
            link = changelog(name, environment) if new and " " not in name else ""
            lines.append(f"- **{name}** {old} → {new}  {link}".rstrip())
        if len(row["packages"]) > 1:
            lines.append("- these only together")
        lines += ["", f"{why(row['failure'])}. Before and now:", ""]
        before, now = different(row["failure"]["old"], row["failure"]["new"])
        lines += [quoted(before), "", quoted(now), ""]
    if result["found"]:
        rest = "holds" if result["rest"] is None else why(result["rest"])
        lines.append(f"With these held back, all other releases: {rest}. ")
    elif result.get("failure"):
        lines += [quoted(result["failure"]["new"]), ""]
    if "runs" in result:
        lines.append(f"Narrowed down in {result['runs']} runs of this notebook.")
    return "\n".join([*lines, ""])


def report(lane, results, seconds):
    """Return the whole report."""
    here, there = lane.locks()
    moved = [f"`{p}` {here.get(p, '(none)')} → {there.get(p, '(none)')}"
             for p in sorted(here.keys() | there) if here.get(p) != there.get(p)]  # fmt: skip
    good = [r for r in results if r["verdict"] == "holds"]
    what = (
        "the newest releases"
        if lane.kind == "newest"
        else "the oldest releases allowed"
    )
    lines = [
        f"**{len(good)} of {len(results)} notebooks hold with {what}**, "
        f"{len(moved)} of {len(there)} packages other than in the lock; "
        f"{seconds / 60:.0f} minutes.", "",
        "| Notebook | Result | Seconds |", "|---|---|---|",
    ]  # fmt: skip
    for result in results:
        name = result["notebook"].removesuffix(".ipynb")
        lines.append(f"| {name} | {result['verdict']} | {result['seconds']:.0f} |")
    lines += [f"| {name.removesuffix('.ipynb')} | left out: needs a cluster | |"
              for name in os.environ.get("LEFT_OUT", "").split()] + [""]  # fmt: skip
    lines += [accusation(r, lane.venv) for r in results if r["verdict"] != "holds"]
    if lane.newer:
        lines += ["**Programs** that are not the newest:", ""]
        for name, version in lane.newer.items():
            now = lane.tools_here[name]["version"]
            note = " (nobody answers what is newest)" if not version else (
                f" → {version}" + (", tried" if name in lane.tried else ""))  # fmt: skip
            lines.append(f"- {name} {now}{note}")
        lines.append("")
    if lane.kind == "newest":
        lines += ["**Held back**, not the newest there is:", ""]
        lines += [f"- {sentence}" for sentence in held_back(lane.venv)] + [""]
    lines += ["<details><summary>What moved</summary>", "", ", ".join(moved) or "nothing", "",
              "</details>", ""]  # fmt: skip
    return "\n".join(lines)
