"""Give the notebooks' kernel an environment of its own, the same from every front end.

JupyterLab, papermill and nbval all start kernels from the kernel specification in this
environment; what it sets is therefore true wherever a notebook runs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PREFIX = Path(sys.prefix).resolve()

# One switch a tool, in alphabetical order; DO_NOT_TRACK covers Evidently and others.
TELEMETRY_OFF = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "DOLT_DISABLE_EVENT_FLUSH": "true",
    "DVC_NO_ANALYTICS": "1",
    "FEAST_USAGE": "False",
    "LAKEFS_EMAIL_SUBSCRIPTION_ENABLED": "false",
    "LAKEFS_SECURITY_CHECK_LATEST_VERSION": "false",
    "LAKEFS_STATS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "SQA_OPT_OUT": "1",
}


def kernel_environment(prefix):
    """Return the variables (name to value) that every notebook kernel starts with.

    `${PATH}` is filled in by jupyter_client when a kernel starts.
    """
    return {
        "PATH": f"{prefix}/bin:${{PATH}}",
        "HOME": f"{prefix}/home",  # tools write settings and caches to ~; keep them here
        "AWS_EC2_METADATA_DISABLED": "true",
        "COLUMNS": "88",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "TERM": "dumb",
        "TZ": "UTC",
        **TELEMETRY_OFF,
    }


def main():
    """Write the kernel specification, and matplotlib's font list beforehand.

    Without the font list, the first figure of a new environment prints a warning.
    """
    spec = {
        "argv": [
            f"{PREFIX}/bin/python",
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
        ],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
        "env": kernel_environment(PREFIX),
    }
    (PREFIX / "home").mkdir(exist_ok=True)
    folder = PREFIX / "share/jupyter/kernels/python3"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "kernel.json.new"  # a new file: the old one may be linked to uv's
    fresh.write_text(json.dumps(spec, indent=1) + "\n")
    fresh.replace(folder / "kernel.json")
    subprocess.run(
        [sys.executable, "-c", "import matplotlib.font_manager"],
        env={**os.environ, "HOME": spec["env"]["HOME"]},
        check=True,
    )


if __name__ == "__main__":
    main()
