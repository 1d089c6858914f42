"""topics.yaml: what it declares, and how it complains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.errors import ConfigError
from cmis_stream.log.topics import load_topics, partition_for

VALID = """
partitions: 4
topics:
  a.b.v1:
    key: org
    event: things
    cleanup: delete
    retention: 7d
    retention_bytes: 20GB
    writers: [somebody]
    readers: [somebody else]
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "topics.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_projects_own_file_declares_the_topics_of_the_design() -> None:
    topics = load_topics()
    assert set(topics) >= {
        "cmis.events.raw",
        "cmis.metrics.v1",
        "cmis.transitions.v1",
        "cmis.changes.v1",
        "cmis.dead_letters.v1",
    }
    assert {spec.partitions for spec in topics.values()} == {8}
    assert {spec.key for spec in topics.values()} == {"org"}
    metrics = topics["cmis.metrics.v1"]
    assert (metrics.retention_ms, metrics.retention_bytes) == (7 * 86_400_000, 20 * 10**9)
    assert topics["cmis.changes.v1"].compact
    assert topics["cmis.changes.v1"].retention_ms is None


def test_durations_and_sizes_are_read_with_their_units(tmp_path: Path) -> None:
    spec = load_topics(_write(tmp_path, VALID.replace("7d", "90s").replace("20GB", "3 MiB")))["a.b.v1"]
    assert (spec.retention_ms, spec.retention_bytes, spec.partitions) == (90_000, 3 * 2**20, 4)
    assert (spec.writers, spec.readers) == (("somebody",), ("somebody else",))


@pytest.mark.parametrize(
    ("old", "new", "field", "got"),
    [
        ("key: org", "key: 3", "key", "3"),
        ("cleanup: delete", "cleanup: shrink", "cleanup", "'shrink'"),
        ("cleanup: delete", "cleanup: compact", "retention", "'7d'"),
        ("retention: 7d", "retention: 7 weeks", "retention", "'7 weeks'"),
        ("retention: 7d", "retention: 0d", "retention", "'0d'"),
        ("    retention: 7d\n", "", "retention", "nothing"),
        ("20GB", "20", "retention_bytes", "20"),
        ("event: things", "event: ''", "event", "''"),
        ("writers: [somebody]", "writers: somebody", "writers", "'somebody'"),
        ("readers: [somebody else]", "readers: []", "readers", r"\[\]"),
        ("key: org", "key: org\n    partitions: 0", "partitions", "0"),
        ("key: org", "key: org\n    partitions: true", "partitions", "True"),
        ("key: org", "key: org\n    kye: org", "kye", "'org'"),
    ],
)
def test_a_wrong_field_is_named_with_file_topic_what_came_and_what_was_expected(
    tmp_path: Path, old: str, new: str, field: str, got: str
) -> None:
    path = _write(tmp_path, VALID.replace(old, new))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: topic a\.b\.v1: {field}: got {got}, expected ."):
        load_topics(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "got nothing, expected a mapping"),
        ("topics: [a, b]", "expected a mapping"),
        ("topics: {a: 1", "not valid YAML"),
        ("topics: {}\ntopcis: {}", "'topcis'"),
        (VALID + VALID.split("topics:\n")[1], "given twice"),
        ("topics: {'a b': {}}", "topic a b: name: got 'a b'"),
        ("topics: {a: 7}", r"topic a: \(block\): got 7"),
    ],
)
def test_a_file_that_is_no_declaration_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_topics(_write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read"):
        load_topics(tmp_path / "nowhere.yaml")


def test_topics_with_different_partition_counts_are_refused(tmp_path: Path) -> None:
    block = VALID.split("topics:\n")[1]
    second = block.replace("a.b.v1", "c.d.v1").replace("key: org", "key: org\n    partitions: 5")
    with pytest.raises(ConfigError, match=r"c\.d\.v1: partitions: got 5, expected 4 as for a\.b\.v1"):
        load_topics(_write(tmp_path, VALID + second))


@given(key=st.binary(), n=st.integers(1, 64))
def test_a_key_always_has_one_partition_within_the_count(key: bytes, n: int) -> None:
    assert 0 <= partition_for(key, n) < n
    assert partition_for(key, n) == partition_for(key, n)


def test_the_partitioner_never_changes() -> None:
    assert [partition_for(key, 8) for key in (b"", b"acme", b"org-1")] == [0, 6, 6]
