"""The flow that runs on the cluster is the one that runs on the laptop."""

import json

import pytest
from conftest import ROOT


@pytest.mark.parametrize("name", ["candidates.py", "late_flow.py"])
def test_is_unchanged(name):
    """Both Metaflow notebooks write the same file."""
    written = []
    for notebook in ("metaflow", "metaflow-on-kubernetes"):
        text = (ROOT / f"model-training/{notebook}.ipynb").read_text(encoding="utf-8")
        sources = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
        written += [s for s in sources if s.startswith(f"%%writefile {name}\n")]
    assert len(written) == 2 and written[0] == written[1]
