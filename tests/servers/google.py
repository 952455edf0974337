"""Google Cloud Storage's XML API with its access control: signed tokens, roles, managed folders.

As strict as the cloud where it matters here: a token's signature, issuer and age are checked, each
request needs the permission that Google's table of XML methods names, a role counts below the
managed folder it is bound to, what is absent is told to nobody who may not list, and a request
that it does not know is refused.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as ET

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.servers.buckets import Bucket, Stored
from tests.servers.gcs import GcsBucket
from tests.servers.local_http import error_xml
from tests.servers.memory import etag, serving

Permission = Literal[
    "storage.objects.get",
    "storage.objects.list",
    "storage.objects.create",
    "storage.objects.delete",
]
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
EVERYONE = "allUsers"
LIST_PARAMETERS = {"list-type", "prefix", "delimiter", "start-after", "continuation-token"}


class ServiceAccount:
    """Somebody with a key of their own."""

    def __init__(self, email: str) -> None:
        self.email = email
        """Its name."""
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.public_key = self._key.public_key()
        """By which its tokens are checked."""

    def write_key(self, path: Path) -> None:
        """The file that GOOGLE_APPLICATION_CREDENTIALS names."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        told = {
            "type": "service_account",
            "client_email": self.email,
            "private_key": pem.decode(),
            "private_key_id": "1",
        }
        path.write_text(json.dumps(told))


@dataclass
class Access:
    """Who may do what below which folder; a test changes it while the server runs."""

    accounts: dict[str, ServiceAccount] = field(default_factory=dict)
    """By their emails."""
    roles: dict[str, frozenset[str]] = field(default_factory=dict)
    """name -> permissions."""
    bindings: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """managed folder, such as `slides/`, or "" for the bucket -> bindings of its policy."""

    def allows(self, who: str, permission: Permission, name: str) -> bool:
        """Whether a role of a folder above `name`, an object's or a listing's prefix, has it."""
        return any(
            name.startswith(folder)
            and permission in self.roles[binding["role"]]
            and bool({who, EVERYONE} & set(binding["members"]))
            for folder, bindings in self.bindings.items()
            for binding in bindings
        )


class _Guarded(GcsBucket):
    access: ClassVar[Access]
    uploads: ClassVar[dict[str, tuple[str, dict[int, bytes]]]]

    def read(self) -> None:
        """Read an object or a part of it, or list the bucket."""
        query = self.query()
        if self.name:
            if self.may({"storage.objects.get": self.name}):
                super().read()
        elif set(query) - LIST_PARAMETERS or query.get("list-type") != "2":
            self.refuse(HTTPStatus.BAD_REQUEST, "InvalidArgument")
        elif self.may({"storage.objects.list": query.get("prefix", "")}):
            listed = Bucket()
            for name, (_, data) in list(self.objects.items()):
                listed.put(name, Stored(etag(data), len(data), None))
            self.answer(HTTPStatus.OK, listed.page(query))

    def put(self, data: bytes) -> None:
        """Write an object, or a part of one."""
        query, upload = self.query(), self.query().get("uploadId", "")
        if not self.may_write():
            return
        if not query:
            super().put(data)
        elif set(query) == {"partNumber", "uploadId"} and upload in self.uploads:
            self.uploads[upload][1][int(query["partNumber"])] = data
            self.answer(HTTPStatus.OK, headers={"ETag": f'"{etag(data)}"'})
        else:
            self.refuse(HTTPStatus.BAD_REQUEST, "InvalidArgument")

    def delete(self) -> None:
        """Delete an object; or what else is posted: the beginning and the end of uploads."""
        if self.command == "POST":
            self.upload(self.body())
        elif self.may({"storage.objects.delete": self.name}):
            super().delete()

    def upload(self, body: bytes) -> None:
        """Begin an upload in parts, or complete it."""
        query, upload = self.query(), self.query().get("uploadId", "")
        if not self.may_write():
            return
        if set(query) == {"uploads"}:
            upload = str(next(self.generations))
            self.uploads[upload] = self.name, {}
            root, told = "InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"
        elif set(query) == {"uploadId"} and self.uploads.get(upload, ("",))[0] == self.name:
            parts = self.uploads.pop(upload)[1]
            numbers = [one.text or "" for one in ET.fromstring(body).iter() if "Number" in one.tag]
            data = b"".join(parts[int(number)] for number in numbers)
            with self.lock:
                self.objects[self.name] = next(self.generations), data
            root, told = "CompleteMultipartUploadResult", f"<ETag>{etag(data)}</ETag>"
        else:
            self.refuse(HTTPStatus.BAD_REQUEST, "InvalidArgument")
            return
        self.answer(HTTPStatus.OK, f"<{root}>{told}</{root}>".encode())

    def may_write(self) -> bool:
        """Creating is not replacing, which deletes what stands there."""
        wanted: dict[Permission, str] = {"storage.objects.create": self.name}
        if self.name in self.objects and self.headers.get("x-goog-if-generation-match") != "0":
            wanted["storage.objects.delete"] = self.name
        return self.may(wanted)

    def may(self, wanted: Mapping[Permission, str]) -> bool:
        """Whether the token's owner has all that; else the refusal is sent."""
        try:
            who = self.owner()
        except ValueError:
            self.refuse(HTTPStatus.UNAUTHORIZED, "AuthenticationRequired")
            return False
        for permission, name in wanted.items():
            if not self.access.allows(who, permission, name):
                self.refuse(
                    HTTPStatus.FORBIDDEN,
                    "AccessDenied",
                    f"{who.removeprefix('serviceAccount:')} does not have {permission} access to "
                    f"the Google Cloud Storage object. Permission '{permission}' denied on "
                    "resource (or it may not exist).",
                )
                return False
            absent = permission == "storage.objects.get" and name not in self.objects
            if absent and not self.access.allows(who, "storage.objects.list", name):
                self.refuse(HTTPStatus.FORBIDDEN, "AccessDenied", "It may not exist.")
                return False
        return True

    def owner(self) -> str:
        """Who signed the token. Raises ValueError for any other."""
        said = self.headers.get("Authorization")
        if said is None:
            return EVERYONE
        kind, _, token = said.partition(" ")
        head, claims, signature = (_decoded(part) for part in token.split("."))
        told = json.loads(claims)
        account = self.access.accounts.get(told["iss"])
        if account is None or kind != "Bearer" or json.loads(head)["alg"] != "RS256":
            raise ValueError("nobody we know")
        now = time.time()
        if told["scope"] != SCOPE or not told["iat"] - 60 <= now <= told["exp"] <= now + 3660:
            raise ValueError("too old, too long, or of another scope")
        try:
            account.public_key.verify(
                signature,
                token.rpartition(".")[0].encode(),
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except InvalidSignature:
            raise ValueError("not signed by whom it names") from None
        return f"serviceAccount:{account.email}"

    def query(self) -> dict[str, str]:
        """Parameters of the request."""
        return dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))

    def refuse(self, status: HTTPStatus, code: str, details: str = "") -> None:
        """Send an error as Google words it; a HEAD's has no body."""
        self.answer(status, error_xml(code, details or status.description))


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@contextmanager
def google_bucket(
    access: Access, objects: Mapping[str, tuple[int, bytes]] = MappingProxyType({})
) -> Iterator[str]:
    """A server on a free loopback port, for GOOGLE_BASE_URL; its one bucket goes by any name.

    `objects` lie there: name -> (generation below 1000, bytes).
    """
    state: dict[str, Any] = {"objects": dict(objects), "generations": count(1000), "lock": Lock()}
    with serving(_Guarded, access=access, uploads={}, **state) as url:
        yield url
