"""Make container images from folders and put them into a registry, without Docker.

An image is layers (compressed tars) and a configuration, each a blob named by its
digest; a manifest lists them (the OCI image and distribution specifications). Equal
folders give equal layers, so that the registry holds each once.
"""

import gzip
import hashlib
import json
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

KIND = "application/vnd.oci.image"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Registry:
    """A registry at an address such as "10.245.0.1:5000", without TLS or credentials."""

    def __init__(self, address):
        self.url = f"http://{address}/v2/"

    def ask(self, method, where, data=None, **headers):
        """Return (status, headers, body) of an answer; raise OSError without one."""
        kinds = {k.replace("_", "-"): v for k, v in headers.items()}
        url = where if "://" in where else self.url + where
        request = urllib.request.Request(url, data, kinds, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def has(self, name, tag):
        """Tell whether an image is there."""
        where = f"{name}/manifests/{tag}"
        return self.ask("HEAD", where, Accept=f"{KIND}.manifest.v1+json")[0] == 200

    def label(self, name, tag, key):
        """Return a label of the image NAME:TAG; None without the image or the label."""
        accept = f"{KIND}.manifest.v1+json"
        status, _, body = self.ask("GET", f"{name}/manifests/{tag}", Accept=accept)
        if status != 200:
            return None
        digest = json.loads(body)["config"]["digest"]
        config = json.loads(self.ask("GET", f"{name}/blobs/{digest}")[2])
        return config["config"].get("Labels", {}).get(key)

    def put_blob(self, name, data, digest):
        """Store bytes or an open file under its digest, unless it is there."""
        if self.ask("HEAD", f"{name}/blobs/{digest}")[0] == 200:
            return
        _, headers, _ = self.ask("POST", f"{name}/blobs/uploads/", b"")
        place = headers["Location"]
        place += ("&" if "?" in place else "?") + f"digest={digest}"
        size = data.seek(0, 2) if hasattr(data, "seek") else len(data)
        if hasattr(data, "seek"):
            data.seek(0)
        status, _, body = self.ask(
            "PUT", place, data, Content_Type="application/octet-stream",
            Content_Length=str(size))  # fmt: skip
        if status != 201:
            raise OSError(
                f"{name}: the registry refused a layer: {status} {body[:200]}"
            )

    def put(self, name, tag, layers, **config):
        """Store the image NAME:TAG of `layers`, [(blob, digest, diff)] of layer().

        config: Entrypoint, Cmd, Env, User, WorkingDir, Labels, as the specification has
        them. Returns its size in MB, compressed.
        """
        env = [f"PATH={PATH}", "LANG=C.UTF-8", *config.pop("Env", [])]
        described = {
            "architecture": "amd64",
            "os": "linux",
            "config": {**config, "Env": env},
            "rootfs": {"type": "layers", "diff_ids": [diff for _, _, diff in layers]},
        }
        text = json.dumps(described, sort_keys=True).encode()
        listed = []
        for blob, digest, _ in layers:
            with blob.open("rb") as file:
                self.put_blob(name, file, digest)
            size = blob.stat().st_size
            kind = f"{KIND}.layer.v1.tar+gzip"
            listed.append({"mediaType": kind, "digest": digest, "size": size})
        self.put_blob(name, text, sha256(text))
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{KIND}.manifest.v1+json",
            "config": {"mediaType": f"{KIND}.config.v1+json", "size": len(text),
                       "digest": sha256(text)},
            "layers": listed,
        }  # fmt: skip
        status, _, body = self.ask(
            "PUT", f"{name}/manifests/{tag}", json.dumps(manifest).encode(),
            Content_Type=manifest["mediaType"])  # fmt: skip
        if status != 201:
            raise OSError(f"{name}:{tag}: refused: {status} {body[:200]}")
        return sum(part["size"] for part in listed) / 1e6


def sha256(data):
    """Return the digest of bytes as the specification writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Counted:
    """A file that hashes what is written to it."""

    def __init__(self, file):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data):
        self.hash.update(data)
        return self.file.write(data)


def layer(folder, keep, place=""):
    """Make the layer that puts `folder`'s content at `place`; keep its blob in `keep`.

    All belongs to root and is of one date, so that equal content gives the same digest.
    Returns (path of the blob, digest, digest of the tar within).
    """

    def plain(info):
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=keep, delete=False) as raw:
        out = Counted(raw)
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=out, mtime=0) as zipped:
            inner = Counted(zipped)
            with tarfile.open(
                fileobj=inner, mode="w|", format=tarfile.PAX_FORMAT
            ) as tar:
                for path in sorted(Path(folder).rglob("*")):
                    name = Path(place.strip("/")) / path.relative_to(folder)
                    tar.add(path, name, recursive=False, filter=plain)
    blob = keep / out.hash.hexdigest()
    Path(raw.name).replace(blob)
    return blob, f"sha256:{out.hash.hexdigest()}", f"sha256:{inner.hash.hexdigest()}"
