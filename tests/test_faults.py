"""Plant a fault in a copy of the collection, run what a user runs, expect to be told."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import test_notebooks
from build_tool import tools
from conftest import ROOT
from pages import CATEGORIES
from planted import NAME, OTHER_DOT, example, own_tools, stream
from sandbox import sweep

MARK = f"left-by-test-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"


def left_running():
    """Return the command lines of what a planted server left."""
    found = []
    for process in psutil.process_iter():
        try:
            if MARK in process.cmdline():
                found.append(process.cmdline())
        except psutil.Error:
            pass
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Fail a test after which a planted server still runs, ten seconds later."""
    yield
    wait_until_ended()


def wait_until_ended(seconds=10):
    """Wait until no planted server runs; fail when one stays."""
    deadline = time.monotonic() + seconds
    while left_running():
        assert time.monotonic() < deadline, left_running()
        time.sleep(0.1)


def wait_for_server(seconds=60):
    """Wait until the planted server runs; fail when it does not."""
    deadline = time.monotonic() + seconds
    while not left_running():
        assert time.monotonic() < deadline, "the planted server did not come up"
        time.sleep(0.2)


SERVER = "import subprocess, sys\n" + (
    "server = subprocess.Popen(\n"
    f"    [sys.executable, '-c', 'import time; time.sleep(600)', '{MARK}']{{}})"
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
    clone.add(example(), "data-versioning/other")
    assert clone.make("run-all")[0] == 0
    code, output, _ = clone.make("run-all")
    assert (code, "start" in output) == (0, False)
    code, output, _ = clone.run("ROWS=4")
    assert (code, "start" in output) == (0, True)
    code, output, _ = clone.make("run-all")
    assert (code, output.count("start ")) == (0, 1)  # only the one with another setting
    os.utime(clone.folder / "data/delivery.csv")
    code, output, _ = clone.make("run-all")
    assert (code, output.count("start ")) == (0, 2)


def test_exception(clone):
    clone.add(example("count = 0\n1 / count"))
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


@pytest.mark.parametrize(
    ("text", "tags", "message"),
    [
        ("took 1.2 s\n", ["page"], "what a page quotes must be compared"),
        ("took 1.2 s\n4,096 bytes\n", [], "a size must be compared: 4,096 bytes"),
        ("took 1.2 s\nmemory of a worker, MB: 4\n", [], ""),
    ],
    ids=["page", "bytes", "memory"],
)  # fmt: skip
def test_what_may_be_ignored(clone, text, tags, message):
    notebook = example((f"print({text[:-1]!r})", [stream(text)]))
    notebook.cells[4].metadata["tags"] = ["nbval-ignore-output", *tags]
    clone.add(notebook)
    refused = pytest.raises(AssertionError, match=message or None)
    with refused if message else contextlib.nullcontext():
        test_notebooks.test_nearly_all_outputs_are_compared(clone.path(NAME))


def test_the_least_rows_must_be_told(clone):
    clone.add(example(parameters="rows = 3  # flights"))
    with pytest.raises(AssertionError, match="rows: at least how many"):
        test_notebooks.test_has_the_frame(clone.path(NAME))


def test_killed_kernel(clone):
    clone.add(example("import os\nos.kill(os.getpid(), 9)"))
    clone.add(example("import time\ntime.sleep(0)"), "data-versioning/other")
    _, _, usual = clone.make("data-versioning/other")
    code, output, seconds = clone.run()
    assert code != 0
    assert "cell 4: import os\n             the kernel died in this cell" in output
    assert seconds < usual + 10
    code, output, _ = clone.test()
    assert code != 0
    assert "the kernel died in this cell" in output


def test_hanging_cell(clone):
    clone.add(example("import time\ntime.sleep(600)"))
    code, output, _ = clone.run("CELL_TIMEOUT=2")
    assert code != 0
    assert "cell 4: import time" in output
    assert "the cell ran longer than 2 s" in output
    code, output, _ = clone.test("CELL_TIMEOUT=2")
    assert code != 0
    assert "Timeout of 2 seconds exceeded" in output


PROCESS = ("import multiprocessing as mp, time\n"
           "server = mp.get_context('fork').Process(target=time.sleep, args=(600,), daemon=True)\n"
           "server.start()")  # fmt: skip
THREAD = ("import http.server, threading\n"
          "server = http.server.HTTPServer(('127.0.0.1', 0), None)\n"
          "threading.Thread(target=server.serve_forever, daemon=True).start()")  # fmt: skip
# The note of what was left cannot be written, as on a full disk.
NO_NOTE = "\nimport os\nos.mkdir(os.environ['NOTEBOOK_SANDBOX'] + '/left')"


@pytest.mark.parametrize("verify", ["run", "test"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SERVER.format(""), "left running: python -c import time; time.sleep(600)"),
        (SERVER.format(", start_new_session=True"),
         "left running: python -c import time; time.sleep(600)"),
        (SERVER.format(", env={}, start_new_session=True"),
         "left running: python -c import time; time.sleep(600)"),
        (PROCESS, "left running: python -m ipykernel_launcher"),
        (THREAD, "left running: a server in the kernel, on a TCP port"),
        (SERVER.format(", start_new_session=True") + NO_NOTE,
         "left running: python -c import time; time.sleep(600)"),
    ],
    ids=["child", "detached", "detached without environment", "process", "thread",
         "without a note"],
)  # fmt: skip
def test_server_left_running(clone, source, message, verify):
    clone.add(example(source))
    code, output, _ = getattr(clone, verify)()
    assert code != 0
    assert message in output
    assert not left_running()


