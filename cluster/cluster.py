"""A Kubernetes of one node on this machine, in namespaces of its own.

cluster.py up [NOTEBOOK…]   # start it, or see that it is ready; make images; `make cluster`
cluster.py down             # end it and remove what it needed; `make cluster-down`
cluster.py status           # what runs, and what it takes; `make cluster-status`
cluster.py objects          # what it holds, a name a line; sandbox.py compares

With CLUSTER=current it is the reader's own: `up` sees whether it offers what is needed.
What a notebook gets lies in .cluster/home, or .cluster/current: .kube/config and
.aws/config. All that the cluster keeps lies in .cluster/; the machine gets one address, a
control group and a lock file while it is up. README.md has the whole.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import images
import psutil
from image import Registry, layer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STATE = (ROOT / ".cluster").resolve()
TOOLS = tomllib.loads((ROOT / "environment/tools.toml").read_text(encoding="utf-8"))
PROGRAMS = (ROOT / f".programs/kubernetes-{TOOLS['kubernetes']['version']}").resolve()
WEED = (ROOT / ".venv/bin/weed").resolve()
LOGS = STATE / "logs"
# What goes when the cluster ends. Logs, to be read, and containerd's unpacked images, which
# take long to remove, stay until the next start; images and layers are used again.
FOLDERS = ("cache", "config", "etcd", "home", "kubelet", "pki", "pods", "s3", "sockets")
FILES = ("pid", "s3.json")
CURRENT = os.environ.get("CLUSTER") == "current"
# Copied into the home of a notebook that needs the cluster.
HOME = STATE / ("current" if CURRENT else "home")
KUBECONFIG = HOME / ".kube/config"
ADDRESS = "10.245.0.1"
REGISTRY = f"{ADDRESS}:5000"
S3 = f"http://{ADDRESS}:8333"
GROUP = "notebooks-cluster"  # the control group, below each controller
LOCK = Path("/run/lock/notebooks-cluster")  # held while a cluster runs on this machine
# Debian's packages, and a program of each.
DEBIAN = {
    "containerd": "containerd", "runc": "runc", "docker-registry": "docker-registry",
    "containernetworking-plugins": "/usr/lib/cni/ptp", "iptables": "iptables",
    "iproute2": "ip", "mmdebstrap": "mmdebstrap", "openssl": "openssl", "socat": "socat",
}  # fmt: skip


class Failed(Exception):
    """What was asked for could not be done; the text says why."""


def say(*words):
    """Print one line at once."""
    print("cluster:", *words, flush=True)


def kubectl(*words, data=None):
    """Run kubectl on this cluster; return what it prints. Raises CalledProcessError."""
    program = "kubectl" if CURRENT else PROGRAMS / "kubectl"
    command = [program, f"--kubeconfig={KUBECONFIG}",
               f"--cache-dir={STATE}/cache", *words]  # fmt: skip
    done = subprocess.run(
        command, input=data, capture_output=True, text=True, check=True
    )
    return done.stdout


def node():
    """Return the process 1 of this clone's cluster, or None."""
    try:
        process = psutil.Process(int((STATE / "pid").read_text()))
        return process if "inside" in process.cmdline() else None
    except (OSError, ValueError, psutil.Error):
        return None


def check_machine():
    """Raise Failed when this machine cannot run the cluster."""
    if sys.platform != "linux" or os.getuid():
        raise Failed("it needs Linux and root: run it with sudo, or use a cluster of "
                     "yours with CLUSTER=current (cluster/README.md)")  # fmt: skip
    missing = [
        package for package, program in DEBIAN.items() if not shutil.which(program)
    ]
    if missing:
        raise Failed(f"not installed: run apt-get install --no-install-recommends "
                     f"{' '.join(missing)}")  # fmt: skip


def certificate(name, subject, *names):
    """Write the key and the certificate `name`, signed by the cluster's authority."""
    key, request = f"{name}.key", f"{name}.csr"
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request,
            "-subj", subject)  # fmt: skip
    (STATE / "pki/names").write_text(
        f"subjectAltName={','.join(names)}" if names else ""
    )
    openssl("x509", "-req", "-in", request, "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "365", "-out", f"{name}.crt",
            "-extfile", "names")  # fmt: skip


def openssl(*words):
    """Run openssl in the folder of the keys."""
    subprocess.run(
        ["openssl", *words], cwd=STATE / "pki", check=True, capture_output=True
    )


