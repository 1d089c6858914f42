"""A file for `cmis apply`: what documents there should be, as YAML or JSON, one or several YAML documents.

    org: acme                                   org: acme
    documents:                                  alert_rules:
      - kind: alert_rule                          - key: overspend
        key: overspend                              …
        …

What is wrong is named by file, place and field, all of it at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.store.bodies import plain
from cmis_stream.store.kinds import Kind, Kinds
from cmis_stream.store.writing import as_uuid

from .applying import Wanted, mistakes, place_of

LONGEST_NAME: Final = 100
_DOCUMENTS = "documents"


class ApplyFile(NamedTuple):
    """org, set_name: None when the file does not say."""

    org: str | None
    set_name: str | None
    wanted: list[Wanted]


def read_file(path: Path, kinds: Kinds) -> ApplyFile:
    """Raises ConfigError, a line per mistake, when the file cannot be used as it is."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    parts = _parts(path, text)
    reader = _Reader(kinds)
    for number, part in enumerate(parts):
        reader.read(part, f"part {number + 1}: " if len(parts) > 1 else "")
    if reader.wrong:
        raise ConfigError("\n".join(f"{path.name}: {one}" for one in reader.wrong))
    if not parts:
        raise ConfigError(f"{path.name}: expected {_DOCUMENTS} or lists of them by kind, got nothing")
    return ApplyFile(reader.said.get("org"), reader.said.get("set"), reader.wanted)


def set_name(text: str) -> str:
    """Rejected when a set cannot be called so."""
    if not text.isprintable() or not 1 <= len(text) <= LONGEST_NAME:
        raise Rejected("invalid", "set", text, f"1 to {LONGEST_NAME} printable characters")
    return text


def _parts(path: Path, text: str) -> list[Any]:
    try:
        if path.suffix == ".json":
            return [json.loads(text, object_pairs_hook=_once)]
        return [part for part in yaml.load_all(text, Loader=_Loader) if part is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(f"{path.name}: not YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"{path.name}: not {what}: {error or 'nested too deep'}") from None


class _Reader:
    """said: org and set, once they were."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.by_plural = {kind.plural or f"{kind.name}s": kind for kind in kinds.values()}
        self.said: dict[str, str] = {}
        self.wanted: list[Wanted] = []
        self.wrong: list[str] = []
        self._first: dict[tuple[str, str], str] = {}

    def read(self, part: Any, prefix: str) -> None:
        try:
            plain(part, "")
            self._read(part, prefix)
        except Rejected as error:
            at = place_of(error.field).removeprefix(".") if error.field.startswith("/") else error.field
            self._refuse(prefix, Rejected(error.code, at, error.got, error.expected))

    def _read(self, part: Any, prefix: str) -> None:
        if not isinstance(part, Mapping):
            raise Rejected("wrong_type", "", part, f"an object with {_DOCUMENTS}, or lists of them by kind")
        for name, value in part.items():
            if name in ("org", "set"):
                self._say(name, value)
            elif name == _DOCUMENTS or name in self.by_plural:
                if not isinstance(value, list):
                    raise Rejected("wrong_type", name, value, "a list of documents")
                self._list(name, value, prefix)
            else:
                known = ", ".join(["org", "set", _DOCUMENTS, *sorted(self.by_plural)])
                raise Rejected("invalid", str(name), value, f"one of {known}")

    def _say(self, name: str, value: Any) -> None:
        if not isinstance(value, str):
            raise Rejected("wrong_type", name, value, "a text")
        if name == "set":
            set_name(value)
        if self.said.setdefault(name, value) != value:
            raise Rejected("invalid", name, value, f"{self.said[name]!r} as before: a file has one {name}")

    def _list(self, name: str, documents: Iterable[Any], prefix: str) -> None:
        for index, document in enumerate(documents):
            kind = None if name == _DOCUMENTS else self.by_plural[name]
            for error in self._document(f"{name}[{index}]", document, kind):
                self._refuse(prefix, error, self._named(document, kind))

    def _document(self, place: str, document: Any, kind: Kind | None) -> Iterator[Rejected]:
        if not isinstance(document, Mapping):
            yield Rejected("wrong_type", place, document, "a document: an object")
            return
        body = dict(document)
        named = body.pop("kind", None if kind is None else kind.name)
        if kind is None:
            kind = self.kinds.get(named) if isinstance(named, str) else None
        if kind is None or named != kind.name:
            expected = kind.name if kind is not None else f"one of {', '.join(sorted(self.kinds))}"
            yield Rejected("missing" if named is None else "invalid", f"{place}.kind", named, expected)
            return
        given = body.pop("id", None)
        identity = as_uuid(given) if isinstance(given, str) else None
        if identity is None and (given is not None or kind.natural_key is None):
            why = "" if kind.natural_key else f": a {kind.name} has no other name"
            yield Rejected("missing" if given is None else "invalid", f"{place}.id", given, f"a UUID{why}")
        key = body.get(kind.natural_key) if kind.natural_key else identity
        wanted = Wanted(kind.name, str(key), body, place, identity)
        found = mistakes(kind, wanted)
        if kind.natural_key and key is None and not found:
            found = [Rejected("missing", f"{place}.{kind.natural_key}", None, f"a text that names the {kind.name}")]
        yield from found
        if key is not None:
            first = self._first.setdefault((kind.name, str(key)), place)
            if first != place:
                yield Rejected("not_unique", f"{place}.{kind.natural_key or 'id'}", key, f"another one than {first}")
        self.wanted.append(wanted)

    def _named(self, document: Any, kind: Kind | None) -> str:
        """The key helps to find a document in a long list."""
        if not isinstance(document, Mapping):
            return ""
        kind = self.kinds.get(str(document.get("kind"))) if kind is None else kind
        key = None if kind is None or kind.natural_key is None else document.get(kind.natural_key)
        return f" ({kind.name} {key})" if kind is not None and isinstance(key, str) else ""

    def _refuse(self, prefix: str, error: Rejected, named: str = "") -> None:
        self.wrong.append(f"{prefix}{error}{named}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice in an object")
    return made


class _Loader(yaml.SafeLoader):
    """YAML with the plain values of JSON: no, 12:30 and 2026-01-01 stay texts, 1e6 is a number; no name twice."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"-?(0|[1-9][0-9]*)", list("-0123456789")),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", list("-0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set[str]()
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a text as name", name.start_mark)
        if name.value in seen and name.tag != "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(None, None, f"{name.value!r} is given twice", name.start_mark)
        seen.add(name.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
