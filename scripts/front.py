"""The front page's figures; what reads tables, and cells tagged `page`."""

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from run import cells_of

# Folder, step, what one asks there, and the answer: {row|column} is that cell of the
# table which the notebook of the same line tags `page`; a row is named by its beginning.
STEPS = [
    ("data-versioning", "1 Data", "Why not simply Git?", "compare",
     "Git is enough for a CSV of some megabytes: tried with 1 and 5 MB a version. Two people "
     "change neighbouring rows: the second is {two people: next line|plain Git} by Git, "
     "{two people: next line|Dolt} by Dolt."),
    ("feature-stores", "2 Features", "Why not a join?", "feast",
     "A join with what was known then is enough to train: with an online read, {lines of "
     "code|by hand: pandas and SQLite} lines, and {training values that differ|by hand: "
     "pandas and SQLite} values differ from Feast's. To serve, you still write: {still to "
     "be written|by hand: pandas and SQLite}."),
    ("model-training", "3 Training", "Why not one script?", "compare",
     "A script is enough while nobody else runs it. When the last of five steps had failed "
     "and was mended, it ran {Steps run again|one script} steps again, a script with "
     "`joblib.Memory` {Steps run again|script and Memory}, Metaflow {Steps run "
     "again|Metaflow}."),
    ("experiment-tracking", "4 Runs", "Why not a spreadsheet?", "compare",
     "A CSV line a run is enough for one person, and costs least. A run is killed after 500 "
     "losses: the CSV, written at the end, has {left after|a CSV line a run}, MLflow {left "
     "after|MLflow}. A CSV with a line a loss would have them, too."),
    ("model-registry", "5 Registry", "Why not a folder with dates?", "mlflow",
     "A folder is enough for one model. Which flights made a model? A folder has {which "
     "flights|folder of dated files}; the registry leads to the answer: {which "
     "flights|MLflow's registry}."),
    ("serving", "6 Serving", "Why not FastAPI?", "compare",
     "FastAPI is enough on one machine. A new model comes in by {a second version|fastapi}, in "
     "BentoML too: callers may lose a few, and wait (with Uvicorn: before 0.51). BentoML "
     "adds batching, a monitor's log, and one package of service and model."),
    ("monitoring", "7 Monitoring", "Why not pandas?", "evidently",
     "Pandas is enough for the error, SciPy for drift: a gate written with both passes or "
     "fails {months judged|by hand: pandas and SciPy} months as Evidently does. Evidently "
     "adds the page that people read."),
]  # fmt: skip


def figure(notebook, name):
    """Return one cell, "row|column", of a table that the notebook tags `page`.

    Raises ValueError when there is no such row or column, or more than one row.
    """
    row, column = name.split("|")
    found = [
        line[head.index(column)]
        for text in quoted(notebook)
        for head, *lines in tables(text)
        for line in lines
        if column in head and line[0].strip("*").startswith(row)
    ]
    if len(found) != 1:
        raise ValueError(f"{notebook}: {len(found)} figures are called {name}")
    return found[0]


def quoted(notebook):
    """Return the Markdown texts that the notebook's cells tagged `page` show."""
    cells = [c for c in cells_of(notebook) if "page" in c["metadata"].get("tags", [])]
    shown = [o.get("data", {}) for cell in cells for o in cell["outputs"]]
    return ["".join(data["text/markdown"]) for data in shown if "text/markdown" in data]


def tables(text):
    """Return the tables in a Markdown text, each as a list of rows of cells."""
    nodes = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(text)).walk()
    return [
        [[cell.children[0].content.replace("|", r"\|") for cell in row.children]
         for part in node.children for row in part.children]
        for node in nodes if node.type == "table"
    ]  # fmt: skip


def life():
    """Return the table of a model's life: step and question, what the comparison found."""
    lines = ["| Step | The comparison found |", "|---|---|"]
    for folder, step, question, stem, answer in STEPS:
        notebook = f"{folder}/{stem}.ipynb"
        parts = answer.replace("}", "{").split("{")
        told = "".join(
            figure(notebook, part) if odd % 2 else part
            for odd, part in enumerate(parts)
        )
        lines.append(f"| [{step}]({folder})<br>{question} | {told} [How]({notebook}) |")
    return "\n".join(lines)
