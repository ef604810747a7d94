"""Plant a fault in a copy of the collection, run what a user runs, expect to be told."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import ROOT
from pages import LABELS
from sandbox import MARK

NAME = "data-versioning/example"
# PNG files of one pixel, black and white
HEAD = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptV"
DOT = HEAD + "AAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
OTHER_DOT = HEAD + "AAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="


def stream(text, name="stdout"):
    """Return a stored stream output."""
    return nbformat.v4.new_output("stream", text=text, name=name)


def picture(data):
    """Return a stored picture, as IPython displays one."""
    return nbformat.v4.new_output(
        "display_data",
        data={"image/png": data, "text/plain": "<IPython.core.display.Image object>"},
    )


def example(*extra):
    """Return a small notebook that passes; `extra`: more (source, [output]) cells."""
    facts = "\n".join(f"| **{label}** | something |" for label in LABELS)
    code = [
        ("rows = 3", []),
        ("print(rows * 14)", [stream("42\n")]),
        ("from base64 import b64decode\nfrom IPython.display import Image, display\n"
         f"\ndot = (\n    '{DOT[:60]}'\n    '{DOT[60:]}'\n)\n"
         "display(Image(b64decode(dot)))", [picture(DOT)]),
        *extra,
    ]  # fmt: skip
    new = nbformat.v4
    cells = [
        new.new_markdown_cell(f"# Example: a promise\n\n| | |\n|---|---|\n{facts}")
    ]
    for number, (source, outputs) in enumerate(code, 1):
        cell = new.new_code_cell(source, execution_count=number, outputs=outputs)
        cells.append(cell)
    cells[1].metadata["tags"] = ["parameters"]
    cells.append(
        new.new_markdown_cell(
            "## What it protects you from\n\n## Check\n\n## What you have now\n\n"
            "Outgrow this laptop\n\n## Clean up\n"
        )
    )
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python"}
    return new.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {**kernel, "name": "python3"},
            "language_info": {"name": "python"},
        },
    )


class Clone:
    """A copy of the collection's machinery, with the environment of this one."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in ("Makefile", "requirements.txt", "pytest.ini", "scripts", "tests"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)
        (folder / "data").mkdir()
        shutil.copy2(ROOT / "data/flights.csv", folder / "data")
        (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
        self.path(NAME).parent.mkdir()

    def path(self, name):
        """Return the path of the notebook `name`."""
        return self.folder / f"{name}.ipynb"

    def add(self, notebook, name=NAME):
        """Store a notebook."""
        nbformat.write(notebook, self.path(name))

    def start(self, *words):
        """Start make and return the process; its output is one stream."""
        environment = {k: v for k, v in os.environ.items()
                       if not k.startswith(("PYTEST_", "MAKE", "MFLAGS", "NOTEBOOK_"))}  # fmt: skip
        # The copy must not find this environment's programs, nor others of a maintainer.
        environment["PATH"] = ":".join(
            p
            for p in environment["PATH"].split(":")
            if p != str(ROOT / ".venv/bin") and not (Path(p) / "dolt").exists()
        )
        return subprocess.Popen(
            ["make", *words], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def make(self, *words, timeout=100):
        """Run make to its end; return (exit code, output without colours, seconds)."""
        started = time.monotonic()
        process = self.start(*words)
        output, _ = process.communicate(timeout=timeout)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
        return process.returncode, plain, time.monotonic() - started

    def run(self, *words):
        """Run the example as `make run-all` does."""
        return self.make(NAME, *words)

    def test(self, *words):
        """Test the example as `make test` does."""
        return self.make("-j1", "test", f"NOTEBOOKS={NAME}.ipynb", *words)


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "a clone")


def left_running():
    """Return the command lines of what runs of notebooks in this test left."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
            if "left-by-test" in process.cmdline() and mark:
                found.append(process.cmdline())
        except psutil.Error:
            pass
    return found


SERVER = "import subprocess, sys\n" + (
    "server = subprocess.Popen(\n"
    "    [sys.executable, '-c', 'import time; time.sleep(600)', 'left-by-test']{})"
)


def test_the_example_passes(clone):
    clone.add(example())
    code, output, _ = clone.run()
    assert code == 0, output
    assert "1 of 1 notebooks ran" in output
    code, output, _ = clone.test()
    assert code == 0, output


def test_nothing_runs_twice(clone):
    clone.add(example())
    clone.run()
    code, output, seconds = clone.run()
    assert (code, "start" in output) == (0, False)
    code, output, _ = clone.run("ROWS=4")
    assert (code, "start" in output) == (0, True)


def test_a_setting_that_no_notebook_has(clone):
    clone.add(example())
    code, output, _ = clone.run("ROWZ=4")
    assert code != 0
    assert "no notebook here has the parameter rowz; they have: rows" in output


def test_exception(clone):
    clone.add(example(("count = 0\n1 / count", [])))
    clone.add(example(), "data-versioning/other")
    code, output, _ = clone.make("run-all")
    assert code != 0
    assert f"FAILED       {NAME}.ipynb, cell 4: 1 / count" in output
    assert "ZeroDivisionError: division by zero" in output
    assert "1 of 2 notebooks ran" in output  # the other one was not stopped
    assert clone.path(f"build/{NAME}.failed").exists()
    code, output, _ = clone.test()
    assert code != 0
    assert "ZeroDivisionError" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[2].outputs[0].update(text="43\n"), "43"),
        (lambda cells: cells[3].outputs[0].data.update({"image/png": OTHER_DOT}),
         "image/png"),
        (lambda cells: cells[2].update(source="pass"), "Missing output"),
        (lambda cells: cells[2].update(outputs=[]), "Cell 1"),
        (lambda cells: [c.update(outputs=[], execution_count=None) for c in cells[1:4]],
         "run `make refresh`"),
        (lambda cells: cells[3].update(execution_count=7), "execution counts"),
        (lambda cells: cells[2].update(execution_count=3), "execution counts"),
    ],
    ids=["changed text", "changed picture", "vanished output", "new output",
         "no outputs", "counts with a gap", "counts out of order"],
)  # fmt: skip
def test_stored_outputs_are_not_what_comes_out(clone, change, message):
    notebook = example()
    change(notebook.cells)
    clone.add(notebook)
    code, output, _ = clone.test()
    assert code != 0
    assert message in output


@pytest.mark.parametrize(
    ("source", "shown", "message"),
    [
        ("import sys\nprint('oh', file=sys.stderr)", stream("oh\n", "stderr"), "stderr"),
        ("print('UserWarning: old')", stream("UserWarning: old\n"), "a warning"),
        ("print('/home/' 'ann/x')", stream("/home/ann/x\n"), "a path or a secret"),
        ("print('token' '=c0ffee0123456789')", stream("token=c0ffee0123456789\n"),
         "a path or a secret"),
    ],
    ids=["stderr", "warning", "home folder", "token"],
)  # fmt: skip
def test_outputs_that_do_not_belong(clone, source, shown, message):
    clone.add(example((source, [shown])))
    code, output, _ = clone.test()
    assert code != 0
    assert f"cell 4{':' if message == 'stderr' else ' shows'} {message}" in output


def test_killed_kernel(clone):
    clone.add(example(("import os\nos.kill(os.getpid(), 9)", [])))
    alive = example(("import time\ntime.sleep(0)", []))
    clone.add(alive, "data-versioning/other")
    _, _, usual = clone.make("data-versioning/other")
    code, output, seconds = clone.run()
    assert code != 0
    assert "cell 4: import os\n             the kernel died in this cell" in output
    assert seconds < usual + 5
    code, output, _ = clone.test()
    assert code != 0
    assert "the kernel died in this cell" in output


def test_hanging_cell(clone):
    clone.add(example(("import time\ntime.sleep(600)", [])))
    code, output, _ = clone.run("CELL_TIMEOUT=2")
    assert code != 0
    assert "cell 4: import time" in output
    assert "the cell ran longer than 2 s" in output
    code, output, _ = clone.test("CELL_TIMEOUT=2")
    assert code != 0
    assert "Timeout of 2 seconds exceeded" in output


@pytest.mark.parametrize("how", ["", ", start_new_session=True"])
def test_server_left_running(clone, how):
    clone.add(example((SERVER.format(how), [])))
    for code, output, _ in (clone.run(), clone.test()):
        assert code != 0
        assert "left running: python -c import time; time.sleep(600)" in output
        assert not left_running()


def test_file_left_behind(clone):
    clone.add(example(("with open('left.txt', 'w') as file:\n    file.write('x')", [])))
    for code, output, _ in (clone.run(), clone.test()):
        assert code != 0
        assert "left behind: data-versioning/left.txt" in output
    assert not list(clone.folder.rglob("left.txt"))


def test_port_taken(clone):
    """A notebook of this collection is told of a foreign server before it starts."""
    shutil.copy2(ROOT / "experiment-tracking/mlflow.ipynb", clone.path(NAME))
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        code, output, _ = clone.run(f"PORT={port}")
    assert code != 0
    assert f"port {port} is taken" in output


def test_missing_command(clone):
    """A program that is not on PATH: what to run is said, and quickly."""
    hide = "import os\n\nos.environ['PATH'] = '/usr/bin:/bin'"
    notebook = nbformat.read(ROOT / "data-versioning/dolt.ipynb", as_version=4)
    first = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code")
    notebook.cells.insert(first, nbformat.v4.new_code_cell(hide))
    clone.add(notebook)
    code, output, _ = clone.run()
    assert code != 0
    assert "dolt is not on PATH" in output
    assert "make tools" in output


def test_ctrl_c_leaves_nothing_and_the_next_run_carries_on(clone):
    source = SERVER.format("") + "\nprint('up', flush=True)\nserver.wait()"
    clone.add(example((source, [])))
    clone.add(example(), "data-versioning/other")
    process = clone.start("-j2", "run-all")
    deadline = time.monotonic() + 60
    while not left_running() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert not left_running(), output
    clone.add(example())
    code, output, _ = clone.make("run-all")
    assert (code, "2 of 2 notebooks ran" in output) == (0, True), output


def test_a_killed_runner_is_cleaned_up_by_the_next(clone):
    source = SERVER.format(", start_new_session=True") + "\nserver.wait()"
    clone.add(example((source, [])))
    process = clone.start(NAME)
    deadline = time.monotonic() + 60
    while not left_running() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    clone.add(example())
    code, output, _ = clone.run()
    assert code == 0, output
    assert not left_running()


def test_parallel_runs_do_not_collide(clone):
    for number in range(12):
        clone.add(example(), f"data-versioning/copy-{number}")
    code, output, _ = clone.make("-j6", "run-all")
    assert code == 0, output
    assert "12 of 12 notebooks ran" in output


def test_a_read_only_notebook_runs(clone):
    clone.add(example())
    clone.path(NAME).chmod(stat.S_IRUSR)
    code, output, _ = clone.run()
    assert code == 0, output


def test_a_new_notebook_passes_and_its_page_follows(clone):
    new = "serving/some-tool"
    for page in ("README.md", "serving/README.md"):
        (clone.folder / page).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / page, clone.folder / page)
    for words in (
        ["new", f"NAME={new}"],
        ["refresh", f"NOTEBOOKS={new}.ipynb"],
        ["-j1", "test", f"NOTEBOOKS={new}.ipynb"],
        ["readme"],
    ):
        code, output, _ = clone.make(*words)
        assert code == 0, output
    assert "wrote serving/README.md" in output


def test_refresh_stores_the_same_bytes_twice(clone):
    clone.add(example(("print(sorted({'b', 'a'}))", [])))
    code, output, _ = clone.make("refresh")
    assert code == 0, output
    once = clone.path(NAME).read_bytes()
    assert b"['a', 'b']" in once
    clone.make("refresh")
    assert clone.path(NAME).read_bytes() == once


def test_a_failed_build_names_its_step_and_stops_its_own_notebook_only(clone):
    environment = clone.folder / ".venv"
    environment.unlink()
    environment.mkdir()
    for entry in (ROOT / ".venv").iterdir():
        if entry.name not in ("tools", "ready"):
            (environment / entry.name).symlink_to(entry)
    (environment / "ready").write_text(f"{environment}\n")
    script = clone.folder / "scripts/build_tool.sh"
    text = script.read_text().replace("go_version=1.26.2", "go_version=99.0.0")
    script.write_text(re.sub(r"go_wheel=\S+", "go_wheel=0.0.1", text))
    clone.add(example(), "data-versioning/dolt")
    clone.add(example(), "data-versioning/other")
    code, output, _ = clone.make("run-all")
    assert code != 0
    assert "dolt: the build failed while compiling github.com/dolthub/dolt" in output
    assert "build/tools/dolt.log" in output
    assert "1 of 2 notebooks ran" in output
    assert "data-versioning/dolt.ipynb, a program it needs was not built" in output
