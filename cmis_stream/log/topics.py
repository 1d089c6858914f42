"""The declared topics: topics.yaml read into ``TopicSpec``, and the one partitioner."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from cmis_stream.core.errors import ConfigError, shown

GROUP = "cmis_stream.topics"
DEFAULT_PARTITIONS = 8
MAX_PARTITIONS = 1024

_PACKAGE = Path(__file__).resolve().parents[1]
_FIELDS = {"key", "partitions", "event", "cleanup", "retention", "retention_bytes", "writers", "readers"}
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")  # what Kafka accepts as a topic name
_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_DURATION_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = re.compile(r"(\d+)\s*(B|kB|MB|GB|KiB|MiB|GiB)")
_SIZE_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One declared topic. ``retention_bytes`` counts all partitions together; ``None`` means no limit."""

    name: str
    key: str
    partitions: int
    cleanup: Literal["delete", "compact"]
    retention_ms: int | None
    retention_bytes: int | None
    event: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def compact(self) -> bool:
        """Whether only the newest record of each key is kept."""
        return self.cleanup == "compact"


def partition_for(key: bytes, n: int) -> int:
    """Return the partition (0 … n - 1) of a key: crc32(key) modulo n. The only partitioner in the project.

    >>> partition_for(b"acme", 8)
    6
    """
    return zlib.crc32(key) % n


def default_topics_path() -> Path:
    """Return topics.yaml of the source checkout (repository top level) or of the installed package."""
    checkout = _PACKAGE.parent / "topics.yaml"
    # site-packages may hold somebody else's topics.yaml next to us; only a checkout has pyproject.toml there too.
    if checkout.is_file() and ((_PACKAGE.parent / "pyproject.toml").is_file() or (_PACKAGE.parent / ".git").exists()):
        return checkout
    return _PACKAGE / "topics.yaml"


def load_topics(path: Path | None = None) -> dict[str, TopicSpec]:
    """Read the declared topics, by name: those of the file, and without one ours and those that other packages bring (a
    `topics.yaml` in the package that an entry point of the group `cmis_stream.topics` names).

    Raises ``ConfigError`` that names the file, the topic, the field, what came and what was expected.
    """
    if path is not None:
        return _read(path)
    ours = default_topics_path()
    topics = _read(ours)
    for point in entry_points(group=GROUP):
        theirs = Path(str(files(point.value))) / "topics.yaml"
        more = _read(theirs)
        if twice := topics.keys() & more.keys():
            raise ConfigError(f"{theirs}: topic {min(twice)}: another file declares it, too")
        topics |= more
        _require_equal_partitions(theirs, topics)
    return topics


def _read(path: Path) -> dict[str, TopicSpec]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the declared topics: {error.strerror}") from error
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("topics"), dict):
        raise ConfigError(f"{path}: got {_brief(document)}, expected a mapping with the keys 'partitions' and 'topics'")
    unknown = set(document) - {"partitions", "topics"}
    if unknown:
        raise ConfigError(f"{path}: got the key {min(map(str, unknown))!r}, expected only 'partitions' and 'topics'")
    partitions = document.get("partitions", DEFAULT_PARTITIONS)
    topics = {name: _TopicReader(path, name, body, partitions).read() for name, body in document["topics"].items()}
    _require_equal_partitions(path, topics)
    return topics


def _require_equal_partitions(path: Path, topics: dict[str, TopicSpec]) -> None:
    """An org must sit in the same partition of every topic, so the counts may not differ."""
    first = next(iter(topics.values()), None)
    for spec in topics.values():
        if first is not None and spec.partitions != first.partitions:
            raise ConfigError(
                f"{path}: topic {spec.name}: partitions: got {spec.partitions}, expected {first.partitions} "
                f"as for {first.name}: all topics have the same count, so that an org meets in one partition"
            )


class _TopicReader:
    """Reads one topic's block; every complaint names file, topic and field."""

    def __init__(self, path: Path, name: object, body: object, partitions: object) -> None:
        self.path, self.name, self.body, self.partitions = path, name, body, partitions

    def read(self) -> TopicSpec:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            self._fail("name", self.name, "letters, digits, '.', '_' and '-', at most 249")
        if not isinstance(self.body, dict):
            self._fail("(block)", self.body, f"a mapping with {', '.join(sorted(_FIELDS))}")
        for field in self.body:
            if field not in _FIELDS:
                self._fail(str(field), self.body[field], f"one of the fields {', '.join(sorted(_FIELDS))}")
        cleanup = self.body.get("cleanup")
        if cleanup not in ("delete", "compact"):
            self._fail("cleanup", cleanup, "'delete' or 'compact'")
        return TopicSpec(
            name=self.name,
            key=self._text("key"),
            partitions=self._partitions(),
            cleanup=cleanup,
            retention_ms=self._retention_ms(cleanup),
            retention_bytes=self._retention_bytes(cleanup),
            event=self._text("event"),
            writers=self._names("writers"),
            readers=self._names("readers"),
        )

    def _fail(self, field: str, got: object, expected: str) -> NoReturn:
        raise ConfigError(f"{self.path}: topic {self.name}: {field}: got {_brief(got)}, expected {expected}")

    def _get(self, field: str) -> Any:
        assert isinstance(self.body, dict)
        return self.body.get(field)

    def _text(self, field: str) -> str:
        value = self._get(field)
        if not isinstance(value, str) or not value.strip():
            self._fail(field, value, "a text")
        return value

    def _names(self, field: str) -> tuple[str, ...]:
        value = self._get(field)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            self._fail(field, value, "a list of names")
        return tuple(value)

    def _partitions(self) -> int:
        own = self._get("partitions")
        value = self.partitions if own is None else own
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PARTITIONS:
            self._fail("partitions", value, f"a whole number from 1 to {MAX_PARTITIONS}")
        return value

    def _retention_ms(self, cleanup: str) -> int | None:
        value = self._get("retention")
        if cleanup == "compact":
            if value is not None:
                self._fail("retention", value, "nothing: a compacted topic keeps the newest record of each key")
            return None
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is None or int(match[1]) == 0:
            self._fail("retention", value, "a duration such as 30s, 15m, 12h or 7d")
        return int(match[1]) * _DURATION_MS[match[2]]

    def _retention_bytes(self, cleanup: str) -> int | None:
        value = self._get("retention_bytes")
        if value is None:
            return None
        if cleanup == "compact":
            self._fail("retention_bytes", value, "nothing: a compacted topic keeps the newest record of each key")
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None or int(match[1]) == 0:
            self._fail("retention_bytes", value, "a size such as 500MB, 20GB or 4GiB")
        return int(match[1]) * _SIZE_BYTES[match[2]]


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML would silently keep the last."""


def _mapping_without_repeats(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def _brief(value: object) -> str:
    return "nothing" if value is None else shown(value)
