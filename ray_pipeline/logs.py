"""Log lines: one JSON object each, the same from the driver and from every worker, no secrets."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ray_pipeline.redaction import redacted

_NAME = "historay"


def json_line(message: str, *, level: str = "INFO", **facts: Any) -> str:
    """One line: time, level, the facts that are not None, message.

    `facts` are such as run, stage, slide_id and shard.
    """
    said = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        **{name: value for name, value in facts.items() if value is not None},
        "message": message,
    }
    return json.dumps(_clean(said))


def worker_log() -> logging.Logger:
    """The log of a process of the cluster: lines on its standard error, which Ray keeps in a file.

    What the lines tell beside the message goes in `extra={"facts": {...}}`.
    """
    log = logging.getLogger(_NAME)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        return json_line(record.getMessage(), level=record.levelname, **facts)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {name: _clean(one) for name, one in value.items()}
    return value