def credentials():
    """Make keys, kubeconfig and the S3 user for one life of the cluster."""
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key",
            "-out", "ca.crt", "-days", "365", "-subj", "/CN=notebooks-cluster",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    api = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    certificate("api", "/CN=kube-apiserver", f"IP:{ADDRESS}", "IP:10.96.0.1",
                *(f"DNS:{name}" for name in api))  # fmt: skip
    certificate("admin", "/O=system:masters/CN=admin")
    openssl("genrsa", "-out", "sa.key", "2048")
    pki = STATE / "pki"
    kubectl("config", "set-cluster", "notebooks", f"--server=https://{ADDRESS}:6443",
            f"--certificate-authority={pki}/ca.crt", "--embed-certs")  # fmt: skip
    kubectl("config", "set-credentials", "admin", f"--client-certificate={pki}/admin.crt",
            f"--client-key={pki}/admin.key", "--embed-certs")  # fmt: skip
    kubectl("config", "set-context", "notebooks", "--cluster=notebooks", "--user=admin")
    kubectl("config", "use-context", "notebooks")
    keys = {"accessKey": "notebooks", "secretKey": secrets.token_urlsafe(24)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    user = {"name": "notebooks", "credentials": [keys], "actions": actions}
    (STATE / "s3.json").write_text(json.dumps({"identities": [user]}))
    write_aws(S3, keys["accessKey"], keys["secretKey"])


def write_aws(url, key, secret):
    """Write the S3 endpoint and its credentials where boto3 and others look."""
    path = HOME / ".aws/config"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o600)  # and so are the copies that notebooks get
    path.write_text(
        f"[default]\nendpoint_url = {url}\nregion = us-east-1\n"
        f"aws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    )


def groups(make):
    """Make or remove the cluster's control group, below each controller."""
    top = Path("/sys/fs/cgroup")
    unified = (top / "cgroup.controllers").exists()
    for folder in [top] if unified else [p for p in top.iterdir() if p.is_dir()]:
        own = folder / GROUP
        if not make:
            for _ in range(20):  # what was just killed takes a moment to leave it
                below = sorted(own.rglob("*/"), reverse=True) if own.exists() else []
                for group in [*below, own]:
                    try:
                        group.rmdir()
                    except OSError:
                        pass
                if not own.exists():
                    break
                time.sleep(0.2)
            continue
        own.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not unified and (folder / name).exists():
                (own / name).write_text((folder / name).read_text())
        # Else the whole cluster weighs as much as one busy process beside it.
        for name, weight in (("cpu.shares", "8192"), ("cpu.weight", "800")):
            if (own / name).exists():
                (own / name).write_text(weight)


def start():
    """Start the node, with nothing left of the one before but its images."""
    lock = LOCK.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise Failed(f"the cluster of {lock.read()} runs on this machine: one at a time; "
                     "`make cluster-down` there ends it") from None  # fmt: skip
    lock.truncate(0)
    lock.write(str(ROOT))
    lock.flush()
    sweep()
    for name in ("logs", "containerd"):
        shutil.rmtree(STATE / name, ignore_errors=True)
    if (free := shutil.disk_usage(ROOT).free / 1e9) < 8:
        raise Failed(f"{free:.1f} GB are free on this disk of 8 needed")
    for name in (*FOLDERS, "logs", "containerd", "registry", "home/.kube"):
        (STATE / name).mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o700)
    credentials()
    address = ["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"]
    subprocess.run(address, check=True)
    groups(make=True)
    command = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
               "bash", HERE / "node.sh", STATE, PROGRAMS, WEED, HERE / "config"]  # fmt: skip
    with (LOGS / "node.log").open("w") as log:
        outer = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, pass_fds=[lock.fileno()])  # fmt: skip

    def there():
        """Note the id of the node's process 1; tell whether it is one yet."""
        for inner in psutil.Process(outer.pid).children():
            (STATE / "pid").write_text(str(inner.pid))
        return node()

    try:
        wait("the node did not start", "node.log", there, 10,
             alive=lambda: outer.poll() is None)  # fmt: skip
    except BaseException:  # Ctrl-C, too
        if not node():  # `down` would not find it
            outer.kill()
        raise


def wait(what, log, ready, seconds=180, alive=node):
    """Wait until `ready()` is true; raise Failed, which shows a log's end, when it is not.

    log: its name, or the node's where `alive()` is no longer true or there is none yet.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except (OSError, subprocess.CalledProcessError):
            pass
        lives = alive()
        if not lives or time.monotonic() > deadline:
            what += f" within {seconds} s" if lives else ", for the node has ended"
            log = log if lives and (LOGS / log).exists() else "node.log"
            lines = (LOGS / log).read_text(errors="replace").splitlines()
            said = "\n    ".join(lines[-5:])
            raise Failed(
                f"{what}; .cluster/logs/{log} ends:\n    {said}\n"
                "cluster: `make cluster` tries again, `make cluster-down` ends it"
            )
        time.sleep(0.3)


def answers(url):
    """Tell whether a server answers, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError:
        pass
    return True


