"""Start the notebooks' kernel in an environment of its own making; end what it leaves.

    kernel.py -f FILE     what the kernel specification runs, whoever starts the kernel
    kernel.py --install   put that specification and this file into the environment

Three processes: this one, which Jupyter sees; a guard; and the kernel, the guard's child.
What a notebook starts comes back to the guard even when it detaches itself, because the
guard is a child subreaper (prctl(2)). When the kernel ends, or whoever started it is
killed, the guard ends the rest. With a sandbox (sandbox.py) the kernel sees no network
but loopback, and its own /tmp, /var/tmp and /dev/shm (namespaces(7)).
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

PREFIX = Path(sys.prefix).resolve()
FONTS = ".matplotlib"  # in the home: where matplotlib keeps its list of fonts
SANDBOX = "NOTEBOOK_SANDBOX"  # the folder of sandbox.py, when a run has one
# All that is let through from whoever starts the kernel. A proxy, a profile, a language
# or a tool's setting of the user's would change what a notebook does. OpenBLAS is told the
# processor where it takes a virtual one for another.
PASSED = (SANDBOX, "NOTEBOOK_NETWORK", "TMPDIR", "USER", "LOGNAME", "JPY_SESSION_NAME",
          "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # fmt: skip
SET = {
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
    # Telemetry off, a switch a tool; DO_NOT_TRACK covers Evidently and others.
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "DOLT_DISABLE_EVENT_FLUSH": "true",
    "DVC_NO_ANALYTICS": "1",
    "FEAST_USAGE": "False",
    "K6_NO_USAGE_REPORT": "true",
    "LAKEFS_EMAIL_SUBSCRIPTION_ENABLED": "false",
    "LAKEFS_SECURITY_CHECK_LATEST_VERSION": "false",
    "LAKEFS_STATS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "SQA_OPT_OUT": "1",
}
NEWNS, NEWUSER, NEWNET = 0x20000, 0x10000000, 0x40000000
BIND, REC, PRIVATE, REMOUNT, RDONLY, RELATIME = (
    0x1000, 0x4000, 0x40000, 0x20, 0x1, 0x200000)  # fmt: skip
# Places that all programs share, and the sandbox's folders that stand in for them.
COVERED = {"/dev/shm": "shm", "/var/tmp": "var-tmp", "/tmp": "slash-tmp"}
libc = ctypes.CDLL(None, use_errno=True)


def environment(given):
    """Return the variables (name to value) that a kernel starts with.

    given: those of whoever starts it; only PASSED and absolute folders of PATH are kept.
    """
    outside = [p for p in given.get("PATH", os.defpath).split(":") if p[:1] == "/"]
    home = f"{given[SANDBOX]}/home" if SANDBOX in given else f"{PREFIX}/home"
    return {
        **{name: given[name] for name in PASSED if name in given},
        **SET,
        "HOME": home,
        "MPLCONFIGDIR": f"{home}/{FONTS}",
        "PATH": ":".join([f"{PREFIX}/bin", *outside]),
        "VIRTUAL_ENV": str(PREFIX),
    }


def call(name, *words):
    """Call a function of the C library; raise OSError when it reports an error."""
    words = [w.encode() if isinstance(w, str) else w for w in words]
    if getattr(libc, name)(*words) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def die_with(parent, sign):
    """Have the system send `sign` here when the process `parent` ends; end if it has."""
    call("prctl", 1, sign)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(143)


def bind(source, place, read_only=False):
    """Show the folder `source` at `place`, too; with read_only nothing there can change."""
    call("mount", str(source), str(place), None, BIND | REC, None)
    if read_only:
        has = os.statvfs(place).f_flag  # an ordinary user must not drop what is set
        kept = has & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME)
        kept |= RELATIME if has & os.ST_RELATIME else 0
        call("mount", None, str(place), None, BIND | REMOUNT | RDONLY | kept, None)


def isolate(sandbox, network):
    """Move this process into namespaces of its own, as sandbox.py describes them.

    network: "host" keeps the machine's network. Raises OSError where the system does not
    allow it, perhaps half way: try it in a child process first.
    """
    user, group = os.getuid(), os.getgid()
    flags = NEWNS | (0 if network == "host" else NEWNET) | (NEWUSER if user else 0)
    call("unshare", flags)
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if flags & NEWNET:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("16sh14x", b"lo", 1)  # IFF_UP
            fcntl.ioctl(probe, 0x8914, request)  # SIOCSIFFLAGS
    call("mount", None, "/", None, PRIVATE | REC, None)
    bind(sandbox, sandbox)  # stays writable where the clone around it does not
    shown, clone = [], Path((sandbox / "clone").read_text(encoding="utf-8"))
    for place, own in COVERED.items():
        for folder in {f for f in (sandbox, clone, PREFIX) if f.is_relative_to(place)}:
            shown.append(Path(own) / folder.relative_to(place))
            (sandbox / shown[-1]).mkdir(parents=True, exist_ok=True)
            bind(folder, sandbox / shown[-1])
    (sandbox / "shown").write_text("\n".join(map(str, shown)))
    for place, own in COVERED.items():
        bind(sandbox / own, place)
    fixed = {clone, PREFIX}
    with contextlib.suppress(KeyError):  # the system need not know the user
        # Where a program writes that does not ask HOME
        fixed.add(Path(pwd.getpwuid(user).pw_dir))
    for place in fixed:
        if place.is_dir() and place != Path("/"):
            bind(place, place, read_only=True)


def may_isolate(sandbox, network):
    """Return "" when isolate() works here, else why not; tried in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            isolate(sandbox, network)
        except OSError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as answer:
        return answer.read()


