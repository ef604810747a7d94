"""A place of its own for one run of a notebook, and a check of what the run left.

Papermill (scripts/run.py) and nbval (tests/conftest.py) both run notebooks here.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from kernel import COVERED, SANDBOX

ROOT = Path(__file__).resolve().parent.parent
# A Unix socket's path may have 107 bytes, and tools append some 60 to TMPDIR.
LONGEST_TMPDIR = 40
# Helpers that Python's process pools keep on purpose; they end with the kernel.
POOL_HELPERS = ("multiprocessing.resource_tracker", "popen_loky_posix")
FULL_MB = 2
CLUSTER = ROOT / ".cluster"  # cluster/cluster.py keeps there what notebooks get of it


def in_cluster():
    """Return the names of what the cluster holds; RuntimeError when it does not say."""
    command = [sys.executable, ROOT / "cluster/cluster.py", "objects"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise RuntimeError(f"the cluster does not say what it holds: {' '.join(said)}")
    return set(done.stdout.split())


def on_cluster(notebook):
    """Tell whether a notebook needs the cluster, by its name."""
    return Path(notebook).stem.endswith("-on-kubernetes")


def temporary_folder():
    """Return the folder for sandboxes: TMPDIR, or /tmp where its path is too long."""
    chosen = tempfile.gettempdir()
    return chosen if len(os.fsencode(chosen)) <= LONGEST_TMPDIR else "/tmp"


def sweep():
    """End and remove what runs left whose runner was killed before it could clean up.

    A sandbox in use is locked by its runner, in whatever container that lives.
    """
    for folder in Path(temporary_folder()).glob("nb-*"):
        try:
            if folder.stat().st_uid != os.getuid() or not (folder / "clone").is_file():
                continue  # not a sandbox, or not ours
            with open(folder / "lock", encoding="utf-8") as lock:
                if time.time() - os.fstat(lock.fileno()).st_mtime < 5:
                    continue  # perhaps made just now, and not locked yet
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kill(p for p in psutil.process_iter() if belongs(p, folder))
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def belongs(process, folder):
    """Tell whether a process was started in the sandbox `folder`."""
    try:
        return process.environ().get(SANDBOX) == str(folder)
    except (psutil.Error, OSError):
        return False


def kill(processes):
    """End the processes without asking and wait until they are gone."""
    ended = list(processes)
    for process in ended:
        try:
            process.kill()
        except psutil.Error:
            pass
    psutil.wait_procs(ended, timeout=5)


def command(process):
    """Return a process's command line; none when it has ended or is a pool's helper."""
    try:
        ended = process.status() == psutil.STATUS_ZOMBIE
        words = [] if ended else process.cmdline()
    except psutil.Error:  # it ended at this moment
        return []
    return [] if any(h in " ".join(words) for h in POOL_HELPERS) else words


def describe(words):
    """Return a command line without the folders of this machine."""
    names = [Path(w).name if w.startswith("/") else w for w in words]
    return " ".join(names)[:100]


def listening(pid):
    """Return on how many TCP ports a process listens, in its own network namespace."""
    files = f"/proc/{pid}/fd"
    links, count = set(), 0
    for number in os.listdir(files):
        with contextlib.suppress(FileNotFoundError):  # closed at this moment
            links.add(os.readlink(f"{files}/{number}"))
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        cells = [row.split() for row in rows]
        count += sum(c[3] == "0A" and f"socket:[{c[9]}]" in links for c in cells)
    return count


class Sandbox:
    """An empty folder for the notebook, a copy of the data, a home, a TMPDIR, and checks.

    with Sandbox("data-versioning") as sandbox: run a kernel with cwd=sandbox.cwd

    data: the folder whose CSV files the notebook finds in ../data. cluster: the kernel
    keeps the machine's network, and finds the cluster's kubeconfig and S3 credentials in
    its home; one such notebook runs at a time. The kernel, started by
    kernel.py, finds the sandbox through the environment. Call `note_running()` before the
    kernel is shut down, read `problems` after the end; `started` is the second of the
    monotonic clock at which its turn came. The path has a space, as a
    reader's clone may have. Raises OSError when the disk is full.
    """

    def __init__(self, category, data=ROOT / "data", cluster=False):
        self.category, self.data, self.cluster = category, data, cluster
        self.problems, self.not_isolated = [], ""
        self.peaks = Peaks()
        self.started = time.monotonic()

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            if self.cluster:
                turn = undo.enter_context(open(CLUSTER / "turn", "w", encoding="utf-8"))
                fcntl.flock(turn, fcntl.LOCK_EX)
                self.started = time.monotonic()  # not while it waited
                self.objects = in_cluster()
            sweep()
            place = tempfile.mkdtemp(prefix="nb-", dir=temporary_folder())
            self.root = Path(place).resolve()
            lock = undo.enter_context(open(self.root / "lock", "w", encoding="utf-8"))
            undo.callback(shutil.rmtree, self.root, ignore_errors=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.fill()
            self.before = self.files()
            self.undo = undo.pop_all()
        self.environ, self.tempdir = dict(os.environ), tempfile.tempdir
        tempfile.tempdir = str(self.root)  # where jupyter_client writes a kernel's file
        os.environ |= {
            SANDBOX: str(self.root),
            "TMPDIR": str(self.root / "tmp"),
            "JUPYTER_RUNTIME_DIR": str(self.root),
            **({"NOTEBOOK_NETWORK": "host"} if self.cluster else {}),
        }
        self.peaks.root = self.root
        self.peaks.start()
        return self

    def fill(self):
        """Make the folders and copy the data."""
        (self.root / "clone").write_text(str(ROOT), encoding="utf-8")
        self.clone = self.root / "a clone"
        self.cwd = self.clone / self.category
        self.cwd.mkdir(parents=True)
        (self.clone / "data").mkdir()
        for path in self.data.glob("*.csv"):
            shutil.copy(path, self.clone / "data")
        for name in ("tmp", "home", *COVERED.values()):
            (self.root / name).mkdir()
        if self.cluster:
            given = "current" if os.environ.get("CLUSTER") == "current" else "home"
            shutil.copytree(CLUSTER / given, self.root / "home", dirs_exist_ok=True)
        for name in COVERED.values():
            (self.root / name).chmod(0o1777)
        for path in (self.root, self.clone, *self.clone.rglob("*"), self.root / "tmp"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # for servers without rights

    def sockets(self):
        """Return settings for jupyter_client's KernelManager: Unix sockets in here.

        The kernel has a network of its own; and free TCP ports are chosen before they
        are used, so that of twenty parallel runs about one would find its port taken.
        """
        return {"transport": "ipc", "ip": str(self.root / "kernel")}

    def files(self):
        """Return {path: digest} of what a run must leave as it was."""
        found = {}
        for name in ("a clone", "tmp", *COVERED.values()):
            for path in (self.root / name).rglob("*"):
                if "__pycache__" in path.parts:
                    continue
                whole = path.is_file() and not path.is_symlink() and name == "a clone"
                text = path.read_bytes() if whole else b""
                found[path.relative_to(self.root)] = hashlib.sha256(text).digest()
        return found

    def family(self):
        """Return the kernel's process and all others that the run has, as two values."""
        faces = [p for p in psutil.Process().children() if belongs(p, self.root)]
        guards = [g for face in faces for g in face.children()]
        below = [p for g in guards for p in g.children(recursive=True)]
        kernel = min((p for g in guards for p in g.children()),
                     key=lambda p: p.create_time(), default=None)  # fmt: skip
        return kernel, [p for p in below if p != kernel]

    def note_running(self):
        """Record what still runs or listens once the last cell has ended.

        What a cell has just stopped may take a moment to go. A full disk is seen while
        the kernel still holds its files.
        """
        self.peaks.sample()
        kernel, others = self.family()
        others = [p for p in others if command(p)]
        for process in psutil.wait_procs(others, timeout=3)[1]:
            if words := command(process):
                self.problems.append(f"left running: {describe(words)}")
        try:
            # One port is ipykernel's own, for what forked processes print.
            if kernel and listening(kernel.pid) > 1:
                self.problems.append(
                    "left running: a server in the kernel, on a TCP port"
                )
        except OSError:
            pass

    def __exit__(self, *exception):
        os.environ.clear()
        os.environ.update(self.environ)
        tempfile.tempdir = self.tempdir
        self.peaks.stop()
        with self.undo:
            self.look_back(whole=exception[0] is None)

    def look_back(self, whole):
        """End what still runs; note what the run left. whole: it came to its end."""
        kill(p for p in psutil.Process().children() if belongs(p, self.root))
        deadline = time.monotonic() + 5  # its guard ends the rest and writes `left`
        while any(belongs(p, self.root) for p in psutil.process_iter()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        left = self.root / "left"
        if left.exists() and whole and not self.problems:
            commands = left.read_text(encoding="utf-8").splitlines()
            self.problems += [f"left running: {describe(c.split())}" for c in commands
                              if not any(h in c for h in POOL_HELPERS)]  # fmt: skip
        self.problems += self.changes()
        note = self.root / "not-isolated"
        if note.exists():
            self.not_isolated = note.read_text(encoding="utf-8")
        if self.peaks.free_mb < FULL_MB:
            self.problems.insert(0, self.full())
        if self.cluster and whole:
            self.problems += self.left_in_cluster()

    def left_in_cluster(self):
        """Return what is in the cluster that was not; what is being removed may take 30 s."""
        deadline = time.monotonic() + 30
        while left := in_cluster() - self.objects:
            if time.monotonic() > deadline:
                return [f"left in the cluster: {', '.join(sorted(left)[:5])}"]
            time.sleep(1)
        return []

    def full(self):
        """Return the sentence about a disk that was full during the run."""
        return (f"the disk that holds {temporary_folder()} was full: free some space, or "
                "set TMPDIR to a folder on another disk")  # fmt: skip

    def changes(self):
        """Return what the run changed, removed or left, one line a tree."""
        after = self.files()
        told = [f"changed or removed: {Path(*p.parts[1:])}" for p in sorted(self.before)
                if after.get(p) != self.before[p]]  # fmt: skip
        note = self.root / "shown"  # where kernel.py shows the clone below its own /tmp
        shown = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
        own = {q for p in map(Path, shown) for q in (p, *p.parents)}
        new = sorted(
            after.keys() - self.before.keys() - own, key=lambda p: len(p.parts)
        )
        tops = [p for p in new if not any(q in p.parents for q in new)]
        names = {own: place for place, own in COVERED.items()}
        for path in tops:
            head, *rest = path.parts
            place = {"a clone": "", "tmp": "tmp/"}.get(head, f"{names.get(head)}/")
            told.append(f"left behind: {place}{Path(*rest)}")
        return told


class Peaks(threading.Thread):
    """Sample what a run uses, every half second.

    memory_mb: the most resident memory of all its processes; free_mb: the least that its
    disk had free. Set `root`, the sandbox's folder, before the start.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.root, self.done = None, threading.Event()
        self.memory_mb, self.free_mb = 0.0, float("inf")

    def run(self):
        while True:
            self.sample()
            if self.done.wait(0.5):
                return self.sample()

    def sample(self):
        """Look once."""
        used = 0
        for process in psutil.Process().children(recursive=True):
            try:
                used += process.memory_info().rss
            except psutil.Error:
                pass
        self.memory_mb = max(self.memory_mb, used / 1e6)
        self.free_mb = min(self.free_mb, shutil.disk_usage(self.root).free / 1e6)

    def stop(self):
        """Look a last time and end."""
        self.done.set()
        self.join()
