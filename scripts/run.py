"""Run notebooks with papermill, or store their outputs.

run.py run data-versioning/dvc.ipynb             # into build/, as `make run-all` does
run.py refresh data-versioning/dvc.ipynb         # store clean outputs in place
run.py settings "ROWS SEED" */*.ipynb            # check them and note them in build/

A parameter's value is read from the environment variable of its name in capitals.
"""

import argparse
import ast
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from build_tool import tools
from sandbox import FULL_MB, ROOT, Sandbox, on_cluster

BUILD = ROOT / "build"
FLIGHTS = ROOT / "data/flights.csv"
# A make in another clone, without the settings of the make that started us.
MAKE = ["env", "-u", "MAKEFLAGS", "-u", "MFLAGS", "-u", "MAKELEVEL", "make"]


class Refused(SystemExit):
    """What the command line asks for cannot be done; Python ends with the text."""


def say(*words):
    """Print one line at once, since several runs share the terminal."""
    print(*words, flush=True)


def named(word):
    """Return a notebook's path below the clone, "data-versioning/dvc.ipynb", as a Path.

    Raises Refused when `word` leads to no notebook in a category's folder of this clone.
    """
    path = Path(word).resolve()
    if not path.is_file():
        raise Refused(f"there is no notebook {word}")
    if path.suffix != ".ipynb" or path.parent.parent != ROOT:
        raise Refused(
            f"{word} is not a notebook in a folder of this clone: copy it there"
        )
    return path.relative_to(ROOT)


def cells_of(notebook):
    """Return the cells of a notebook as the JSON has them, sources joined."""
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def parameters_of(notebook):
    """Return {name: (default, comment)} of the notebook's cell tagged `parameters`."""
    found = {}
    for cell in cells_of(notebook):
        if "parameters" not in cell["metadata"].get("tags", []):
            continue
        for node in ast.parse(cell["source"]).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                line = cell["source"].splitlines()[node.end_lineno - 1]
                comment = line[node.end_col_offset :].partition("#")[2]
                try:
                    found[node.targets[0].id] = (ast.literal_eval(node.value), comment)
                except ValueError:  # computed, so not for the command line
                    pass
    return found


