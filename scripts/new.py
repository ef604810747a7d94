"""Make a notebook from scripts/template/some-tool.ipynb: make new NAME=serving/some-tool."""

import re
import sys

from pages import CATEGORIES
from run import ROOT


def main():
    """Write the notebook that the command line names; refuse to overwrite one."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    category, _, tool = name.partition("/")
    if category not in CATEGORIES or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", tool):
        folders = ", ".join(CATEGORIES)
        sys.exit(f"NAME is category/some-tool, the category one of: {folders}")
    path = ROOT / f"{name}.ipynb"
    if path.exists():
        sys.exit(f"{name}.ipynb exists already")
    template = (ROOT / "scripts/template/some-tool.ipynb").read_text(encoding="utf-8")
    path.parent.mkdir(exist_ok=True)
    path.write_text(template.replace("some-tool", tool), encoding="utf-8")
    print(f"{name}.ipynb is there: edit it, then make refresh NOTEBOOKS={name}.ipynb")


if __name__ == "__main__":
    main()
