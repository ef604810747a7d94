"""Write what the pages show of the notebooks: README.md, MACHINES.md, a category's page.

    pages.py           # write them
    pages.py --check   # exit 1 and name what is stale

A category's page shows the notebooks' own facts, and the output of each cell tagged
`page`: the figures of its comparison notebook, or of the job done without the tool.
"""

import datetime
import json
import re
import sys

from build_tool import tools_of
from front import life, quoted, tables
from run import ROOT, cells_of
from sandbox import on_cluster

LABELS = [
    "What it does for you", "Runs as", "Needs", "Install", "Licence", "Used here",
    "Latest upstream", "Takes",
]  # fmt: skip
CATEGORIES = [  # in the order of a model's life
    "data-versioning", "feature-stores", "model-training", "experiment-tracking",
    "model-registry", "serving", "monitoring", "full-stacks",
]  # fmt: skip
PLACES = ROOT / "environment/places.json"  # places.py asked the package index
HELD = ROOT / "environment/held.json"  # newest.py writes it
START = "<!-- {}: `make readme` writes it -->"
END = "<!-- end of {} -->"


def notebooks_of(category):
    """Return the notebooks of a category, paths below the clone, comparisons last."""
    paths = [p.relative_to(ROOT) for p in (ROOT / category).glob("*.ipynb")]
    return sorted(paths, key=lambda p: (p.stem == "compare", p.stem))


def every_notebook():
    """Return all notebooks, category by category."""
    return [n for category in CATEGORIES for n in notebooks_of(category)]


def facts_of(notebook):
    """Return {label: text} of the table of facts, before the notebook's first code."""
    cells = cells_of(notebook)
    first = next((i for i, c in enumerate(cells) if c["cell_type"] == "code"), None)
    found = tables("\n".join(c["source"] for c in cells[:first]))
    rows = found[-1][1:] if found else []
    return {row[0].strip("*"): row[1] for row in rows if len(row) == 2}


def title_of(notebook):
    """Return the tool's name as the notebook's title writes it."""
    return re.match(r"# ([^:\n]+)", cells_of(notebook)[0]["source"]).group(1)


def packages_of(notebook):
    """Return the words of the notebook's `pip install`, without quotes.

    Raises ValueError when its facts have none.
    """
    found = re.search(r"`pip install ([^`]+)`", facts_of(notebook)["Install"])
    if not found:
        raise ValueError(f"{notebook}: the facts table has no `pip install …`")
    return [word.strip('"') for word in re.findall(r'"[^"]+"|\S+', found.group(1))]


def table(notebooks, labels):
    """Return a Markdown table, a row a notebook: its link, then these of its facts."""
    lines = [
        "| Notebook | " + " | ".join(labels) + " |",
        "|---" * (len(labels) + 1) + "|",
    ]
    for notebook in notebooks:
        facts = facts_of(notebook)
        name = f"[{title_of(notebook)}]({notebook.name})"
        lines.append(
            f"| {name} | " + " | ".join(facts[label] for label in labels) + " |"
        )
    return "\n".join(lines)


def category_part(category):
    """Return the generated part of a category's page."""
    notebooks = notebooks_of(category)
    parts = [
        table(notebooks, ["What it does for you", "Takes"]),
        table(notebooks, ["Runs as", "Licence", "Used here", "Latest upstream"]),
    ]
    for notebook in notebooks:
        if texts := quoted(notebook):
            source = f"[{notebook.name}]({notebook.name})"
            parts += [*texts, f"Figures: the outputs of {source}."]
    return "\n\n".join(parts)


def front_table():
    """Return README.md's table of all notebooks: a row a job, and what they sum to."""
    lines = ["| Job | Notebooks, and the seconds each takes |", "|---|---|"]
    seconds = {n: int(facts_of(n)["Takes"].split()[0]) for n in every_notebook()}
    for category in CATEGORIES:
        job = category.replace("-", " ").capitalize()
        links = [f"[{title_of(n)}]({n}) {seconds[n]}" for n in notebooks_of(category)]
        lines.append(f"| [{job}]({category}) | {', '.join(links)} |")
    took = sum(s for n, s in seconds.items() if not on_cluster(n)) / 60
    lines += [
        "",
        f"{len(seconds)} notebooks. The seconds are of two cores and two notebooks at a time, "
        f"those on Kubernetes alone; all others together take {took / 2:.0f} minutes.",
    ]
    return "\n".join([*lines, *filter(None, ["", held_line()])])


