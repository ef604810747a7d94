"""Sphinx settings of the site: the README, the category pages and the notebooks."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from pages import CATEGORIES  # noqa: E402  (found through the line above)

project = "Open source MLOps"
copyright = "code: MIT; data: CC0"
extensions = ["myst_nb", "sphinx_copybutton", "sphinxcontrib.mermaid"]
root_doc = "README"  # make site links index.html to it
PAGES = ["QUESTIONS", "MACHINES", "LIST", "cluster/README", "data/README"]
PAGES += ["CONTRIBUTING"]
include_patterns = ["README.md", *(f"{page}.md" for page in PAGES)]
include_patterns += [f"{category}/*" for category in CATEGORIES]
exclude_patterns = ["**/.ipynb_checkpoints"]

nb_execution_mode = "off"  # the stored outputs are what the tests compared
nb_ipywidgets_js = {}  # no widgets, and so no script from another host
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
mermaid_use_local = "mermaid.esm.min.mjs"
mermaid_height = "auto"
mermaid_fullscreen = False

html_theme = "furo"
html_title = project
html_static_path = ["_static", str(ROOT / "build/site-js")]
html_css_files = ["site.css"]
html_js_files = ["large.js"]
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = "$ "


def add_contents(app, docname, source):
    """Lead links to folders to their pages; add the contents that Sphinx needs."""
    source[0] = re.sub(r"\]\(((?:\.\./)?[a-z-]+)\)", r"](\1/README.md)", source[0])
    name = Path(docname)
    if docname == root_doc:
        entries = [
            f"{c}/README" for c in CATEGORIES if (ROOT / c / "README.md").exists()
        ]
        entries += PAGES
    elif name.name == "README" and str(name.parent) in CATEGORIES:
        entries = sorted(p.stem for p in (ROOT / name.parent).glob("*.ipynb"))
    else:
        return
    listing = "\n".join(entries)
    source[0] += f"\n\n```{{toctree}}\n:hidden:\n\n{listing}\n```\n"


def setup(app):
    """Register the hook."""
    app.connect("source-read", add_contents)
