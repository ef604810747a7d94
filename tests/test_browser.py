"""A reader's way through the site and JupyterLab, in headless Chromium."""

import functools
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import numpy as np
import pytest
import requests
from conftest import ROOT
from matplotlib.image import imsave
from pages import CATEGORIES, facts_of, title_of
from pictures import differs, launch, recipes
from playwright.sync_api import expect, sync_playwright
from run import cells_of

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
if not CHROMIUM and not os.environ.get("CI"):
    pytest.skip(
        "needs chromium (Debian: apt-get install chromium)", allow_module_level=True
    )
NOTEBOOKS = sorted(p for c in CATEGORIES for p in (ROOT / c).glob("*.ipynb"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with sync_playwright() as playwright:
        yield launch(playwright, home)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site and serve it; the value is its address."""
    done = subprocess.run(["make", "site"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    handler = functools.partial(QuietHandler, directory=ROOT / "build/site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line on stderr for each."""

    def log_message(self, *words):
        pass


def test_chromium_leaves_nothing_in_the_users_home(tmp_path, monkeypatch):
    users, own = tmp_path / "user", tmp_path / "own"
    users.mkdir()
    own.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(users))

    def look():
        with sync_playwright() as playwright:
            with launch(playwright, own) as browser:
                browser.new_page().goto("about:blank")

    with ThreadPoolExecutor(1) as pool:  # Playwright: one in a thread
        pool.submit(look).result()
    assert list(own.iterdir()) and not list(users.iterdir())


def addresses(site):
    """Return the addresses of the front page and all category and notebook pages."""
    paths = ["index.html", *(f"{c}/README.html" for c in CATEGORIES)]
    paths += [
        str(p.relative_to(ROOT).with_suffix(".html")) for p in ROOT.glob("[A-Z]*.md")
    ]
    paths.remove("README.html")
    paths += [str(p.relative_to(ROOT).with_suffix(".html")) for p in NOTEBOOKS]
    return [site + path for path in paths]


def test_pages_show_whole_on_a_phone_and_ask_no_other_host(site, browser):
    foreign, broken, wide = set(), set(), {}
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda r: foreign.add(r.url)
            if not r.url.startswith((site, "data:", "blob:")) else None)  # fmt: skip
    page.on("response", lambda r: broken.add(r.url) if r.status >= 400 else None)
    for address in addresses(site):
        page.goto(address)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 390:
            wide[address] = width
        empty = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
        if page.evaluate(empty):
            broken.add(f"a picture of {address}")
    page.close()
    assert (foreign, broken, wide) == (set(), set(), {})


