"""Azurite, Microsoft's emulator of Azure Blob Storage, in memory on a free loopback port."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from tests.servers.moto import answers
from tests.servers.s3 import free_port

PROGRAM = "azurite-blob"
INSTALL = "npm install --global azurite@3.35.0"
"""Later ones want a newer Node than Debian has."""
ACCOUNT = "historay"
KEY = base64.b64encode(b"a key of the tests, worth nothing").decode()
API_VERSION = "2021-12-02"
START_TIMEOUT_S = 60.0


def missing() -> bool:
    """Whether it is not on this machine's PATH."""
    return shutil.which(PROGRAM) is None


@dataclass(frozen=True, kw_only=True)
class AzureServer:
    """A running server, and the key to its one account."""

    endpoint_url: str
    """`http://127.0.0.1:PORT/ACCOUNT`."""

    @property
    def env(self) -> dict[str, str]:
        """The environment variables by which obstore finds this server."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.endpoint_url,
        }

    def container(self, *, public: bool = False) -> str:
        """Create a container of a new name, whose blobs anyone may read and list where `public`."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": API_VERSION}
        if public:
            headers["x-ms-blob-public-access"] = "container"
        told = "".join(f"{header}:{headers[header]}\n" for header in sorted(headers))
        # Shared Key of the Blob service: the verb, eleven empty standard headers, ours, the name.
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        signed = hmac.digest(
            base64.b64decode(KEY),
            ("PUT" + "\n" * 12 + told + resource).encode(),
            hashlib.sha256,
        )
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}"
        url = urlsplit(self.endpoint_url)
        connection = http.client.HTTPConnection(url.netloc, timeout=30)
        try:
            path = f"{url.path}/{name}?restype=container"
            connection.request("PUT", path, headers={**headers, "Content-Length": "0"})
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        if reply.status != http.client.CREATED:
            raise RuntimeError(f"no container: {reply.status} {text}")
        return f"az://{name}"

    def shared_access(self, container: str, permissions: str) -> str:
        """A signature that allows that much of a container for an hour, such as `rl`."""
        name, until = container.removeprefix("az://"), time.gmtime(time.time() + 3600)
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", until)
        told = [permissions, "", expires, f"/blob/{ACCOUNT}/{name}", "", "", "", API_VERSION, "c"]
        told += [""] * 7
        signed = hmac.digest(base64.b64decode(KEY), "\n".join(told).encode(), hashlib.sha256)
        signature = base64.b64encode(signed).decode()
        parameters = {"sp": permissions, "se": expires, "sv": API_VERSION, "sr": "c"}
        return urlencode({**parameters, "sig": signature})


class Azurite:
    """The emulator, from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        """Keep the server's log in `folder`."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> AzureServer:
        """Start it and wait for its first answer. Raises RuntimeError with the log's end."""
        port, log = free_port(), self._folder / "azurite.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    *(PROGRAM, "--inMemoryPersistence", "--skipApiVersionCheck"),
                    *("--disableTelemetry", "--silent"),
                    *("--blobHost", "127.0.0.1", "--blobPort", str(port)),
                ],
                cwd=self._folder,
                env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(f"http://127.0.0.1:{port}/{ACCOUNT}"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"Azurite did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        return AzureServer(endpoint_url=f"http://127.0.0.1:{port}/{ACCOUNT}")

    def stop(self) -> None:
        """Kill it and wait for its end; its blobs are gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
