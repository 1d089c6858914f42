"""Runs an S3 server on this machine for tests and trials: moto's, loopback only, its objects in memory.

    python -m scripts.s3      runs until Ctrl-C and prints what to give as --files; any credentials will do

moto's botocore wants an older python-dateutil than ours, so it has an environment of its own in .cache, made from
requirements/s3.txt at the first start and after each change of it. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from scripts.server import Server, ServerError, run_until_stopped

ROOT = Path(__file__).resolve().parent.parent
LOCKED = ROOT / "requirements" / "s3.txt"
BUCKET = "cmis"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
"""It takes any; clients need some."""


class S3Error(ServerError):
    """One sentence for whoever wanted to run it."""


class S3(Server):
    """`with S3(folder) as s3: s3.url`. A stop loses what is in it."""

    name, error = "S3", S3Error

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """For our `files` setting: the bucket that is there from the start."""
        return self.place(BUCKET)

    def place(self, bucket_and_prefix: str) -> str:
        return f"s3://{bucket_and_prefix}?endpoint={self.endpoint}&region=eu-central-1"

    def start(self) -> None:
        super().start()
        self.make_bucket(BUCKET)

    def make_bucket(self, name: str) -> None:
        self._ask("PUT", f"/{name}")

    def objects(self, bucket: str = BUCKET) -> dict[str, int]:
        """Key → size in bytes."""
        found = ElementTree.fromstring(self._ask("GET", f"/{bucket}?list-type=2&max-keys=1000"))
        return {one.findtext("{*}Key", ""): int(one.findtext("{*}Size", "")) for one in found.iterfind("{*}Contents")}

    def unfinished(self, bucket: str = BUCKET) -> list[str]:
        """Keys of multipart uploads that are neither complete nor aborted."""
        found = ElementTree.fromstring(self._ask("GET", f"/{bucket}?uploads"))
        return [one.findtext("{*}Key", "") for one in found.iterfind("{*}Upload")]

    def _ask(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(self.endpoint + path, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            read: bytes = answer.read()
        return read

    def _command(self) -> Sequence[str]:
        return [str(_python()), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def _serves(self) -> bool:
        try:
            self._ask("GET", "/")
        except OSError:
            return False
        return True


def _python() -> Path:
    """Of an environment with the locked packages."""
    folder = ROOT / ".cache" / "s3" / hashlib.sha256(LOCKED.read_bytes() + sys.version.encode()).hexdigest()[:16]
    if not folder.exists():
        making = folder.with_suffix(f".{os.getpid()}")
        print("Making an environment for the S3 server (once) ...", file=sys.stderr)
        try:
            venv.create(making, with_pip=True)
            pip = [str(making / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--require-hashes", "-r", str(LOCKED)], check=True, stdout=sys.stderr)
            making.rename(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            raise S3Error(f"moto is needed to run S3, and its packages cannot be installed: {error}") from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder / "bin" / "python"  # a venv's python finds its packages wherever the folder lies


if __name__ == "__main__":
    run_until_stopped(S3, lambda s3: f"S3 is ready: --files '{s3.url}'")
