"""Write what is generated from the notebooks: README.md's table, a page per category.

    pages.py           # write them
    pages.py --check   # exit 1 and name what is stale

A category's page shows the notebooks' own facts, and the output of each cell tagged
`page`: the figures of its comparison notebook, or of the job done without the tool.
"""

import datetime
import json
import re
import sys

from markdown_it import MarkdownIt
from run import ROOT, cells_of

LABELS = [
    "What it does for you", "Runs as", "Needs", "Install", "Licence", "Used here",
    "Latest upstream", "Takes",
]  # fmt: skip
CATEGORIES = [
    "data-versioning", "experiment-tracking", "model-training", "model-registry",
    "feature-stores", "serving", "monitoring", "full-stacks",
]  # fmt: skip
HELD = ROOT / "environment/held.json"  # newest.py writes it
START = "<!-- {}: `make readme` writes it -->"
END = "<!-- end of {} -->"


def notebooks_of(category):
    """Return the notebooks of a category, paths below the clone, comparisons last."""
    paths = [p.relative_to(ROOT) for p in (ROOT / category).glob("*.ipynb")]
    return sorted(paths, key=lambda p: (p.stem == "compare", p.stem))


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


def facts_of(notebook):
    """Return {label: text} of the table of facts, before the notebook's first code."""
    cells = cells_of(notebook)
    first = next((i for i, c in enumerate(cells) if c["cell_type"] == "code"), None)
    return rows_of("\n".join(c["source"] for c in cells[:first]))


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


def quoted(notebook):
    """Return what the notebook's cells tagged `page` show, as Markdown, with a source."""
    parts = []
    for cell in cells_of(notebook):
        if "page" in cell["metadata"].get("tags", []):
            for output in cell["outputs"]:
                parts.append("".join(output.get("data", {}).get("text/markdown", "")))
    if not any(parts):
        return []
    return [
        *filter(None, parts),
        f"Figures: the outputs of [{notebook.name}]({notebook.name}).",
    ]


def category_part(category):
    """Return the generated part of a category's page."""
    notebooks = notebooks_of(category)
    facts = [k for k in LABELS if k not in ("Install", "Needs")]
    parts = [table(notebooks, facts)]
    for notebook in notebooks:
        parts += quoted(notebook)
    return "\n\n".join(parts)


def front_table():
    """Return the table of all notebooks for README.md, by category."""
    lines = ["| Job | Notebook | What it does for you | Takes |", "|---|---|---|---|"]
    for category in CATEGORIES:
        job = f"[{category.replace('-', ' ').capitalize()}]({category})"
        for notebook in notebooks_of(category):
            facts = facts_of(notebook)
            link = f"[{title_of(notebook)}]({notebook})"
            cells = [job, link, facts["What it does for you"], facts["Takes"]]
            lines.append(f"| {' | '.join(cells)} |")
            job = ""
    return "\n".join(lines)


def held_line():
    """Return the sentence for README.md about the newest releases."""
    if not HELD.exists():
        return "Not yet tried with the newest releases: `make newest`."
    note = json.loads(HELD.read_text(encoding="utf-8"))
    day = datetime.date.fromisoformat(note["date"])
    return (f"All {note['notebooks']} notebooks last held with the newest releases of "
            f"{note['packages']} packages on {day.day} {day:%B %Y} (`make newest`).")  # fmt: skip


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
    fresh = with_part(text, "table", front_table())
    yield readme, text, with_part(fresh, "held", held_line())
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
