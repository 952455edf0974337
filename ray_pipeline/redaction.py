"""Secrets out of text: what people, stores and libraries put into URIs and sentences by mistake.

Errors and log lines go through here where they are made, so that nobody else has to think of it.
A URI with a secret in it is refused before anything is done with it; see `ray_pipeline.store`.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

HIDDEN = "***"
"""What stands in a secret's place."""
SHORTEST_SECRET = 8
"""Values of the environment shorter than this are words, such as `test`."""

_PARAMETERS = (
    *("sig", "signature", "credential", "policy", "awsaccesskeyid", "googleaccessid"),
    *("key-pair-id", "(?:access_|auth_?|id_)?token", "api_?key", "password"),
)
"""Names in queries and headers of what signs or gives access: Azure, CloudFront, S3's old form."""
_VALUE = r"[^&\s'\",<>]+"
_PATTERNS = tuple(
    re.compile(kept + secret)
    for kept, secret in (
        # User and password of a URI.
        (r"(\b[A-Za-z][A-Za-z0-9+.-]*://)", r"[^/\s'\"@]+(?=@)"),
        # What signs a URI of AWS or Google, as a parameter or a header.
        (
            r"(?i)(\bX-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)[=:]\s*)",
            r"[^&\s'\",<>]+",
        ),
        (rf"(?i)((?:^|[?&;,\s])(?:{'|'.join(_PARAMETERS)})=)", _VALUE),
        # Keys and tokens that are known by their looks.
        (r"(?i)(\bbearer\s+)", r"[A-Za-z0-9._~+/=-]{16,}"),
        (r"()", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
        (r"()", r"\b(?:GOOG[A-Z0-9]{20,}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9._-]+)"),
        (r"()", r"\bhf_[A-Za-z0-9]{20,}\b"),
        (r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)", r"(?:[A-Za-z0-9+/=\s]|\\n)+"),
    )
)
_MARKS = (
    *("@", "=", "%", "mz-", "MZ-", "oog-", "OOG-", "earer", "EARER"),
    *("AKIA", "ASIA", "GOOG", "AIza", "ya29.", "hf_", "KEY---"),
)
"""Text without any of them matches no pattern, and a million URIs have to be told so fast."""
_SECRET_VARIABLES = re.compile(
    r"SECRET|PASSWORD|(?:API|ACCOUNT|SAS|MASTER|ENCRYPTION|CUSTOMER)_KEY|ACCESS_KEY$|TOKENS?$"
)


def redacted(text: str) -> str:
    """`text` with `***` for every secret in it.

    Those are: user and password of URIs, parameters that sign or give access, keys and tokens known
    by their looks, and the values of this process's environment that are secrets by their names.
    """
    text = _without_looks(text)
    for value in _secrets_of_environment():
        text = text.replace(value, HIDDEN)
    return text


def holds_secret(uri: str) -> bool:
    """Whether a URI, or other text, has such a thing by its looks in it, escaped or not."""
    if not any(mark in uri for mark in _MARKS):
        return False
    plain = unquote(uri)
    return _without_looks(plain) != plain


def fit_to_keep(value: str) -> str:
    """A user's own value as it may be written down: without secrets, where it holds some."""
    return redacted(unquote(value)) if holds_secret(value) else value


def _without_looks(text: str) -> str:
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def _secrets_of_environment() -> list[str]:
    """The longest first: one may be part of another."""
    values = {
        value
        for name, values in os.environ.items()
        if _SECRET_VARIABLES.search(name)
        for value in values.split()
        if len(value) >= SHORTEST_SECRET
    }
    return sorted(values, key=len, reverse=True)
