"""What is left for the user to edit in a manifest: words that begin with EDIT."""

from __future__ import annotations

import re


def placeholders(text: str) -> set[str]:
    """The placeholders of a manifest, comments left out."""
    lines = (line.split("#")[0] for line in text.splitlines())
    return set(re.findall(r"EDIT-[A-Z-]*[A-Z]", "\n".join(lines)))
