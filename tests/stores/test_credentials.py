"""Who asks: roles, shared signatures, those who pay, encrypt, or have no credentials at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from ray_pipeline.errors import AccessError
from ray_pipeline.store import Store
from tests.servers.azurite import AzureServer
from tests.servers.ceph import KMS_KEY, CephCluster
from tests.servers.google import EVERYONE, Access
from tests.servers.memory import MemoryBucket, serving
from tests.servers.moto import MotoServer
from tests.servers.s3 import REGION, S3Server
from tests.servers.tls import https


@pytest.mark.ceph
def test_the_requester_pays(
    ceph: S3Server, ceph_cluster: CephCluster, unset: pytest.MonkeyPatch
) -> None:
    bucket = ceph.bucket()
    owner = ceph.client()
    name = bucket.removeprefix("s3://")
    owner.put_object(Bucket=name, Key="x", Body=b"0123")
    owner.put_bucket_request_payment(
        Bucket=name, RequestPaymentConfiguration={"Payer": "Requester"}
    )
    owner.close()
    user = ceph_cluster.user()
    ceph_cluster.grant(user, allowing(name, "s3:GetObject"))
    unset.setenv("AWS_ACCESS_KEY_ID", user.access_key)
    unset.setenv("AWS_SECRET_ACCESS_KEY", user.secret_key)
    with pytest.raises(AccessError):
        Store.open(bucket).get("x")
    unset.setenv("AWS_REQUEST_PAYER", "requester")
    assert Store.open(bucket).get("x") == b"0123"


@pytest.mark.ceph
def test_what_is_written_is_encrypted_by_the_key_that_is_named(
    ceph: S3Server, unset: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = ceph.bucket()
    unset.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    unset.setenv("AWS_SSE_KMS_KEY_ID", KMS_KEY)
    store = Store.open(bucket)
    etag = store.put("x", b"0123", if_absent=True)
    store.put("x", b"01234567", if_match=etag)
    (tmp_path / "local").write_bytes(b"from a file")
    store.put_file("y", tmp_path / "local")
    client = ceph.client()
    for key in ("x", "y"):
        told = client.head_object(Bucket=bucket.removeprefix("s3://"), Key=key)
        assert (told["ServerSideEncryption"], told["SSEKMSKeyId"]) == ("aws:kms", KMS_KEY)
    client.close()
    assert bytes(store.get_range("x", 2, 3, etag=store.head("x").etag)) == b"234"


def allowing(bucket: str, *actions: str, to: Any = None) -> dict[str, Any]:
    """A policy of a bucket, or of a user."""
    arn = f"arn:aws:s3:::{bucket}"
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": [arn, f"{arn}/*"]}
    return {
        "Version": "2012-10-17",
        "Statement": [statement | ({"Principal": to} if to else {})],
    }


def _no_credentials(unset: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"):
        unset.delenv(name, raising=False)
    for name in ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"):
        unset.delenv(name, raising=False)


def _reads_without_credentials(uri: str, unset: pytest.MonkeyPatch, variable: str) -> None:
    """By the cloud's variable, and by ours for that bucket alone."""
    _no_credentials(unset)
    root = "/".join(uri.split("/")[:3])
    for name, value in (
        (variable, "true"),
        ("HISTORAY_STORES", f'{{"{root}": {{"anonymous":true}}}}'),
    ):
        unset.setenv(name, value)
        store = Store.open(uri)
        (info,) = store.list()
        assert bytes(store.get_range(info.key, 1, 2, etag=info.etag)) == b"12"
        unset.delenv(name)


@pytest.mark.ceph
def test_a_public_bucket_of_s3_wants_no_credentials(
    ceph: S3Server, unset: pytest.MonkeyPatch
) -> None:
    bucket = ceph.bucket()
    owner, name = ceph.client(), bucket.removeprefix("s3://")
    owner.put_object(Bucket=name, Key="x", Body=b"0123")
    public = allowing(name, "s3:GetObject", "s3:ListBucket", to="*")
    owner.put_bucket_policy(Bucket=name, Policy=json.dumps(public))
    owner.close()
    _reads_without_credentials(bucket, unset, "AWS_SKIP_SIGNATURE")


