"""Write what is generated from the notebooks: README.md's table, a page per category.

    pages.py           # write them
    pages.py --check   # exit 1 and name what is stale

The pages put side by side what the notebooks' own tables say, what their cells and
their packages amount to, and what scripts/measure.py measured (measured.json).
"""

import json
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LABELS = [
    "What it does for you", "Runs as", "Needs", "Install", "Licence", "Upstream", "Takes",
]  # fmt: skip
CATEGORIES = [
    "data-versioning", "experiment-tracking", "model-training", "model-registry",
    "feature-stores", "serving", "monitoring", "full-stacks",
]  # fmt: skip
MEASURED = ROOT / "scripts/measured.json"
# What every notebook needs to load the flights, train a model and draw.
BASE = ("pandas", "scikit-learn", "matplotlib")
START = "<!-- {}: `make readme` writes it -->"
END = "<!-- end of {} -->"


def cells_of(path):
    """Return the cells of a notebook as the JSON has them, sources joined."""
    cells = json.loads(path.read_text())["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def rows_of(table):
    """Return {label: text} of the two-column Markdown tables in a text."""
    rows = re.findall(r"^\|([^|\n]+)\|(.+)\|\s*$", table, re.MULTILINE)
    return {
        label.strip(" *"): text.strip()
        for label, text in rows
        if label.strip(" *-:") and not set(text) <= set("-: |")
    }


def facts_of(path):
    """Return {label: text} of the table of facts, before the notebook's first code."""
    cells = cells_of(path)
    first = next((i for i, c in enumerate(cells) if c["cell_type"] == "code"), None)
    return rows_of("\n".join(c["source"] for c in cells[:first]))


def closing_of(path):
    """Return {label: text} from the table that ends the notebook's last section."""
    cells = cells_of(path)
    here = [i for i, c in enumerate(cells) if "## What you have now" in c["source"]]
    found = {}
    for cell in cells[here[0] :] if here else []:
        texts = [cell["source"]] if cell["cell_type"] == "markdown" else []
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("data", {}).get("text/markdown", "")))
        for text in texts:
            found = rows_of(text) or found
    return found


def tool_of(path):
    """Return the tool's name as the notebook's title writes it."""
    return re.match(r"# ([^:\n]+)", cells_of(path)[0]["source"]).group(1)


def lines_of(path):
    """Return how many lines of code the notebook has, blank ones and comments left out."""
    lines = "\n".join(c["source"] for c in cells_of(path) if c["cell_type"] == "code")
    return sum(bool(s) and s[0] != "#" for s in map(str.strip, lines.split("\n")))


@cache
def needs_of(package):
    """Return the names of all distributions that installing `package` brings.

    package: a requirement, extras included. Names that are not installed here, being
    for other systems, are left out.
    """
    found, todo = set(), [Requirement(package)]
    while todo:
        requirement = todo.pop()
        key = (
            re.sub(r"[-_.]+", "-", requirement.name).lower(),
            frozenset(requirement.extras),
        )
        if key in found:
            continue
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        found.add(key)
        for line in distribution.requires or []:
            more = Requirement(line)
            extras = requirement.extras or {""}
            if not more.marker or any(
                more.marker.evaluate({"extra": e}) for e in extras
            ):
                todo.append(more)
    return frozenset(name for name, _ in found)


def size_of(name):
    """Return the bytes of an installed distribution's files."""
    files = metadata.distribution(name).files or []
    return sum(f.size or 0 for f in files)


def installed_by(path):
    """Return (packages, bytes) that the notebook's pip install adds to the base.

    (None, None) when the tool has an environment of its own.
    """
    found = re.search(r"`pip install ([^`]+)`", facts_of(path)["Install"])
    words = re.findall(r'"[^"]+"|\S+', found.group(1)) if found else []
    base = set().union(*(needs_of(name) for name in BASE))
    names = set().union(*(needs_of(w.strip('"')) for w in words)) - base
    return len(names), sum(size_of(name) for name in names)


