"""Fixtures that more than one test file uses: real slides, S3 servers, a local Ray."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from tests.servers import azurite
from tests.servers import ceph as ceph_server
from tests.servers.azurite import AzureServer, Azurite
from tests.servers.ceph import CephCluster
from tests.servers.moto import MotoServer
from tests.servers.s3 import S3Server
from tests.servers.tls import write_authority

ROOT = Path(__file__).resolve().parent.parent
OBJECT_STORE_BYTES = 1 << 30

# Before anything imports ray: no usage reports, no notice about GPUs it does not hide.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# What a busy machine makes slow is not wrong.
settings.register_profile("historay", deadline=None)
settings.load_profile("historay")


REAL_SLIDES = Path(os.environ.get("HISTORAY_SLIDES") or ROOT.parent / "shared" / "slides")
"""The folder of real slides beside the repository, or where HISTORAY_SLIDES says."""


@pytest.fixture(scope="session")
def real_slides() -> Path:
    """The folder of real slides; without it the test is skipped, or fails."""
    if not REAL_SLIDES.is_dir():
        _absent("HISTORAY_REQUIRE_SLIDES", f"no real slides at {REAL_SLIDES}: set HISTORAY_SLIDES")
    return REAL_SLIDES


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto for the whole session; `s3` is what a test asks for."""
    moto = MotoServer(tmp_path_factory.mktemp("moto") / "moto.log")
    yield moto.start()
    moto.stop()


@pytest.fixture(scope="session")
def java() -> None:
    """A Java runtime; without it the test is skipped, or fails. Mark the test `java`."""
    if shutil.which("java") is None:
        _absent("HISTORAY_REQUIRE_JAVA", "no java here: apt-get install default-jre-headless")


@pytest.fixture(scope="session")
def ceph_cluster() -> Iterator[CephCluster]:
    """Ceph for the whole session; for tests that kill its gateway and start it again."""
    if programs := ceph_server.missing():
        _absent("HISTORAY_REQUIRE_CEPH", f"no {', '.join(programs)} here: {ceph_server.INSTALL}")
    cluster = CephCluster()
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """Azurite for the whole session. Mark the test `azurite`."""
    if azurite.missing():
        _absent("HISTORAY_REQUIRE_AZURITE", f"no {azurite.PROGRAM} here: {azurite.INSTALL}")
    server = Azurite(tmp_path_factory.mktemp("azurite"))
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificates of our own: (the one to trust, the one that `https` serves with)."""
    return write_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def s3(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """moto, with the environment pointing at it."""
    return _pointed_at(moto_server, monkeypatch)


@pytest.fixture
def ceph(ceph_cluster: CephCluster, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Ceph's gateway, with the environment pointing at it. Mark the test `ceph`."""
    return _pointed_at(ceph_cluster.server, monkeypatch)


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """The test runs twice: on moto and on Ceph's gateway."""
    server: S3Server = request.getfixturevalue("s3" if request.param == "moto" else "ceph")
    return server


@pytest.fixture(scope="session")
def ray_cluster(moto_server: S3Server) -> Iterator[None]:
    """A local Ray of two CPUs, whatever the host has; its workers see moto as their S3.

    Workers take their environment when they start, so a test that wants another server
    runs the `historay` command in a process of its own.
    """
    import ray  # noqa: PLC0415  (seconds to import: only tests that use it pay)

    with pytest.MonkeyPatch.context() as environment:
        _pointed_at(moto_server, environment)
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=False,
        )
        yield
        ray.shutdown()


def _pointed_at(server: S3Server, environment: pytest.MonkeyPatch) -> S3Server:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        environment.delenv(name, raising=False)
    for name, value in server.env.items():
        environment.setenv(name, value)
    return server


def _absent(requirement: str, reason: str) -> NoReturn:
    """Skip, or fail where `requirement` is set: CI must not skip what it came for."""
    if os.environ.get(requirement) == "1":
        pytest.fail(f"{requirement}=1, but {reason}")
    pytest.skip(reason)
