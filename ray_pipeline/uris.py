"""URIs as people write them: what they name, and what of them may be shown. No network."""

from __future__ import annotations

from urllib.parse import quote, unquote

from ray_pipeline.errors import SettingsError
from ray_pipeline.redaction import holds_secret

WEB = ("http://", "https://")
"""How the URIs of web servers begin: theirs alone are escaped."""
PLAIN = "/!$&'()*+,;=:@~"
"""What stands in them as it is, beside letters and digits."""


def split_uri(uri: str) -> tuple[str, str]:
    """Split an object's URI into (root, key): `s3://b/a/x.svs` -> (`s3://b/a`, `x.svs`).

    Raises SettingsError for a URI that names no object, or carries credentials or a signature.
    """
    refuse_secrets(uri)
    trimmed = uri.rstrip("/")
    root, slash, key = trimmed.rpartition("/")
    if "://" not in trimmed:
        return (root or ("/" if slash else "."), key)
    if root.endswith(":/") or not key:
        raise SettingsError(f"{shown_uri(uri)} names no object: give scheme://bucket/path/name.")
    return root, unquote(key) if uri.startswith(WEB) else key


def shown_uri(uri: str) -> str:
    """The URI without user name, password, query or fragment: fit for logs and files."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    path = path.partition("?")[0] if scheme in ("http", "https") else path
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def quoted(path: str) -> str:
    """A path as it stands in a web server's URI."""
    return quote(path, safe=PLAIN)


def refuse_secrets(uri: str) -> None:
    """Raise SettingsError for a URI that must not be repeated, kept or sent to a worker."""
    scheme, mark, rest = uri.partition("://")
    web = scheme in ("http", "https")
    if mark and ("@" in rest.partition("/")[0] or (web and "?" in rest) or holds_secret(uri)):
        raise SettingsError(
            f"{shown_uri(uri)} carries credentials or a signature: "
            "give them through the environment, never in a URI."
        )
