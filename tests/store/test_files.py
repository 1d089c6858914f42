"""Files: whole or not there, in parts, for a while; on both databases, in a folder and in a bucket of S3."""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from sqlalchemy import select

from cmis_stream.core.errors import Rejected
from cmis_stream.store import primitive_tables
from cmis_stream.store.blobs import FolderBlobs
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.due import Due
from cmis_stream.store.files import HALF_WRITTEN_MS, LINK_LASTS_MS, FileLinks, Files, StoredFile
from cmis_stream.store.keyring import Damaged
from cmis_stream.store.ranges import asked_part
from cmis_stream.store.signing import GatewayTokens, NotSigned
from scripts.s3 import S3
from tests.servers.s3 import s3
from tests.store.blob_places import FolderPlace, Place, S3Place
from tests.store.conftest import Places
from tests.store.primitives import process
from tests.store.support import NOW, Clock

__all__ = ["s3"]

PIECES = [bytes([number % 251]) * 100_000 for number in range(12)]
WHOLE = b"".join(PIECES)
KEY = bytes(range(32))


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return FolderPlace(tmp_path / "files")
    server: S3 = request.getfixturevalue("s3")
    return S3Place(server, "p/q")


@pytest.fixture
def files(database: Database, place: Place, clock: Clock) -> Files:
    return Files(database, place.blobs(), clock)


@pytest.fixture
def due(places: Places) -> Iterator[Due]:
    opened = Database(places.relay)
    yield Due(opened)
    opened.close()


def kept(files: Files, org: str = "acme", content: list[bytes] = PIECES, lasts_ms: int | None = None) -> StoredFile:
    with files.create(org, "Größe 2026.csv", "text/csv", "ada", lasts_ms=lasts_ms) as upload:
        for piece in content:
            upload.write(piece)
        return upload.finish()


def rows(database: Database, org: str = "acme") -> int:
    table = primitive_tables.files
    with database.transaction(org) as tx:
        return len(tx.rows(select(table.c.id).where(tx.own(table))))


def test_what_is_streamed_in_comes_out_again(files: Files, place: Place) -> None:
    file = kept(files)
    assert (file.size, file.sha256) == (len(WHOLE), hashlib.sha256(WHOLE).hexdigest())
    assert files.get("acme", file.id) == file and files.list("acme") == [file] and b"".join(files.read(file)) == WHOLE
    assert b"".join(files.read(file, 99_999, 400_001)) == WHOLE[99_999:400_001]
    assert place.stored() == {file.id: len(WHOLE)}
    empty = kept(files, content=[])
    assert empty.size == 0 and b"".join(files.read(empty)) == b""


def test_a_file_of_another_org_is_not_there(files: Files) -> None:
    file = kept(files)
    assert files.get("other", file.id) is None and files.list("other") == [] and not files.remove("other", file.id)
    assert b"".join(files.read(file)) == WHOLE


def test_it_is_not_there_before_it_is_whole(files: Files, database: Database, place: Place) -> None:
    with files.create("acme", "a", "text/csv", "ada") as upload:
        upload.write(b"half")
        assert files.get("acme", upload.id) is None and files.list("acme") == []
    assert place.stored() == {} and rows(database) == 0
    with pytest.raises(RuntimeError), files.create("acme", "a", "text/csv", "ada"):
        raise RuntimeError
    assert place.stored() == {} and rows(database) == 0


def test_what_is_not_what_was_said_or_too_large_is_refused_and_gone(files: Files, database: Database, place: Place) -> None:
    with pytest.raises(Rejected) as caught, files.create("acme", "a", "text/csv", "ada") as upload:
        upload.write(b"abc")
        upload.finish("0" * 64)
    assert caught.value.field == "sha256"
    with pytest.raises(Rejected) as caught, files.create("acme", "a", "text/csv", "ada", limit=5) as upload:
        upload.write(b"abc")
        upload.write(b"def")
    assert caught.value.code == "too_long" and place.stored() == {} and rows(database) == 0
    with files.create("acme", "a", "text/csv", "ada", limit=3) as upload:
        upload.write(b"abc")
        assert upload.finish(hashlib.sha256(b"abc").hexdigest().upper()).size == 3


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a\nb", "x" * 201, "a\0"])
def test_a_name_is_no_path_and_no_header(files: Files, name: str) -> None:
    with pytest.raises(Rejected) as caught:
        files.create("acme", name, "text/csv", "ada")
    assert caught.value.field == "/name"


@pytest.mark.parametrize("media_type", ["", "csv", "text/csv\r\nX: y", "text/csv; x=<script>"])
def test_a_media_type_is_one(files: Files, media_type: str) -> None:
    with pytest.raises(Rejected) as caught:
        files.create("acme", "a", media_type, "ada")
    assert caught.value.field == "/media_type"


