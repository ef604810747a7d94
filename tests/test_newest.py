"""The lane on the newest releases names the release that breaks a notebook.

The releases are planted: wheels in a folder that serves as an index.
"""

import base64
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from datetime import date
from pathlib import Path

import pytest
from conftest import ROOT
from guilty import Mixtures, narrow
from newest import Lane, offer
from pages import held_line
from planted import example, stream
from test_commands import with_packages

# In the first release all say "one". What they say in the second, and what they need.
SECOND = {
    "planted-loud": ("print('two')", ""),
    "planted-quiet": ("print('one')", ""),
    "planted-also": ("print('two')", ""),
    # These two change something only together.
    "planted-half": ("half = 1\nprint('one')", ""),
    "planted-other": (
        "import planted_half\nprint('two' if hasattr(planted_half, 'half') else 'one')", ""),
    # This one's second release cannot be tried beside the first of another.
    "planted-bound": ("print('one')", "planted-quiet>=2"),
}  # fmt: skip


def add_wheel(index, name, version, source, needs):
    """Put a release of one module into the index."""
    folder, module = index / name, name.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "Project-URL: Changelog, https://example.org/changes\n"
    metadata += f"Requires-Dist: {needs}\n" if needs else ""
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": source + "\n", f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
        record += f"{path},sha256={digest.decode().rstrip('=')},{len(text)}\n"
    wheel = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path, text in files.items():
            file.writestr(path, text)
        file.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with open(folder / "index.html", "a", encoding="utf-8") as page:
        page.write(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>\n')


def reads(*names):
    """Return cells that import these packages and show what their first releases say."""
    return [(f"import {n.replace('-', '_')}", [stream("one\n")]) for n in names]


@pytest.fixture
def planted_lane(clone, tmp_path):
    """A copy whose lock has the first releases of all, and whose index has the second."""
    index = tmp_path / "index"
    for name, (source, needs) in SECOND.items():
        add_wheel(index, name, "1.0", "print('one')", "")
        add_wheel(index, name, "2.0", source, needs)
    for path in (clone.folder / "environment").iterdir():
        if path.name.startswith(("guild", "bodywork", "tools")):
            path.unlink()
        elif path.is_dir():
            path.rename(tmp_path / path.name)
    (clone.folder / "environment/tools.toml").touch()
    wanted = clone.folder / "environment/requirements.in"
    wanted.write_text("ipykernel\npip\n" + "".join(f"{n}<2\n" for n in SECOND))
    settings = {"UV_INDEX": index.as_uri()}
    code, output, _ = clone.make("resolve", **settings)
    assert code == 0, output
    wanted.write_text(wanted.read_text().replace("<2", ""))

    def run(*words):
        notebooks = sorted(str(p) for p in clone.folder.glob("*/*.ipynb"))
        command = [
            ROOT / ".venv/bin/python",
            "scripts/newest.py",
            "--jobs",
            "2",
            *words,
        ]
        done = subprocess.run([*command, *notebooks], cwd=clone.folder, text=True,
                              env=os.environ | settings, capture_output=True)  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return clone, run


def test_names_what_breaks_a_notebook(planted_lane):
    clone, run = planted_lane
    cases = {
        "two": ("planted-also", "planted-bound", "planted-loud", "planted-quiet"),
        "pair": ("planted-half", "planted-other", "planted-quiet"),
        "none": ("planted-quiet",),
        "broken": ("planted-loud",),
    }
    for name, packages in cases.items():
        notebook = example(*reads(*packages))
        if name == "broken":
            notebook.cells[-2].outputs = [stream("never\n")]
        clone.add(
            with_packages(notebook, " ".join(packages)), f"data-versioning/{name}"
        )
    before = (clone.folder / "environment/requirements.txt").read_text()
    code, output = run()
    assert code == 1, output
    assert (clone.folder / "environment/requirements.txt").read_text() == before
    assert not (clone.folder / "build/newest/offer").exists()
    table = dict(
        re.findall(r"^\| data-versioning/(\w+) \| ([^|]+) \|", output, re.MULTILINE)
    )
    assert table == {
        "broken": "fails on the lock, too: differs in cell 4",
        "none": "holds",
        "pair": "differs in cell 5",
        "two": "differs in cell 4",
    }
    parts = dict(re.findall(r"^### data-versioning/(\w+)(.*?)(?=^###|^\*\*|\Z)", output,
                            re.MULTILINE | re.DOTALL))  # fmt: skip
    named = {
        n: re.findall(r"\*\*(planted-\w+)\*\* 1.0 → 2.0", p) for n, p in parts.items()
    }
    assert named == {
        "broken": [], "two": ["planted-also", "planted-loud"],
        "pair": ["planted-half", "planted-other"],
    }  # fmt: skip
    assert "these only together" in parts["pair"]
    assert "these only together" not in parts["two"]
    assert "~~~\none\n~~~\n\n~~~\ntwo\n~~~" in parts["two"]
    assert "https://example.org/changes" in parts["two"]


def test_what_did_not_move_needs_no_second_environment(planted_lane):
    clone, run = planted_lane
    wanted = clone.folder / "environment/requirements.in"
    wanted.write_text("ipykernel\npip\n" + "".join(f"{n}<2\n" for n in SECOND))
    clone.add(example())
    code, output = run()
    assert code == 0, output
    assert "nothing moved" in output
    assert "**1 of 1 notebooks hold with the newest releases**, 0 of" in output
    assert not (clone.folder / "build/newest/clone").exists()
    assert (clone.folder / "build/newest/offer/environment/held.json").exists()


def test_few_runs_narrow_forty_releases_down():
    """At most 7 runs for one guilty release, 15 for two that break it only together."""
    moved = [f"package-{number:02}" for number in range(40)]
    for size, most in ((1, 7), (2, 15)):
        for guilty in itertools.combinations(moved, size):
            asked = {frozenset(moved): True, frozenset(): False}

            def fails(chosen, guilty=guilty, asked=asked):
                return asked.setdefault(frozenset(chosen), set(guilty) <= set(chosen))

            assert narrow(moved, fails) == list(guilty)
            assert len(asked) - 2 <= most, guilty


FAILURE = {"cell": 3, "kind": "Cell outputs differ", "old": "one", "new": "two"}
NOTEBOOK = Path("data-versioning/example.ipynb")


class Told(Mixtures):
    """Mixtures of a and b whose outcomes, first and when run again, are told."""

    def __init__(self, answers):
        self.moved, self.answers = ["a", "b"], answers

    def reached(self, chosen):
        return frozenset(chosen)

    def outcome(self, chosen, again=False):
        answers = self.answers["".join(sorted(chosen))]
        if again and len(answers) > 1:
            answers.pop(0)
        return answers[0]


@pytest.mark.parametrize(
    ("answers", "verdict", "named"),
    [
        ({"": [None], "a": [FAILURE], "ab": [FAILURE], "b": [None]}, "", [["a"]]),
        ({"": [FAILURE, None], "a": [None], "ab": [None]}, "holds", []),
        ({"": [FAILURE]}, "fails on the lock, too: differs in cell 3", []),
        ({"": [None], "a": [FAILURE, None], "ab": [FAILURE], "b": [None]},
         "flaky: the same releases fail, then hold", []),
        ({"": [None, FAILURE], "a": [FAILURE], "ab": [FAILURE], "b": [None]},
         "flaky: the lock holds, then fails", []),
    ],
)  # fmt: skip
def test_what_is_flaky_is_blamed_on_nobody(answers, verdict, named):
    told, found, _ = Told(answers).guilty()
    assert told == verdict
    assert [packages for packages, _ in found] == named


def test_what_fails_once_is_run_again(monkeypatch):
    answers = [FAILURE, None]
    monkeypatch.setattr("newest.check", lambda *_: answers.pop(0))
    lane = Lane(False, [NOTEBOOK], "9")
    assert lane.run(NOTEBOOK)["verdict"] == "flaky: differs in cell 3 once, then holds"


def test_a_newer_program_is_tried_where_its_recipe_goes_by_the_version(tmp_path):
    shutil.copytree(ROOT / "environment", tmp_path / "environment")
    lane = Lane(False, [], "9")
    for name in ("configurable-http-proxy", "prometheus", "dolt", "delta-jars",
                 "kubernetes"):  # fmt: skip
        lane.try_program(tmp_path / "environment", name, "9.8.7")
    assert lane.tried == {"configurable-http-proxy", "prometheus"}
    tools = tomllib.loads(
        (tmp_path / "environment/tools.toml").read_text(encoding="utf-8")
    )
    assert {n for n, t in tools.items() if t["version"] == "9.8.7"} == lane.tried
    package = tmp_path / "environment/configurable-http-proxy/package.json"
    assert '"configurable-http-proxy": "9.8.7"' in package.read_text(encoding="utf-8")


def test_the_front_page_gets_its_date_when_every_notebook_holds(tmp_path, monkeypatch):
    lane = Lane(False, [NOTEBOOK], "9")
    lane.folder, lane.clone = tmp_path, ROOT
    place = tmp_path / "offer/environment"
    every = [NOTEBOOK, NOTEBOOK.with_stem("other")]
    monkeypatch.setattr("newest.every_notebook", lambda: every)
    monkeypatch.setenv("LEFT_OUT", "")
    assert offer(lane, [{"verdict": "holds"}]) == 0
    assert not place.exists(), "one notebook was not tried"
    every.pop()
    assert offer(lane, [{"verdict": "differs in cell 3"}]) == 1
    assert not place.exists()
    assert offer(lane, [{"verdict": "holds"}]) == 0
    assert (place / "requirements.txt").exists()
    (place / "held.json").write_text(
        (place / "held.json").read_text().replace(f"{date.today():%Y}", "1999")
    )
    monkeypatch.setattr("pages.HELD", place / "held.json")
    assert re.match(r"1 notebooks last held .* on \d+ \w+ 1999", held_line())


def test_the_workflow_trusts_no_moving_action():
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for used in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8")):
            assert re.search(r"@[0-9a-f]{40}$", used), f"{path.name}: {used}"
