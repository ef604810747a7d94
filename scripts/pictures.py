"""Take the pictures of the tools' own pages that the notebooks show.

    pictures.py experiment-tracking/mlflow.ipynb

A cell tagged `picture` leaves a URL in `page` (stored as pictures/mlflow.png), or
several in `pages` ({"runs": url} becomes pictures/mlflow-runs.png). `page_headers`
are sent along and `page_wait`, a CSS selector or text=…, is awaited, where they exist.
"""

import ast
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from run import ROOT, cells_of, named, say
from sandbox import Sandbox

NAMES = ("page", "pages", "page_headers", "page_wait")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars"]  # fmt: skip


def chromium():
    """Return the path of an installed Chromium; SystemExit says how to get one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    sys.exit("chromium is not on PATH: install it (Debian: apt-get install chromium)")


def shoot(url, target, headers=None, wait=None):
    """Store the page at `url` as a PNG of 1280 x 800 points at `target`."""
    from playwright.sync_api import sync_playwright

    target.parent.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(
            viewport={"width": 1280, "height": 800}, extra_http_headers=headers or {}
        )
        page.goto(url, wait_until="load", timeout=30_000)
        if wait:
            page.wait_for_selector(wait, timeout=30_000)
        page.wait_for_timeout(2_000)  # charts draw themselves after the page has loaded
        page.screenshot(path=target)
        browser.close()


def take(client, notebook):
    """Picture the pages that the cell which just ran names; return how many."""
    asked = f"{{k: v for k, v in globals().items() if k in {NAMES}}}"
    message = client.kc.execute("", silent=True, user_expressions={"answer": asked})
    reply = client.wait_for_reply(message)["content"]["user_expressions"]["answer"]
    answer = ast.literal_eval(reply["data"]["text/plain"])
    pages = answer.get("pages") or {"": answer["page"]}
    for name, url in pages.items():
        stem = "-".join(filter(None, (notebook.stem, name)))
        target = ROOT / notebook.parent / f"pictures/{stem}.png"
        # Playwright's plain interface wants a thread without an event loop.
        with ThreadPoolExecutor(1) as pool:
            wait = answer.get("page_wait")
            pool.submit(shoot, url, target, answer.get("page_headers"), wait).result()
        say(f"picture  {target.relative_to(ROOT)}")
    return len(pages)


def pictures_of(notebook):
    """Run the notebook, picture its pages; return the number of pictures taken."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    nb = nbformat.read(ROOT / notebook, as_version=4)
    taken = 0
    with Sandbox(notebook.parent) as sandbox:
        os.environ["NOTEBOOK_NETWORK"] = "host"  # where Chromium is
        client = NotebookClient(
            nb, timeout=300, resources={"metadata": {"path": str(sandbox.cwd)}},
            config=Config({"KernelManager": sandbox.sockets()}),
        )  # fmt: skip
        with client.setup_kernel():
            for number, cell in enumerate(nb.cells):
                client.execute_cell(cell, number)
                if "picture" in cell.metadata.get("tags", []):
                    taken += take(client, notebook)
    return taken


def main():
    """Take the pictures of the notebooks named; the others are passed over."""
    for notebook in map(named, sys.argv[1:]):
        tags = [t for c in cells_of(notebook) for t in c["metadata"].get("tags", [])]
        if "picture" in tags and not pictures_of(notebook):
            sys.exit(f"{notebook}: no picture was taken")


if __name__ == "__main__":
    main()
