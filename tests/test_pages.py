"""The generated pages are what the notebooks and the environment say today."""

import re
import subprocess
import sys

from conftest import ROOT
from pages import CATEGORIES


def test_no_page_is_stale():
    check = [sys.executable, "scripts/pages.py", "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_category_has_a_page():
    for category in CATEGORIES:
        if any((ROOT / category).glob("*.ipynb")):
            assert (ROOT / category / "README.md").exists(), category


def test_links_between_pages_lead_somewhere():
    for page in ROOT.rglob("*.md"):
        if {".venv", "build", "node_modules", ".programs"} & set(
            page.relative_to(ROOT).parts
        ):
            continue
        for link in re.findall(
            r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")
        ):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_make_help_names_every_command():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True)
    for target in re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE):
        assert f"make {target}" in done.stdout