def side_by_side(category):
    """Return the comparison table of a category: a column a tool, a row a question."""
    paths = sorted((ROOT / category).glob("*.ipynb"))
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    runs = [measured.get("runs", {}).get(f"{category}/{p.stem}", {}) for p in paths]
    facts = [facts_of(p) for p in paths]
    index = measured.get("index", {})
    asked = measured.get("asked", "")
    raw = measured.get("raw", {})
    counted = min((len(raw.get(f"{category}/{p.stem}", [])) for p in paths), default=0)
    fastest = min((r["seconds"] for r in runs if r), default=1)

    def installed(path):
        packages, size = installed_by(path)
        return (
            f"{packages} packages, {size / 1e6:.0f} MB" if packages else "nothing more"
        )

    def releases(path):
        found = index.get(f"{category}/{path.stem}")
        return f"{found['last']}; {found['two_years']}" if found else "-"

    rows = {
        "What it does for you": [f["What it does for you"] for f in facts],
        "Runs as": [f["Runs as"] for f in facts],
        "Needs": [f["Needs"] for f in facts],
        "What you write": [f"{lines_of(p)} lines" for p in paths],
        "What you install": [installed(p) for p in paths],
        "Processes beside the kernel": [r.get("processes", "-") for r in runs],
        f"Seconds, as a ratio (median of {counted})": [
            f"{r['seconds'] / fastest:.1f}" if r else "-" for r in runs
        ],
        "Memory": [f"{r['peak_mb']} MB" if r else "-" for r in runs],
        "Disk": [f"{r['disk_mb']:.0f} MB" if r else "-" for r in runs],
    }
    closings = [closing_of(p) for p in paths]
    for label in dict.fromkeys(label for c in closings for label in c):
        rows[label] = [c.get(label, "-") for c in closings]
    rows["Licence"] = [f["Licence"] for f in facts]
    rows["Upstream"] = [f["Upstream"] for f in facts]
    rows[f"Last release; releases in two years (asked {asked})"] = [
        releases(p) for p in paths
    ]
    head = [f"[{tool_of(p)}]({p.name})" for p in paths]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    lines += [f"| **{k}** | " + " | ".join(map(str, v)) + " |" for k, v in rows.items()]
    return "\n".join(lines)


def front_table():
    """Return the table of all notebooks for README.md, by category."""
    lines = [
        "| Job | Notebook | What it does for you | Runs as | Needs | Upstream | Takes |",
        "|---|---|---|---|---|---|---|",
    ]
    for category in CATEGORIES:
        job = f"[{category.replace('-', ' ').capitalize()}]({category})"
        for path in sorted((ROOT / category).glob("*.ipynb")):
            facts = facts_of(path)
            cells = [facts[k] for k in LABELS if k not in ("Install", "Licence")]
            link = f"[{tool_of(path)}]({category}/{path.name})"
            lines.append(f"| {job} | {link} | {' | '.join(cells)} |")
            job = ""
    return "\n".join(lines)


def with_part(text, name, fresh):
    """Return a page with the part between its two marks replaced.

    Raises ValueError when the page lacks the marks.
    """
    before, start, rest = text.partition(START.format(name))
    _, end, after = rest.partition(END.format(name))
    if not start or not end:
        raise ValueError(f"the marks around '{name}' are missing")
    return f"{before}{start}\n\n{fresh}\n\n{end}{after}"


def pages():
    """Yield (path, text as it is, text as it should be) of every generated page."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    yield readme, text, with_part(text, "table", front_table())
    for category in CATEGORIES:
        page = ROOT / category / "README.md"
        if page.exists():
            text = page.read_text()
            yield page, text, with_part(text, "comparison", side_by_side(category))


def main():
    """Write the pages, or only compare them with --check. Returns exit code."""
    stale = [(path, fresh) for path, text, fresh in pages() if text != fresh]
    for path, fresh in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is stale: run `make readme`")
        else:
            path.write_text(fresh)
            print(f"wrote {path.relative_to(ROOT)}")
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
