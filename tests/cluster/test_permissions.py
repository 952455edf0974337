"""A whole job under exactly the policies of `infra/iam`, and with one permission fewer."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_pipeline.synthetic import write_slide
from tests.commands import Outcome, historay
from tests.servers.ceph import CephCluster
from tests.servers.google import Access, ServiceAccount, google_bucket
from tests.stores.policies import filled, google_bindings, google_roles, without

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

MEMBER = "historay@lab.iam.gserviceaccount.com"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    write_slide(path, width_px=1024, height_px=1024, seed=4)
    return path.read_bytes()


def job(slides: str, output: str, env: dict[str, str]) -> Outcome:
    args = ["--slides", f"{slides}/", "--output", output, "--model", "toy", "--json"]
    return historay("embed", *args, env=env)


@pytest.mark.ceph
def test_a_job_on_s3_needs_exactly_the_policy(ceph_cluster: CephCluster, slide: bytes) -> None:
    client, name = ceph_cluster.server.client(), uuid.uuid4().hex[:8]
    words = {"SLIDES_BUCKET": f"slides-{name}", "OUTPUT_BUCKET": f"output-{name}"}
    for bucket in words.values():
        client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=f"slides-{name}", Key="lab/cohort/a.svs", Body=slide)
    client.close()
    words |= {"SLIDES_PREFIX": "lab/cohort", "OUTPUT_PREFIX": "lab/results"}
    policy, user = filled("s3-batch.json", words), ceph_cluster.user()
    slides, output = f"s3://slides-{name}/lab/cohort", f"s3://output-{name}/lab/results"
    # One by one: Ceph 16 asks deletions of many for the permission on the bucket itself.
    env = {**user.env, "AWS_DISABLE_BULK_DELETE": "true"}

    ceph_cluster.grant(user, without(policy, "WriteOutput", "s3:PutObject"))
    refused = job(slides, output, env)
    assert refused.code == 1
    assert refused.error.startswith(f"s3:PutObject on {output}/_state/")
    assert user.secret_key not in refused.stderr

    ceph_cluster.grant(user, policy)
    done = job(slides, output, env)
    assert done.code == 0, done.stderr
    assert (done.json["slides_done"], done.json["tiles"] > 0) == (1, True)
    again = job(slides, output, env)
    assert (again.code, again.json["slides_finished_before"]) == (0, 1)


@pytest.fixture
def google(tmp_path: Path, slide: bytes) -> Iterator[tuple[Access, dict[str, str]]]:
    """A bucket of Google's with the slide in it, the policies of the files, and its variables."""
    account = ServiceAccount(MEMBER)
    account.write_key(tmp_path / "account.json")
    access = Access(accounts={MEMBER: account}, roles=google_roles())
    access.bindings["slides/"] = [*google_bindings("slides", MEMBER)]
    access.bindings["results/"] = [*google_bindings("output", MEMBER)]
    with google_bucket(access, {"slides/a.svs": (1, slide)}) as url:
        key = str(tmp_path / "account.json")
        yield access, {"GOOGLE_APPLICATION_CREDENTIALS": key, "GOOGLE_BASE_URL": url}


def test_a_job_on_google_needs_exactly_the_roles(
    google: tuple[Access, dict[str, str]],
) -> None:
    access, env = google
    writer = access.bindings["results/"][0]["role"]
    whole = access.roles[writer]

    access.roles[writer] = whole - {"storage.objects.create"}
    refused = job("gs://lab/slides", "gs://lab/results", env)
    assert refused.code == 1
    assert refused.error.startswith("storage.objects.create on gs://lab/results/_state/")

    access.roles[writer] = whole
    done = job("gs://lab/slides", "gs://lab/results", env)
    assert done.code == 0, done.stderr
    assert (done.json["slides_done"], done.json["tiles"] > 0) == (1, True)
