"""The cluster: left out where there is none, whole after faults, gone when it is down.

What needs a cluster is skipped unless it is up (`make cluster`). Those that stop and start
it run with CLUSTER_TESTS=all, as root.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from planted import NAME, example

sys.path.insert(0, str(ROOT / "cluster"))

import sandbox  # noqa: E402  (conftest.py found scripts/)

import cluster  # noqa: E402  (found through the line above)

ON_CLUSTER = "data-versioning/example-on-kubernetes"
needs_cluster = pytest.mark.skipif(
    not cluster.node(), reason="the cluster is not up: `make cluster`"
)
stops_cluster = pytest.mark.skipif(
    os.getuid() != 0 or os.environ.get("CLUSTER_TESTS") != "all",
    reason="stops the cluster: CLUSTER_TESTS=all, as root",
)
pytestmark = pytest.mark.xdist_group("cluster")


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

    monkeypatch.setenv("AWS_CONFIG_FILE", str(cluster.HOME / ".aws/config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
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
        "processes": sorted(p.name() for p in psutil.process_iter() if p.name() in names),
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


def make(goal):
    """Run make; return its exit code and what it says."""
    done = subprocess.run(
        ["make", "--no-print-directory", goal], cwd=ROOT, capture_output=True, text=True
    )
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
