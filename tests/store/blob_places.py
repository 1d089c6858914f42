"""The places of bytes that the tests of files look into from outside: a folder, a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from uuid import uuid4

from cmis_stream.store.blobs import Blobs, FolderBlobs
from cmis_stream.store.blobs_s3 import S3Blobs
from scripts.s3 import S3


class Place(Protocol):
    @property
    def argument(self) -> str:
        """For tests/store/primitives_worker.py."""
        ...

    def blobs(self) -> Blobs: ...

    def stored(self) -> dict[str, int]:
        """Size in bytes by file id; of a folder also what is half-written, as ID.part."""
        ...

    def half_written(self) -> list[str]:
        """What is no file and takes room."""
        ...

    def replace(self, identity: str, content: bytes) -> None: ...


class FolderPlace:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.argument = str(folder)

    def blobs(self) -> Blobs:
        return FolderBlobs(self._folder)

    def stored(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._folder.rglob("*") if path.is_file()}

    def half_written(self) -> list[str]:
        return [path.name for path in self._folder.rglob("*.part")]

    def replace(self, identity: str, content: bytes) -> None:
        (path,) = self._folder.rglob(identity)
        path.write_bytes(content)


class S3Place:
    """A bucket of its own on the server."""

    def __init__(self, server: S3, prefix: str, timeout_s: float = 20) -> None:
        self._prefix = prefix
        self._server, self.bucket, self._timeout_s = server, f"b-{uuid4()}", timeout_s
        server.make_bucket(self.bucket)
        self.argument = server.place(f"{self.bucket}/{prefix}")

    def blobs(self) -> Blobs:
        return S3Blobs(self.argument, timeout_s=self._timeout_s)

    def stored(self) -> dict[str, int]:
        return {key.rpartition("/")[2]: size for key, size in self._server.objects(self.bucket).items()}

    def half_written(self) -> list[str]:
        return self._server.unfinished(self.bucket)

    def replace(self, identity: str, content: bytes) -> None:
        (key,) = (key for key in self._server.objects(self.bucket) if key.endswith(identity))
        writing = self.blobs().create(key.removeprefix(f"{self._prefix}/"))
        writing.write(content)
        writing.finish()
