"""What `ray up` has launched on AWS, by a server that speaks EC2's protocol."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT
from tests.infra.strict import read_yaml
from tests.servers.s3 import S3Server

TEXT = (ROOT / "infra" / "vm" / "aws.yaml").read_text()


@pytest.fixture
def ec2(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of EC2 on moto; Ray's, which it keeps, are of this test alone."""
    for name, value in moto_server.env.items():
        monkeypatch.setenv(name, value)
    for cache in (client_cache, resource_cache):
        cache.cache_clear()
    yield boto3.client("ec2", "us-east-1")
    for cache in (client_cache, resource_cache):
        cache.cache_clear()


@pytest.fixture
def cluster(ec2: Any) -> dict[str, Any]:
    """The cluster file, edited as its README says, for what is there."""
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.create_security_group(
        GroupName=f"historay-{uuid.uuid4()}", Description="nodes", VpcId=subnet["VpcId"]
    )["GroupId"]
    iam = boto3.client("iam")
    text = TEXT.replace("EDIT-SECURITY-GROUP", group).replace("EDIT-SUBNET", subnet["SubnetId"])
    for name in ("head", "worker"):
        profile = f"{name}-{uuid.uuid4()}"
        iam.create_instance_profile(InstanceProfileName=profile)
        text = text.replace(f"EDIT-{name.upper()}-PROFILE", profile)
    ec2.create_key_pair(KeyName=(key := f"key-{uuid.uuid4()}"))
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    read = read_yaml(text.replace("EDIT-KEY-NAME", key).replace("EDIT-AMI", image))
    prepared: dict[str, Any] = prepare_config(read)
    validate_config(prepared)
    return prepared


@pytest.mark.ray
def test_ray_launches_what_the_file_says_and_makes_nothing_besides(
    ec2: Any, cluster: dict[str, Any]
) -> None:
    groups, iam = ec2.describe_security_groups()["SecurityGroups"], boto3.client("iam")
    roles, keys = iam.list_roles()["Roles"], ec2.describe_key_pairs()["KeyPairs"]
    resolved = bootstrap_aws(cluster)  # type: ignore[no-untyped-call]
    assert ec2.describe_security_groups()["SecurityGroups"] == groups
    assert iam.list_roles()["Roles"] == roles
    assert ec2.describe_key_pairs()["KeyPairs"] == keys
    provider = AWSNodeProvider(  # type: ignore[no-untyped-call]
        resolved["provider"], str(uuid.uuid4())
    )
    for name, lifecycle in (("head", None), ("worker", "spot")):
        asked = resolved["available_node_types"][name]["node_config"]
        (made,) = provider.create_node(asked, {"ray-node-type": name}, 1)
        (reservation,) = ec2.describe_instances(InstanceIds=[made])["Reservations"]
        (instance,) = reservation["Instances"]
        assert instance.get("InstanceLifecycle") == lifecycle
        assert instance["InstanceType"] == asked["InstanceType"]
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert instance["IamInstanceProfile"]["Arn"].split("/")[-1].startswith(f"{name}-")
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == asked[
            "SecurityGroupIds"
        ]
        disks = [mapping["Ebs"]["VolumeId"] for mapping in instance["BlockDeviceMappings"]]
        assert all(disk["Encrypted"] for disk in ec2.describe_volumes(VolumeIds=disks)["Volumes"])