def own_images():
    """Put the two images that the node itself needs into the registry."""
    registry = Registry(REGISTRY)
    for name, tag in (("pause", "1"), ("coredns", "1.12.4")):
        if not registry.has(f"notebooks/{name}", tag):
            folder = STATE / "images" / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROGRAMS / name, folder / name)
            made = layer(folder, STATE / "images")
            registry.put(f"notebooks/{name}", tag, [made], Entrypoint=[f"/{name}"])
            shutil.rmtree(STATE / "images")


def current():
    """See that the reader's own cluster offers what notebooks need; note it in HOME.

    Raises Failed with what is missing.
    """
    if not shutil.which("kubectl"):
        raise Failed("CLUSTER=current needs kubectl on PATH")
    view = ["kubectl", "config", "view", "--raw", "--minify", "--flatten"]
    shown = subprocess.run(view, capture_output=True, text=True, check=False)
    if shown.returncode or "current-context" not in shown.stdout:
        raise Failed(f"kubectl has no current context: {shown.stderr.strip()}")
    KUBECONFIG.parent.mkdir(parents=True, exist_ok=True)
    KUBECONFIG.write_text(shown.stdout)
    KUBECONFIG.chmod(0o600)
    try:
        kubectl("get", "--raw", "/version", "--request-timeout=10s")
    except subprocess.CalledProcessError as error:
        raise Failed(f"the cluster does not answer: {error.stderr.strip()}") from None
    try:
        kubectl("auth", "can-i", "*", "*", "--all-namespaces")
    except subprocess.CalledProcessError:
        raise Failed("you are not the cluster's administrator: notebooks make namespaces, "
                     "roles and resource definitions") from None  # fmt: skip
    wanted = ("CLUSTER_REGISTRY", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID",
              "AWS_SECRET_ACCESS_KEY")  # fmt: skip
    if missing := [name for name in wanted if not os.environ.get(name)]:
        raise Failed(f"not set: {', '.join(missing)} (cluster/README.md says to what)")
    registry, url, key, secret = (os.environ[name] for name in wanted)
    write_aws(url, key, secret)
    for what, where in (("registry", f"http://{registry}/v2/"), ("S3", url)):
        try:
            answers(where)
        except OSError as error:
            raise Failed(f"the {what} at {where} does not answer: {error}") from None
    return registry


def try_pod():
    """Run a pod that does what notebooks' pods do. Raises Failed with what is missing."""
    name, image = "notebooks-check", images.images()["python"]["name"]
    text = (
        "import boto3, socket; socket.gethostbyname('kubernetes.default.svc'); "
        "boto3.client('s3').list_buckets()"
    )
    lines = (HOME / ".aws/config").read_text().splitlines()[1:]
    have = dict(line.split(" = ") for line in lines)
    names = {"endpoint_url": "AWS_ENDPOINT_URL", "region": "AWS_DEFAULT_REGION"}
    env = [{"name": names.get(k, k.upper()), "value": v} for k, v in have.items()]
    box = {
        "name": "check",
        "image": image,
        "env": env,
        "command": ["python3", "-c", text],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"restartPolicy": "Never", "containers": [box]}}  # fmt: skip
    kubectl("delete", "pod", name, "--ignore-not-found", "--now")
    try:
        kubectl("create", "-f", "-", data=json.dumps(pod))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            seen = json.loads(kubectl("get", "pod", name, "-o", "json"))["status"]
            if seen["phase"] == "Succeeded":
                return
            if seen["phase"] == "Failed":
                said = kubectl("logs", name).strip().splitlines()
                raise Failed(
                    f"a pod does not reach S3 or the DNS: {' '.join(said[-1:])}"
                )
            boxes = seen.get("containerStatuses", [{}])
            why = boxes[0].get("state", {}).get("waiting", {})
            if "Pull" in why.get("reason", ""):
                raise Failed(f"the cluster does not pull {image} from the registry under "
                             f"that name: {why.get('message', '')}")  # fmt: skip
            time.sleep(0.5)
        raise Failed("a pod did not run within 120 s")
    finally:
        kubectl("delete", "pod", name, "--ignore-not-found", "--now")


def up(*notebooks):
    """Start the cluster unless it runs; wait until it answers; make the images."""
    if CURRENT:
        registry = current()
    else:
        registry = REGISTRY
        start_own()
    if images.main(registry, *notebooks):
        return 1
    if CURRENT:
        try_pod()
        say("yours offers what the notebooks need")
    return 0


