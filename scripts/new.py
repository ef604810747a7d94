"""Make a notebook with the frame filled in: make new NAME=serving/some-tool."""

import re
import sys
from pathlib import Path

import nbformat
from notebooks import clean
from pages import CATEGORIES, LABELS

ROOT = Path(__file__).resolve().parent.parent
HINTS = {
    "What it does for you": "one short clause",
    "Runs as": "a Python library · a command · a server on a free port",
    "Needs": "nothing but Python",
    "Install": "`pip install pandas`",
    "Licence": "…",
    "Upstream": "version, month year; active",
    "Takes": "5 s",
}


def frame(tool):
    """Return the cells of a notebook for `tool`: (kind, tags, source)."""
    facts = "\n".join(f"| **{label}** | {HINTS[label]} |" for label in LABELS)
    return [
        ("markdown", [], f"# {tool}: what the reader gets\n\nOne sentence: what you will have "
         f"done with the flights.\n\n| | |\n|---|---|\n{facts}"),
        ("code", ["parameters"], "rows = 20_000  # how many of the flights\nseed = 0"),
        ("markdown", [], "## Set up"),
        ("code", [], "import pandas as pd\n\nflights = pd.read_csv("
         "\"../data/flights.csv\", parse_dates=[\"scheduled\"])\n"
         "flights = flights.sample(min(rows, len(flights)), random_state=seed).sort_index()\n"
         "flights.head(3)"),
        ("markdown", [], "## The first verb\n\nWhy, in one sentence."),
        ("code", [], "flights[\"late\"].mean().round(3)"),
        ("markdown", [], "## What it protects you from\n\nThe tool refuses something real."),
        ("code", [], "try:\n    flights[\"lateness\"]\nexcept KeyError as refused:\n"
         "    print(\"refused:\", refused)"),
        ("markdown", [], "## Check"),
        ("code", [], "assert len(flights) == min(rows, 20_000)\nprint(\"checked\")"),
        ("markdown", [], "## What you have now\n\nWhen to choose it, when not, what it costs."
         "\n\n**Outgrow this laptop**: the one change that moves this to a cluster."),
        ("markdown", [], "## Clean up\n\nNothing was started and nothing was written."),
    ]  # fmt: skip


def main():
    """Write the notebook that the command line names; refuse to overwrite one."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    category, _, tool = name.partition("/")
    if category not in CATEGORIES or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", tool):
        sys.exit(
            f"NAME is category/some-tool, the category one of: {', '.join(CATEGORIES)}"
        )
    path = ROOT / f"{name}.ipynb"
    if path.exists():
        sys.exit(f"{name}.ipynb exists already")
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook()
    for number, (kind, tags, source) in enumerate(frame(tool), 1):
        cell = new[kind](source, id=f"{tool}-{number:02d}")
        cell.metadata["tags"] = tags
        notebook.cells.append(cell)
    clean(notebook)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    print(f"{name}.ipynb is there: edit it, then make refresh NOTEBOOKS={name}.ipynb")


if __name__ == "__main__":
    main()
