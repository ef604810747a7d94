"""Make nbval as strict as this collection needs; used by `make test`."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from queue import Empty

import jupyter_client
import nbval.kernel
import nbval.plugin
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from sandbox import Sandbox, on_cluster  # noqa: E402  (found through the line above)

# What a script starts with & ignores Ctrl-C, and so would all that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


class SandboxedKernel(nbval.kernel.RunningKernel):
    """nbval's kernel, run in a sandbox; a dead kernel is noticed within a second."""

    cluster = False

    def __init__(self, kernel_name, cwd=None, startup_timeout=60):
        self.sandbox = Sandbox(Path(cwd).relative_to(ROOT), cluster=self.cluster)
        self.sandbox.__enter__()
        nbval.kernel.KernelManager = partial(
            jupyter_client.KernelManager, **self.sandbox.sockets()
        )
        try:
            super().__init__(kernel_name, str(self.sandbox.cwd), startup_timeout)
        except BaseException:
            self.sandbox.__exit__(None, None, None)
            raise

    def get_message(self, stream, timeout=None):
        """Return a message; fail at once when the kernel is dead, Empty in the end."""
        deadline = time.monotonic() + (timeout or 0)
        while True:
            try:
                return super().get_message(stream, timeout=1)
            except Empty:
                if not self.is_alive():
                    pytest.fail("the kernel died in this cell", pytrace=False)
                if time.monotonic() > deadline:
                    raise

    def stop(self):
        """Shut the kernel down and clean up; fail on what the notebook left."""
        if self.sandbox is None:
            return
        sandbox, self.sandbox = self.sandbox, None
        try:
            if self.is_alive():
                sandbox.note_running()
            super().stop()
        finally:
            sandbox.__exit__(None, None, None)
        if os.environ.get("CI") and sandbox.not_isolated:
            sandbox.problems.append(
                f"not cut off from the network: {sandbox.not_isolated}"
            )
        if sandbox.problems:
            pytest.fail("; ".join(sandbox.problems), pytrace=False)


class ClusterKernel(SandboxedKernel):
    """The same for a notebook that needs the cluster."""

    cluster = True


def setup(notebook, plain=nbval.plugin.IPyNbFile.setup):
    """Start the kernel that a notebook needs, as nbval's own setup does."""
    cluster = on_cluster(notebook.path)
    nbval.plugin.RunningKernel = ClusterKernel if cluster else SandboxedKernel
    plain(notebook)


nbval.plugin.IPyNbFile.setup = setup
# nbval stops only living kernels; what a dead one left has to go as well.
nbval.plugin.IPyNbFile.teardown = lambda self: self.kernel and self.kernel.stop()


def pytest_collection_modifyitems(items):
    """Compare pictures too, which nbval leaves out."""
    for item in items:
        if isinstance(item, nbval.plugin.IPyNbCell):
            item.parent.skip_compare = tuple(
                key for key in item.parent.skip_compare if not key.startswith("image/")
            )


def pytest_generate_tests(metafunc):
    """Give `notebook` every notebook on the command line, or all there are."""
    if "notebook" in metafunc.fixturenames:
        words = [Path(w) for w in metafunc.config.args if w.endswith(".ipynb")]
        words += [w for w in left_out() if words]
        notebooks = words or sorted(
            p.relative_to(ROOT) for p in ROOT.glob("[a-z]*/*.ipynb")
        )
        metafunc.parametrize("notebook", notebooks, ids=str)


def left_out():
    """Return the notebooks that make did not give us, because there is no cluster."""
    return [Path(w) for w in os.environ.get("LEFT_OUT", "").split()]


def pytest_terminal_summary(terminalreporter):
    """Name the notebooks that were left out."""
    for notebook in left_out():
        terminalreporter.line(f"not run: {notebook} needs the cluster, `make cluster`")


@pytest.fixture
def clone(tmp_path):
    """A copy of the machinery in a folder whose name has a space."""
    from planted import Clone

    return Clone(tmp_path / "a clone")