def start_own():
    """Start the cluster unless it runs, and wait until all of it answers."""
    check_machine()
    if not PROGRAMS.exists():
        raise Failed("Kubernetes is not built: `make cluster` builds it")
    started, there = time.monotonic(), node()
    if not there:
        start()
    wait("the registry did not answer", "registry.log",
         lambda: answers(f"http://{REGISTRY}/v2/"))  # fmt: skip
    own_images()
    wait("the API server did not answer", "kube-apiserver.log",
         lambda: kubectl("get", "--raw", "/readyz") == "ok")  # fmt: skip
    kubectl("apply", "-f", str(HERE / "config/dns.yaml"))
    wait("S3 did not answer", "s3.log", lambda: answers(S3))
    wait("the node was not ready", "kubelet.log",
         lambda: kubectl("wait", "--for=condition=Ready", "node/node", "--timeout=1s"))  # fmt: skip
    wait("the cluster's DNS was not ready", "kubelet.log",
         lambda: kubectl("rollout", "status", "deployment/coredns", "-n", "kube-system",
                         "--timeout=1s"))  # fmt: skip
    took = time.monotonic() - started
    say(f"{'is up already' if there else 'up'}, {took:.0f} s; "
        f"export KUBECONFIG={KUBECONFIG}")  # fmt: skip


def sweep():
    """Remove what a cluster that has ended leaves, its control groups, too."""
    for name in FOLDERS:
        shutil.rmtree(STATE / name, ignore_errors=True)
    for name in FILES:
        (STATE / name).unlink(missing_ok=True)
    groups(make=False)


def down():
    """End the cluster; nothing of it is left but the images and logs in .cluster/.

    Raises Failed when it does not end.
    """
    shutil.rmtree(STATE / "current", ignore_errors=True)  # the reader's own credentials
    ended = None
    mine = LOCK.exists() and LOCK.read_text() in ("", str(ROOT))
    if node() or mine:
        deadline = time.monotonic() + 20
        with LOCK.open("a+") as lock:  # free once the last process is gone
            while True:
                if top := node():  # perhaps of a start that goes on beside this
                    ended = top
                    top.send_signal(signal.SIGKILL)  # all of its namespace ends
                    psutil.wait_procs([top], timeout=20)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Failed("it is being started, or does not end: try again "
                                     "in a minute") from None  # fmt: skip
                    time.sleep(0.05)
            sweep()
            remove = ["ip", "address", "del", f"{ADDRESS}/32", "dev", "lo"]
            subprocess.run(remove, stderr=subprocess.DEVNULL, check=False)
            LOCK.unlink(missing_ok=True)
    say("down" if ended else "was not up")


def status():
    """Print what runs and what it takes. Returns exit code: 3 when it is down."""
    top = node()
    if not top:
        say("down; `make cluster` starts it")
        return 3
    used = 0
    for process in [top, *top.children(recursive=True)]:
        try:
            used += process.memory_info().rss
        except psutil.Error:
            pass
    disk = subprocess.run(
        ["du", "-sm", STATE], capture_output=True, text=True, check=False
    )
    say(f"up, {used / 1e6:.0f} MB of memory, {disk.stdout.split()[0]} MB in .cluster/; "
        f"KUBECONFIG={KUBECONFIG}, images {REGISTRY}, S3 {S3}")  # fmt: skip
    print(kubectl("get", "nodes"), kubectl("get", "pods", "-A"), sep="\n", end="")
    return 0


def objects():
    """Print the names of all that a notebook could leave in the cluster, and of buckets."""
    import boto3

    wide = ("namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,"
            "persistentvolumes,storageclasses,priorityclasses,apiservices,"
            "mutatingwebhookconfigurations,validatingwebhookconfigurations")  # fmt: skip
    narrow = "all,configmaps,secrets,serviceaccounts,persistentvolumeclaims"
    print(kubectl("get", wide, "-o", "name"), end="")
    print(kubectl("get", narrow, "-n", "default", "-o", "name"), end="")
    # No setting of the user's leads boto3 elsewhere; kubectl may have needed it.
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        del os.environ[name]
    os.environ["HOME"] = str(HOME)
    print(*(f"bucket/{b['Name']}" for b in boto3.client("s3").list_buckets()["Buckets"]),
          sep="\n")  # fmt: skip


def main():
    """Do what the command line asks."""
    commands = {"up": up, "down": down, "status": status, "objects": objects}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    try:
        return commands[sys.argv[1]](*sys.argv[2:])
    except Failed as why:
        say(str(why))
        return 1
    except subprocess.CalledProcessError as error:
        say(f"{error}: {error.stderr or ''}".strip())
        return 1
    except KeyboardInterrupt:
        say("interrupted; `make cluster` goes on, `make cluster-down` ends it")
        return 130


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "scripts"))  # images.py builds tools
    os.umask(0o022)
    if not CURRENT:  # no proxy of the user's stands before the node
        spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{spared},{ADDRESS}"
    sys.exit(main())
