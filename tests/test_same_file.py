"""What runs on the cluster is the file that runs on the laptop."""

from pathlib import Path

import pytest
from run import cells_of


@pytest.mark.parametrize(
    ("laptop", "cluster", "name"),
    [
        ("metaflow", "metaflow-on-kubernetes", "candidates.py"),
        ("metaflow", "metaflow-on-kubernetes", "late_flow.py"),
        ("kubeflow", "kubeflow-pipelines-on-kubernetes", "pipeline.py"),
    ],
)
def test_both_notebooks_write_the_same_file(laptop, cluster, name):
    sources = [
        cell["source"]
        for stem in (laptop, cluster)
        for cell in cells_of(Path(f"model-training/{stem}.ipynb"))
    ]
    written = [s for s in sources if s.startswith(f"%%writefile {name}\n")]
    assert len(written) == 2 and written[0] == written[1]
