"""Ask every external link of the pages and notebooks whether it still leads somewhere.

    links.py    # prints those that do not; exit 1 when there are any

Needs the network, Git and Python alone. A host that turns programs away (401, 403, 429), or
does not answer twice, is listed and fails nothing: its link may be as good as ever.
"""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AGENT = {"User-Agent": "Mozilla/5.0 (links of an open source collection)"}
LINK = re.compile(r"\]\((https?://[^)\s]+)\)|^\[[^]]+\]: (https?://\S+)", re.MULTILINE)


def texts():
    """Yield (path, Markdown text) of each page and each notebook's prose under Git."""
    listed = subprocess.check_output(["git", "ls-files", "*.md", "*.ipynb"], cwd=ROOT)
    for name in listed.decode().splitlines():
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".ipynb"):
            cells = json.loads(text)["cells"]
            prose = [c["source"] for c in cells if c["cell_type"] == "markdown"]
            text = "\n\n".join("".join(source) for source in prose)
        yield name, text


def links_of(pages):
    """Return {address without its #part: names of the pages that link there}."""
    found = {}
    for name, text in pages:
        for pair in LINK.findall(text):
            address = "".join(pair).partition("#")[0]
            # An address of this machine is an example, not a link.
            if not re.match(r"https?://(127\.|localhost|\[)", address):
                found.setdefault(address, set()).add(name)
    return found


def ask(address, pause=5):
    """Return "" when the address answers, "?…" when that cannot be told, else why not."""
    for _ in range(2):
        try:
            request = urllib.request.Request(address, headers=AGENT)
            with urllib.request.urlopen(request, timeout=30):
                return ""
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 429):
                return f"? {error.code}"
            if error.code < 500:
                return str(error.code)
            told = f"? {error.code}"
        except OSError as error:
            told = f"? {error}"
            if "Name or service not known" in told:
                told = "no such host"
        time.sleep(pause)
    return told


def main():
    """Ask all links, eight at a time. Returns exit code."""
    found = links_of(texts())
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(found, pool.map(ask, found), strict=True))
    for address, answer in sorted(answers.items(), key=lambda pair: pair[1]):
        if answer:
            print(f"{answer}  {address}  in {', '.join(sorted(found[address]))}")
    bad = sum(bool(answer) and answer[0] != "?" for answer in answers.values())
    print(f"{len(found)} links, {bad} lead nowhere")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