@pytest.mark.parametrize("verify", ["run", "test"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("open('left.txt', 'w').close()", "left behind: data-versioning/left.txt"),
        ("open('/tmp/left-by-test.txt', 'w').close()",
         "left behind: /tmp/left-by-test.txt"),
        ("open('/dev/shm/left-by-test', 'w').close()",
         "left behind: /dev/shm/left-by-test"),
        ("import tempfile\nx = tempfile.mkdtemp(prefix='left')", "left behind: tmp/left"),
        ("with open('../data/flights.csv', 'a') as file:\n    file.write('x')",
         "changed or removed: data/flights.csv"),
        ("import os\n\nos.remove('../data/flights.csv')",
         "changed or removed: data/flights.csv"),
    ],
    ids=["beside it", "/tmp", "/dev/shm", "TMPDIR", "data changed", "data removed"],
)  # fmt: skip
def test_files_left_or_changed(clone, source, message, verify):
    clone.add(example(source))
    code, output, _ = getattr(clone, verify)()
    assert code != 0
    assert message in output
    assert not list(clone.folder.rglob("left*"))
    assert not [
        p
        for p in ("/tmp/left-by-test.txt", "/dev/shm/left-by-test")
        if Path(p).exists()
    ]


@pytest.mark.parametrize("verify", ["run", "test"])
def test_one_notebook_does_not_see_what_another_left(clone, verify):
    """Each asserts that nothing is there, then leaves it; whichever comes first."""
    places = ["~/left", "/tmp/left-t", "/var/tmp/left-t", "/dev/shm/left-t"]
    source = (f"import os\n\nfor place in {places}:\n"
              "    path = os.path.expanduser(place)\n    assert not os.path.exists(path)\n"
              "    open(path, 'w').close()")  # fmt: skip
    for name in ("a", "b"):
        clone.add(example(source), f"data-versioning/{name}")
    for name in ("a", "b", "a"):
        how = [f"data-versioning/{name}"] if verify == "run" else [
            "-j1", "test", f"NOTEBOOKS=data-versioning/{name}.ipynb"]  # fmt: skip
        code, output, _ = clone.make(*how)
        assert code != 0
        assert "left behind: /var/tmp/left-t" in output, output  # so it came to its end
        assert "AssertionError" not in output


@pytest.mark.parametrize("verify", ["run", "test"])
def test_short_processes_that_end_by_themselves_are_no_fault(clone, verify):
    """Thirty of them, some ending while the run looks for what is left."""
    start = 'subprocess.Popen(["sleep", str(i / 50)])'
    clone.add(example("import subprocess\n\n"
                      f"started = [{start} for i in range(30)]"))  # fmt: skip
    for _ in range(3):
        (clone.folder / f"build/{NAME}.ipynb").unlink(missing_ok=True)
        code, output, _ = getattr(clone, verify)()
        assert code == 0, output


@pytest.mark.parametrize("place", ["sys.prefix", "pwd.getpwuid(os.getuid()).pw_dir"])
def test_the_environment_and_the_real_home_are_read_only_for_a_notebook(clone, place):
    write = f"""import os, pwd, sys

try:
    open(os.path.join({place}, 'left'), 'w').close()
except OSError as error:
    print(error.strerror)"""
    clone.add(example((write, [stream("Read-only file system\n")])))
    code, output, _ = clone.test()
    assert code == 0, output


