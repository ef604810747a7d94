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

from markdown_it import MarkdownIt
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LABELS = [
    "What it does for you", "Runs as", "Needs", "Install", "Licence", "Used here",
    "Latest upstream", "Takes",
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


def rows_of(text):
    """Return {label: text} of the last two-column table in a Markdown text, or {}."""
    cells, found = [], {}
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tbody_open":
            found = {}
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token.content.replace("|", r"\|"))
        elif token.type == "tr_close" and len(cells) == 2:
            found[cells[0].strip("*")] = cells[1]
    return found


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


def packages_of(path):
    """Return the words of the notebook's `pip install`, without quotes.

    Raises ValueError when its facts have none.
    """
    found = re.search(r"`pip install ([^`]+)`", facts_of(path)["Install"])
    if not found:
        raise ValueError(f"{path}: the facts table has no `pip install …`")
    return [word.strip('"') for word in re.findall(r'"[^"]+"|\S+', found.group(1))]


def installed_by(path):
    """Return (packages, bytes) that the notebook's pip install adds to the base."""
    base = set().union(*(needs_of(name) for name in BASE))
    names = set().union(*(needs_of(word) for word in packages_of(path))) - base
    return len(names), sum(size_of(name) for name in names)


def measured(category, what, default=None):
    """Return what measured.json keeps under `what` for each notebook of a category."""
    kept = json.loads(MEASURED.read_text()).get(what, {})
    paths = sorted((ROOT / category).glob("*.ipynb"))
    return [kept.get(f"{category}/{path.stem}", default) for path in paths]


def side_by_side(category):
    """Return a category's comparison: a column a tool, a row a question, a chart."""
    paths = sorted((ROOT / category).glob("*.ipynb"))
    facts, closings = [*map(facts_of, paths)], [*map(closing_of, paths)]
    runs = measured(category, "runs", {})
    seconds = [r.get("seconds", 0) for r in runs]
    fastest = min(filter(None, seconds), default=1)

    def installed(path, programs):
        packages, size = installed_by(path)
        many = "package" if packages == 1 else "packages"
        parts = [f"{packages} {many}, {size / 1e6:.0f} MB"] if packages else []
        parts += [f"`{name}` {mb} MB" for name, mb in programs.items()]
        return ", ".join(parts) or "nothing more"

    def releases(told):
        if not told:
            return "not on a package index"
        count = told["two_years"]
        return told["last"] + (f"; {count}" if count is not None else "; not told")

    def row(label, unit):
        return [f"{run[label]:.0f}{unit}" if run else "-" for run in runs]

    rows = {
        **{k: [f[k] for f in facts] for k in ("What it does for you", "Runs as", "Needs")},
        "Lines of code here": [lines_of(p) for p in paths],
        "What you install": list(map(installed, paths, measured(category, "programs", {}))),
        "Processes beside the kernel": row("processes", ""),
        "Seconds, whole notebook": row("seconds", ""),
        "As a ratio to the fastest": [f"{s / fastest:.1f}" if s else "-" for s in seconds],
        "Memory": row("peak_mb", " MB"),
        "Disk": row("disk_mb", " MB"),
    }  # fmt: skip
    if len(paths) == 1:
        del rows["As a ratio to the fastest"]
    for label in dict.fromkeys(label for c in closings for label in c):
        rows[label] = [c.get(label, "-") for c in closings]
    rows |= {k: [f[k] for f in facts] for k in ("Licence", "Upstream")}
    rows["Last release; releases in two years"] = map(
        releases, measured(category, "index")
    )
    head = [f"[{tool_of(p)}]({p.name})" for p in paths]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    lines += [f"| **{k}** | " + " | ".join(map(str, v)) + " |" for k, v in rows.items()]
    asked = json.loads(MEASURED.read_text())["asked"]
    counted = min(map(len, measured(category, "raw", [])))
    lines += ["", "Processes, seconds, memory and disk are medians of "
              f"{counted} runs on two cores; the package index was asked on {asked}."]  # fmt: skip
    return "\n".join(lines + chart(paths, seconds) * (len(paths) > 1))


def chart(paths, seconds):
    """Return the lines of a Mermaid bar chart of the notebooks' seconds, slowest first."""
    bars = sorted(zip(seconds, map(tool_of, paths), strict=True), reverse=True)
    names = ", ".join(f'"{name}"' for _, name in bars)
    return [
        "", "```mermaid", "xychart-beta horizontal", '    title "The whole notebook, in seconds"',
        f"    x-axis [{names}]", f'    y-axis "seconds" 0 --> {max(seconds) * 1.1:.0f}',
        f"    bar [{', '.join(f'{s:.0f}' for s, _ in bars)}]", "```",
    ]  # fmt: skip


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