def test_a_public_bucket_of_google_wants_no_credentials(
    google: Access, unset: pytest.MonkeyPatch
) -> None:
    (email,) = google.accounts
    google.roles["writer"] = frozenset({"storage.objects.create"})
    google.roles["reader"] = frozenset({"storage.objects.get", "storage.objects.list"})
    google.bindings[""] = [
        {"role": "writer", "members": [f"serviceAccount:{email}"]},
        {"role": "reader", "members": [EVERYONE]},
    ]
    Store.open("gs://public").put("x", b"0123")
    _reads_without_credentials("gs://public", unset, "GOOGLE_SKIP_SIGNATURE")


@pytest.mark.azurite
def test_a_public_container_of_azure_wants_no_credentials(
    azure: AzureServer, unset: pytest.MonkeyPatch
) -> None:
    container = azure.container(public=True)
    Store.open(container).put("x", b"0123")
    _reads_without_credentials(container, unset, "AZURE_SKIP_SIGNATURE")


@pytest.mark.azurite
def test_azure_names_the_permission_that_a_signature_lacks(
    azure: AzureServer, unset: pytest.MonkeyPatch
) -> None:
    container = azure.container()
    store = Store.open(container)
    store.put("x", b"0123")
    acts: Mapping[str, tuple[str, Any]] = {
        "r": ("read", lambda: store.get_range("x", 0, 1)),
        "l": ("read", lambda: list(store.list())),
        "w": ("write", lambda: store.put("x", b"0")),
        "d": ("delete", lambda: store.delete(["x"])),
    }
    unset.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    for missing, (permission, act) in acts.items():
        signature = azure.shared_access(container, "rlwd".replace(missing, ""))
        unset.setenv("AZURE_STORAGE_SAS_TOKEN", signature)
        store = Store.open(container)
        with pytest.raises(AccessError, match=f"blobs/{permission} on {container}") as caught:
            act()
        assert signature.rpartition("sig=")[2] not in str(caught.value)


@pytest.mark.azurite
def test_azures_wrong_keys_are_told(azure: AzureServer, unset: pytest.MonkeyPatch) -> None:
    unset.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMmh1bnRlcjI=")
    with pytest.raises(AccessError, match="AZURE_STORAGE_ACCOUNT_KEY") as caught:
        list(Store.open(azure.container()).list())
    assert "aHVudGVy" not in str(caught.value)


class _Exchange(MemoryBucket):
    """AWS takes an exchange's parameters from the URL too, moto from the body only."""

    moto: ClassVar[str]

    def delete(self) -> None:
        """What is posted."""
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        asked = Request(self.moto, urlsplit(self.path).query.encode(), form)
        with urlopen(asked) as reply:
            self.answer(HTTPStatus.OK, reply.read())


def test_a_role_is_assumed_by_web_identity(
    tmp_path: Path, authority: tuple[Path, Path], unset: pytest.MonkeyPatch
) -> None:
    """On a server that from then on checks the role's keys, its session's token and its policy."""
    moto = MotoServer(tmp_path / "moto.log")
    server = moto.start()
    try:
        bucket = server.bucket()
        name = bucket.removeprefix("s3://")
        server.client().put_object(Bucket=name, Key="x", Body=b"0123")
        identities = server.client("iam")
        role = identities.create_role(RoleName="job", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        policy = json.dumps(allowing(name, "s3:GetObject"))
        identities.put_role_policy(RoleName="job", PolicyName="p", PolicyDocument=policy)
        _no_credentials(unset)
        (tmp_path / "token").write_text("a token of the cluster's")
        unset.setenv("SSL_CERT_FILE", str(authority[0]))
        with (
            serving(_Exchange, moto=server.endpoint_url) as plain,
            https(plain, authority[1]) as sts,
        ):
            for variable, value in {
                "AWS_ENDPOINT_URL": server.endpoint_url,
                "AWS_ENDPOINT_URL_STS": sts,
                "AWS_REGION": REGION,
                "AWS_ROLE_ARN": role,
                "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
            }.items():
                unset.setenv(variable, value)
            # The exchange is asked for without a signature, and all after it is checked.
            reset = f"{server.endpoint_url}/moto-api/reset-auth"
            urlopen(Request(reset, b"1", {"Content-Type": "text/plain"})).close()
            assert Store.open(bucket).get("x") == b"0123"
            with pytest.raises(AccessError, match=f"^s3:PutObject on {bucket}/y is refused"):
                Store.open(bucket).put("y", b"")
    finally:
        moto.stop()