def limits():
    """Return README.md's sentences on releases, licences and Kubernetes."""
    licences, months, kubernetes = {}, [], []
    for notebook in every_notebook():
        facts, name = facts_of(notebook), title_of(notebook)
        licence = re.match(r"[\w.-]*", facts["Licence"]).group()  # "" in a new one
        if on_cluster(notebook):
            kubernetes.append(f"[{name.removesuffix(' on Kubernetes')}]({notebook})")
        elif licence and notebook.stem not in ("compare", "openmlops-faults"):
            licences.setdefault(licence, []).append(name)
            if "active" in facts["Latest upstream"]:
                told = re.findall(r"[A-Z][a-z]+ 20\d\d", facts["Latest upstream"])
                months += [datetime.datetime.strptime(m, "%B %Y") for m in told]
    licences.pop("Apache-2.0")
    others = (f"{' and '.join(names)} ({name})" for name, names in licences.items())
    return (
        f"All others had a release in {min(months):%Y}, as of {max(months):%B}. In the "
        "versions that run here the tools' licence is Apache-2.0, but for "
        f"{', '.join(others)}.\n\n"
        f"**Kubernetes**: on a real one, which [`sudo make cluster`](cluster/README.md) "
        f"starts, run {', '.join(kubernetes)}. All others need none."
    )


def where_table():
    """Return the table of what runs where: wheels as places.json has them, and needs."""
    stored = json.loads(PLACES.read_text(encoding="utf-8"))
    lacking, places = stored["without a wheel"], stored["places"]
    lines = [
        f"| Notebook | {' | '.join(places)} | Programs | Needs |",
        "|---" * (len(places) + 3) + "|",
    ]
    for notebook in every_notebook():
        stem, lacks = notebook.with_suffix(""), lacking.get(str(notebook))
        cells = ["not asked yet"] * len(places)
        if lacks:
            cells = [f"no wheel: {lacks[p]}" if lacks[p] else "wheels" for p in places]
        cells += [", ".join(tools_of(notebook)), facts_of(notebook)["Needs"]]
        lines.append(f"| [{stem}]({notebook}) | {' | '.join(cells)} |")
    lines += [
        "",
        f"Asked of the package index on {stored['asked']}. Linux on x86-64: all.",
    ]
    return "\n".join(lines)


def held_line():
    """Return the sentence for README.md about the newest releases; "" before any."""
    if not HELD.exists():
        return ""
    note = json.loads(HELD.read_text(encoding="utf-8"))
    day = datetime.date.fromisoformat(note["date"])
    rest = f" ({note['left out']} others need a cluster)" if note["left out"] else ""
    return (
        f"{note['notebooks']} notebooks{rest} last held with {note['packages']} packages, each "
        "as new as the others and [the bounds](environment/requirements.in) allow, on "
        f"{day.day} {day:%B %Y}: `make newest`."
    )


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
    text = readme.read_text(encoding="utf-8")
    fresh = with_part(text, "life", life())
    fresh = with_part(fresh, "limits", limits())
    yield readme, text, with_part(fresh, "table", front_table())
    machines = ROOT / "MACHINES.md"
    text = machines.read_text(encoding="utf-8")
    yield machines, text, with_part(text, "where", where_table())
    for category in CATEGORIES:
        page = ROOT / category / "README.md"
        if page.exists():
            text = page.read_text(encoding="utf-8")
            yield page, text, with_part(text, "comparison", category_part(category))


def main():
    """Write the pages, or only compare them with --check. Returns exit code."""
    stale = [(path, fresh) for path, text, fresh in pages() if text != fresh]
    for path, fresh in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is stale: run `make readme`")
        else:
            path.write_text(fresh, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
