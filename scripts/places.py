"""Ask the package index on which machines each notebook's packages have wheels.

    places.py          # writes environment/places.json; `make readme` puts it on MACHINES.md

uv resolves a notebook's `pip install`, in the versions of its lock, for another platform's
tags, and may take nothing but wheels. A package that has none anywhere (plain Python, built
from source on every machine) is let through.
"""

import datetime
import json
import re
import subprocess
import tempfile
from pathlib import Path

from alone import lock_of, versions_in
from build_tool import VENV, tools_of
from pages import PLACES as STORE
from pages import every_notebook, packages_of
from run import ROOT, say, write_whole

HERE = "x86_64-manylinux_2_31"
PLACES = {
    "Linux arm64": "aarch64-manylinux_2_31",
    "macOS arm64": "aarch64-apple-darwin",
}


def missing(packages, versions, platform, sources, *options):
    """Return the name of a package without a wheel for `platform`, "" when all have one.

    sources: names that may be built; options: more of uv's. Raises RuntimeError when uv
    fails for another reason.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, pins = Path(scratch, "in"), Path(scratch, "pins")
        asked.write_text("\n".join(packages))
        pins.write_text("".join(f"{k}=={v}\n" for k, v in versions.items()))
        command = [VENV / "bin/uv", "pip", "compile", "--quiet", "--python-version", "3.11",
                   "--python-platform", platform, "--constraint", pins,
                   asked, *options]  # fmt: skip
        for name in sorted(set(versions) - sources):
            command += ["--only-binary", name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    told = " ".join(done.stderr.split())
    found = re.search(r"([a-z0-9-]+)==\S+ has no (?:usable )?wheels", told)
    if not found:
        raise RuntimeError(told[-800:])
    return found.group(1)


def needed(notebook):
    """Yield (packages, versions, options) of a notebook: its own, then its old tools'."""
    yield packages_of(notebook), versions_in(lock_of(notebook)), []
    for name in tools_of(notebook):
        own = ROOT / f"environment/{name}.txt"
        if own.exists():
            versions = versions_in(own)  # complete, and made with other bounds
            yield [f"{k}=={v}" for k, v in versions.items()], versions, ["--no-deps"]


def main():
    """Ask for each notebook and platform, and store the answers with the date."""
    found, sources = {}, set()
    for notebook in every_notebook():
        lacks = dict.fromkeys(PLACES, "")
        for packages, versions, options in needed(notebook):
            # What has no wheel for the machine of the tests is built there as elsewhere.
            while name := missing(packages, versions, HERE, sources, *options):
                sources.add(name)
            for place, platform in PLACES.items():
                lacks[place] = lacks[place] or missing(
                    packages, versions, platform, sources, *options
                )
        found[str(notebook)] = lacks
        say(f"{notebook}: {lacks}")
    answer = {"asked": datetime.date.today().isoformat(), "places": list(PLACES),
              "without a wheel": found}  # fmt: skip
    write_whole(STORE, json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
