"""What a bucket can do that a folder cannot: be away, answer too late, be another one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cmis_stream.core.errors import ConfigError
from cmis_stream.settings import Settings
from cmis_stream.store.blobs_s3 import PART, S3Blobs
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.files import HALF_WRITTEN_MS, Files
from cmis_stream.store.keyring import Damaged
from cmis_stream.stores import Stores
from scripts.s3 import S3
from tests.servers.s3 import own_s3, s3
from tests.store.blob_places import S3Place
from tests.store.support import NOW, Clock
from tests.store.test_files import kept, rows

__all__ = ["own_s3", "s3"]

LARGE = [bytes(1_000_000)] * 12
SOON_S = 0.5


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://", "s3://BUCKET"), ("https://bucket/x", "s3://BUCKET"), ("bucket", "s3://BUCKET"),
        ("s3://key:hush@bucket/x", "no credentials"), ("s3://bucket?secret_access_key=hush", "secret_access_key"),
        ("s3://bucket?endpoint=localhost:9000", "endpoint=http"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_ends_the_start_in_a_sentence_without_the_secrets_in_it(url: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Stores(Settings(data_dir=tmp_path, files_url=url), lambda: NOW)
    assert "--files" in str(caught.value) and "hush" not in str(caught.value)


@pytest.mark.slow
def test_the_setting_says_where_bytes_go(s3: S3, tmp_path: Path) -> None:
    place = S3Place(s3, "a/b")
    stores = Stores(Settings(data_dir=tmp_path, files_url=place.argument), lambda: NOW)
    file = kept(stores.files)
    assert set(place.stored()) == {file.id} and not (tmp_path / "files").exists()
    stores.close()


@pytest.mark.slow
@pytest.mark.parametrize("content", [[b"x"], LARGE], ids=["one piece", "in parts"])
def test_a_bucket_that_is_away_is_unavailable_and_what_was_begun_goes_with_the_next_sweep(
    own_s3: S3, database: Database, clock: Clock, content: list[bytes]
) -> None:
    place = S3Place(own_s3, "p", SOON_S)
    files = Files(database, place.blobs(), clock)
    file = kept(files)
    own_s3.kill()
    for asked in (lambda: kept(files, content=content), lambda: files.read(file), lambda: files.remove("acme", file.id)):
        with pytest.raises(Unavailable, match="place of files"):
            asked()
    with pytest.raises(Unavailable):
        clock.now_ms += HALF_WRITTEN_MS
        files.sweep("acme")
    assert files.list("acme") == [] and rows(database) == 2  # nothing is forgotten before its bytes are gone
    own_s3.start()
    own_s3.make_bucket(place.bucket)
    assert files.sweep("acme") == 2 and rows(database) == 0 and place.stored() == {}


@pytest.mark.slow
@pytest.mark.parametrize("content", [[b"x"], LARGE], ids=["one piece", "in parts"])
def test_bytes_that_arrive_after_their_sender_has_given_up_are_swept(
    own_s3: S3, database: Database, clock: Clock, content: list[bytes]
) -> None:
    place = S3Place(own_s3, "p", SOON_S)
    files = Files(database, place.blobs(), clock)
    upload = files.create("acme", "a", "text/csv", "ada")
    for piece in content:
        upload.write(piece)
    own_s3.pause()
    with pytest.raises(Unavailable):
        upload.finish()
    own_s3.resume()
    with pytest.raises(Unavailable):
        upload.__exit__()
    assert files.list("acme") == [] and rows(database) == 1  # it remembers that something may still come
    clock.now_ms += HALF_WRITTEN_MS
    assert files.sweep("acme") == 1 and rows(database) == 0 and place.stored() == {}


@pytest.mark.slow
def test_a_bucket_that_does_not_exist_is_no_place(s3: S3, database: Database, clock: Clock) -> None:
    files = Files(database, S3Blobs(s3.place("nobody-made-it")), clock)
    for content in ([b"x"], LARGE):
        with pytest.raises(Unavailable, match="not found"):
            kept(files, content=content)


@pytest.mark.slow
def test_orgs_and_prefixes_are_apart(s3: S3, database: Database) -> None:
    place = S3Place(s3, "one")
    files, others = Files(database, place.blobs()), Files(database, S3Blobs(place.argument.replace("/one?", "/two?")))
    ours, theirs = kept(files), kept(files, org="other")
    ours_key, theirs_key = sorted(s3.objects(place.bucket), key=lambda key: key.endswith(theirs.id))
    assert ours_key.endswith(ours.id) and ours_key.split("/")[:2] != theirs_key.split("/")[:2]
    assert {key.split("/")[0] for key in (ours_key, theirs_key)} == {"one"}
    with pytest.raises(Damaged, match="gone"):
        others.read(ours)


@pytest.mark.slow
def test_a_broken_upload_leaves_no_parts(s3: S3, database: Database) -> None:
    place = S3Place(s3, "p")
    upload = Files(database, place.blobs()).create("acme", "a", "text/csv", "ada")
    upload.write(bytes(3 * PART))
    while not place.half_written():
        time.sleep(0.02)
    upload.__exit__()
    assert place.half_written() == [] and place.stored() == {}
