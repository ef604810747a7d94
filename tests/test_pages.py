"""The generated pages are what the notebooks and the environment say today."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading

import links
import pytest
from conftest import ROOT
from front import figure
from jupyter_client.kernelspec import KernelSpecManager
from pages import CATEGORIES, every_notebook, facts_of
from run import cells_of


def test_no_page_is_stale():
    check = [sys.executable, "scripts/pages.py", "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_category_has_a_page():
    for category in CATEGORIES:
        if any((ROOT / category).glob("*.ipynb")):
            assert (ROOT / category / "README.md").exists(), category


def prose(path):
    """Return the Markdown of a page, or of a notebook's cells."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = cells_of(path)
    return "\n\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")


def anchors(path):
    """Return the names that GitHub and the site give to a text's headings."""
    plain = re.sub(r"^```.*?^```", "", prose(path), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in found}


def broken_links(path):
    """Return the links of a page or notebook that lead to no file or no heading here."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(path)):
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        if "://" in link or link.startswith("attachment:"):
            continue
        if not target.exists() or heading and heading not in anchors(target):
            broken.append(link)
    return broken


def test_links_lead_to_files_and_headings(tmp_path):
    listed = subprocess.check_output(["git", "ls-files", "*.md", "*.ipynb"], cwd=ROOT)
    for name in listed.decode().splitlines():
        if not name.startswith("scripts/"):
            assert not broken_links(ROOT / name), name
    page = tmp_path / "page.md"
    page.write_text("# One, two\n[a](#one-two) [b](#three) [c](page.md#one) [d](no.md)")
    assert broken_links(page) == ["#three", "page.md#one", "no.md"]


def test_external_links_are_asked(tmp_path):
    """scripts/links.py tells a page that is gone from one that is there or shy."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(int(self.path[1:])) if self.path != "/" else None
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    told = [links.ask(f"{url}/{code}", 0) for code in ("", 404, 403, 500)]
    server.shutdown()
    assert told == ["", "404", "? 403", "? 500"]
    text = "[a](https://a.org/x#part) [b](b.md) [c](http://127.0.0.1:5000)\n[d]: https://d.org"
    assert list(links.links_of([("p", text)])) == ["https://a.org/x", "https://d.org"]


def test_the_guide_names_every_tool():
    """The guide and the list of quiet tools link each notebook that is no comparison."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = text.partition("## What is MLOps?")
    guide = parts[0] + parts[2][parts[2].index("**Quiet upstream**") :]
    linked = set(re.findall(r"\(([\w-]+/[\w-]+\.ipynb)\)", guide))
    kinds = re.compile(r"compare|-on-|-faults")  # more of a tool that is linked
    missing = {str(n) for n in every_notebook() if not kinds.search(n.stem)} - linked
    assert not missing, "the guide of README.md has no line for these"


def test_no_server_is_said_of_what_runs_without_one():
    """The guide's words after a tool's name agree with the notebook's `Runs as`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    guide = text[: text.index("To begin:")]
    told = re.findall(r"\| \[[^]]+\]\(([^)]+)\)<br>([^|]+) \|", guide)
    assert len(told) == guide.count("\n| ") - 1
    for notebook, words in told:
        runs = facts_of(notebook)["Runs as"]
        if words.startswith("no server"):
            assert re.search("library|command line", runs), notebook
        else:
            assert re.search("server|cluster", runs), notebook


def test_the_quiet_tools_are_dated_as_their_notebooks_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quiet = text[text.index("**Quiet upstream**") : text.index("**Kubernetes**")]
    lines = re.findall(
        r"^- \[[^]]+\]\(([^)]+)\),[^:]*?(\w+ \d{4})", quiet, re.MULTILINE
    )
    assert len(lines) == quiet.count("\n- ")
    for notebook, month in lines:
        assert month in facts_of(notebook)["Latest upstream"], notebook


def test_the_list_is_counted_right():
    """LIST.md counts its own rows: names in its table, notebooks and others."""
    text = (ROOT / "LIST.md").read_text(encoding="utf-8")
    rows = [r.split("|")[1:4] for r in text.splitlines() if r.startswith("| ")][1:]
    here = sum(row[1].count("](") for row in rows)
    others = sum(len(row[2].split(",")) for row in rows if row[2].strip())
    assert f"{here + others} rows in {len(rows)} sections. {here} rows run here" in text
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"has {here + others} rows" in front


def test_a_figure_that_no_comparison_has_is_refused():
    with pytest.raises(ValueError, match="0 figures are called stored"):
        figure("data-versioning/compare.ipynb", "stored|Git LFS")


def test_the_container_is_the_debian_of_make_bare():
    dockerfile = (ROOT / ".devcontainer/Dockerfile").read_text(encoding="utf-8")
    bare = (ROOT / "scripts/bare.sh").read_text(encoding="utf-8")
    installed = "environment/debian-packages.txt"
    assert re.findall(r"^FROM debian:(\w+)$", dockerfile, re.MULTILINE) == re.findall(
        r'debian-packages.txt\)" (\w+) "\$root', bare
    )
    assert installed in dockerfile and installed in bare
    assert dockerfile.count("apt-get install") == 1
    json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))


def test_the_kernel_for_editors_is_the_notebooks_kernel(tmp_path):
    home = tmp_path / "home"
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    home.mkdir()
    subprocess.run(
        ["make", "kernel"], cwd=ROOT, env=env, check=True, capture_output=True
    )
    kernels = KernelSpecManager(
        kernel_dirs=[str(home / ".local/share/jupyter/kernels")]
    )
    spec = kernels.get_kernel_spec("open-source-mlops")
    own = KernelSpecManager(kernel_dirs=[f"{sys.prefix}/share/jupyter/kernels"])
    assert spec.argv == own.get_kernel_spec("python3").argv
    assert spec.display_name == "Open source MLOps"


def test_make_help_names_every_command():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    phony = " ".join(re.findall(r"^\.PHONY: ([^$\n]+)$", makefile, re.MULTILINE))
    targets = set(phony.split()) - {"environment", "resolve", "FORCE"}
    assert {"help", "run-all", "newest", "oldest", "cluster-status"} <= targets
    assert not [t for t in targets if f"  make {t} " not in done.stdout]