# What is wrong with a page's tables. A word is broken when its pieces stand on several
# lines; a text's column is narrow below ten characters ("0" wide); a cell is cut off when
# nothing around it scrolls.
TABLES = """() => {
  const wrong = [], ruler = document.createElement("span");
  ruler.textContent = "0".repeat(10);
  ruler.style = "position: absolute; white-space: nowrap";
  for (const cell of document.querySelectorAll("article td, article th")) {
    const table = cell.closest("table"), walker = document.createTreeWalker(cell, 4);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      for (const word of node.data.matchAll(/[\\p{L}\\p{N}_.,']+/gu)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
        if (lines.size > 1) wrong.push(`broken: ${word[0]}`);
      }
    }
    if (!table.matches(".dataframe")) {
      cell.append(ruler);
      const least = ruler.getBoundingClientRect().width;
      ruler.remove();
      if (cell.clientWidth < least) wrong.push(`narrow: ${cell.textContent.trim()}`);
    }
    let around = cell;
    while (around && !["auto", "scroll"].includes(getComputedStyle(around).overflowX))
      around = around.parentElement;
    const box = (around || document.body).getBoundingClientRect();
    if (box.right > innerWidth + 1) wrong.push(`cut off: ${cell.textContent.trim()}`);
    const end = box.left - around?.scrollLeft + around?.scrollWidth;
    if (cell.getBoundingClientRect().right > end + 1) wrong.push("beyond what scrolls");
  }
  return wrong;
}"""


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_tables_can_be_read(site, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    wrong = {}
    for address in addresses(site):
        page.goto(address)
        if found := page.evaluate(TABLES):
            wrong[address] = found[:5]
    # The measures see a fault: the page that was, a table squeezed into the page's width.
    page.goto(f"{site}serving/README.html")
    page.add_style_tag(
        content="""article table { table-layout: fixed; width: 120px }
        article table * { overflow-wrap: anywhere !important; min-width: 0 !important }"""
    )
    planted = {text.partition(":")[0] for text in page.evaluate(TABLES)}
    page.close()
    assert not wrong
    assert {"broken", "narrow"} <= planted


def test_every_picture_opens_large(site, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    for path in NOTEBOOKS:
        page.goto(f"{site}{path.parent.name}/{path.stem}.html")
        alone = page.locator("article img").evaluate_all(
            "images => images.filter(i => i.closest('a')?.href !== i.src).length"
        )
        assert not alone, path
    page.goto(f"{site}data-versioning/lakefs.html")
    with page.expect_popup() as popup:
        page.locator("article a > img").last.click()
    large = popup.value
    large.wait_for_load_state()
    assert large.evaluate("document.images[0].naturalWidth") > 390
    large.close()
    page.close()


def test_a_stored_picture_is_what_the_page_shows_today():
    """Retake those of the quickest notebook that has any; CHECK=1 does all."""
    names = {recipe["notebook"] for recipe in recipes().values()}
    quickest = min(names, key=seconds_of)
    words = [sys.executable, "scripts/pictures.py", "--check", quickest]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_picture_is_told(tmp_path):
    one = np.ones((40, 100, 3))
    other = one.copy()
    other[:10] = 0
    for name, picture in {"one": one, "other": other, "small": one[:30]}.items():
        imsave(tmp_path / f"{name}.png", picture)
    stored = tmp_path / "one.png"
    assert differs(stored, stored, 0) == ""
    assert differs(stored, tmp_path / "other.png", 0.3) == ""
    told = differs(stored, tmp_path / "other.png", 0.2)
    assert told == "25.0% of the pixels differ"
    assert "sizes" in differs(stored, tmp_path / "small.png", 1)


def test_no_link_is_broken(site):
    seen, missing, todo = set(), [], addresses(site)
    while todo:
        address = todo.pop()
        answer = requests.get(address)
        if answer.status_code != 200:
            missing.append(address)
        elif address.endswith(".html"):
            for link in re.findall(r'(?:href|src)="([^"#]+)', answer.text):
                target = urljoin(address, link.split("?")[0])
                if target.startswith(site) and target not in seen:
                    seen.add(target)
                    todo.append(target)
    assert not missing
    assert len(seen) > len(NOTEBOOKS)


def test_search_finds_each_tool(site, browser):
    page = browser.new_page()
    for path in NOTEBOOKS:
        tool = title_of(path)
        page.goto(f"{site}search.html?q={tool.replace(' ', '+')}")
        link = f"{path.parent.name}/{path.stem}.html"
        expect(page.locator(f'#search-results a[href*="{link}"]').first).to_be_visible(
            timeout=20_000
        )
    page.close()


def test_the_copy_button_copies_what_runs(site, browser):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    path = NOTEBOOKS[0]
    page.goto(f"{site}{path.parent.name}/{path.stem}.html")
    cell = page.locator(".cell_input .highlight").first
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    first = next(c["source"] for c in cells_of(path) if c["cell_type"] == "code")
    assert copied.strip() == first.strip()
    exec(compile(copied, "copied", "exec"), {})
    context.close()


def test_the_life_of_a_model_is_drawn(site, browser):
    page = browser.new_page()
    page.goto(site)
    drawn = page.locator(".mermaid svg").first
    expect(drawn).to_contain_text("the live model", timeout=20_000)
    page.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Start JupyterLab as `make lab` does, on a copy; yield (address, token)."""
    folder = tmp_path_factory.mktemp("lab") / "a clone"
    shutil.copytree(ROOT, folder, symlinks=True,
                    ignore=shutil.ignore_patterns(".*", "build"))  # fmt: skip
    (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
    for path in folder.glob("*/*.ipynb"):
        without_outputs(path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    words = f"--no-browser --ServerApp.port={port} --IdentityProvider.token={token}"
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(
        ["make", "lab", f"LAB={words}"], cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while True:
        try:
            requests.get(f"{address}/api?token={token}", timeout=2).raise_for_status()
            break
        except requests.RequestException:
            assert server.poll() is None and time.monotonic() < deadline, (
                folder / "lab.log"
            ).read_text()[-2000:]
            time.sleep(0.5)
    yield address, token
    os.killpg(server.pid, 15)
    server.wait(20)


def without_outputs(path):
    """Clear a notebook's outputs and counts, so that what is there later is of a run."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    path.write_text(json.dumps(content), encoding="utf-8")


def quickest(category):
    """Return the notebook of a category that its facts say takes the fewest seconds."""
    found = (ROOT / category).glob("*.ipynb")
    return min((p for p in found if "-on-kubernetes" not in p.name), key=seconds_of)


def seconds_of(notebook):
    """Return the seconds that a notebook's facts say it takes."""
    return int(re.match(r"\d+", facts_of(notebook)["Takes"]).group())


@pytest.mark.parametrize(
    "category", [c for c in CATEGORIES if list((ROOT / c).glob("*.ipynb"))]
)
def test_lab_runs_a_notebook_to_its_last_cell(lab, browser, category):
    address, token = lab
    path = quickest(category)
    cells = [c for c in cells_of(path) if c["cell_type"] == "code"]
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/lab/tree/{category}/{path.name}?token={token}&reset")
    expect(page.locator(".jp-Notebook .jp-CodeCell").first).to_be_visible(
        timeout=60_000
    )
    # Until the kernel is there, JupyterLab has nothing to restart and does not ask.
    expect(page.locator(".jp-Toolbar-kernelName").first).to_have_text(
        "Python 3 (ipykernel)", timeout=60_000
    )
    name = f"{category}/{path.name}"
    for _ in range(3):  # a kernel that is still starting restarts, and runs nothing
        page.locator('[data-command="notebook:restart-run-all"]').first.click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
        if has_begun(address, token, name, page):
            break
    wait_until_run(address, token, name, page, len(cells))
    page.close()


def code_cells(address, token, name, page):
    """Save the notebook in JupyterLab and return its code cells as the file has them."""
    page.keyboard.press("Control+s")
    time.sleep(3)
    answer = requests.get(f"{address}/api/contents/{name}?token={token}").json()
    return [c for c in answer["content"]["cells"] if c["cell_type"] == "code"]


def has_begun(address, token, name, page, seconds=30):
    """Tell whether a cell has run within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(c["execution_count"] for c in code_cells(address, token, name, page)):
            return True
    return False


def wait_until_run(address, token, name, page, count, seconds=600):
    """Save and read the notebook until its last cell has run; fail on an error in it.

    The lab's copy had no counts, so 1 to `count` are those of this run.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        cells = code_cells(address, token, name, page)
        failed = [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
        assert not failed, failed[0]["evalue"]
        session = requests.get(f"{address}/api/sessions?token={token}").json()
        idle = all(s["kernel"]["execution_state"] == "idle" for s in session)
        if idle and [c["execution_count"] for c in cells] == list(range(1, count + 1)):
            return
    pytest.fail(f"{name}: the last of {count} cells had not run after {seconds} s")