def checked(notebook, names):
    """Return {name: value} for the parameters of `notebook` among `names`.

    Raises Refused for a value of another type than the default, below what the comment
    beside the parameter says ("at least 3,000"), or for more rows than there are.
    """
    values = {}
    for name, (default, comment) in parameters_of(notebook).items():
        if name.upper() not in names:
            continue
        text = os.environ[name.upper()]
        asked = f"{name.upper()}={text}"
        try:
            value = text if isinstance(default, str) else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        kind = type(default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            what = {int: "a whole number", float: "a number", bool: "True or False"}
            raise Refused(
                f"{asked}: {notebook} wants {what.get(kind, f'a {kind.__name__}')}"
            )
        least = re.search(r"at least ([\d,_.]*\d)", comment)
        if least and value < float(re.sub("[,_]", "", least.group(1))):
            raise Refused(f"{asked}: {notebook} needs {least.group()}")
        if name == "rows":
            with FLIGHTS.open("rb") as file:
                there = sum(1 for _ in file) - 1
            if value > there:
                raise Refused(
                    f"{asked}: data/flights.csv has {there:,} flights; for all there are, "
                    "run .venv/bin/python data/make_flights.py --rows all"
                )
        values[name] = value
    return values


def note_settings(names, notebooks):
    """Check all settings and note each notebook's in build/, where it changed.

    Raises Refused for a parameter that none of the notebooks has, or a bad value.
    """
    known = sorted({p.upper() for n in notebooks for p in parameters_of(n)})
    for name in names:
        if name not in known:
            have = ", ".join(known)
            raise Refused(
                f"no notebook here has the parameter {name}; they have: {have}"
            )
    for notebook in notebooks:
        text = json.dumps(checked(notebook, names), sort_keys=True)
        path = BUILD / notebook.with_suffix(".settings")
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def execute(notebook, output, parameters, cell_timeout, sandbox, kernel_name="python3"):
    """Run `notebook` (a path below the clone) in `sandbox`, write it to `output`.

    Raises what papermill and nbclient raise; `output` then holds the notebook up to the
    failing cell.
    """
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    code = [i for i, c in enumerate(cells_of(notebook)) if c["cell_type"] == "code"]
    last = max(code) + bool(parameters)  # papermill adds a cell for parameters

    def after_cell(cell, cell_index, execute_reply):
        if cell_index == last and execute_reply["content"]["status"] == "ok":
            sandbox.note_running()

    papermill.execute_notebook(
        ROOT / notebook, output.resolve(), parameters=parameters, kernel_name=kernel_name,
        progress_bar=False, cwd=sandbox.cwd, execution_timeout=cell_timeout,
        coalesce_streams=True,  # a stream arrives in pieces of any length
        config=Config({"KernelManager": sandbox.sockets()}),
        on_cell_executed=after_cell,
    )  # fmt: skip


def last_cell(partial):
    """Return (number, source) of the code cell that a broken-off run was in.

    The number is the one a reader counts: code cells from 1, without the one that
    papermill injects. (0, "") when no cell had started.
    """
    try:
        cells = cells_of(partial)
    except (OSError, ValueError):
        return 0, ""
    own = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [c for c in cells if c["cell_type"] == "code"
             and not own & set(c["metadata"].get("tags", []))]  # fmt: skip
    started = [(number, cell["source"]) for number, cell in enumerate(cells, 1)
               if cell["metadata"].get("papermill", {}).get("start_time")]  # fmt: skip
    return started[-1] if started else (0, "")


def explain(error, partial, cell_timeout):
    """Return {cell, line, error} for what stopped a run, in words for a reader."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    number, source = last_cell(partial)
    line = source.strip().partition("\n")[0]
    if isinstance(error, PapermillExecutionError):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        marked = re.findall(r"^-+> *\d+ (.*)$", plain, re.MULTILINE)
        line = next((m.strip() for m in marked if m.strip() in source), line)
        text = f"{error.ename}: {error.evalue}"
        programs = [p for tool in tools().values() for p in tool["programs"]]
        if any(p in re.findall(r"[\w-]+", error.evalue + line) for p in programs):
            text += "\n             (is a program missing? `make tools` builds them)"
    elif isinstance(error, CellTimeoutError):
        text = f"the cell ran longer than {cell_timeout} s; CELL_TIMEOUT=… allows more"
    elif isinstance(error, DeadKernelError):
        text = "the kernel died in this cell (killed, or out of memory)"
    else:
        text = f"{type(error).__name__}: {error}"
    return {"cell": number, "line": line, "error": text}


def failure_text(failure):
    """Return one line: cell number, failing line, error."""
    if not failure["cell"]:
        return failure["error"]
    return f"cell {failure['cell']}: {failure['line']}\n             {failure['error']}"


def attempt(notebook, partial, parameters, cell_timeout, kernel_name="python3", **data):
    """Run a notebook in a sandbox; return what happened, as report.py reads it.

    data: where the sandbox takes it from, when not from data/.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    failure = None
    sandbox = Sandbox(notebook.parent, cluster=on_cluster(notebook), **data)
    try:
        with sandbox:
            execute(notebook, partial, parameters, cell_timeout, sandbox, kernel_name)
    except Exception as error:  # whatever it is, it is named and the others go on
        failure = explain(error, partial, cell_timeout)
        full = sandbox.full()  # perhaps for too short a time for a sample to see it
        if full in sandbox.problems or "No space left on device" in failure["error"]:
            if shutil.disk_usage(BUILD).free < FULL_MB * 1e6:
                full = f"the disk that holds {BUILD} is full: free some space"
                partial.unlink(missing_ok=True)  # perhaps cut; the note needs room
            failure["error"] += f"\n             {full}"
    if sandbox.problems and not failure:
        failure = {"cell": 0, "line": "", "error": "; ".join(sandbox.problems)}
    return {
        "status": "failed" if failure else "ok",
        "seconds": round(time.monotonic() - sandbox.started, 2),
        "peak_mb": round(sandbox.peaks.memory_mb),
        "parameters": parameters,
        "failure": failure,
        "not_isolated": sandbox.not_isolated,
    }


def write_whole(path, text):
    """Write a file so that it is there complete or not at all."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def run(notebook, cell_timeout):
    """Run one notebook into build/ and note the outcome there. Returns exit code."""
    target = BUILD / notebook
    settings = target.with_suffix(".settings")
    text = settings.read_text(encoding="utf-8") if settings.exists() else "{}"
    parameters = json.loads(text)
    partial = target.with_suffix(".failed.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in (target, partial):
        old.unlink(missing_ok=True)
    outcome = target.with_suffix(".json")
    write_whole(outcome, json.dumps({"status": "stopped", "parameters": parameters}))
    name = notebook.with_suffix("")
    say(f"start    {name}")
    result = attempt(notebook, partial, parameters, cell_timeout)
    write_whole(outcome, json.dumps(result, indent=1))
    failed = result["status"] != "ok"
    say(f"{'FAILED' if failed else 'ok    '}   {name}  {result['seconds']:.1f} s")
    if failed:
        return 1
    partial.replace(target)
    return 0


def clean(notebook):
    """Drop from an executed notebook what differs from run to run, in place."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = type(cell.metadata)({"tags": tags} if tags else {})
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata = type(notebook.metadata)(
        {
            "kernelspec": {**kernel, "name": "python3"},
            "language_info": {"name": "python"},
        }
    )


def refresh(notebook, cell_timeout):
    """Execute a notebook and store its outputs in it. Returns exit code."""
    import nbformat

    source, name = ROOT / notebook, notebook.with_suffix("")
    partial = (BUILD / notebook).with_suffix(".refresh.ipynb")
    say(f"start    {name}")
    result = attempt(notebook, partial, {}, cell_timeout)
    if result["status"] != "ok":
        say(f"FAILED   {name}: {failure_text(result['failure'])}; its outputs are kept")
        return 1
    fresh = nbformat.read(partial, as_version=4)
    clean(fresh)
    text = nbformat.writes(fresh).rstrip("\n") + "\n"
    if text != source.read_text(encoding="utf-8"):
        mode = source.stat().st_mode
        write_whole(source, text)
        source.chmod(mode)
    partial.unlink()
    say(f"stored   {name}  {result['seconds']:.1f} s")
    return 0


def main():
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "refresh", "settings"])
    parser.add_argument("words", nargs="*", metavar="NOTEBOOK")
    parser.add_argument("--cell-timeout", default="120", metavar="SECONDS")
    args = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not re.fullmatch("[1-9][0-9]*", args.cell_timeout):
            raise Refused(
                f"CELL_TIMEOUT={args.cell_timeout}: wants whole seconds, 1 or more"
            )
        if args.command == "settings":
            names, *words = args.words
            return note_settings(names.split(), [named(w) for w in words])
        do = run if args.command == "run" else refresh
        return max(do(named(w), int(args.cell_timeout)) for w in args.words)
    except Refused as why:
        say(str(why))
        return 2
    except OSError as error:
        say(f"cannot write {error.filename or BUILD}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
