"""The cluster: left out where there is none, whole after faults, gone when it is down.

What needs a cluster is skipped unless it is up (`make cluster`), and takes turns with the
notebooks there. Those that stop and start it run with CLUSTER_TESTS=all, as root and
without notebooks.
"""

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT
from planted import NAME, example

sys.path.insert(0, str(ROOT / "cluster"))

import sandbox  # noqa: E402  (conftest.py found scripts/)

import cluster  # noqa: E402  (found through the line above)

ON_CLUSTER = "data-versioning/example-on-kubernetes"
pytestmark = pytest.mark.xdist_group("cluster")


def needs_cluster(test):
    """Skip a test while the cluster is down; it takes its turn in it."""
    up = pytest.mark.skipif(
        not cluster.node(), reason="the cluster is not up: `make cluster`"
    )
    return up(pytest.mark.usefixtures("turn")(test))


def stops_cluster(test):
    """Skip a test that stops the cluster unless it is asked for."""
    asked = pytest.mark.skipif(
        os.getuid() != 0 or os.environ.get("CLUSTER_TESTS") != "all",
        reason="stops the cluster: CLUSTER_TESTS=all, as root",
    )
    return asked(pytest.mark.usefixtures("alone", "turn")(test))


@pytest.fixture
def turn():
    """The turn that notebooks, here in other processes, take as well (sandbox.py)."""
    cluster.STATE.mkdir(mode=0o700, exist_ok=True)
    with open(cluster.STATE / "turn", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def alone(request):
    """Skip the test when notebooks run beside it: they would find no cluster."""
    if any(item.path.suffix == ".ipynb" for item in request.session.items):
        pytest.skip("stops the cluster under the notebooks: NOTEBOOKS=")


def test_notebooks_of_the_cluster_are_left_out_and_named(clone):
    clone.add(example())
    clone.add(example(), ON_CLUSTER)
    both = f"NOTEBOOKS={NAME}.ipynb {ON_CLUSTER}.ipynb"
    code, output, _ = clone.make("run-all", both)
    assert code == 0, output
    assert "1 of 1 notebooks ran" in output
    assert f"not run: {ON_CLUSTER}.ipynb needs the cluster, `make cluster`" in output
    code, output, _ = clone.make("test", both)
    assert code == 0, output
    assert f"not run: {ON_CLUSTER}.ipynb needs the cluster" in output
    code, output, _ = clone.make("run-all", f"NOTEBOOKS={ON_CLUSTER}.ipynb")
    assert code != 0 and "0 of 0 notebooks ran" in output


def refused(**variables):
    """Return what `cluster.py up` says to CLUSTER=current with these variables."""
    command = [sys.executable, ROOT / "cluster/cluster.py", "up"]
    own = {"CLUSTER": "current", "HOME": "/nowhere", "KUBECONFIG": "/nowhere"}
    done = subprocess.run(
        command, env=os.environ | own | variables, capture_output=True, text=True
    )
    assert done.returncode == 1
    return done.stdout


@pytest.mark.skipif(not cluster.PROGRAMS.exists(), reason="kubectl is not built")
def test_what_a_cluster_of_the_readers_lacks_is_said(tmp_path, monkeypatch):
    path = f"{cluster.PROGRAMS}:{os.environ['PATH']}"
    assert "no current context" in refused(PATH=path)
    config = tmp_path / "config"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: "
        "[{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\n"
        "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:9'}}]\n"
    )
    assert "the cluster does not answer" in refused(PATH=path, KUBECONFIG=str(config))
    if cluster.node():
        real = str(cluster.KUBECONFIG)
        assert "not set: CLUSTER_REGISTRY, AWS_" in refused(PATH=path, KUBECONFIG=real)


def test_a_cluster_that_does_not_answer_keeps_no_notebook_waiting(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sandbox, "CLUSTER", tmp_path)
    monkeypatch.setattr(sandbox, "in_cluster", lambda: 1 / 0)
    one = sandbox.Sandbox("serving", cluster=True)
    with pytest.raises(ZeroDivisionError):
        one.__enter__()
    subprocess.run(["flock", "--nonblock", tmp_path / "turn", "true"], check=True)


def test_keys_are_for_their_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "HOME", tmp_path / "home")
    cluster.write_aws("http://127.0.0.1:1", "key", "secret")
    monkeypatch.setattr(sandbox, "CLUSTER", tmp_path)
    place = sandbox.Sandbox("data-versioning", cluster=True)
    place.root = tmp_path / "run"
    place.root.mkdir()
    place.fill()
    for home in (tmp_path, place.root):
        assert (home / "home/.aws/config").stat().st_mode & 0o777 == 0o600


