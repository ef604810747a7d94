"""Keep in measured.json what the comparison pages quote: runs here, releases there.

    measure.py runs     # add the last `make run-all` in build/ (three of them, say)
    measure.py programs # weigh the programs that pip does not bring
    measure.py index    # ask the package indexes for releases; needs a network

A run's figures are the medians of all the runs added since `measure.py forget`.
"""

import datetime
import json
import statistics
import subprocess
import sys
from pathlib import Path

from notebooks import size_of
from packaging.version import Version
from pages import MEASURED, ROOT
from pypi_simple import PyPISimple

# Whose releases count for a notebook: a PyPI project, or the Go module that is built.
UPSTREAM = {
    "data-versioning/delta-lake": "deltalake",
    "data-versioning/dolt": (
        "2.2.0", "github.com/dolthub/dolt/go@v0.40.5-0.20260715172757-a6690826d767"),
    "data-versioning/dvc": "dvc",
    "data-versioning/lakefs": ("1.33.0", "github.com/treeverse/lakefs@v1.33.0"),
    "data-versioning/pachyderm": (
        "2.12.2", "github.com/pachyderm/pachyderm/v2@v2.12.2"),
    "experiment-tracking/guild-ai": "guildai",
    "experiment-tracking/mlflow": "mlflow",
    "experiment-tracking/sacred": "sacred",
    "experiment-tracking/tensorboard": "tensorboard",
    "feature-stores/feast": "feast",
    "model-registry/mlflow": "mlflow",
    "model-training/kubeflow": "kfp",
    "model-training/metaflow": "metaflow",
    "model-training/mlflow": "mlflow",
    "monitoring/evidently": "evidently",
    "serving/bentoml": "bentoml",
    "serving/bodywork": "bodywork",
}  # fmt: skip
# What `make tools` puts into the environment for a notebook: programs, or folders of them.
PROGRAMS = {
    "data-versioning/dolt": ["bin/dolt"],
    "data-versioning/lakefs": ["bin/lakefs", "bin/lakectl"],
    "data-versioning/pachyderm": ["bin/testpachd", "bin/pachctl"],
    "experiment-tracking/guild-ai": ["tools/guild-ai"],
    "full-stacks/openmlops": ["bin/oathkeeper", "tools/configurable-http-proxy"],
    "serving/bodywork": ["tools/bodywork"],
}
FIGURES = ("seconds", "peak_mb", "processes", "disk_mb")


def releases_on_pypi(project, index):
    """Return {version: date} of a PyPI project's final releases, yanked ones left out.

    Raises pypi_simple.NoSuchProjectError and requests' errors.
    """
    found = {}
    for file in index.get_project_page(project).packages:
        if (
            file.version
            and not file.is_yanked
            and not Version(file.version).is_prerelease
        ):
            day = file.upload_time.date()
            found[file.version] = min(day, found.get(file.version, day))
    return found


def date_of_module(module):
    """Return the date of `path@version` of a Go module, as the module proxy tells it.

    Raises subprocess.CalledProcessError when it cannot.
    """
    told = subprocess.run(
        ["go", "list", "-m", "-json", module],
        check=True,
        capture_output=True,
        text=True,
    )
    return datetime.datetime.fromisoformat(json.loads(told.stdout)["Time"]).date()


def ask_indexes(today):
    """Return {notebook: {last, two_years}} from the package indexes.

    two_years: a number, or None for a Go module, whose proxy keeps no full list.
    """
    since = today.replace(year=today.year - 2)
    answers = {}
    with PyPISimple() as index:
        for notebook, source in UPSTREAM.items():
            if isinstance(source, tuple):
                version, module = source
                found, count = {version: date_of_module(module)}, None
            else:
                found = releases_on_pypi(source, index)
                count = sum(day >= since for day in found.values())
            last = max(found, key=Version)
            answers[notebook] = {
                "last": f"{last}, {found[last]:%B %Y}", "two_years": count,
            }  # fmt: skip
    return answers


def add_runs(kept):
    """Add the results in build/ to the raw runs, and set the medians."""
    raw = kept.setdefault("raw", {})
    for path in sorted((ROOT / "build").glob("*/*.json")):
        name = f"{path.parent.name}/{path.stem}"
        result = json.loads(path.read_text())
        known = (ROOT / f"{name}.ipynb").exists()
        if known and result["status"] == "ok" and not result["parameters"]:
            row = [result[figure] for figure in FIGURES]
            if row not in raw.setdefault(name, []):
                raw[name].append(row)
    kept["runs"] = {
        name: dict(
            zip(FIGURES, map(statistics.median, zip(*rows, strict=True)), strict=True)
        )
        for name, rows in raw.items()
    }


def weigh_programs():
    """Return {notebook: {program: MB}} of what pip does not bring, once built.

    Raises FileNotFoundError when one of them is not there: run `make tools`.
    """
    venv = (ROOT / ".venv").resolve()

    def weigh(path):
        return size_of(path) if path.is_dir() else path.stat().st_size

    return {
        notebook: {
            path.name: round(weigh(venv / path) / 1e6) for path in map(Path, paths)
        }
        for notebook, paths in PROGRAMS.items()
    }


def main():
    """Do what the command line asks and write measured.json."""
    kept = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    if what == "runs":
        add_runs(kept)
    elif what == "forget":
        kept.pop("raw", None)
    elif what == "programs":
        kept["programs"] = weigh_programs()
    elif what == "index":
        today = datetime.date.today()
        kept["index"], kept["asked"] = ask_indexes(today), today.isoformat()
    else:
        sys.exit(__doc__)
    MEASURED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
