"""Log lines: two formats, and no secrets in either."""

from __future__ import annotations

import json
import logging

import pytest

from cmis_stream.logs import FORMATS, formatter


def record(message: str, *given: object, error: BaseException | None = None) -> logging.LogRecord:
    about = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("cmis.test", logging.WARNING, __file__, 1, message, given, about)


@pytest.mark.parametrize("of", FORMATS)
@pytest.mark.spec("TEN-E05")
def test_what_opens_something_is_not_written(of: str) -> None:
    lines = [
        formatter(of).format(record("token %s of %s", "cmis_ab12_s3cr3ts3cr3t", "acme")),
        formatter(of).format(record("cannot reach postgresql+psycopg://cmis_app:hunter2@db/cmis")),
        formatter(of).format(record("sent {'Authorization': 'Bearer s3cr3t', 'Accept': '*/*'}")),
    ]
    try:
        raise ValueError("redis://me:hunter2@host")
    except ValueError as error:
        lines.append(formatter(of).format(record("failed", error=error)))
    text = "\n".join(lines)
    assert "s3cr3t" not in text and "me:hunter2" not in text and "cmis_app:hunter2" not in text
    assert "cmis_ab12_***" in text and "cmis_app:***@db/cmis" in text and "Traceback" in text


def test_a_json_line_is_one_object_with_time_level_logger_and_message() -> None:
    line = json.loads(formatter("json").format(record("two\nlines of %s", "acme")))
    assert line["message"] == "two\nlines of acme" and line["level"] == "warning" and line["logger"] == "cmis.test"
    assert line["time"].endswith("+00:00")
