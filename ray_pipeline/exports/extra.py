"""Other formats' libraries are an extra: loaded when asked for, and missed in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray_pipeline.errors import SettingsError


@contextmanager
def needing(what: str) -> Iterator[None]:
    """Around the import of what `what` needs; raises SettingsError naming the mend."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{what} needs the package '{error.name}': pip install 'historay[export]'."
        ) from None
