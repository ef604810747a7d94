"""Take the pictures of the tools' own pages that the notebooks show, as pictures.toml says.

    pictures.py experiment-tracking/mlflow.ipynb           # take them anew
    pictures.py --check experiment-tracking/mlflow.ipynb   # compare with fresh ones

A fresh picture goes to build/pictures with --check, and may differ from the stored one in
the share of its pixels that `tolerance` names.
"""

import argparse
import ast
import os
import shutil
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor

from run import ROOT, named, say
from sandbox import Sandbox

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--font-render-hinting=none"]  # fmt: skip


def recipes(notebook=None):
    """Return {path of a picture: its table of pictures.toml}, of one notebook or all."""
    text = (ROOT / "site/pictures.toml").read_text(encoding="utf-8")
    return {
        path: recipe
        for path, recipe in tomllib.loads(text).items()
        if notebook is None or recipe["notebook"] == str(notebook)
    }


def chromium():
    """Return the path of an installed Chromium; SystemExit says how to get one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    sys.exit("chromium is not on PATH: install it (Debian: apt-get install chromium)")


def launch(playwright, home):
    """Return a Chromium that keeps its own files in the folder `home`, not in the user's."""
    own = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(home))
    return playwright.chromium.launch(
        executable_path=chromium(), args=FLAGS, env=os.environ | own
    )


def shoot(url, target, recipe):
    """Store what `recipe` names of the page at `url` as a PNG at `target`.

    Raises ValueError when there is nothing to crop to.
    """
    from playwright.sync_api import sync_playwright

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = launch(playwright, home)
        size = {"width": recipe.get("width", 1280), "height": recipe.get("height", 800)}
        page = browser.new_page(viewport=size, color_scheme="light")
        if recipe.get("login"):
            page.set_extra_http_headers({"Authorization": recipe["login"]})
        page.goto(url, wait_until="load", timeout=120_000)
        if "wait" in recipe:
            page.wait_for_selector(recipe["wait"], timeout=120_000)
        for selector in recipe.get("click", []):
            page.locator(selector).first.click(timeout=60_000)
            page.wait_for_timeout(1_500)
        if "hide" in recipe:
            page.add_style_tag(content=recipe["hide"] + "{ display: none !important }")
        page.wait_for_timeout(3_000)  # charts draw themselves after the page has loaded
        boxes = [e.bounding_box() for e in page.locator(recipe["crop"]).all()]
        boxes = [b for b in boxes if b and b["width"] and b["height"]]
        if not boxes:
            page.screenshot(path=target)
            raise ValueError(f"{target}: nothing matches {recipe['crop']!r}")
        x, y = (min(b[side] for b in boxes) for side in "xy")
        box = {
            "x": x,
            "y": y,
            "width": max(b["x"] + b["width"] for b in boxes) - x,
            "height": max(b["y"] + b["height"] for b in boxes) - y,
        }
        box["height"] = min(box["height"], recipe.get("most", box["height"]))
        page.screenshot(path=target, clip=box)
        browser.close()


def ask(client, code, expression="None"):
    """Run Python in the notebook's kernel; return the value of an expression after it.

    Raises ValueError with the kernel's words when either fails.
    """
    message = client.kc.execute(code, silent=True, user_expressions={"it": expression})
    reply = client.wait_for_reply(message)["content"]
    answer = reply["user_expressions"]["it"] if reply["status"] == "ok" else reply
    if answer["status"] != "ok":
        raise ValueError(f"{answer['ename']}: {answer['evalue']}")
    return ast.literal_eval(answer["data"]["text/plain"])


def take(client, path, recipe, check):
    """Picture the page that `recipe` names, now that its cell has run.

    Returns "" or, with check, what differs from the stored picture.
    """
    target = ROOT / "build/pictures" / path if check else ROOT / path
    wanted = f"({recipe['page']}, {recipe.get('login')})"
    url, login = ask(client, recipe.get("before", ""), wanted)
    # Playwright's plain interface wants a thread without an event loop.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(shoot, url, target, recipe | {"login": login}).result()
    ask(client, recipe.get("after_that", ""))
    say(f"picture  {path}")
    return differs(ROOT / path, target, recipe["tolerance"]) if check else ""


def differs(stored, fresh, tolerance):
    """Return "" when two pictures are alike, else in what they differ."""
    import numpy as np
    from matplotlib.image import imread

    one, two = (imread(path)[..., :3] for path in (stored, fresh))
    if abs(one.shape[0] - two.shape[0]) > 4 or abs(one.shape[1] - two.shape[1]) > 4:
        return f"the sizes are {one.shape[1::-1]} and {two.shape[1::-1]}"
    rows, columns = (
        min(pair) for pair in zip(one.shape[:2], two.shape[:2], strict=True)
    )
    apart = np.abs(one[:rows, :columns] - two[:rows, :columns]).max(axis=2) > 0.1
    share = apart.mean()
    return "" if share <= tolerance else f"{share:.1%} of the pixels differ"


def pictures_of(notebook, check):
    """Run the notebook, picture its pages; return {path: what differs} of those that do."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    nb, todo = nbformat.read(ROOT / notebook, as_version=4), recipes(notebook)
    problems = {}
    with Sandbox(notebook.parent) as sandbox:
        os.environ["NOTEBOOK_NETWORK"] = "host"  # where Chromium is
        client = NotebookClient(
            nb, timeout=600, resources={"metadata": {"path": str(sandbox.cwd)}},
            config=Config({"KernelManager": sandbox.sockets()}),
        )  # fmt: skip
        with client.setup_kernel():
            for number, cell in enumerate(nb.cells):
                client.execute_cell(cell, number)
                for path in [p for p in todo if todo[p]["cell"] in cell.source]:
                    if cell.cell_type == "code":
                        if told := take(client, path, todo.pop(path), check):
                            problems[path] = told
    return problems | dict.fromkeys(
        todo, "no cell has the text that pictures.toml names"
    )


def main():
    """Take or check the pictures of the notebooks named. Returns exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("notebooks", nargs="+")
    args = parser.parse_args()
    problems = {}
    for notebook in filter(recipes, map(named, args.notebooks)):
        problems |= pictures_of(notebook, args.check)
    for path, told in problems.items():
        say(f"{path}: {told}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
