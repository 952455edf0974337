"""An empty place in each kind of store, with the environment pointing at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_pipeline.store import Store
from tests.servers.azurite import AzureServer
from tests.servers.google import Access, ServiceAccount, google_bucket
from tests.servers.ranges import RangeServer
from tests.servers.s3 import S3Server
from tests.servers.tls import https

BUCKET_ROLE = "tests"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one kind of store is tried."""

    row: str
    """Its name in the README's table."""
    root: str
    """URI; nothing lies there."""
    folder: Path | None = None
    """What the web server serves there."""

    def lay(self, key: str, data: bytes) -> None:
        """Have an object there."""
        if self.folder is None:
            Store.open(self.root).put(key, data)
            return
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of a cloud is set."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_SKIP_SIGNATURE", "HISTORAY_STORES"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture(scope="session")
def account() -> ServiceAccount:
    """Of Google's kind; making its key takes a moment."""
    return ServiceAccount("historay@lab.iam.gserviceaccount.com")


@pytest.fixture
def google(account: ServiceAccount, unset: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Access]:
    """A bucket of Google's, and the environment with the account's key: nobody may do anything."""
    access = Access(accounts={account.email: account})
    account.write_key(tmp_path / "account.json")
    unset.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    with google_bucket(access) as url:
        unset.setenv("GOOGLE_BASE_URL", url)
        yield access


@pytest.fixture
def azure(azure_server: AzureServer, unset: pytest.MonkeyPatch) -> AzureServer:
    """Azurite, with the environment pointing at it. Mark the test `azurite`."""
    for name, value in azure_server.env.items():
        unset.setenv(name, value)
    return azure_server


@pytest.fixture(scope="session")
def web_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the web server serves."""
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="session")
def web_server(web_folder: Path, authority: tuple[Path, Path]) -> Iterator[str]:
    """`https://127.0.0.1:PORT`, over the folder."""
    with RangeServer(web_folder) as server, https(server.endpoint, authority[1]) as url:
        yield url


@pytest.fixture(
    params=[
        "folder",
        "moto",
        pytest.param("ceph", marks=pytest.mark.ceph),
        "google",
        pytest.param("azurite", marks=pytest.mark.azurite),
        "web",
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The test runs once for each kind of store."""
    kind = request.param
    if kind == "folder":
        return Place(row="a folder", root=str(tmp_path / "root"))
    if kind in ("moto", "ceph"):
        server: S3Server = request.getfixturevalue("s3" if kind == "moto" else "ceph")
        return Place(row="`s3://`", root=f"{server.bucket()}/root")
    if kind == "google":
        access: Access = request.getfixturevalue("google")
        every = ("get", "list", "create", "delete")
        access.roles[BUCKET_ROLE] = frozenset(f"storage.objects.{verb}" for verb in every)
        (email,) = access.accounts
        access.bindings[""] = [{"role": BUCKET_ROLE, "members": [f"serviceAccount:{email}"]}]
        return Place(row="`gs://`", root="gs://a-bucket/root")
    if kind == "azurite":
        azure: AzureServer = request.getfixturevalue("azure")
        return Place(row="`az://`", root=f"{azure.container()}/root")
    url, folder = request.getfixturevalue("web_server"), request.getfixturevalue("web_folder")
    unset: pytest.MonkeyPatch = request.getfixturevalue("unset")
    unset.setenv("SSL_CERT_FILE", str(request.getfixturevalue("authority")[0]))
    name = tmp_path.name
    return Place(row="`https://`", root=f"{url}/{name}", folder=folder / name)
