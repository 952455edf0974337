"""The packages of the extra `learn`, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ray_pipeline.errors import UsageError


def learn_package(name: str) -> Any:
    """The module `name` of a package of the extra. Raises UsageError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name.partition('.')[0]} is not installed: pip install 'historay[learn]'."
        ) from error