def test_the_network_is_closed(clone):
    """A server of this machine, on its own loopback, is out of a notebook's reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"import socket\n\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        clone.add(example(source))
        code, output, _ = clone.run()
    assert code != 0
    assert "ConnectionRefusedError" in output


def test_missing_command(clone):
    """A program that is not on PATH: what to run is said, and quickly."""
    hide = "import os\n\nos.environ['PATH'] = '/usr/bin:/bin'"
    notebook = nbformat.read(ROOT / "data-versioning/dolt.ipynb", as_version=4)
    first = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code")
    notebook.cells.insert(first, nbformat.v4.new_code_cell(hide))
    clone.add(notebook)
    code, output, _ = clone.run()
    assert code != 0
    assert "make tools" in output


def test_ctrl_c_leaves_nothing_and_the_next_run_carries_on(clone):
    clone.add(example(SERVER.format("") + "\nserver.wait()"))
    clone.add(example(), "data-versioning/other")
    process = clone.start("-j2", "run-all")
    wait_for_server()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert not left_running(), output
    clone.add(example())
    code, output, _ = clone.make("run-all")
    assert (code, "2 of 2 notebooks ran" in output) == (0, True), output


def test_a_killed_make_leaves_nothing(clone):
    """The guard beside the kernel ends a detached server; the next run sweeps the rest."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # no run of another test sweeps it
    clone.add(example(SERVER.format(", start_new_session=True") + "\nserver.wait()"))
    process = clone.start(NAME, TMPDIR=str(place))
    wait_for_server()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_ended()
    assert len(list(place.glob("nb-*/clone"))) == 1
    time.sleep(5)  # a folder made just now may belong to a run that has not locked it
    clone.add(example())
    code, output, _ = clone.run(TMPDIR=str(place))
    assert code == 0, output
    place.rmdir()