def test_it_is_saved_under_its_name_never_shown(files: Files) -> None:
    disposition = kept(files).disposition
    assert (
        disposition.startswith("attachment; ")
        and disposition.isascii()
        and "filename*=UTF-8''Gr%C3%B6%C3%9Fe%202026.csv" in disposition
    )


def test_when_its_time_is_over_it_is_gone_with_its_bytes(
    files: Files, database: Database, place: Place, clock: Clock, due: Due
) -> None:
    file, stays = kept(files, lasts_ms=1_000), kept(files)
    assert file.expires_at is not None and due.files(file.expires_at - 1) == []
    clock.now_ms = file.expires_at
    assert files.get("acme", file.id) is None and files.list("acme") == [stays]  # before anybody has swept
    assert due.files(clock.now_ms) == ["acme"] and files.sweep("other") == 0
    assert (files.sweep("acme"), files.sweep("acme")) == (1, 0)
    assert len(place.stored()) == rows(database) == 1 and due.files(clock.now_ms) == []


def test_removing_takes_the_bytes_with_it(files: Files, database: Database, place: Place) -> None:
    file = kept(files)
    assert files.remove("acme", file.id) and not files.remove("acme", file.id)
    assert place.stored() == {} and rows(database) == 0
    with pytest.raises(Damaged, match="gone"):
        files.read(file)


def test_bytes_that_changed_are_not_handed_out_to_the_end(files: Files, place: Place) -> None:
    file = kept(files)
    place.replace(file.id, WHOLE[:-1] + b"x")
    got = list[bytes]()
    with pytest.raises(Damaged):
        for piece in files.read(file):
            got.append(piece)
    assert len(b"".join(got)) < file.size
    place.replace(file.id, WHOLE[:500_000])
    for start, end in ((400_000, 600_000), (600_000, 700_000)):
        with pytest.raises(Damaged):
            list(files.read(file, start, end))


def test_one_that_is_written_slowly_is_not_swept_and_one_that_stopped_is(files: Files, place: Place, clock: Clock) -> None:
    slow, stopped = (files.create("acme", "a", "text/csv", "ada") for _ in range(2))
    for _ in range(12):
        clock.now_ms += HALF_WRITTEN_MS // 4
        slow.write(b"x")
        files.sweep("acme")
    assert slow.finish().size == 12
    with pytest.raises(Damaged, match="taken away"):
        stopped.finish()
    assert len(place.stored()) == 1


def test_a_folder_that_cannot_be_used_says_so(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="place of files"):
        Files(database, FolderBlobs(tmp_path / "file")).create("acme", "a", "text/csv", "ada")
    for key in ("", "../a", "/a", "a//b", "A"):
        with pytest.raises(ValueError):
            FolderBlobs(tmp_path).remove(key)


def test_only_the_owner_may_read_what_is_in_a_folder(database: Database, tmp_path: Path) -> None:
    kept(Files(database, FolderBlobs(tmp_path / "files")))
    (path,) = (path for path in (tmp_path / "files").rglob("*") if path.is_file())
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_larger_than_a_part_comes_out_again_and_is_not_there_before_it_is_whole(files: Files, place: Place) -> None:
    pieces = [bytes([number]) * 900_000 for number in range(14)]
    whole = b"".join(pieces)
    with files.create("acme", "a", "text/csv", "ada") as upload:
        for piece in pieces:
            upload.write(piece)
            assert files.get("acme", upload.id) is None and upload.id not in place.stored()
        file = upload.finish(hashlib.sha256(whole).hexdigest())
    assert place.stored() == {file.id: len(whole)} and b"".join(files.read(file)) == whole
    assert b"".join(files.read(file, 4_000_000, 9_999_999)) == whole[4_000_000:9_999_999]
    with pytest.raises(RuntimeError), files.create("acme", "a", "text/csv", "ada") as upload:
        for piece in pieces:
            upload.write(piece)
        raise RuntimeError
    assert set(place.stored()) == {file.id} and place.half_written() == []


def test_a_file_that_goes_while_it_is_read_is_not_read_to_the_end(files: Files) -> None:
    file = kept(files, content=[bytes(3_000_000)] * 3)
    reading = files.read(file)
    got = len(next(reading))
    files.remove("acme", file.id)
    with contextlib.suppress(Damaged):
        for piece in reading:
            got += len(piece)
        assert got == file.size  # of a folder: what is open stays
        return
    assert got < file.size


