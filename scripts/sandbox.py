"""A place of its own for one run of a notebook, and a check of what the run left.

Papermill (scripts/notebooks.py) and nbval (tests/conftest.py) both run notebooks here.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "NOTEBOOK_RUN"
# Helpers that Python's own process pools keep; they end with the kernel.
POOL_HELPERS = ("multiprocessing", "loky", "ipykernel_launcher")


def marked_processes(mark=None):
    """Return {process: mark} for the processes that a notebook run started.

    A process inherits the environment of the kernel it descends from, even when it
    detached itself, so the mark in /proc finds them all. mark: only that run's.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            value = process.environ().get(MARK)
        except (psutil.Error, OSError):
            continue
        if value and mark in (None, value) and process.status() != psutil.STATUS_ZOMBIE:
            found[process] = value
    return found


def kill(processes):
    """End the processes without asking and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(list(processes), timeout=5)


def is_gone(pid):
    """Tell whether a process ended, be it that nobody has taken note of it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_orphans():
    """End what runs left whose own runner was killed before it could clean up."""
    kill(p for p, mark in marked_processes().items()
         if is_gone(int(mark.split("-")[0])))  # fmt: skip


def describe(process):
    """Return the command line of a process, without the folders of this machine."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return f"process {process.pid}"
    return " ".join(Path(w).name if w.startswith("/") else w for w in words)[:100]


class Sandbox:
    """A copy of the notebook's folder and the data, a TMPDIR, and a mark.

    with Sandbox("data-versioning") as sandbox: run a kernel with cwd=sandbox.cwd

    `sandbox.note_running()` is called before the kernel is shut down, `problems` is
    read after it. The path has a space, as a reader's clone may have.
    """

    def __init__(self, category):
        self.category = category
        self.problems = []

    def __enter__(self):
        kill_orphans()
        self.root = Path(tempfile.mkdtemp(prefix="nb-"))
        self.clone = self.root / "a clone"
        self.cwd = self.clone / self.category
        self.cwd.mkdir(parents=True)
        (self.clone / "data").mkdir()
        for path in (ROOT / "data").glob("*.csv"):
            shutil.copy(path, self.clone / "data")
        (self.root / "tmp").mkdir()
        self.root.chmod(0o755)  # servers that drop root's rights must reach TMPDIR
        self.before = self.files()
        self.mark = f"{os.getpid()}-{self.root.name}"
        self.environ = dict(os.environ)
        os.environ.update(
            {
                MARK: self.mark,
                "TMPDIR": str(self.root / "tmp"),
                "JUPYTER_RUNTIME_DIR": str(self.root),
            }
        )
        return self

    def sockets(self):
        """Return settings for jupyter_client's KernelManager: Unix sockets in here.

        Free TCP ports are chosen before they are used, so that of twenty parallel runs
        about one would end with "Address already in use".
        """
        return {"transport": "ipc", "ip": str(self.root / "kernel")}

    def files(self):
        """Return the files that matter in the copy of the clone and in TMPDIR."""
        return {
            path.relative_to(self.root)
            for folder in (self.clone, self.root / "tmp")
            for path in folder.rglob("*")
            if "__pycache__" not in path.parts
        }

    def note_running(self):
        """Record the processes still running once the last cell has ended."""
        self.problems += [
            f"left running: {describe(p)}"
            for p in marked_processes(self.mark)
            if not any(helper in " ".join(p.cmdline()) for helper in POOL_HELPERS)
        ]

    def __exit__(self, *exception):
        os.environ.clear()
        os.environ.update(self.environ)
        # What belongs to the kernel ends with it, within moments.
        deadline = time.monotonic() + 2
        while (left := marked_processes(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left and exception[0] is None and not self.problems:
            self.problems += [f"left running: {describe(p)}" for p in left]
        kill(left)
        # The folder goes first: one line a tree is enough, not one a file in it.
        new = sorted(self.files() - self.before, key=lambda path: len(path.parts))
        tops = [p for p in new if not any(q in p.parents for q in new)]
        self.problems += [
            f"left behind: {Path(*p.parts[1:]) if p.parts[0] == 'a clone' else p}"
            for p in tops
        ]
        shutil.rmtree(self.root, ignore_errors=True)