def test_only_sandboxes_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("sandbox.temporary_folder", lambda: tmp_path)
    for name in ("nb-a-users", "nb-ours", "nb-at-work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        if name != "nb-a-users":
            (tmp_path / name / "clone").touch()
        os.utime(tmp_path / name / "lock", (0, 0))
    with open(tmp_path / "nb-at-work/lock", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep()
    assert {p.name for p in tmp_path.iterdir()} == {"nb-a-users", "nb-at-work"}


def test_a_killed_kernels_servers_are_ended(clone):
    clone.add(example(SERVER.format(", start_new_session=True")
                      + "\nimport os\nos.kill(os.getpid(), 9)"))  # fmt: skip
    code, output, _ = clone.run()
    assert code != 0
    assert "the kernel died in this cell" in output
    assert not left_running()


def test_a_report_is_about_this_run(clone):
    """A run that was killed is not blamed on the cell that failed the time before."""
    clone.add(example("1 / 0"))
    code, output, _ = clone.run()
    assert "ZeroDivisionError" in output
    clone.add(example(SERVER.format("") + "\nserver.wait()"))
    process = clone.start(NAME)
    wait_for_server()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        [".venv/bin/python", "scripts/report.py", f"{NAME}.ipynb"],
        cwd=clone.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "the run was stopped" in done.stdout
    assert "ZeroDivisionError" not in done.stdout


def test_two_makes_at_once_are_held_apart(clone):
    clone.add(example(SERVER.format("") + "\nserver.wait()"))
    first = clone.start(NAME)
    wait_for_server()
    code, output, seconds = clone.run()
    os.killpg(first.pid, signal.SIGINT)
    first.communicate(timeout=30)
    assert code != 0
    assert "another make run-all is at work in this clone" in output
    assert seconds < 10


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
    kinds = ("README.md", "*.ipynb", "pictures/*")
    found = [p for c in CATEGORIES for kind in kinds for p in (ROOT / c).glob(kind)]
    for path in [*ROOT.glob("*.md"), *found]:
        place = clone.folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
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


def program(path, source):
    """Put a program of shell in the place of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{source}\n")
    path.chmod(0o755)


def test_a_failed_build_names_its_step_and_stops_its_own_notebook_only(clone):
    own_tools(clone, "touch $out/greet")
    clone.add(example())
    clone.add(example(), "data-versioning/other")
    assert clone.make("run-all")[0] == 0
    table = clone.folder / "environment/tools.toml"
    newer = table.read_text().replace("1.0", "2.0")
    table.write_text(newer.replace("touch", "false\ntouch"))
    code, output, _ = clone.make("run-all")
    assert code != 0
    assert output.count("greet: not built; its log ends:\n    FAILED: false") == 1
    assert "build/tools/greet.log" in output
    assert "1 of 2 notebooks ran" in output
    assert "a program that it needs was not built" in output
    table.write_text(newer)
    code, output, _ = clone.make("run-all")
    assert (code, output.count("start ")) == (0, 1), output
    table.write_text(newer.replace("touch", "false\ntouch"))
    (clone.folder / "environment/greet.txt").write_text("packages of its own")
    code, output, _ = clone.make("run-all")
    assert (code != 0, "1 of 2 notebooks ran" in output) == (True, True), output


def test_what_needs_nothing_built_runs_first(clone):
    own_tools(clone, "sleep 3\ntouch $out/greet")
    clone.add(example())
    clone.add(example(), "data-versioning/other")
    code, output, _ = clone.make("-j1", "run-all")
    assert code == 0, output
    first = re.findall(r"^ok +data-versioning/other|greet: installing", output, re.M)
    assert first == ["ok       data-versioning/other", "greet: installing"]


def test_a_killed_build_leaves_nothing_to_the_next(clone):
    own_tools(clone, 'dirname "$work" > build/place\nkill -9 $PPID')
    clone.add(example())
    assert clone.make("tools")[0] != 0
    left = Path((clone.folder / "build/place").read_text().strip())
    assert left.is_dir()
    table = clone.folder / "environment/tools.toml"
    table.write_text(table.read_text().replace("kill -9 $PPID", "touch $out/greet"))
    code, output, _ = clone.make("tools")
    assert (code, left.exists()) == (0, False), output


def test_a_tool_that_is_not_described_is_named(clone):
    own_tools(clone, "touch $out/greet")
    clone.add(example())
    table = clone.folder / "environment/tools.toml"
    table.write_text(table.read_text().replace("minutes = 1\n", ""))
    code, output, _ = clone.make("tools")
    assert (code != 0, "the tool greet lacks minutes" in output) == (True, True), output


def test_a_users_python_is_not_emptied(clone):
    """uv is told which environment to fill, whatever Python the user chose for it."""
    own_tools(clone, "old_environment greet\ntouch $out/greet")
    clone.add(example())
    (clone.folder / "environment/greet.txt").touch()
    program(clone.folder / ".venv/bin/uv",
            'echo "$@ (${UV_PYTHON-}${UV_SYSTEM_PYTHON-})" >>build/words\n'
            'case "$*" in *requirements.txt) exit 1; esac')  # fmt: skip
    chosen = {"UV_SYSTEM_PYTHON": "1", "UV_PYTHON": "/usr/bin/python3"}
    code, output, _ = clone.make("tools", **chosen)
    assert code == 0, output
    (clone.folder / "environment/requirements.txt").write_text("# another")
    assert clone.make("environment", **chosen)[0] != 0
    words = (clone.folder / "build/words").read_text().splitlines()
    assert {w[-2:] for w in words} == {"()"}
    own, all_else = [w for w in words if "pip sync" in w]
    assert f"--python {clone.folder}/.venv/tools/greet/bin/python " in own
    assert "--python .venv/bin/python " in all_else


MIRROR = "http://127.0.0.1:9/simple"
NO_INDEX = dict.fromkeys(("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"))


@pytest.fixture
def mirror(tmp_path):
    """Variables of a user whose pip.conf names a mirror."""
    conf = tmp_path / "home/.config/pip/pip.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f"[global]\nindex-url = {MIRROR}\n")
    return NO_INDEX | {"HOME": str(tmp_path / "home"), "UV_HTTP_RETRIES": "0"}


@pytest.mark.parametrize("name", ["pip.conf", "PIP_INDEX_URL", "UV_INDEX_URL"])
def test_a_mirror_is_used_and_named_without_its_password(clone, mirror, name):
    own_tools(clone, "touch $out/greet")
    lock = clone.folder / "environment/requirements.txt"
    lock.write_text(f"no-such-package==1 --hash=sha256:{'0' * 64}\n")
    if name != "pip.conf":
        mirror |= {"HOME": None, name: MIRROR.replace("//", "//ana:pass@word@")}
    code, output, _ = clone.make("environment", **mirror)
    assert code != 0
    assert f"packages from {MIRROR})" in output
    assert f"{MIRROR}/no-such-package" in output  # where uv went
    assert "word@" not in output


@pytest.mark.parametrize("pip", [f"echo \"global.index-url='{MIRROR}'\"", "exit 1"])
def test_a_python_without_pip(clone, pip):
    """The pip that was made to install uv is asked; if there is none, that is said."""
    (clone.folder / ".venv").unlink()
    program(clone.folder / "bin/python3",
            'case "$*" in "-m venv"*) mkdir -p build/uv/bin; cp bin/pip build/uv/bin/python;; '
            "*) exit 1; esac")  # fmt: skip
    program(clone.folder / "bin/pip",
            'case "$*" in *install*) cp own-uv build/uv/bin/uv;; '
            f"*) {pip}; esac")  # fmt: skip
    program(clone.folder / "own-uv", 'case "$*" in *sync*) exit 1; esac')
    folders = [p for p in os.environ["PATH"].split(":") if not Path(p, "uv").exists()]
    path = ":".join([f"{clone.folder}/bin", *folders])
    code, output, _ = clone.make("environment", **NO_INDEX, PATH=path)
    assert code != 0
    said = MIRROR if pip != "exit 1" else "PyPI, as there is no pip whose settings"
    assert f"packages from {said}" in output


def test_a_recipe_has_the_mirror_of_pip(clone, mirror):
    own_tools(clone, "env >build/env\ntouch $out/greet")
    clone.add(example())
    program(clone.folder / ".venv/bin/uv", "true")
    (clone.folder / "scripts/kernel.py").write_text("")
    code, output, _ = clone.make("tools", **mirror)
    assert code == 0, output
    given = (clone.folder / "build/env").read_text().splitlines()
    assert f"UV_DEFAULT_INDEX={MIRROR}" in given
    assert stat.S_IMODE((clone.folder / ".venv/mirror").stat().st_mode) == 0o600


def test_a_recipe_has_what_the_user_set_for_downloads(clone, mirror):
    own_tools(clone, 'env >build/env\ncat "$XDG_CONFIG_HOME/uv/uv.toml" >>build/env\n'
              "touch $out/greet")  # fmt: skip
    clone.add(example())
    toml = Path(mirror["HOME"], ".config/uv/uv.toml")
    toml.parent.mkdir()
    toml.write_text("offline = true")
    names = ("http_proxy", "GOPROXY", "NPM_CONFIG_REGISTRY", "SSL_CERT_FILE",
             "UV_DEFAULT_INDEX")  # fmt: skip
    settings = {name: f"http://127.0.0.1:9/{name}" for name in names}
    code, output, _ = clone.make("tools", **mirror | settings)
    assert code == 0, output
    given = (clone.folder / "build/env").read_text().splitlines()
    assert {f"{k}={v}" for k, v in settings.items()} | {"offline = true"} <= {*given}
    assert not (toml.parents[1] / "go").exists()  # Go counts its use elsewhere


@pytest.mark.parametrize(
    ("goal", "lock"),
    [("environment", "build/environment.lock"), ("tools", ".venv/tools/greet.lock")],
)
def test_who_waits_for_another_make_says_so(clone, goal, lock):
    own_tools(clone, "touch $out/greet")
    clone.add(example())
    if goal == "environment":
        (clone.folder / "environment/requirements.txt").write_text("no-hash\n")
    place = clone.folder / lock
    place.parent.mkdir(exist_ok=True)
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = clone.start(goal, UV_OFFLINE="1")
        time.sleep(3)
        assert process.poll() is None
    output, _ = process.communicate(timeout=60)
    assert ": another make is at it, waiting" in output


def test_an_environment_that_was_not_finished_does_not_pass_for_one(clone):
    own_tools(clone, "touch $out/greet")
    lock = clone.folder / "environment/requirements.txt"
    lock.write_text("no-such-package==1 --hash=sha256:0\n")
    code, output, _ = clone.make("environment", UV_OFFLINE="1")
    assert (code != 0, "uv could not install" in output) == (True, True), output
    noted = (clone.folder / ".venv/ready").read_text().splitlines()
    assert noted == ["unfinished", str(clone.folder / ".venv")]


def test_a_tool_is_built_once_by_two_goals_side_by_side(clone):
    own_tools(clone, "sleep 3\necho built >> build/count\ntouch $out/greet")
    clone.add(example())
    words = ["-j2", "run-all", "test", f"NOTEBOOKS={NAME}.ipynb"]
    code, output, _ = clone.make(*words)
    assert code == 0, output
    assert (clone.folder / "build/count").read_text() == "built\n"
    assert output.count("greet: installing 1.0") == 1


def test_a_dry_run_runs_nothing(clone):
    clone.add(example())
    for goal in ("run-all", "test", "refresh"):
        code, output, _ = clone.make("-n", goal)
        assert code == 0, output
        assert f"{NAME}.ipynb" in output
    assert not (clone.folder / "build").exists()


def test_a_tool_is_the_one_that_the_table_and_its_lock_name(clone):
    own_tools(clone, "echo built >> build/count\ntouch $out/greet")
    clone.add(example())
    clone.make("tools")
    shutil.rmtree(clone.folder / ".programs")
    clone.make("tools")
    assert (clone.folder / ".venv/bin/greet").exists()
    for lock in ("one", "two", "two"):
        (clone.folder / "environment/greet.txt").write_text(lock)
        code, output, _ = clone.make("tools")
        assert code == 0, output
    assert (clone.folder / "build/count").read_text() == "built\n" * 4
    table = clone.folder / "environment/tools.toml"
    text = table.read_text()
    table.write_text(text.replace("echo", "false\necho"))
    (clone.folder / "environment/greet.txt").write_text("three")
    assert clone.make("tools")[0] != 0
    table.write_text(text)
    (clone.folder / "environment/greet.txt").write_text("two")
    assert clone.make("tools")[0] == 0
    assert (clone.folder / "build/count").read_text() == "built\n" * 5
    for version in ("2.0", "1.0"):
        table.write_text(text.replace("1.0", version))
        assert clone.make("tools")[0] == 0
        assert f"greet-{version}" in os.readlink(clone.folder / ".venv/bin/greet")


def small_disk(folder):
    """Return the words before make that put a file system of 6 MB on `folder`."""
    mount = f'mount -t tmpfs -o size=6m none "{folder}" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, "sh"]


FILL = "file.write(bytes(20_000_000))"
SWALLOW = f"import contextlib\nwith contextlib.suppress(OSError):\n    {FILL}"


@pytest.mark.skipif(os.getuid() != 0, reason="a file system of its own needs root")
@pytest.mark.parametrize("verify", ["run", "test"])
@pytest.mark.parametrize("write", [FILL, SWALLOW], ids=["raised", "swallowed"])
def test_a_full_disk_is_named(clone, write, verify):
    """In a mount namespace of its own, TMPDIR is a file system of 6 MB."""
    small = Path(tempfile.mkdtemp(dir="/tmp"))
    clone.add(example(f"import tempfile\nfile = tempfile.TemporaryFile()\n{write}"))
    how = {"before": small_disk(small), "TMPDIR": str(small)}
    code, output, _ = getattr(clone, verify)(**how)
    assert code != 0
    small.rmdir()
    assert (
        "was full: free some space, or set TMPDIR to a folder on another disk" in output
    )
    assert verify == "test" or f"FAILED       {NAME}.ipynb" in output


@pytest.mark.skipif(os.getuid() != 0, reason="a file system of its own needs root")
def test_a_full_disk_below_build_is_named(clone):
    (clone.folder / "build").mkdir()
    clone.add(example("print(('x' * 99 + '\\n') * 90_000)"))
    code, output, _ = clone.run(before=small_disk(clone.folder / "build"))
    assert code != 0
    assert f"FAILED       {NAME}.ipynb, OSError: [Errno 28] No space left" in output
    assert f"{clone.folder}/build is full: free some space\n" in output
    assert "TMPDIR" not in output


def test_the_outcome_says_whether_the_run_was_isolated(clone):
    clone.add(example())
    _, output, _ = clone.run()
    noted = json.loads((clone.folder / f"build/{NAME}.json").read_text())[
        "not_isolated"
    ]
    if noted:
        assert re.search("saw this machine's network", output)
    else:
        assert "saw no network but loopback" in output
    if os.environ.get("CI"):
        assert noted == "", "CI runs the notebooks without a network"


def test_matplotlib_starts_without_a_word(clone):
    clone.add(example("import matplotlib.pyplot"))
    code, output, _ = clone.test()
    assert code == 0, output


def test_no_program_is_started_by_a_path_behind_a_shebang():
    """The clone's path may have a space, which the system does not read there."""
    for name, tool in tools().items():
        assert "#!$venv" not in tool["recipe"], name
