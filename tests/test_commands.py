"""`make alone` and `make growth` find what they are there to find."""

import json
import subprocess
from pathlib import Path

import measure
import pytest
from planted import NAME, example


def with_packages(notebook, packages):
    """Give a notebook's table of facts a `pip install` of these packages."""
    cell = notebook.cells[0]
    old = "| **Install** | something |"
    assert old in cell.source
    cell.source = cell.source.replace(
        old, f"| **Install** | `pip install {packages}` |"
    )
    return notebook


def test_alone_finds_a_package_that_the_facts_do_not_name(clone):
    clone.add(with_packages(example("import markupsafe"), "ipython"))
    left = clone.folder / f"build/alone/{NAME}/env"
    left.mkdir(parents=True)
    (left / "of a run that was killed").touch()
    code, output, _ = clone.make("alone", f"NOTEBOOKS={NAME}.ipynb")
    assert code != 0
    assert "No module named 'markupsafe'" in output
    assert not left.parent.exists()
    clone.add(with_packages(example("import markupsafe"), "ipython markupsafe"))
    code, output, _ = clone.make("alone", f"NOTEBOOKS={NAME}.ipynb")
    assert code == 0, output
    assert f"alone    {NAME}" in output


def test_since_chooses_what_changed(clone):
    """A code cell, and the lock of a tool that a notebook needs."""
    names = [f"data-versioning/{letter}" for letter in "abc"]
    for name in names:
        clone.add(with_packages(example("1 + 1"), "ipython"), name)
    (clone.folder / "environment/tools.toml").write_text(
        '[greet]\nversion = "1"\nprograms = []\nminutes = 1\nrecipe = ""\n'
        f'notebooks = ["{names[1]}"]\n'
    )
    (clone.folder / "environment/greet.txt").write_text("six==1.0\n")
    for words in (
        "init -q",
        "add environment data-versioning",
        "-c user.name=Ana -c user.email=a@e commit -qm before",
    ):
        subprocess.run(["git", *words.split()], cwd=clone.folder, check=True)

    def chosen():
        code = ("import json, alone; from pathlib import Path\n"
                f"names = [Path(f'{{n}}.ipynb') for n in {names}]\n"
                "found = alone.changed_since('HEAD', names)\n"
                "print(json.dumps([n.stem for n in found]))")  # fmt: skip
        words = ["../.venv/bin/python", "-c", code]
        return json.loads(subprocess.check_output(words, cwd=clone.folder / "scripts"))

    assert chosen() == []
    clone.add(with_packages(example("1 + 2"), "ipython"), names[0])
    assert chosen() == ["a"]
    (clone.folder / "environment/greet.txt").write_text("six==1.1\n")
    assert chosen() == ["a", "b"]


def test_growth_names_the_size_at_which_a_notebook_fails(clone):
    count = "with open('../data/flights.csv') as file:\n    assert len(list(file)) == rows + 1"
    clone.add(example(count, "assert rows < 100_000, 'too many'"))
    code, output, _ = clone.make("growth", f"NOTEBOOKS={NAME}.ipynb")
    assert code != 0
    assert "FAILED at 327,346: cell 5: assert rows < 100_000" in output
    assert "FAILED at 20,000" not in output


@pytest.mark.parametrize(
    ("seconds", "code", "exponent"), [((1, 2, 100), 1, "1.40"), ((1, 2, 3), 0, "0.15")]
)
def test_growth_above_that_of_the_rows_is_refused(
    monkeypatch, capsys, seconds, code, exponent
):
    results = [{"status": "ok", "seconds": s, "peak_mb": 10 * s} for s in seconds]
    monkeypatch.setattr(measure, "attempt", lambda *words, **data: results.pop(0))
    monkeypatch.setattr(measure, "make_data", lambda rows: None)
    monkeypatch.setattr(measure, "parameters_of", lambda notebook: {"rows": (3, "")})
    assert measure.growth([Path(f"{NAME}.ipynb")]) == code
    told = capsys.readouterr().out
    cells = [word for s in seconds for word in (f"{s:.1f}", "s", str(10 * s))]
    assert told.splitlines()[1].split() == [NAME, *cells, exponent]
    assert ("grows faster than its rows" in told) == bool(code)
