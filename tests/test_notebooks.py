"""What every committed notebook must be, beside running: see CONTRIBUTING.md."""

import json
import re
import tomllib

import pytest
import run
from conftest import ROOT
from pages import LABELS, facts_of
from pictures import recipes

FORBIDDEN_TAGS = {"raises-exception", "nbval-raises-exception", "nbval-skip"}
# A folder of somebody's machine; a temporary folder; what tokens and keys look like.
PRIVATE = re.compile(
    r"/(?:root|home|Users|work|mnt)/\w|/tmp/\w|"
    r"eyJ[\w-]{10,}\.|AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|-----BEGIN|"
    r"(?i:password|passwd|secret|token|api_key)[\"']?\s*[=:]\s*[\"']?[\w+/-]{12,}"
)
# What is the same in every run and so compared; a process's memory is not.
SIZE = re.compile(r"^(?!.*\bmemory\b).*(?:\bbytes\b|\b[kM]B\b)", re.MULTILINE)
WARNING = re.compile(r"\b\w*Warning:|\bWARNING\b|^WARN\b", re.MULTILINE)


def cells_of(notebook, kind="code"):
    """Return the cells of one kind that are not empty, sources joined."""
    cells = run.cells_of(notebook)
    return [c for c in cells if c["cell_type"] == kind and c["source"].strip()]


def output_text(cell):
    """Return all that a cell shows as text: streams, plain text, HTML, Markdown."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append("".join(output.get("text", "")))
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                parts.append("".join(value))
    return "\n".join(parts)


def tags_of(cell):
    """Return the set of a cell's tags."""
    return set(cell["metadata"].get("tags", []))


def test_cells_ran_in_order(notebook):
    counts = [cell["execution_count"] for cell in cells_of(notebook)]
    assert counts == list(range(1, len(counts) + 1)), (
        f"{notebook}: execution counts are {counts}: run `make refresh`"
    )


def test_outputs_are_stored(notebook):
    cells = cells_of(notebook)
    shown = sum(bool(cell["outputs"]) for cell in cells)
    assert shown >= len(cells) / 2, (
        f"{notebook}: {shown} of {len(cells)} code cells show a result: "
        "run `make refresh`, or show more"
    )


def test_outputs_are_clean(notebook):
    for number, cell in enumerate(cells_of(notebook), 1):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"{notebook}: cell {number} failed"
            assert output.get("name") != "stderr", f"{notebook}: cell {number}: stderr"
        found = WARNING.search(output_text(cell))
        assert not found, f"{notebook}: cell {number} shows a warning"


def test_outputs_are_nobodys(notebook):
    for number, cell in enumerate(cells_of(notebook), 1):
        found = PRIVATE.search(output_text(cell))
        assert not found, (
            f"{notebook}: cell {number} shows a path or a secret: {found.group()[:40]}"
        )


def test_nearly_all_outputs_are_compared(notebook):
    cells = cells_of(notebook)
    for number, cell in enumerate(cells, 1):
        assert not tags_of(cell) & FORBIDDEN_TAGS, f"{notebook}: cell {number}: tag"
        marker = re.search(r"NBVAL_\w+|PYTEST_VALIDATE_\w+", cell["source"])
        assert not marker, f"{notebook}: cell {number}: use a tag, not {marker}"
    shown = [cell for cell in cells if cell["outputs"]]
    free = [cell for cell in shown if "nbval-ignore-output" in tags_of(cell)]
    assert not [c for c in free if "page" in tags_of(c)], (
        f"{notebook}: what a page quotes must be compared"
    )
    sizes = [found.group() for c in free if (found := SIZE.search(output_text(c)))]
    assert not sizes, f"{notebook}: a size must be compared: {sizes[0]}"
    assert len(free) <= -(-len(shown) // 10), (  # one in ten, rounded up
        f"{notebook}: {len(free)} of {len(shown)} outputs are not compared"
    )


def test_cells_are_short(notebook):
    whole = 0  # two files a notebook may be written whole, however long
    for number, cell in enumerate(cells_of(notebook), 1):
        lines = cell["source"].split("\n")
        if len(lines) > 25 and lines[0].startswith("%%writefile "):
            whole += 1
        else:
            assert len(lines) <= 25, f"{notebook}: cell {number} has {len(lines)} lines"
        long = [line for line in lines if len(line) > 88]
        assert not long, f"{notebook}: cell {number}: over 88 characters: {long[0]}"
    assert whole <= 2, (
        f"{notebook}: {whole} files are written by cells of over 25 lines"
    )


