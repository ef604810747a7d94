"""A small notebook, and a copy of the machinery to plant it in, for the tests."""

import os
import re
import shutil
import subprocess
import time

import nbformat
from conftest import ROOT
from pages import LABELS

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


def example(*extra, parameters="rows = 3  # flights, at least 2"):
    """Return a small notebook that passes.

    extra: more code cells, as (source, [output]) or as a source that shows nothing.
    """
    facts = "\n".join(f"| **{label}** | something |" for label in LABELS)
    code = [
        (parameters, []),
        ("print(rows * 14)", [stream("42\n")]),
        ("from base64 import b64decode\nfrom IPython.display import Image, display\n"
         f"\ndot = (\n    '{DOT[:60]}'\n    '{DOT[60:]}'\n)\n"
         "display(Image(b64decode(dot)))", [picture(DOT)]),
        *((e, []) if isinstance(e, str) else e for e in extra),
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
        folder.mkdir(parents=True)
        for name in (
            "Makefile",
            "cluster",
            "environment",
            "pytest.ini",
            "scripts",
            "tests",
        ):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)
        (folder / "data").mkdir()
        for path in (ROOT / "data").iterdir():
            shutil.copy2(path, folder / "data")
        (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
        self.path(NAME).parent.mkdir()

    def path(self, name):
        """Return the path of the notebook `name`."""
        return self.folder / f"{name}.ipynb"

    def add(self, notebook, name=NAME):
        """Store a notebook."""
        nbformat.write(notebook, self.path(name))

    def start(self, *words, before=(), **variables):
        """Start make and return the process; its output is one stream.

        before: words in front of make (a command that runs it); variables: added to the
        environment, or taken out of it when None.
        """
        unwanted = ("PYTEST_", "MAKE", "MFLAGS", "NOTEBOOK_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        # The copy must not find this environment's programs, nor others of a maintainer.
        kept["PATH"] = ":".join(
            p for p in kept["PATH"].split(":")
            if p != str(ROOT / ".venv/bin") and not os.path.exists(f"{p}/dolt")
        )  # fmt: skip
        kept |= variables
        return subprocess.Popen(
            [*before, "make", *words], cwd=self.folder, text=True,
            env={k: v for k, v in kept.items() if v is not None},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def make(self, *words, timeout=150, **how):
        """Run make to its end; return (exit code, output without colours, seconds)."""
        started = time.monotonic()
        process = self.start(*words, **how)
        output, _ = process.communicate(timeout=timeout)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
        return process.returncode, plain, time.monotonic() - started

    def run(self, *words, **how):
        """Run the example as `make run-all` does."""
        return self.make(NAME, *words, **how)

    def test(self, *words, **how):
        """Test the example as `make test` does."""
        return self.make("-j1", "test", f"NOTEBOOKS={NAME}.ipynb", *words, **how)


def own_tools(clone, recipe):
    """Give the clone an environment without built tools, and one tool of its own."""
    environment = clone.folder / ".venv"
    environment.unlink()
    environment.mkdir()
    for entry in (ROOT / ".venv").resolve().iterdir():
        if entry.name not in ("bin", "tools", "ready"):
            (environment / entry.name).symlink_to(entry)
    (environment / "bin").mkdir()
    for entry in (ROOT / ".venv/bin").iterdir():
        (environment / "bin" / entry.name).symlink_to(entry.resolve())
    state = (ROOT / ".venv/ready").read_text().splitlines()[0]
    (environment / "ready").write_text(f"{state}\n{environment}\n")
    (clone.folder / "environment/tools.toml").write_text(
        '[greet]\nversion = "1.0"\nprograms = ["greet"]\nminutes = 1\n'
        f"notebooks = [\"{NAME}\"]\nrecipe = '''\n{recipe}\n'''\n"
    )
