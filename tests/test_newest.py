"""The lane on the newest releases names the release that breaks a notebook.

The releases are planted: wheels in a folder that serves as an index.
"""

import base64
import hashlib
import os
import re
import subprocess
import zipfile

import pytest
from conftest import ROOT
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
    print(output)
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
