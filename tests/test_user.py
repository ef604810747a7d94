"""What belongs to the user stays as it was, and what the user set changes nothing."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from planted import NAME, Clone, example, own_tools, stream

GIT = ("import subprocess\n"
       "for words in (['init', '-q'], ['config', 'user.name', 'Ana'],\n"
       "              ['config', 'user.email', 'ana@example.org'],\n"
       "              ['commit', '-q', '--allow-empty', '-m', 'from the notebook']):\n"
       "    subprocess.run(['git', *words], cwd=folder, check=True)\n"
       "shutil.rmtree(folder)")  # fmt: skip
COMMIT = "import shutil, tempfile\nfolder = tempfile.mkdtemp()\n" + GIT


def digest(folder):
    """Return {path: digest or link} of what is in a folder, what runs make left out."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink()
        else hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
        if not {"__pycache__", "build"} & set(p.relative_to(folder).parts)
    }  # fmt: skip


@pytest.mark.parametrize(
    "how", ["absolute", "link", "space", "outside", "no such file"]
)
def test_a_source_notebook_is_never_touched(clone, tmp_path, how):
    """However a run names it; what is not in a folder of the clone is refused."""
    if how == "absolute":  # make cannot take a path with a space
        clone = Clone(tmp_path / "clone")
    path = clone.path(NAME)
    if how in ("space", "outside", "link"):
        path = tmp_path / ("my notebook.ipynb" if how == "space" else "mine.ipynb")
    if how != "no such file":
        clone.add(example("1 / 0"))
        if path != clone.path(NAME):
            shutil.copy(clone.path(NAME), path)
    word = str(path)
    if how == "link":
        word = "data-versioning/link.ipynb"
        (clone.folder / word).symlink_to(path)
    before = digest(tmp_path) if how != "absolute" else path.read_bytes()
    code, output, _ = clone.make("run-all", f"NOTEBOOKS={word}")
    assert code != 0, output
    if how == "absolute":
        assert path.read_bytes() == before
        assert "ZeroDivisionError" in output
    else:
        after = digest(tmp_path)
        assert {p: after.get(p) for p in before} == before
        assert (
            "there is no notebook" in output or "not a notebook in a folder" in output
        )


def test_a_repository_of_a_git_hook_is_not_touched(clone, tmp_path):
    mine = tmp_path / "mine"
    commands = [["init", "-q"], ["config", "user.name", "Me"], ["config", "user.email", "m@e"],
                ["commit", "-q", "--allow-empty", "-m", "mine"]]  # fmt: skip
    mine.mkdir()
    for words in commands:
        subprocess.run(["git", *words], cwd=mine, check=True)
    before = digest(mine)
    hook = {"GIT_DIR": f"{mine}/.git", "GIT_WORK_TREE": str(mine),
            "GIT_INDEX_FILE": f"{mine}/.git/index"}  # fmt: skip
    clone.add(example(COMMIT))
    for verify in (clone.run, clone.test):
        code, output, _ = verify(**hook)
        assert code == 0, output
        assert digest(mine) == before


@pytest.fixture
def home(tmp_path):
    """A home with settings that would change what tools do."""
    folder = tmp_path / "home of ana"
    git = folder / ".config/git/config"
    git.parent.mkdir(parents=True)
    git.write_text("[commit]\n\tgpgsign = true\n[user]\n\tname = Real\n")
    (folder / ".aws").mkdir()
    (folder / ".aws/config").write_text("[default]\nregion = nowhere\n")
    (folder / ".ipython/profile_default/startup").mkdir(parents=True)
    (folder / ".ipython/profile_default/startup/a.py").write_text("raise SystemExit\n")
    return folder


def test_home_and_settings_stay_as_they_were(clone, home):
    before = digest(home)
    write = "\nimport os\nopen(os.path.expanduser('~/left'), 'w').close()"
    clone.add(example(COMMIT + write))
    for verify in (clone.run, clone.test):
        code, output, _ = verify(HOME=str(home), XDG_CONFIG_HOME=f"{home}/.config")
        assert code == 0, output
        assert digest(home) == before


