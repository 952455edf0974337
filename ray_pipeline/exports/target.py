"""Where an export goes, and which slides it holds already.

    <out>/_historay/export.json               which output, recipe and format
    <out>/_historay/done/<slide>/<version>    empty: the slide is here, of this version of its file

Keys of other versions go before a slide is written and its own comes after, so a crash between any
two steps only makes the slide be exported once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ray_pipeline.dataset.layout import folder_name, original_name
from ray_pipeline.errors import NotFoundError, SettingsError
from ray_pipeline.exports.source import Committed
from ray_pipeline.store import Store

STATE = "_historay"
"""Folder of what is not the export itself."""
UNFIT = re.compile(r'[%/\\:*?"<>|#\x00-\x1f\x7f]')
"""Characters that not every file system has in a name, and the one that stands in their place."""


def file_name(slide_id: str) -> str:
    """The name of a slide's file, without its ending: the id itself as far as a name can hold it.

    Readers such as CLAM's make the name of the id, so only UNFIT characters are percent-encoded.
    """
    name = UNFIT.sub(lambda found: f"%{ord(found[0]):02X}", slide_id)
    return name.replace(".", "%2E") if set(name) == {"."} else name


class Target:
    """One export's place: a folder or a prefix in object storage."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._done: dict[str, list[str]] = {}
        self._files: set[str] = set()

    def claim(self, claim: dict[str, str]) -> None:
        """Take the place for one output, recipe and format, and list what it holds.

        Raises SettingsError where another export lies.
        """
        key = f"{STATE}/export.json"
        try:
            standing = json.loads(self.store.get(key))
        except NotFoundError:
            standing = None
            self.store.put(key, json.dumps(claim, indent=1).encode())
        except ValueError:
            standing = {}
        if standing not in (None, claim):
            told = {"output": "?", "recipe": "?", "to": "?", **standing}
            raise SettingsError(
                f"out: {self.store.uri} holds an export of {told['output']}, recipe "
                f"{told['recipe']}, to {told['to']}: name another place, exports never mix."
            )
        for info in self.store.list():
            folder, _, name = info.key.rpartition("/")
            if folder.startswith(f"{STATE}/done/"):
                slide_id = original_name(folder.rpartition("/")[2])
                self._done.setdefault(slide_id, []).append(original_name(name))
            elif not folder:
                self._files.add(name)

    def current(self, slide: Committed, file: str | None = None) -> bool:
        """Whether the slide is here, from this version of its file; `file` must still stand."""
        return self._done.get(slide.slide_id) == [slide.etag] and (
            file is None or file in self._files
        )

    def begin(self, slides: Sequence[Committed]) -> None:
        """Take back that the slides are here: they are about to be written."""
        self.store.delete(
            self._key(slide.slide_id, etag)
            for slide in slides
            for etag in self._done.pop(slide.slide_id, ())
        )

    def finish(self, slide: Committed) -> None:
        """The slide is here."""
        self.store.put(self._key(slide.slide_id, slide.etag), b"")

    @staticmethod
    def _key(slide_id: str, etag: str) -> str:
        return f"{STATE}/done/{folder_name(slide_id)}/{folder_name(etag)}"
