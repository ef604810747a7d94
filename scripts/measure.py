"""Keep in measured.json what the comparison pages quote: runs here, releases there.

    measure.py runs     # add the last `make run-all` in build/ (three of them, say)
    measure.py index    # ask the package indexes for releases; needs a network

A run's figures are the medians of all the runs added since `measure.py forget`.
"""

import datetime
import json
import re
import statistics
import sys

import requests
from pages import MEASURED, ROOT

# Whose releases count for a notebook: a PyPI project, or the Go module that is built.
UPSTREAM = {
    "data-versioning/delta-lake": "deltalake",
    "data-versioning/dolt": (
        "2.2.0",
        "github.com/dolthub/dolt/go/@v/v0.40.5-0.20260715172757-a6690826d767",
    ),
    "data-versioning/dvc": "dvc",
    "data-versioning/lakefs": ("1.33.0", "github.com/treeverse/lakefs/@v/v1.33.0"),
    "data-versioning/pachyderm": (
        "2.12.2",
        "github.com/pachyderm/pachyderm/v2/@v/v2.12.2",
    ),
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
}
FIGURES = ("seconds", "peak_mb", "processes", "disk_mb")


def get(url, **kwargs):
    """Return the answer to a GET; raises requests.HTTPError when it is refused."""
    answer = requests.get(url, timeout=60, **kwargs)
    answer.raise_for_status()
    return answer


def releases_on_pypi(project):
    """Return {version: date} of a PyPI project's final releases."""
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    found = {}
    for file in get(f"https://pypi.org/simple/{project}/", headers=accept).json()[
        "files"
    ]:
        version = re.match(
            r"[A-Za-z0-9_.]+?-(\d+(?:\.\d+)*)(?=-|\.tar|\.zip)", file["filename"]
        )
        if version and not file.get("yanked"):
            day = file["upload-time"][:10]
            found[version[1]] = min(day, found.get(version[1], day))
    return found


def date_of_module(path):
    """Return the date of one version of a Go module, by Go's module proxy."""
    return get(f"https://proxy.golang.org/{path}.info").json()["Time"][:10]


def ask_indexes(today):
    """Return {notebook: {last, two_years}} from the package indexes."""
    since = today.replace(year=today.year - 2).isoformat()
    answers = {}
    for notebook, source in UPSTREAM.items():
        if isinstance(source, tuple):
            version, path = source
            found, count = {version: date_of_module(path)}, "releases not asked for"
        else:
            found = releases_on_pypi(source)
            count = sum(day >= since for day in found.values())
        last = max(found, key=found.get)
        month = f"{datetime.date.fromisoformat(found[last]):%B %Y}"
        answers[notebook] = {"last": f"{last}, {month}", "two_years": count}
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


def main():
    """Do what the command line asks and write measured.json."""
    kept = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    if what == "runs":
        add_runs(kept)
    elif what == "forget":
        kept.pop("raw", None)
    elif what == "index":
        today = datetime.date.today()
        kept["index"], kept["asked"] = ask_indexes(today), today.isoformat()
    else:
        sys.exit(__doc__)
    MEASURED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
