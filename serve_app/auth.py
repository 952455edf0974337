"""Bearer tokens: kept and compared as SHA-256 digests, in constant time, several at once."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from ray_pipeline.errors import SettingsError
from serve_app.errors import TokenError

TOKENS_VARIABLE = "HISTORAY_SERVE_TOKENS"
"""Environment variable of tokens, with whitespace between them."""
FEWEST_CHARACTERS = 16
"""Shorter tokens are refused at start: they can be guessed."""


class Tokens:
    """The tokens that open the service. More than one, so that they can be rotated."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Keep the digests only. Raises SettingsError for a token that is too short."""
        self._digests = []
        for token in tokens:
            if len(token) < FEWEST_CHARACTERS:
                raise SettingsError(
                    f"a token of {len(token)} characters is too short: give at least "
                    f"{FEWEST_CHARACTERS} (such as `openssl rand -hex 32`)."
                )
            self._digests.append(_digest(token))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None) -> None:
        """Take `Bearer <token>`, or raise TokenError."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise TokenError("no bearer token: send the header 'Authorization: Bearer <token>'.")
        found = _digest(token.strip())
        # Every digest is looked at, so that the time tells nothing of which one was near.
        if not sum(hmac.compare_digest(found, known) for known in self._digests):
            raise TokenError("this bearer token is not known here: check it, or ask for a new one.")


def load_tokens(file: str | None) -> Tokens:
    """Tokens of `file` (one a line; blank lines and `#` do not count) and of TOKENS_VARIABLE.

    Raises SettingsError for a file that can't be read or holds none.
    """
    found = os.environ.get(TOKENS_VARIABLE, "").split()
    if file is None:
        return Tokens(found)
    path = Path(file).expanduser()
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"tokens_file {path} can't be read: check its path and mode.") from None
    of_file = [line for line in lines if line and not line.startswith("#")]
    if not of_file:
        raise SettingsError(f"tokens_file {path} holds no token: write one on each line.")
    return Tokens([*found, *of_file])


def check_door(tokens: Tokens, *, allow_anonymous: bool, host: str | None = None) -> None:
    """Refuse to start with an open door. Raises SettingsError.

    Without a token, `allow_anonymous` must be said; and where the `host` that is bound is known,
    it must be of this machine alone.
    """
    if tokens:
        return
    mend = f"give tokens_file, or the variable {TOKENS_VARIABLE}"
    if not allow_anonymous:
        raise SettingsError(
            f"there is no token, so anybody could use this service: {mend}; or set "
            "allow_anonymous: true for trials on this machine."
        )
    if host is not None and not is_loopback(host):
        raise SettingsError(
            f"host {host} is open to the network, and there is no token: {mend}, or bind 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