def test_a_cluster_that_is_being_started_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "STATE", tmp_path)
    monkeypatch.setattr(cluster, "LOCK", tmp_path / "lock")
    ticks = SimpleNamespace(monotonic=itertools.count().__next__, sleep=lambda _: None)
    monkeypatch.setattr(cluster, "time", ticks)
    for name in ("home", "current"):
        (tmp_path / name).mkdir()
    with open(cluster.LOCK, "w") as lock:  # empty, as in a start's first moment
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(cluster.Failed, match="being started"):
            cluster.down()
    assert cluster.LOCK.exists() and (tmp_path / "home").exists()
    assert not (tmp_path / "current").exists()  # holds the reader's own credentials


def test_a_node_that_ended_early_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOGS", tmp_path)
    (tmp_path / "node.log").write_text("unshare: not permitted\n")
    with pytest.raises(cluster.Failed, match="ended(.|\n)*unshare: not permitted"):
        cluster.wait("no S3", "s3.log", lambda: False, alive=lambda: None)


def test_the_words_of_a_cluster_that_fails_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "ROOT", tmp_path)
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/cluster.py").write_text("raise SystemExit('no such profile')")
    with pytest.raises(RuntimeError, match="no such profile"):
        sandbox.in_cluster()


def test_layers_that_nothing_describes_go(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.images, "LAYERS", tmp_path)
    (tmp_path / "layer-cut-short").mkdir()
    state = cluster.images.state_of("python")
    for name in ("tmp-cut-short", "old", "kept"):
        (tmp_path / name).touch()
    for name, blob in (("other", "old"), (state, "kept")):
        (tmp_path / f"{name}.json").write_text(json.dumps([blob, "", ""]))
    cluster.images.prune()
    assert {p.name for p in tmp_path.iterdir()} == {"kept", f"{state}.json"}


def program(name):
    """Return the cluster's process that runs the program `name`."""
    for process in cluster.node().children(recursive=True):
        if process.name() == name:
            return process
    raise ProcessLookupError(name)


@pytest.fixture
def space():
    """A namespace of the cluster, removed after the test."""
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    cluster.kubectl("create", "namespace", name)
    cluster.wait("the namespace has no account", "kube-controller-manager.log",
                 lambda: cluster.kubectl("get", "sa", "default", "-n", name))  # fmt: skip
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def start_pod(space, name, script, image="flights/python:1", **more):
    """Start a pod that runs a line of Python."""
    box = {"name": "only", "image": image, "command": ["python3", "-c", script], **more}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"containers": [box], "terminationGracePeriodSeconds": 0}}  # fmt: skip
    cluster.kubectl("create", "-n", space, "-f", "-", data=json.dumps(pod))


def state(space, name):
    """Return the state of a pod's only container."""
    pod = json.loads(cluster.kubectl("get", "pod", name, "-n", space, "-o", "json"))
    return pod["status"].get("containerStatuses", [{}])[0]


@needs_cluster
def test_an_image_that_is_not_there_is_named(space):
    start_pod(space, "no-image", "", image="ghcr.io/nobody/nothing:1")
    seen = {}
    cluster.wait("no word about the image", "kubelet.log", lambda: seen.update(
        state(space, "no-image").get("state", {}).get("waiting", {}))
        or "Pull" in seen.get("reason", ""))  # fmt: skip
    assert "ghcr.io/nobody/nothing:1" in seen["message"]


@needs_cluster
def test_a_pod_out_of_memory_is_ended_and_says_so(space):
    start_pod(space, "greedy", "x = bytearray(300_000_000); print(len(x))",
              resources={"limits": {"memory": "64Mi"}})  # fmt: skip
    seen = {}
    cluster.wait("not ended", "kubelet.log", lambda: seen.update(
        state(space, "greedy").get("lastState", {}).get("terminated", {})) or seen)  # fmt: skip
    assert (seen["reason"], seen["exitCode"]) == ("OOMKilled", 137)


@needs_cluster
def test_pods_outlive_their_container_runtime(space):
    start_pod(space, "steady", "import time; print('on', flush=True); time.sleep(600)")
    cluster.wait("not ready", "kubelet.log", lambda: state(space, "steady")["ready"])
    before = state(space, "steady")["containerID"]
    old = program("containerd")
    old.kill()
    cluster.wait("not started again", "containerd.log",
                 lambda: program("containerd").pid != old.pid)  # fmt: skip
    start_pod(space, "later", "import time; time.sleep(600)")
    cluster.wait("no new pod", "kubelet.log", lambda: state(space, "later")["ready"])
    after = state(space, "steady")
    assert after["ready"] and after["restartCount"] == 0
    assert after["containerID"] == before
    assert cluster.kubectl("logs", "steady", "-n", space) == "on\n"


