"""How the object stores' errors become ours: one sentence each, naming object, permission, mend."""

from __future__ import annotations

import re

from obstore import exceptions as obstore_errors

from ray_pipeline.errors import (
    AccessError,
    NotFoundError,
    PreconditionError,
    StoreError,
    UnreachableError,
    UnsupportedError,
)

CLIENT_ERRORS = (obstore_errors.BaseError, OSError, ValueError, NotImplementedError)
"""What the clients raise; `translated` makes a StoreError of each."""

_ACCESS = (
    obstore_errors.PermissionDeniedError,
    obstore_errors.UnauthenticatedError,
    PermissionError,
)
_BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"
_PERMISSIONS = {
    "s3": {
        "read": "s3:GetObject",
        "list": "s3:ListBucket",
        "write": "s3:PutObject",
        "delete": "s3:DeleteObject",
    },
    "gs": {
        "read": "storage.objects.get",
        "list": "storage.objects.list",
        "write": "storage.objects.create",
        "delete": "storage.objects.delete",
    },
    "az": {
        "read": f"{_BLOBS}/read",
        "list": f"{_BLOBS}/read",
        "write": f"{_BLOBS}/write",
        "delete": f"{_BLOBS}/delete",
    },
}
"""What a verb needs, by the names under which each cloud grants it."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION, "
    "or the role of this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or this machine's identity",
}
_UNSIGNED = {
    "s3": "AWS_SKIP_SIGNATURE=true",
    "gs": "GOOGLE_SKIP_SIGNATURE=true",
    "az": "AZURE_SKIP_SIGNATURE=true",
}
_THIS_MACHINES_IDENTITY = re.compile(r"//(?:169\.254\.169\.254|metadata\.google\.internal)/")
"""Who is asked where the environment holds no credentials."""
_UNKNOWN_CODES = (
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"),
    *("AuthenticationFailed", "InvalidAuthenticationInfo", "AuthenticationRequired"),
)
_EXPIRED_CODES = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
_REFUSED_CODES = ("AccessDenied", "403", *_UNKNOWN_CODES, *_EXPIRED_CODES)
"""Deletions tell a refusal key by key, and S3 says 400 of tokens."""
_NO_BUCKET_CODES = ("NoSuchBucket", "ContainerNotFound")


def translated(error: Exception, where: str, verb: str, *, scheme: str, bucket: str) -> StoreError:
    """The one place where a client's error becomes ours, by class, then by its words.

    `where` is the object's URI and `verb` what was tried: `read`, `write`, `list` or `delete`.
    Of the words only codes and names of permissions are repeated.
    """
    text = str(error)
    # The status only: a bare "403" also stands in keys, request ids and durations.
    status, code = _first(r"status code: (\d{3})", text), _code(text)
    if isinstance(error, (obstore_errors.AlreadyExistsError, obstore_errors.PreconditionError)):
        return PreconditionError(f"{where} is not in the state this {verb} asked for.")
    refused = isinstance(error, _ACCESS) or status in ("401", "403") or code in _REFUSED_CODES
    if scheme in _CREDENTIALS and (refused or _THIS_MACHINES_IDENTITY.search(text)):
        return _denied(text, where, verb, scheme, unknown=status == "401" or code in _UNKNOWN_CODES)
    if refused:
        what = "the web server" if scheme in ("http", "https") else "the permissions of the folder"
        return AccessError(f"{where} refused to {verb}: check {what}, and that they allow it.")
    if code in _NO_BUCKET_CODES:
        return NotFoundError(f"{where}: there is no bucket '{bucket}'; check its name.")
    if isinstance(error, (obstore_errors.NotFoundError, FileNotFoundError)):
        return NotFoundError(f"{where} does not exist; check the URI.")
    if isinstance(error, NotImplementedError) or status == "501":
        return UnsupportedError(f"{where}: this store does not know conditional writes.")
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return NotFoundError(f"{where} is a folder, not an object; check the URI.")
    if scheme == "file":
        return UnreachableError(
            f"{where}: the file system could not {verb} it; check that what its path names as "
            "folders are some, and that the disk has room."
        )
    return UnreachableError(
        f"{where}: the store gave no usable answer to {verb} after all retries; "
        "check the endpoint and the network, then run again."
    )


def _denied(text: str, where: str, verb: str, scheme: str, *, unknown: bool) -> AccessError:
    """Why a cloud did not let these credentials do it, as far as it tells."""
    mend, code = _CREDENTIALS[scheme], _code(text)
    if code in _EXPIRED_CODES:
        return AccessError(
            f"{where}: the credentials have expired ({code}): get new ones and run again, which "
            "goes on where it stopped."
        )
    if unknown:
        told = f" ({code})" if code else ""
        return AccessError(f"{where}: the store does not take the credentials{told}: check {mend}.")
    if _THIS_MACHINES_IDENTITY.search(text):
        profile = "; AWS_PROFILE is not read" if scheme == "s3" else ""
        return AccessError(
            f"{where}: no credentials found to {verb} it; set {mend}{profile}, or say "
            f"{_UNSIGNED[scheme]} for a public bucket."
        )
    permission = _told_permission(text) or _PERMISSIONS[scheme][verb]
    return AccessError(
        f"{permission} on {where} is refused: grant it (infra/iam has policies), and if that is "
        f"done, check {mend}."
    )


def _code(text: str) -> str:
    """The store's own code: of a reply, or of one key of a deletion."""
    return _first(r"<Code>(\w+)</Code>|\(code: (\w+)\)", text)


def _told_permission(text: str) -> str:
    """The permission that the reply itself names: it may be another one, such as kms:Decrypt."""
    aws = r"not authorized to perform: ([a-z0-9-]{2,20}:[A-Za-z]{3,60})\b"
    google = r"does not have (storage\.[A-Za-z]+\.[A-Za-z]+) access"
    return _first(rf"{aws}|{google}", text)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return next(filter(None, found.groups()), "") if found else ""
