"""The pipeline that model-training/kubeflow.ipynb compiles is ready to be sent away."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from kfp import components

NOTEBOOK = Path(__file__).parent.parent / "model-training" / "kubeflow.ipynb"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Write the notebook's pipeline.py to a new folder and compile it there."""
    folder = tmp_path_factory.mktemp("kubeflow")
    magic = "%%writefile pipeline.py\n"
    sources = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells]
    (source,) = [text for text in sources if text.startswith(magic)]
    (folder / "pipeline.py").write_text(source.removeprefix(magic) + "\n")
    command = [Path(sys.prefix) / "bin" / "kfp", "dsl", "compile"]
    files = ["--py", "pipeline.py", "--output", "late_flights.yaml"]
    subprocess.run([*command, *files], cwd=folder, check=True, capture_output=True)
    return folder / "late_flights.yaml"


def test_kfp_loads_the_compiled_file(compiled):
    """KFP's own loader accepts the YAML and finds the loop, the gate and the steps."""
    spec = components.load_component_from_file(str(compiled)).pipeline_spec
    tasks = spec.root.dag.tasks
    assert {"importer", "prepare", "choose", "evaluate"} <= set(tasks)
    assert sum(task.WhichOneof("iterator") is not None for task in tasks.values()) == 1
    assert sum(bool(task.trigger_policy.condition) for task in tasks.values()) == 1
    assert {"exec-train", "exec-keep"} <= set(spec.deployment_spec["executors"])


def test_a_broken_file_is_refused(compiled):
    """The loader that accepts the file above does not accept anything."""
    broken = compiled.with_name("broken.yaml")
    broken.write_text(compiled.read_text().replace("executorLabel", "executorLable"))
    with pytest.raises(Exception, match="executorLable"):
        components.load_component_from_file(str(broken))


def test_no_local_path_is_named(compiled):
    """Nothing in the YAML points into a folder of the machine that compiled it."""
    text = compiled.read_text()
    folders = {compiled.parent, NOTEBOOK.parent.parent, Path.home(), Path(sys.prefix)}
    assert [str(folder) for folder in folders if str(folder) in text] == []
    assert re.findall(r"(?:file://|/(?:home|Users|tmp|work|var)/)\S*", text) == []
