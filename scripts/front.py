"""The front page's figures: what the comparisons found at each step of a model's life."""

from markdown_it import MarkdownIt
from run import cells_of

# Folder, step, what one asks there, and the answer: {row|column} is that cell of the
# table which the notebook of the same line tags `page`; a row is named by its beginning.
STEPS = [
    ("data-versioning", "1 Data", "Why not simply Git?", "compare",
     "A small table may stay in Git: three versions take {stored|plain Git}. Two people's "
     "changes of neighbouring rows: {two people: next line|plain Git} by Git, "
     "{two people: next line|Dolt} by Dolt."),
    ("feature-stores", "2 Features", "Why not a join?", "feast",
     "For training alone a join does: {lines of code|by hand: pandas and SQLite} lines, "
     "{training values that differ|by hand: pandas and SQLite} values differ from Feast's. "
     "Then missing: {still to be written|by hand: pandas and SQLite}."),
    ("model-training", "3 Training", "Why not one script?", "compare",
     "The last of five steps failed. Run again: {Steps run again|one script} by the script, "
     "{Steps run again|Metaflow} by Metaflow, {Steps run again|script and Memory} by the "
     "script with `joblib.Memory`."),
    ("experiment-tracking", "4 Runs", "Why not a spreadsheet?", "compare",
     "Killed after 500 losses, a run leaves in a CSV file: {left after|a CSV line a run}; in "
     "MLflow: {left after|MLflow}."),
    ("model-registry", "5 Registry", "Why not a folder with dates?", "mlflow",
     "Which flights made this model? The folder: {which flights|folder of dated files}. The "
     "registry: {which flights|MLflow's registry}."),
    ("serving", "6 Serving", "Why not FastAPI?", "compare",
     "On one machine it is enough. A request without its destination: {bad request: no "
     "dest|fastapi} (BentoML: {bad request: no dest|bentoml}). A new model comes in by: "
     "{a second version|fastapi} (BentoML: {a second version|bentoml})."),
    ("monitoring", "7 Monitoring", "Why not SciPy?", "evidently",
     "{months judged|by hand: pandas and SciPy} months are judged the same by both. A page "
     "for a person: {a page for a person|by hand: pandas and SciPy} by hand; Evidently has "
     "{a page for a person|Evidently}."),
]  # fmt: skip


def figure(notebook, name):
    """Return one cell, "row|column", of a table that the notebook tags `page`.

    Raises ValueError when there is no such row or column, or more than one row.
    """
    row, column = name.split("|")
    found = []
    for cell in cells_of(notebook):
        if "page" not in cell["metadata"].get("tags", []):
            continue
        for output in cell["outputs"]:
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            for head, *lines in tables(text):
                if column in head:
                    found += [line[head.index(column)] for line in lines
                              if line[0].strip("*").startswith(row)]  # fmt: skip
    if len(found) != 1:
        raise ValueError(f"{notebook}: {len(found)} figures are called {name}")
    return found[0]


def tables(text):
    """Yield each table in a Markdown text as a list of rows, each a list of texts."""
    rows = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(token.content)
        elif token.type == "table_close":
            yield rows


def life():
    """Return the table of a model's life: step, question, what the comparison found."""
    lines = ["| Step | One asks | The comparison found |", "|---|---|---|"]
    for folder, step, question, stem, answer in STEPS:
        notebook = f"{folder}/{stem}.ipynb"
        parts = answer.replace("}", "{").split("{")
        told = "".join(
            figure(notebook, part) if odd % 2 else part
            for odd, part in enumerate(parts)
        )
        lines.append(f"| [{step}]({folder}) | {question} | {told} [How]({notebook}) |")
    return "\n".join(lines)