def test_has_the_frame(notebook):
    prose = "\n\n".join(c["source"] for c in cells_of(notebook, "markdown"))
    assert re.match(r"# [^\n]+: [^\n]+\n", prose), (
        f"{notebook}: title is '# Tool: promise'"
    )
    assert list(facts_of(ROOT / notebook)) == LABELS, f"{notebook}: facts table"
    for heading in (
        "What it protects you from",
        "Check",
        "What you have now",
        "Clean up",
    ):
        assert f"\n## {heading}\n" in f"\n{prose}\n", f"{notebook}: no '## {heading}'"
    assert "Outgrow this laptop" in prose, f"{notebook}: no 'Outgrow this laptop'"
    tagged = [c for c in cells_of(notebook) if "parameters" in tags_of(c)]
    assert len(tagged) == 1, f"{notebook}: one cell is tagged 'parameters'"
    for line in re.findall(r"^rows = .*", tagged[0]["source"], re.MULTILINE):
        assert re.search(r"# .*at least \d", line), (
            f"{notebook}: rows: at least how many?"
        )


def test_used_here_is_what_the_locks_say(notebook):
    told = facts_of(ROOT / notebook)["Used here"]
    locks = "".join(
        p.read_text(encoding="utf-8") for p in ROOT.glob("environment/*.txt")
    )
    programs = tomllib.loads(
        (ROOT / "environment/tools.toml").read_text(encoding="utf-8")
    )
    locked = set(re.findall(r"^[a-z0-9-]+==([^\s;]+)", locks, re.MULTILINE))
    locked |= {tool["version"] for tool in programs.values()}
    for version in re.findall(r"\b\d+\.\d+(?:\.\d+)*(?:\.post\d+)?\b", told):
        assert version in locked, (
            f"{notebook}: 'Used here' says {version}, no lock does"
        )


def test_stands_alone(notebook):
    own = {p.stem for p in (*ROOT.glob("scripts/*.py"), *ROOT.glob("tests/*.py"))}
    for number, cell in enumerate(cells_of(notebook), 1):
        for name in re.findall(
            r"^\s*(?:from|import) (\w+)", cell["source"], re.MULTILINE
        ):
            assert name not in own, f"{notebook}: cell {number} imports {name}"


def test_is_small_and_plain(notebook):
    path = ROOT / notebook
    assert path.stat().st_size < 300_000, f"{notebook}: over 300 kB with outputs"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in content["cells"]]
    assert len(ids) == len(set(ids)), f"{notebook}: a cell id stands twice"
    for cell in content["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, f"{notebook}: run `make refresh`"


def test_linked_files_are_there(notebook):
    for cell in cells_of(notebook, "markdown"):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell["source"]):
            if "://" not in link and not link.startswith("attachment:"):
                path = (ROOT / notebook).parent / link
                assert path.exists(), f"{notebook}: {link} is missing"


def test_pages_are_pictured(notebook):
    """Each picture that is linked shows something, and `make pictures` can retake it."""
    from matplotlib.image import imread

    prose = "\n".join(c["source"] for c in cells_of(notebook, "markdown"))
    folder = str(notebook).rpartition("/")[0]
    linked = re.findall(r"!\[[^\]]+\]\((pictures/[^)]+\.png)\)", prose)
    if not linked:
        pytest.skip("no page is pictured")
    ours = recipes(notebook)
    assert set(ours) <= {f"{folder}/{link}" for link in linked}, (
        f"{notebook}: site/pictures.toml has pictures that it does not link"
    )
    code = [c["source"] for c in cells_of(notebook)]
    for link in linked:
        path = ROOT / folder / link
        assert path.exists(), f"{notebook}: {link} is missing: run `make pictures`"
        assert imread(path)[..., :3].std() > 0.02, f"{notebook}: {link} is blank"
    for path, recipe in ours.items():
        assert sum(recipe["cell"] in source for source in code) == 1, (
            f"{path}: one code cell has the text {recipe['cell']!r}"
        )


def test_every_picture_is_shown():
    """A picture that no notebook links is of no use."""
    stored = {str(p.relative_to(ROOT)) for p in ROOT.glob("*/pictures/*.png")}
    shown = {
        f"{path.parent.name}/{link}"
        for path in ROOT.glob("*/*.ipynb")
        for cell in cells_of(path, "markdown")
        for link in re.findall(r"\]\((pictures/[^)]+)\)", cell["source"])
    }
    assert stored == shown
