"""`cmis up --files s3://…`: what REST takes is in the bucket, and a bucket that is away is 503 until it is back."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from scripts.s3 import BUCKET, CREDENTIALS, S3
from tests.e2e.support import Processes, Up
from tests.servers.s3 import own_s3, s3

__all__ = ["own_s3", "s3"]
SMALL, LARGE = b"a,b\n1,2\n", bytes(range(256)) * 50_000


@pytest.mark.slow
def test_files_go_through_rest_to_a_bucket_and_wait_for_it_when_it_is_away(own_s3: S3, tmp_path: Path) -> None:
    processes = Processes(tmp_path / "processes", CREDENTIALS)
    try:
        through_rest(processes, own_s3, tmp_path / "data")
    finally:
        processes.end()


def through_rest(processes: Processes, server: S3, data_dir: Path) -> None:
    assert processes.cmis("org", "create", "acme", "--data-dir", data_dir).ended() == 0
    made = processes.cmis("token", "create", "acme", "--scope", "read", "--scope", "write", "--data-dir", data_dir)
    assert made.ended() == 0
    token = next(word for word in made.text.split() if word.startswith("cmis_"))
    up = Up(processes, data_dir, "--files", server.place(f"{BUCKET}/a/b")).ready()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "text/csv"}
    with httpx.Client(base_url=f"{up.url}/api/orgs/acme", headers=headers, timeout=60) as client:
        for content in (SMALL, LARGE):
            file = client.post("/files?name=a.csv", content=content).raise_for_status().json()
            assert client.get(f"/files/{file['id']}/content").content == content
            part = client.get(f"/files/{file['id']}/content", headers={"Range": "bytes=2-5"})
            assert (part.status_code, part.content) == (206, content[2:6])
        assert sorted(server.objects().values()) == [len(SMALL), len(LARGE)]
        assert all(key.startswith("a/b/") for key in server.objects()) and not (data_dir / "files").exists()

        server.kill()
        for content in (SMALL, LARGE):
            refused = client.post("/files?name=b.csv", content=content)
            assert refused.status_code == 503 and refused.headers["retry-after"], refused.text
        assert client.get(f"/files/{file['id']}/content").status_code == 503
        assert client.delete(f"/files/{file['id']}").status_code == 503
        server.start()
        again = client.post("/files?name=b.csv", content=LARGE).raise_for_status().json()
        assert client.get(f"/files/{again['id']}/content").content == LARGE
        listed = client.get("/files").raise_for_status().json()["items"]
        assert [one["name"] for one in listed] == ["b.csv", "a.csv"]  # the deleted one is gone at once, its bytes when it is back
    up.stop()
