"""Run notebooks with papermill, store their outputs, and say what happened.

notebooks.py run data-versioning/dvc.ipynb ROWS=5000   # into build/, as make does
notebooks.py refresh data-versioning/dvc.ipynb         # store clean outputs in place
notebooks.py report data-versioning/dvc.ipynb          # what the last runs said
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
import threading
import time
from pathlib import Path

BUILD = Path("build")


def name_of(notebook):
    """Return "data-versioning/dvc" for data-versioning/dvc.ipynb."""
    return str(notebook.with_suffix(""))


def say(*words):
    """Print one line at once, since several runs share the terminal."""
    print(*words, flush=True)


def parse_settings(settings):
    """Turn ["ROWS=5000"] into {"rows": 5000}, as papermill's parameters."""
    parameters = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            parameters[key.lower()] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[key.lower()] = text
    return parameters


def parameters_of(notebook):
    """Return the names that the notebook's cell tagged `parameters` assigns."""
    cells = json.loads(notebook.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    source = "\n".join("".join(c["source"]) for c in tagged)
    return set(re.findall(r"^(\w+)\s*=[^=]", source, re.MULTILINE))


class Peaks(threading.Thread):
    """Sample what this process's descendants use; keep the highest of each.

    memory: resident bytes of all; processes: their number beside the kernel; disk:
    bytes in the sandbox's TMPDIR, `folder`, which is set once there is one.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.memory = self.processes = self.disk = 0
        self.folder, self.done = None, threading.Event()

    def run(self):
        import psutil

        me = psutil.Process()
        while not self.done.wait(0.5):
            sizes = []
            for child in me.children(recursive=True):
                try:
                    sizes.append(child.memory_info().rss)
                except psutil.Error:
                    pass
            self.memory = max(self.memory, sum(sizes))
            self.processes = max(self.processes, len(sizes) - 1)
            self.disk = max(self.disk, size_of(self.folder) if self.folder else 0)


def size_of(folder):
    """Return the bytes that the files below `folder` take on disk, holes left out.

    Files that vanish meanwhile count nothing.
    """
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                pass
    return total


def execute(
    notebook,
    output,
    parameters,
    cell_timeout,
    on_cell=None,
    peaks=None,
    kernel_name=None,
):
    """Run `notebook` in a sandbox and write it with its outputs to `output`.

    on_cell(client, cell) is called after each cell; `peaks` is told the folder to
    watch; kernel_name replaces the notebook's own. Returns the seconds its kernel
    lived, and the problems found afterwards: processes and files left. Raises what
    papermill and nbclient raise; `output` then holds the notebook up to the failing
    cell.
    """
    # jsonschema compiles a grammar for IRIs when it finds this one, for 0.8 s a run;
    # a notebook has no IRIs to check, and jsonschema does without.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from sandbox import Sandbox
    from traitlets.config import Config

    sandbox = Sandbox(notebook.parent)
    # papermill changes the current folder, so that relative paths would move
    notebook, output = notebook.resolve(), output.resolve()
    seconds = 0.0

    class Client(PapermillNotebookClient):
        def execute_cell(self, cell, index, **kwargs):
            done = super().execute_cell(cell, index, **kwargs)
            if on_cell:
                on_cell(self, cell)
            return done

        def papermill_execute_cells(self):
            super().papermill_execute_cells()
            if not any(
                o.output_type == "error"
                for c in self.nb.cells
                for o in c.get("outputs", [])
            ):
                sandbox.note_running()

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            nonlocal seconds
            sockets = Config({"KernelManager": sandbox.sockets()})
            started = time.monotonic()
            client = Client(
                nb_man,
                kernel_name=kernel_name,
                timeout=cell_timeout,
                coalesce_streams=True,  # a stream arrives in pieces of any length
                config=sockets,
            )
            try:
                with output.with_suffix(".log").open("w") as log:
                    return client.execute(stderr=log)
            finally:
                seconds = time.monotonic() - started

    papermill_engines.register("sandbox", Engine)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with sandbox:
        if peaks:
            peaks.folder = sandbox.root / "tmp"
        papermill.execute_notebook(
            notebook,
            output,
            parameters={
                k: v for k, v in parameters.items() if k in parameters_of(notebook)
            },
            engine_name="sandbox",
            kernel_name=kernel_name,
            progress_bar=False,
            cwd=sandbox.cwd,
        )
    return seconds, sandbox.problems


def last_cell(partial, source_notebook):
    """Return (number, source) of the code cell that a broken-off run was in.

    The number is the one a reader of `source_notebook` counts: code cells from 1,
    without the cell that papermill injects. (0, "") when no cell had started.
    """
    try:
        cells = json.loads(partial.read_text())["cells"]
    except (OSError, ValueError):
        return 0, ""
    cells = [c for c in cells if c["cell_type"] == "code"
             and "injected-parameters" not in c["metadata"].get("tags", [])
             and "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]  # fmt: skip
    started = [
        (number, "".join(cell["source"]))
        for number, cell in enumerate(cells, 1)
        if cell["metadata"].get("papermill", {}).get("start_time")
    ]
    return started[-1] if started else (0, "")


def explain(error, partial, notebook, cell_timeout):
    """Return {cell, line, error} for what stopped a run, in words for a reader."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    number, source = last_cell(partial, notebook)
    line = source.strip().partition("\n")[0]
    if isinstance(error, PapermillExecutionError):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        marked = re.findall(r"^-+> *\d+ (.*)$", plain, re.MULTILINE)
        line = next((m.strip() for m in marked if m.strip() in source), line)
        text = f"{error.ename}: {error.evalue}"
    elif isinstance(error, CellTimeoutError):
        text = f"the cell ran longer than {cell_timeout} s; CELL_TIMEOUT=… allows more"
    elif isinstance(error, DeadKernelError):
        text = "the kernel died in this cell (killed, or out of memory)"
    else:
        text = f"{type(error).__name__}: {error}"
    return {"cell": number, "line": line, "error": text}


def write_result(notebook, **result):
    """Keep the outcome of a run for the report, complete or not at all."""
    path = BUILD / f"{name_of(notebook)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def run(notebook, parameters, cell_timeout):
    """Run one notebook into build/; say so as it starts and ends. Returns exit code."""
    name = name_of(notebook)
    target = BUILD / notebook
    partial = target.with_suffix(".failed.ipynb")
    log = partial.with_suffix(".log")  # what the kernel itself had to say
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in (target, partial, log):
        old.unlink(missing_ok=True)
    say(f"start    {name}")
    started, peaks, failure, kernel = time.monotonic(), Peaks(), None, 0.0
    peaks.start()
    try:
        kernel, problems = execute(
            notebook, partial, parameters, cell_timeout, peaks=peaks
        )
        if problems:
            failure = {"cell": 0, "line": "", "error": "; ".join(problems)}
    except KeyboardInterrupt:
        partial.unlink(missing_ok=True)
        say(f"stopped  {name}")
        return 130
    except Exception as error:  # whatever it is, the report names it and the rest go on
        failure = explain(error, partial, notebook, cell_timeout)
    peaks.done.set()
    seconds = time.monotonic() - started
    write_result(
        notebook, status="failed" if failure else "ok", seconds=round(seconds, 2),
        kernel_seconds=round(kernel, 2), peak_mb=round(peaks.memory / 1e6),
        processes=peaks.processes, disk_mb=round(peaks.disk / 1e6, 1),
        parameters=parameters, failure=failure,
    )  # fmt: skip
    say(f"{'FAILED' if failure else 'ok    '}   {name}  {seconds:.1f} s")
    if failure:
        return 1
    partial.replace(target)
    log.unlink(missing_ok=True)
    return 0


def clean(notebook):
    """Drop from an executed notebook what differs from run to run, in place."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = type(cell.metadata)({"tags": tags} if tags else {})
    notebook.metadata = type(notebook.metadata)(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )


def refresh(notebook, cell_timeout):
    """Execute a notebook and store its outputs in it. Returns exit code."""
    import nbformat

    partial = BUILD / notebook.with_suffix(".refresh.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    say(f"start    {name_of(notebook)}")
    started = time.monotonic()
    try:
        _, problems = execute(notebook, partial, {}, cell_timeout)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the notebook keeps its old outputs
        what = explain(error, partial, notebook, cell_timeout)
        say(f"FAILED   {name_of(notebook)}: {failure_text(what)}; its outputs are kept")
        return 1
    fresh = nbformat.read(partial, as_version=4)
    clean(fresh)
    text = nbformat.writes(fresh).rstrip("\n") + "\n"
    if text != notebook.read_text():
        shutil.copymode(notebook, partial)
        partial.write_text(text)
        partial.replace(notebook)
    partial.unlink(missing_ok=True)
    partial.with_suffix(".log").unlink(missing_ok=True)
    for problem in problems:
        say(f"FAILED   {name_of(notebook)}: {problem}")
    say(f"stored   {name_of(notebook)}  {time.monotonic() - started:.1f} s")
    return 1 if problems else 0


def failure_text(failure):
    """Return one line: cell number, failing line, error."""
    if not failure["cell"]:
        return failure["error"]
    return f"cell {failure['cell']}: {failure['line']}\n             {failure['error']}"


def is_current(notebook):
    """Tell whether the run in build/ is newer than what it depends on."""
    target = BUILD / notebook
    if not target.exists():
        return False
    needs = [notebook, Path("data/flights.csv"), Path("requirements.txt")]
    return all(p.stat().st_mtime <= target.stat().st_mtime for p in needs)


def report(notebooks):
    """Print the table of the last runs, slowest first. Returns exit code."""
    rows, failed = [], []
    for notebook in notebooks:
        path = BUILD / f"{name_of(notebook)}.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        if result.get("status") == "ok" and not is_current(notebook):
            result = {}
        rows.append((result.get("seconds", 0), notebook, result))
        if result.get("status") != "ok":
            failed.append((notebook, result.get("failure")))
    wide = max((len(name_of(n)) for n in notebooks), default=8)
    say(
        f"\n{'notebook':{wide}}  {'result':8} {'seconds':>7}  {'peak MB':>7}  read it in"
    )
    for seconds, notebook, result in sorted(rows, key=lambda row: (-row[0], row[1])):
        status = result.get("status", "not run")
        where = BUILD / notebook
        if status != "ok":
            where = where.with_suffix(".failed.ipynb") if result else "-"
        say(
            f"{name_of(notebook):{wide}}  {status:8} {seconds:7.1f}"
            f"  {result.get('peak_mb', 0):7}  {where}"
        )
    for notebook, failure in failed:
        why = (
            failure_text(failure)
            if failure
            else "a program it needs was not built, or the run was stopped"
        )
        say(f"\nFAILED       {notebook}, {why}")
    say(f"\n{len(rows) - len(failed)} of {len(rows)} notebooks ran")
    return 1 if failed else 0


def check_settings(notebooks, settings):
    """Refuse a setting that no notebook has as a parameter. Returns exit code."""
    known = set().union(*(parameters_of(n) for n in notebooks)) if notebooks else set()
    for name in parse_settings(settings):
        if name not in known:
            say(
                f"no notebook here has the parameter {name}; they have: {', '.join(sorted(known))}"
            )
            return 2
    return 0


def main():
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "command", choices=["run", "refresh", "report", "check-settings"]
    )
    parser.add_argument("words", nargs="*", metavar="NOTEBOOK|NAME=VALUE")
    parser.add_argument("--cell-timeout", type=int, default=120, metavar="SECONDS")
    args = parser.parse_intermixed_args()
    settings = [w for w in args.words if "=" in w]
    notebooks = [Path(w) for w in args.words if "=" not in w]
    for notebook in notebooks:
        if not notebook.is_file():
            parser.error(f"there is no notebook {notebook}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.command == "report":
            return report(notebooks)
        if args.command == "check-settings":
            return check_settings(notebooks, settings)
        if args.command == "refresh":
            return max(refresh(n, args.cell_timeout) for n in notebooks)
        return max(
            run(n, parse_settings(settings), args.cell_timeout) for n in notebooks
        )
    except OSError as error:
        say(f"cannot write {error.filename or 'a file'}: {error.strerror}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
