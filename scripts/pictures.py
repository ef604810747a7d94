"""Take the pictures of the tools' own pages that the notebooks show.

    pictures.py experiment-tracking/mlflow.ipynb

A cell tagged `picture` leaves a URL in `page` (stored as pictures/mlflow.png), or
several in `pages` ({"runs": url} becomes pictures/mlflow-runs.png). `page_headers`
are sent along and `page_wait`, a CSS selector or text=…, is awaited, where they exist.
"""

import ast
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from notebooks import execute, name_of, say

ASK = "{{k: v for k, v in globals().items() if k in {names}}}".format(
    names=("page", "pages", "page_headers", "page_wait")
)
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


def pictures_of(notebook):
    """Run the notebook, picture its pages; return the number of pictures taken."""
    taken = []
    folder = notebook.parent.resolve() / "pictures"  # papermill changes the folder

    def on_cell(client, cell):
        if "picture" not in cell.metadata.get("tags", []):
            return
        message = client.kc.execute("", silent=True, user_expressions={"said": ASK})
        reply = client.wait_for_reply(message)["content"]["user_expressions"]["said"]
        said = ast.literal_eval(reply["data"]["text/plain"])
        pages = said.get("pages") or {"": said["page"]}
        for name, url in pages.items():
            stem = "-".join(filter(None, (notebook.stem, name)))
            target = folder / f"{stem}.png"
            # Playwright's plain interface wants a thread without an event loop.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(
                    shoot, url, target, said.get("page_headers"), said.get("page_wait")
                ).result()
            taken.append(target)
            say(f"picture  {target.parent.parent.name}/pictures/{target.name}")

    with tempfile.TemporaryDirectory() as scratch:
        execute(notebook, Path(scratch) / notebook.name, {}, 300, on_cell)
    return len(taken)


def main():
    """Take the pictures of the notebooks named; the others are passed over."""
    for notebook in map(Path, sys.argv[1:]):
        if '"picture"' in notebook.read_text() and not pictures_of(notebook):
            sys.exit(f"{name_of(notebook)}: no picture was taken")


if __name__ == "__main__":
    main()
