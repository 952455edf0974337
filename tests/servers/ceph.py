"""A whole Ceph on one machine: a monitor, one object store daemon in memory, and the S3 gateway.

It keeps nothing on disk beyond the monitor's few megabytes, listens on loopback only, and needs
no privileges. The daemons are children of this process and end with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.servers.moto import answers
from tests.servers.s3 import S3Server, free_port

PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"
INSTALL = f"apt-get update && apt-get install -y --no-install-recommends {PACKAGES}"
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")

START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 5
"""How long a command waits for the monitor, whole seconds, before it is asked whether that runs."""
STOP_TIMEOUT_S = 20.0
ACCESS_KEY, SECRET_KEY = "historay-test-key", "historay-test-secret"
KMS_KEY = "historay-test-kms"
"""The one key of the key service that the gateway plays itself."""

# One replica on one host with authentication between the daemons off: what a test may do and
# no one else should. Socket paths must stay short (108 bytes), so the folder is in /tmp.
# `monmap`, with --no-mon-config: a client that asks the monitor for its first map may send
# a command before the map is there, and is refused for its "wrong fsid" (seen often).
CONF = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
monmap = {folder}/monmap
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
ms bind msgr2 = false
mon allow pool size one = true
mon warn on pool no redundancy = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
keyring = {folder}/keyring
[mon.a]
mon data = {folder}/mon
mon data avail crit = 1
mon addr = 127.0.0.1:{mon_port}
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {memory_bytes}
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw thread pool size = 64
rgw data = {folder}/rgw
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = {kms_key}=dGhlIHRlc3RzJyBvd24ga2V5LCBvZiAyNTYgYml0cyE=
debug rgw = 0
"""


def missing() -> list[str]:
    """The programs of Ceph that are not on this machine."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class CephCluster:
    """Starts and stops the daemons; the gateway can be killed and started again by itself."""

    def __init__(self, *, memory_bytes: int = 2 << 30) -> None:
        """`memory_bytes`: what the object store may hold, taken as it fills."""
        self._folder = Path(tempfile.mkdtemp(prefix="hr-ceph-", dir="/tmp"))
        self._memory_bytes = memory_bytes
        self._rgw_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def server(self) -> S3Server:
        """The gateway's address and keys."""
        return S3Server(
            name="ceph",
            endpoint_url=f"http://127.0.0.1:{self._rgw_port}",
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
        )

    def start(self) -> S3Server:
        """Start everything, about ten seconds. Raises RuntimeError with the logs' ends."""
        try:
            self._start_storage()
            self.start_gateway()
        except BaseException:
            self.stop()
            raise
        return self.server

    def start_gateway(self) -> None:
        """Start the S3 gateway and wait for its first answer."""
        self._spawn("client.rgw", "radosgw", "-n", "client.rgw")
        self._wait("client.rgw", lambda: answers(self.server.endpoint_url))

    def user(self) -> S3Server:
        """The gateway as somebody new sees it, who may do nothing with buckets of others."""
        name = f"user-{uuid.uuid4().hex[:12]}"
        secret = uuid.uuid4().hex
        keys = ["--access-key", name, "--secret-key", secret]
        self._run(
            *("radosgw-admin", "user", "create", "--uid", name, "--display-name", name),
            *(*keys, "--no-mon-config"),
        )
        return replace(self.server, access_key=name, secret_key=secret)

    def grant(self, user: S3Server, policy: Mapping[str, Any]) -> None:
        """Let `user` do what the policy says, and nothing else."""
        identities = self.server.client("iam")
        identities.put_user_policy(
            UserName=user.access_key, PolicyName="tests", PolicyDocument=json.dumps(policy)
        )
        identities.close()

    def kill_gateway(self) -> None:
        """SIGKILL the gateway, as a crash would; objects stay in the store behind it."""
        process = self._processes.pop("client.rgw")
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End all daemons, wait for their end, and remove the folder."""
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_storage(self) -> None:
        folder, fsid, mon_port = self._folder, str(uuid.uuid4()), free_port()
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        (folder / "ceph.conf").write_text(
            CONF.format(
                fsid=fsid,
                folder=folder,
                mon_port=mon_port,
                rgw_port=self._rgw_port,
                kms_key=KMS_KEY,
                memory_bytes=self._memory_bytes,
            )
        )
        keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
        mon_caps = ["--cap", "mon", "allow *"]
        all_caps = [*mon_caps, "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        create = ["ceph-authtool", keyring, "--gen-key"]
        self._run(*create, "--create-keyring", "-n", "mon.", *mon_caps)
        self._run(*create, "-n", "client.admin", *all_caps)
        address = f"v1:127.0.0.1:{mon_port}"
        self._run(
            "monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, monmap
        )
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("mon.a", "ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._wait("mon.a", lambda: self._ceph("osd", "new", osd) == "0\n")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "--no-mon-config")
        self._spawn("osd.0", "ceph-osd", "-i", "0")
        self._wait("osd.0", lambda: "1 up" in self._ceph("osd", "stat"))
        user = ["user", "create", "--uid", "test", "--display-name", "test"]
        keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
        caps = ["--caps", "user-policy=*"]
        self._run("radosgw-admin", *user, *keys, *caps, "--no-mon-config")

    def _ceph(self, *command: str) -> str:
        """What the monitor answers; nothing where it does not, or refuses for now."""
        try:
            return self._run("ceph", "--connect-timeout", str(ANSWER_TIMEOUT_S), *command)
        except RuntimeError:
            return ""

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self._env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return done.stdout

    def _spawn(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as out:
            self._processes[name] = subprocess.Popen(
                [*command, "-f", "--no-mon-config"],
                env=self._env(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                said = (self._folder / f"{name}.{kind}" for kind in ("log", "out"))
                out = "".join(file.read_text(errors="replace") for file in said if file.exists())
                raise RuntimeError(f"Ceph's {name} did not start:\n{out[-2000:]}")
            time.sleep(0.1)

    def _env(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self._folder / "ceph.conf")}