def patiently(call, **words):
    """Return what a call of boto3 returns, once S3 answers again; within a minute."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + 60
    while True:
        try:
            return call(**words)
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@needs_cluster
def test_what_was_stored_outlives_ten_seconds_without_s3(monkeypatch):
    import boto3

    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(cluster.HOME))
    s3, bucket = boto3.client("s3"), f"test-{time.time_ns()}"
    patiently(s3.create_bucket, Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="before", Body=b"kept")
    weed = program("weed")
    weed.suspend()
    try:
        started = time.monotonic()
        waker = subprocess.Popen(["sh", "-c", f"sleep 10; kill -CONT {weed.pid}"])
        s3.put_object(
            Bucket=bucket, Key="meanwhile", Body=b"late"
        )  # waits, goes through
        assert time.monotonic() - started > 5
        waker.wait()
    finally:
        weed.resume()
    weed.kill()  # and without a word: it is started again
    cluster.wait("no S3", "s3.log", lambda: program("weed").pid != weed.pid)
    for key, text in (("before", b"kept"), ("meanwhile", b"late")):
        assert patiently(s3.get_object, Bucket=bucket, Key=key)["Body"].read() == text
        s3.delete_object(Bucket=bucket, Key=key)
    s3.delete_bucket(Bucket=bucket)


@needs_cluster
def test_what_it_holds_is_found_whatever_the_user_has_set(tmp_path):
    (tmp_path / ".aws").mkdir()
    keys = "aws_access_key_id = a\naws_secret_access_key = b\n"
    (tmp_path / ".aws/credentials").write_text(f"[default]\n{keys}")
    nowhere = "http://127.0.0.1:9"
    for own in (
        {"HOME": str(tmp_path)},
        {"AWS_PROFILE": "work"},
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        {"http_proxy": nowhere, "https_proxy": nowhere},
    ):
        command = [sys.executable, ROOT / "cluster/cluster.py", "objects"]
        done = subprocess.run(
            command, env=os.environ | own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "namespace/default" in done.stdout


@needs_cluster
def test_a_second_cluster_is_refused(clone):
    command = [ROOT / ".venv/bin/python", clone.folder / "cluster/cluster.py", "up"]
    (clone.folder / ".programs").symlink_to(ROOT / ".programs")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"the cluster of {ROOT} runs on this machine" in done.stdout, done.stdout


def machine():
    """Return what a cluster could leave on a machine, by kind."""

    def told(*words):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return sorted(done.stdout.splitlines())

    names = {"containerd", "etcd", "kubernetes", "coredns", "docker-registry", "pause",
             "containerd-shim-runc-v2", "socat", "weed", "unshare"}  # fmt: skip
    tops = ("/etc", "/opt", "/run", "/run/lock", "/usr/libexec", "/var/lib", "/var/log")
    return {
        "processes": sorted(p.name() for p in psutil.process_iter() if p.name() in names
                            and p.status() != psutil.STATUS_ZOMBIE),
        "mounts": sorted(Path("/proc/mounts").read_text().splitlines()),
        "links": told("ip", "-o", "link"),
        "addresses": told("ip", "-o", "address"),
        "routes": told("ip", "route", "show", "table", "all"),
        "rules": told("iptables-save"),
        "groups": sorted(map(str, Path("/sys/fs/cgroup").glob("**/*notebooks*"))),
        "settings": told("sysctl", "net.ipv4.ip_forward", "vm.overcommit_memory",
                         "kernel.panic", "kernel.panic_on_oops"),
        "files": sorted(str(p) for top in tops for p in Path(top).glob("*")),
    }  # fmt: skip


def make(goal, **variables):
    """Run make; return its exit code and what it says."""
    done = subprocess.run(["make", "--no-print-directory", goal], cwd=ROOT, text=True,
                          env=os.environ | variables, capture_output=True)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@stops_cluster
def test_the_machine_is_as_before_when_it_is_down():
    make("cluster-down")
    before = machine()
    code, said = make("cluster")
    assert code == 0, said
    assert machine()["addresses"] != before["addresses"]
    code, said = make("cluster-down")
    assert code == 0, said
    assert machine() == before


@stops_cluster
def test_one_kill_ends_all_and_the_next_start_is_whole():
    make("cluster-down")
    before = machine()
    assert make("cluster")[0] == 0
    top = cluster.node()
    family = top.children(recursive=True)
    top.kill()
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert machine()["mounts"] == before["mounts"]
    assert machine()["links"] == before["links"]
    code, said = make("cluster")
    assert code == 0, said


@stops_cluster
def test_a_machine_that_refuses_namespaces_is_said(tmp_path):
    make("cluster-down")
    before = machine()
    (tmp_path / "unshare").write_text("#!/bin/sh\necho not permitted >&2\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    code, said = make("cluster", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert code != 0 and "the node did not start" in said and "not permitted" in said
    make("cluster-down")
    assert machine() == before


@stops_cluster
def test_a_proxy_of_the_users_is_passed_by():
    make("cluster-down")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    _, said = make("cluster", **nowhere)
    assert "cluster: up" in said  # so the node pulled, and the API server answered
    cluster.kubectl("logs", "deployment/coredns", "-n", "kube-system")  # of the kubelet


@stops_cluster
def test_an_interrupted_start_goes_on():
    make("cluster-down")
    starting = subprocess.Popen(["make", "cluster"], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not cluster.node() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(starting.pid, signal.SIGINT)
    assert starting.wait(30) != 0
    code, said = make("cluster")
    assert code == 0, said
    assert "is up already" in said
