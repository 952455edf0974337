"""The policies for S3 on a server that enforces them: enough, and not one permission too many."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ray_pipeline.errors import AccessError, NotFoundError
from ray_pipeline.store import Store
from tests.servers.ceph import CephCluster
from tests.servers.s3 import S3Server
from tests.stores.policies import filled, permissions, without

pytestmark = pytest.mark.ceph


DATA = b"0123456789"
ETAG = hashlib.md5(DATA).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Three buckets of somebody else's, and the user whom policies are for."""

    words: dict[str, str]
    """placeholder -> what it stands for here."""
    user: S3Server
    """The gateway with the user's keys."""

    def store(self, kind: str) -> Store:
        """The slides' prefix, the output's, or the weights' bucket."""
        prefix = self.words.get(f"{kind}_PREFIX", "models")
        return Store.open(f"s3://{self.words[f'{kind}_BUCKET']}/{prefix}")


@pytest.fixture(scope="module")
def lab(ceph_cluster: CephCluster) -> Lab:
    client, name = ceph_cluster.server.client(), uuid.uuid4().hex[:8]
    words = {f"{kind}_BUCKET": f"{kind.lower()}-{name}" for kind in ("SLIDES", "WEIGHTS", "OUTPUT")}
    words |= {"SLIDES_PREFIX": "lab/cohort", "OUTPUT_PREFIX": "lab/results"}
    words |= {"WEIGHTS_KEY": "models/toy.safetensors"}
    for bucket in (words[name] for name in words if name.endswith("BUCKET")):
        client.create_bucket(Bucket=bucket)
    for kind, keys in {
        "SLIDES": ["lab/cohort/a.svs", "lab/cohort/deep/b.svs", "lab/cohort-private/c.svs"],
        "WEIGHTS": ["models/toy.safetensors", "models/secret.safetensors"],
        "OUTPUT": ["lab/results/standing", "lab/results/cleared", "lab/results-private/x"],
    }.items():
        for key in keys:
            client.put_object(Bucket=words[f"{kind}_BUCKET"], Key=key, Body=DATA)
    client.close()
    return Lab(words=words, user=ceph_cluster.user())


@pytest.fixture(autouse=True)
def environment(lab: Lab, unset: pytest.MonkeyPatch) -> None:
    # One by one: Ceph 16 asks deletions of many for the permission on the bucket itself.
    for name, value in {**lab.user.env, "AWS_DISABLE_BULK_DELETE": "true"}.items():
        unset.setenv(name, value)


Act = Callable[[Lab], object]
NEEDED: dict[tuple[str, str], tuple[Act, str]] = {
    ("ListSlides", "s3:ListBucket"): (lambda lab: list(lab.store("SLIDES").list()), ""),
    ("ReadSlides", "s3:GetObject"): (
        lambda lab: lab.store("SLIDES").get_range("a.svs", 2, 3, etag=ETAG),
        "a.svs",
    ),
    ("ReadWeights", "s3:GetObject"): (
        lambda lab: lab.store("WEIGHTS").head("toy.safetensors"),
        "toy.safetensors",
    ),
    ("ListOutput", "s3:ListBucket"): (lambda lab: list(lab.store("OUTPUT").list("deep")), "deep"),
    ("WriteOutput", "s3:GetObject"): (lambda lab: lab.store("OUTPUT").get("standing"), "standing"),
    ("WriteOutput", "s3:PutObject"): (lambda lab: lab.store("OUTPUT").put("new", b"1"), "new"),
    ("WriteOutput", "s3:DeleteObject"): (
        lambda lab: lab.store("OUTPUT").delete(["cleared"]),
        "cleared",
    ),
}
"""(statement, action) -> what is done by it, and the key that a refusal names."""


@pytest.mark.parametrize("name", ["s3-batch.json", "s3-serve.json"])
def test_each_permission_of_a_policy_is_enough_and_needed(
    lab: Lab, ceph_cluster: CephCluster, name: str
) -> None:
    policy = filled(name, lab.words)
    granted = permissions(policy)
    assert granted <= set(NEEDED)
    ceph_cluster.grant(lab.user, policy)
    for each in granted:
        NEEDED[each][0](lab)
    for sid, action in sorted(granted):
        ceph_cluster.grant(lab.user, without(policy, sid, action))
        for each in granted - {(sid, action)}:
            NEEDED[each][0](lab)
        act, key = NEEDED[sid, action]
        with pytest.raises(AccessError) as refusal:
            act(lab)
        uri = lab.store(sid.removeprefix("List").removeprefix("Read").removeprefix("Write").upper())
        assert str(refusal.value).startswith(f"{action} on {uri.uri_of(key)} is refused: grant it")
        assert lab.user.secret_key not in str(refusal.value)


def test_the_batch_policy_needs_all_that_is_known(lab: Lab) -> None:
    assert permissions(filled("s3-batch.json", lab.words)) == set(NEEDED)


TOO_MUCH: dict[str, Act] = {
    "list the slides' bucket": lambda lab: list(bucket(lab, "SLIDES").list()),
    "list a folder beside": lambda lab: list(bucket(lab, "SLIDES").list("lab/cohort-private")),
    "read beside": lambda lab: bucket(lab, "SLIDES").get("lab/cohort-private/c.svs"),
    "write a slide": lambda lab: lab.store("SLIDES").put("a.svs", b""),
    "delete a slide": lambda lab: lab.store("SLIDES").delete(["a.svs"]),
    "read other weights": lambda lab: lab.store("WEIGHTS").get("secret.safetensors"),
    "list the weights": lambda lab: list(lab.store("WEIGHTS").list()),
    "read beside the output": lambda lab: bucket(lab, "OUTPUT").get("lab/results-private/x"),
    "write beside the output": lambda lab: bucket(lab, "OUTPUT").put("lab/results-private/y", b""),
    "delete beside the output": lambda lab: bucket(lab, "OUTPUT").delete(["lab/results-private/x"]),
}


def bucket(lab: Lab, kind: str) -> Store:
    return Store.open(f"s3://{lab.words[f'{kind}_BUCKET']}")


@pytest.mark.parametrize("what", TOO_MUCH)
def test_nothing_more_is_granted(lab: Lab, ceph_cluster: CephCluster, what: str) -> None:
    ceph_cluster.grant(lab.user, filled("s3-batch.json", lab.words))
    with pytest.raises(AccessError, match="is refused: grant it"):
        TOO_MUCH[what](lab)


def test_what_is_absent_is_not_found_though_only_a_prefix_is_listed(
    lab: Lab, ceph_cluster: CephCluster
) -> None:
    """S3 refuses to read what is not there, where listing is granted under a condition."""
    ceph_cluster.grant(lab.user, filled("s3-batch.json", lab.words))
    for store in (lab.store("SLIDES"), lab.store("OUTPUT")):
        for key in ("absent", "0", "zz/zz", "deep/b.sv", "deep/b.svs0"):
            for ask in (store.head, store.get, lambda key, s=store: s.get_range(key, 0, 1)):
                with pytest.raises(NotFoundError, match=f"{key} does not exist"):
                    ask(key)
