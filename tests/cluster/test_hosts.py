"""A cluster of hosts with addresses of their own, one of which is cut off in mid-job."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ray_pipeline.synthetic import write_slide
from tests.commands import historay
from tests.servers.hosts import Host, network
from tests.servers.moto import MotoServer
from tests.servers.s3 import S3Server

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COMMAND = "ray job submit --working-dir . -- python -m ray_pipeline embed --config job.yaml"
"""As the README tells it."""
README = (ROOT / "README.md").read_text()
HEAD_ADDRESS, OTHER_ADDRESS = "10.0.0.1", "10.0.0.2"
"""As the README tells them."""
PORT, DASHBOARD = 6379, 8265
SLIDES = 6
DEADLINE_S = 300
NODES = (
    ("--num-cpus", "0"),
    ("--num-cpus", "2", "--resources", '{"device": 1}'),
    ("--num-cpus", "1"),
    ("--num-cpus", "1"),
)
"""A head that does no work, one node that may hold encoders, and two that feed it."""
JOB = """\
slides: {slides}/
output: {output}
model: toy
encoder_resource: device
encoder_cpus: 1
readers: 3
reader_cpus: 0.5
"""
ALIVE = (
    "import json, ray; ray.init(logging_level=50); print(json.dumps(sorted("
    "node['NodeManagerAddress'] for node in ray.nodes() if node['Alive'])))"
)


class Cluster:
    """Ray on the hosts of a network: the head on the first one."""

    def __init__(self, hosts: tuple[Host, ...], env: Mapping[str, str]) -> None:
        self.head, *self.others = hosts
        # Short: sockets lie there.
        self._folder, *self._disks = (
            Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")) for _ in hosts
        )
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            **env,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_ADDRESS": f"{self.head.address}:{PORT}",
            "RAY_API_SERVER_ADDRESS": f"http://{self.head.address}:{DASHBOARD}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # A node that is gone is found out in seconds instead of half a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
        }

    def start(self, nodes: Sequence[tuple[str, ...]]) -> None:
        """The head, then all others one by one, with these options; each is waited for."""
        head, *others = nodes
        self._start(
            self.head,
            *_told("ray start --head"),
            *("--port", str(PORT), "--no-monitor"),
            *("--dashboard-host", self.head.address, "--dashboard-port", str(DASHBOARD)),
            *("--temp-dir", str(self._folder), *head),
        )
        for host, options, disk in zip(self.others, others, self._disks, strict=True):
            self._start(host, *_told("ray start --address"), *options, disk=disk)

    def run(self, *words: str, timeout_s: float = DEADLINE_S) -> str:
        """Standard output of a command on the head's host; it must end well."""
        done = subprocess.run(
            self.head.command(*words),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def alive(self) -> list[str]:
        """Addresses of the nodes that Ray holds for alive."""
        addresses: list[str] = json.loads(self.run(sys.executable, "-c", ALIVE).splitlines()[-1])
        return addresses

    def end(self) -> None:
        """Kill all that runs on the hosts, and remove logs and sockets."""
        for host in (self.head, *self.others):
            host.kill_all()
        for node in self._nodes:
            node.wait()
        for folder in (self._folder, *self._disks):
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, host: Host, *words: str, disk: Path | None = None) -> None:
        """Run it there until it says that it runs. Its files lie on `disk`, if that is given.

        Ray has all nodes use the head's path, and each first removes what is there of a job's code.
        """
        log = self._folder / f"{host.name}.log"
        addresses = {HEAD_ADDRESS: self.head.address, OTHER_ADDRESS: host.address}
        for told, real in addresses.items():
            words = tuple(word.replace(told, real) for word in words)
        with log.open("w") as file:
            process = subprocess.Popen(
                host.command(
                    *words,
                    *("--object-store-memory", str(512 << 20), "--block"),
                    disk=disk,
                    at=self._folder,
                ),
                env=self.env | {"RAY_ADDRESS": ""},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self._nodes.append(process)
        deadline = time.monotonic() + DEADLINE_S
        while "will now block" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def _told(start: str) -> list[str]:
    """The README's one command that begins so."""
    (line,) = [line for line in README.splitlines() if line.startswith(start)]
    return line.partition("#")[0].split()


@contextmanager
def moto_at(address: str, log: Path) -> Iterator[S3Server]:
    moto = MotoServer(log, host=address)
    yield moto.start()
    moto.stop()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_host_makes_what_one_machine_makes(tmp_path: Path) -> None:
    with network(len(NODES)) as hosts, moto_at(hosts.address, tmp_path / "moto.log") as s3:
        bucket = s3.bucket()
        put_slides(s3, bucket, tmp_path / "slides")
        cluster = Cluster(hosts.hosts, s3.env)
        try:
            cluster.start(NODES)
            assert cluster.alive() == sorted(host.address for host in hosts.hosts)
            job = submit(cluster, tmp_path, bucket)
            wait_for_a_fragment(s3, bucket, job)
            lost = cluster.others[-1]
            lost.cut_off()
            told, _ = job.communicate(timeout=DEADLINE_S)
            assert job.returncode == 0, told
            assert f"{SLIDES} slides done" in told
            assert lost.address not in cluster.alive()
        finally:
            cluster.end()
        alone = f"{bucket}/alone"
        slides = ("--slides", f"{bucket}/slides/", "--output", alone, "--model", "toy")
        # As many threads: sums of floats depend on how they are split.
        done = historay("embed", *slides, "--encoder-cpus", "1", env=s3.env)
        assert done.code == 0, done.stderr
        assert_frame_equal(rows(s3, f"{bucket}/out"), rows(s3, alone), check_exact=True)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_commit_that_waits_for_a_host_that_is_gone_is_given_to_another(tmp_path: Path) -> None:
    with network(2) as hosts:
        cluster = Cluster(hosts.hosts, {})
        try:
            cluster.start([("--num-cpus", "1"), ("--num-cpus", "1")])
            command = [sys.executable, "-m", "tests.cluster.lost_commit", str(tmp_path / "out")]
            with subprocess.Popen(
                cluster.head.command(*command),
                env=cluster.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                try:
                    assert process.stdout is not None
                    assert process.stdout.readline() == "ready\n"
                    cluster.others[0].freeze()
                    told, errors = process.communicate("\n", timeout=DEADLINE_S)
                finally:
                    process.kill()
        finally:
            cluster.end()
    assert told.splitlines()[-1:] == ["done"], errors


def put_slides(s3: S3Server, bucket: str, folder: Path) -> None:
    folder.mkdir()
    for number in range(SLIDES):
        path = folder / f"{number}.svs"
        write_slide(path, width_px=6144, height_px=6144, seed=number)
        s3.client().upload_file(str(path), bucket.removeprefix("s3://"), f"slides/{number}.svs")


def submit(cluster: Cluster, folder: Path, bucket: str) -> subprocess.Popen[str]:
    """The README's command, from outside of the cluster."""
    job = folder / "job"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ray_pipeline", job / "ray_pipeline", ignore=ignored)
    (job / "job.yaml").write_text(JOB.format(slides=f"{bucket}/slides", output=f"{bucket}/out"))
    return subprocess.Popen(
        COMMAND.split(),
        cwd=job,
        env=cluster.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_a_fragment(s3: S3Server, bucket: str, job: subprocess.Popen[str]) -> None:
    client, deadline = s3.client(), time.monotonic() + DEADLINE_S
    while True:
        listed = client.list_objects_v2(Bucket=bucket.removeprefix("s3://"), Prefix="out/_state/")
        if any("/staging/" in each["Key"] for each in listed.get("Contents", [])):
            return
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def rows(s3: S3Server, output: str) -> pl.DataFrame:
    """All tiles of an output, in order."""
    options = {
        "aws_endpoint_url": s3.endpoint_url,
        "aws_access_key_id": s3.access_key,
        "aws_secret_access_key": s3.secret_key,
        "aws_region": s3.env["AWS_REGION"],
        "aws_allow_http": "true",
    }
    found = pl.scan_parquet(
        f"{output}/embeddings/**/*.parquet", storage_options=options, hive_partitioning=False
    )
    return found.sort("slide_id", "tile").collect()