def test_uploads_killed_anywhere_leave_whole_files_and_after_a_sweep_nothing_else(
    places: Places, database: Database, place: Place, clock: Clock, tmp_path: Path
) -> None:
    chance, said = random.Random(7), list[list[str]]()
    for _ in range(6):
        with process("upload", places.app, place.argument, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            lines = [worker.stdout.readline().split() for _ in range(chance.randrange(2, 6))]
            time.sleep(chance.random() / 50)
            worker.kill()
            said += [*lines, *(line.split() for line in worker.stdout.read().splitlines() if line.count(" ") == 1)]
    clock.now_ms = NOW * 2
    files = Files(database, place.blobs(), clock)
    files.sweep("acme")
    there = {file.id: file for file in files.list("acme", 10_000)}
    assert len(said) >= 12
    for identity, digest in said:
        assert hashlib.sha256(b"".join(files.read(there[identity]))).hexdigest() == digest == there[identity].sha256
    assert set(place.stored()) == set(there) and rows(database) == len(there)
    assert {file.size for file in there.values()} == {400_000, 8_000_000}


# --- links and ranges -------------------------------------------------------------------------------------------------------


def test_a_link_opens_its_file_for_five_minutes(files: Files) -> None:
    file, links = kept(files), FileLinks(KEY)
    text = links.issue(file, NOW, lasts_ms=10 * LINK_LASTS_MS)
    assert links.read(text, NOW) == links.read(text, NOW + LINK_LASTS_MS - 1_000) == ("acme", file.id)
    with pytest.raises(NotSigned, match="ended"):
        links.read(text, NOW + LINK_LASTS_MS)


def test_it_ends_with_its_file(files: Files, clock: Clock) -> None:
    file, links = kept(files, lasts_ms=60_000), FileLinks(KEY)
    text = links.issue(file, clock.now_ms)
    assert file.expires_at is not None
    with pytest.raises(NotSigned):
        links.read(text, file.expires_at)


def test_what_is_no_link_of_ours_opens_nothing(files: Files) -> None:
    file, links = kept(files), FileLinks(KEY)
    text = links.issue(file, NOW)
    claims = {"sub": f"acme/{file.id}", "aud": "cmis-file", "exp": NOW // 1000 + 60}
    other = [
        "", "x", text[:-3], FileLinks(bytes(32)).issue(file, NOW), GatewayTokens(KEY).issue(f"acme/{file.id}", NOW)[0],
        jwt.encode(claims, None, "none"), jwt.encode({**claims, "exp": None}, KEY, "HS256"),
        jwt.encode({**claims, "aud": "cmis-peer"}, KEY, "HS256"),
    ]  # fmt: skip
    for one in other:
        with pytest.raises(NotSigned):
            links.read(one, NOW)
    with pytest.raises(NotSigned):
        GatewayTokens(KEY).read(text)


@pytest.mark.parametrize(
    ("header", "status", "expected"),
    [
        (None, 200, "0123456789"), ("bytes=0-0", 206, "0"), ("bytes=2-4", 206, "234"), ("bytes=7-", 206, "789"),
        ("bytes=7-99", 206, "789"), ("bytes=-3", 206, "789"), ("bytes=-99", 206, "0123456789"), ("bytes=9-9", 206, "9"),
        ("bytes=10-", 416, ""), ("bytes=10-12", 416, ""), ("bytes=-0", 416, ""), ("bytes=" + "9" * 20 + "-", 200, "0123456789"),
        ("bytes=4-2", 200, "0123456789"), ("bytes=-", 200, "0123456789"), ("bytes=a-b", 200, "0123456789"),
        ("items=0-1", 200, "0123456789"), ("bytes=0-1,3-4", 200, "0123456789"), ("bytes=٣-٤", 200, "0123456789"),
    ],
)  # fmt: skip
def test_a_range_is_the_part_that_rfc_9110_says(files: Files, header: str | None, status: int, expected: str) -> None:
    file = kept(files, content=[b"01234", b"56789"])
    part = asked_part(header, None, file.etag, file.size)
    body = b"".join(files.read(file, part.start, part.end)) if part.status != 416 else b""
    assert (part.status, body.decode(), part.headers["Content-Length"]) == (status, expected, str(len(expected)))
    named = {200: None, 416: "bytes */10"}.get(status, f"bytes {part.start}-{part.end - 1}/10")
    assert part.headers.get("Content-Range") == named and part.headers["Accept-Ranges"] == "bytes"


def test_a_range_of_another_version_or_of_nothing() -> None:
    assert asked_part("bytes=0-1", '"old"', '"new"', 10).status == 200
    assert asked_part("bytes=0-1", '"new"', '"new"', 10).status == 206
    assert asked_part("bytes=0-", None, '"x"', 0).status == 416 and asked_part(None, None, '"x"', 0).status == 200