def guard(face, words, sandbox):
    """Start the kernel, wait for its end, end what it left; return its exit code.

    face: the process that Jupyter sees; all ends with it.
    """
    os.setsid()
    call("prctl", 36, 1)  # PR_SET_CHILD_SUBREAPER
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    die_with(face, signal.SIGTERM)
    import psutil

    me, code = psutil.Process(), 143
    if sandbox:
        log = os.open(f"{sandbox}/kernel.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        if (PREFIX / "home" / FONTS).exists():
            shutil.copytree(PREFIX / "home" / FONTS, sandbox / "home" / FONTS)
        network = os.environ.get("NOTEBOOK_NETWORK")
        if refused := may_isolate(sandbox, network):
            (sandbox / "not-isolated").write_text(refused)
        else:
            isolate(sandbox, network)
    kernel = os.fork()
    if kernel == 0:
        os.setpgid(0, 0)
        die_with(me.pid, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0o022)  # servers that drop root's rights have to read what it writes
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        own = environment(os.environ) | {"JPY_PARENT_PID": str(os.getppid())}
        python = f"{PREFIX}/bin/python"
        os.execve(python, [python, "-m", "ipykernel_launcher", *words], own)
    try:
        while (ended := os.wait())[0] != kernel:
            pass
        code = os.waitstatus_to_exitcode(ended[1])
        deadline = time.monotonic() + 2  # what belongs to the kernel ends with it
        while reap() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        left = {}  # a process that ends at this moment, or a full disk, spares no other
        while reap():
            for process in me.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.status() != psutil.STATUS_ZOMBIE:
                        left.setdefault(process.pid, " ".join(process.cmdline()))
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)
        left.pop(kernel, None)
        if sandbox:
            with contextlib.suppress(OSError):
                (sandbox / "left").write_text("\n".join(left.values()))
    return code if code >= 0 else 128 - code


def watch(keeper):
    """Wait for the guard, return its exit code; 1 as soon as our own starter is gone.

    The guard learns of our end from the system. We poll, since that signal comes when the
    thread ends that started us, and an editor may use a thread that ends at once.
    """
    starter = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        ended, status = os.waitpid(keeper, os.WNOHANG)
        if ended:
            return abs(os.waitstatus_to_exitcode(status))
        if os.getppid() != starter:
            return 1
        signal.sigtimedwait({signal.SIGCHLD}, 0.5)


def reap():
    """Take note of children that have ended; tell whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def install():
    """Write the kernel specification, and matplotlib's list of fonts beforehand.

    Without the list the first figure of a new environment prints a warning.
    """
    folder = PREFIX / "share/jupyter/kernels/python3"
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "kernel.py"
    shutil.copyfile(__file__, own)
    spec = {
        "argv": [f"{PREFIX}/bin/python", "-I", str(own), "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"debugger": True},
    }
    fresh = folder / "kernel.json.new"  # a new file: the old one may be linked to uv's
    fresh.write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
    fresh.replace(folder / "kernel.json")
    (PREFIX / "home").mkdir(exist_ok=True)
    if not importlib.util.find_spec("matplotlib"):
        return
    fonts = [f"{PREFIX}/bin/python", "-c", "import matplotlib.font_manager"]
    subprocess.run(fonts, env=environment(os.environ), check=True)


def main():
    """Do what the command line asks."""
    if sys.argv[1:] == ["--install"]:
        return install()
    face, keeper = os.getpid(), os.fork()
    if keeper == 0:
        code = 1
        try:
            sandbox = os.environ.get(SANDBOX)
            code = guard(face, sys.argv[1:], Path(sandbox) if sandbox else None)
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    os._exit(watch(keeper))


if __name__ == "__main__":
    main()