HOSTILE = {
    "proxy": {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
              "all_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9",
              "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9",
              "NO_PROXY": None, "no_proxy": None},
    "cloud": {"AWS_PROFILE": "work", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    "tools": {"MLFLOW_RUN_ID": "x", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
              "PREFECT_API_URL": "http://127.0.0.1:9", "METAFLOW_DEFAULT_DATASTORE": "s3",
              "KFP_X": "x", "DASK_TEMPORARY_DIRECTORY": "/nowhere", "GUILD_HOME": "/nowhere",
              "FEAST_USAGE": "True", "PGHOST": "nowhere", "PGSERVICE": "x"},
    "python": {"PYTHONPATH": "{evil}", "PYTHONSTARTUP": "{evil}/json.py",
               "PYTHONWARNINGS": "error", "PYTHONHASHSEED": "7", "IPYTHONDIR": "{evil}"},
    "locale": {"LC_ALL": "tr_TR.UTF-8", "LANG": "C", "TZ": "Asia/Kolkata", "COLUMNS": "20"},
    "jupyter": {"JUPYTER_PATH": "{evil}", "JUPYTER_CONFIG_DIR": "{evil}",
                "JUPYTER_RUNTIME_DIR": "/nowhere", "PYTEST_ADDOPTS": "--collect-only"},
    "no home": {"HOME": "/proc/nowhere"},
    "long TMPDIR": {"TMPDIR": "{long}"},
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_users_environment_does_not_reach_the_kernel(clone, tmp_path, kind):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "json.py").write_text("raise RuntimeError('not this one')\n")
    long = tmp_path / ("t" * 120)
    long.mkdir()
    given = {k: v and v.format(evil=evil, long=long) for k, v in HOSTILE[kind].items()}
    (clone.folder / "data/given.csv").write_text(json.dumps(given))
    look = "given = json.load(open('../data/given.csv'))\n"
    look += "leaked = [k for k, v in given.items() if v and os.environ.get(k) == v]\n"
    clone.add(
        example(f"import json, os\n\n{look}assert given and leaked == [], leaked")
    )
    for verify in (clone.run, clone.test):
        code, output, _ = verify(**given)
        assert code == 0, output
    assert re.search(r"\b\d+ passed", output), output
    assert not list(long.iterdir())


def test_the_users_shell_does_not_lead_make_elsewhere(clone, tmp_path):
    """CDPATH moves a plain `cd`; BASH_ENV and functions run in every shell."""
    evil = tmp_path / "evil"
    (evil / "scripts").mkdir(parents=True)
    (evil / "start").write_text(f"touch '{evil}/ran'\n")
    before = digest(evil)
    clone.add(example())
    given = {"CDPATH": str(evil), "BASH_ENV": f"{evil}/start", "ENV": f"{evil}/start",
             "BASH_FUNC_cd%%": f"() {{ touch '{evil}/ran'; builtin cd \"$@\"; }}"}  # fmt: skip
    code, output, _ = clone.run(**given)
    assert code == 0, output
    assert digest(evil) == before
    by_hand = subprocess.run(["scripts/environment.sh"], cwd=clone.folder,
                             env=os.environ | {"CDPATH": str(evil)})  # fmt: skip
    assert by_hand.returncode == 0
    assert digest(evil) == before


NO_IPV6 = shlex.join([sys.executable, str(Path(__file__).with_name("no_ipv6.py"))])


@pytest.mark.parametrize(
    "first",
    ["umask 077", "ulimit -n 256", f'set -- {NO_IPV6} "$@"'],
    ids=["umask", "few open files", "no IPv6"],
)
def test_limits_of_the_users_shell(clone, first):
    clone.add(example("import os\n\nassert oct(os.umask(0)) == '0o22'"))
    before = ["bash", "-c", f'{first} && exec "$@"', "sh"]
    for verify in (clone.run, clone.test):
        code, output, _ = verify(before=before)
        assert code == 0, output


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_runs_it_in_a_network_of_its_own(clone):
    clone.add(example(("import os\n\nprint(os.getuid())", [stream("65534\n")])))
    for place in (clone.folder, *clone.folder.parents[:2]):
        place.chmod(0o755)
    subprocess.run(["chown", "-R", "65534", clone.folder], check=True)
    who = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    python = (clone.folder / ".venv/bin/python").resolve()
    if not all(p.stat().st_mode & 1 for p in python.parents):
        pytest.skip("this Python is root's alone; `make bare` runs as an ordinary user")
    code, output, _ = clone.run(before=who, HOME="/nonexistent", TMPDIR="/tmp")
    assert code == 0, output
    if Path("/proc/sys/kernel/unprivileged_userns_clone").exists():
        assert "saw no network but loopback" in output
    code, output, _ = clone.test(before=who, HOME="/nonexistent", TMPDIR="/tmp")
    assert code == 0, output


def test_an_editor_that_drops_the_specs_env_starts_the_same_kernel(tmp_path):
    """VS Code takes the specification's argv alone."""
    from jupyter_client import BlockingKernelClient, write_connection_file

    spec = json.loads(
        (ROOT / ".venv/share/jupyter/kernels/python3/kernel.json").read_text()
    )
    assert "env" not in spec
    path, _ = write_connection_file(str(tmp_path / "kernel.json"))
    argv = [word.format(connection_file=path) for word in spec["argv"]]
    kernel = subprocess.Popen(argv, env={"PATH": os.defpath, "http_proxy": "http://x:9"},
                              cwd=tmp_path, stderr=subprocess.DEVNULL)  # fmt: skip
    client = BlockingKernelClient(connection_file=path)
    client.load_connection_file()
    client.start_channels()
    try:
        deadline = time.monotonic() + 90
        while (
            True
        ):  # until its heart beats, a kernel that others started counts as dead
            try:
                client.wait_for_ready(10)
                break
            except RuntimeError:
                assert kernel.poll() is None and time.monotonic() < deadline
        code = "import os, shutil; e = os.environ"
        ask = {"x": "(shutil.which('mlflow') is not None, e.get('http_proxy'), "
                    "e['DVC_NO_ANALYTICS'], e['HOME'].endswith('.venv/home'))"}  # fmt: skip
        reply = client.execute_interactive(code, user_expressions=ask, timeout=60)
        told = reply["content"]["user_expressions"]["x"]["data"]["text/plain"]
        assert told == "(True, None, '1', True)"
        client.shutdown()
        assert kernel.wait(20) == 0
    finally:
        client.stop_channels()
        kernel.kill()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ROWZ=4", "no notebook here has the parameter ROWZ; they have: QUERY, ROWS, SHARE"),
        ("ROWS=many", "ROWS=many: data-versioning/example.ipynb wants a whole number"),
        ("ROWS=4.5", "wants a whole number"),
        ("ROWS=1", "ROWS=1: data-versioning/example.ipynb needs at least 2"),
        ("ROWS=20001", "data/flights.csv has 20,000 flights; for all there are, run "
         ".venv/bin/python data/make_flights.py --rows all"),
        ("SHARE=lots", "SHARE=lots: data-versioning/example.ipynb wants a number"),
        ("CELL_TIMEOUT=abc", "CELL_TIMEOUT=abc: wants whole seconds, 1 or more"),
        ("CELL_TIMEOUT=0", "CELL_TIMEOUT=0: wants whole seconds"),
        ("CELL_TIMEOUT=-1", "CELL_TIMEOUT=-1: wants whole seconds"),
        ("CELL_TIMEOUT=", "CELL_TIMEOUT=: wants whole seconds"),
        ("QUERY=a$b", "QUERY: a value with a dollar sign cannot be passed through make"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_before_anything_starts(clone, word, message):
    clone.add(
        example(parameters="rows = 3  # at least 2\nshare = 0.5\nquery = 'late > 1'")
    )
    code, output, _ = clone.run(word)
    assert code != 0
    assert message in output
    assert "start" not in output


def test_a_value_arrives_as_it_was_typed(clone):
    value = "late > 2; \"a  b\" & 'c' `x` # \\ |"
    parameters = "rows = 3\nquery = 'late > 1'"
    clone.add(example(f"assert query == {value!r}, query", parameters=parameters))
    before = digest(clone.folder / "data-versioning")
    code, output, _ = clone.run(f"QUERY={value}")
    assert code == 0, output
    assert digest(clone.folder / "data-versioning") == before


@pytest.mark.parametrize(
    ("goals", "taken"),
    [(["test"], False), (["refresh"], False), (["help"], False), ([], False),
     (["run-all", "test"], True), (["data-versioning"], True), ([NAME], True)],
)  # fmt: skip
def test_only_run_all_takes_parameters(clone, goals, taken):
    clone.add(example())
    code, output, _ = clone.make("-n", *goals, "ROWS=5")
    refused = "ROWS: only run-all takes parameters of the notebooks" in output
    assert (code == 0, refused) == (taken, not taken), output


def test_a_notebook_may_be_named_from_here(clone):
    clone.add(example())
    own_tools(clone, "touch $out/greet")
    code, output, _ = clone.make("tools", f"NOTEBOOKS=./{NAME}.ipynb")
    assert code == 0, output
    assert (clone.folder / ".venv/bin/greet").exists()


@pytest.mark.parametrize("words", [["help"], ["new"], ["-n", "run-all"]], ids=" ".join)
def test_help_touches_nothing(clone, words):
    """Not the note of a built program either, when its link dangles."""
    own_tools(clone, "touch $out/greet")
    (clone.folder / ".venv/tools").mkdir()
    (clone.folder / ".venv/tools/greet-1.0.ready").touch()
    (clone.folder / ".venv/bin/greet").symlink_to("/nowhere")
    before = digest(clone.folder)
    _, output, _ = clone.make(*words, HOME="/proc/nowhere")
    assert {"help": "make run-all", "new": "NAME is"}.get(words[0], "run.py") in output
    assert digest(clone.folder) == before
    assert not (clone.folder / "build").exists()
