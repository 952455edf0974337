"""What a test needs to know of an S3 server, whichever it is."""

from __future__ import annotations

import socket
import uuid
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

REGION = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server of the S3 protocol on loopback, and the keys to it."""

    name: str
    """What it is: `moto` or `ceph`."""
    endpoint_url: str
    """`http://127.0.0.1:PORT`."""
    access_key: str
    """Its access key id."""
    secret_key: str
    """Its secret access key."""

    @property
    def env(self) -> dict[str, str]:
        """The environment variables by which any S3 client finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            # Ceph does not know the trailing checksums that newer SDKs send unasked.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def client(self, service: str = "s3") -> Any:
        """A boto3 client, for looking at the server from outside historay."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )

    def bucket(self, name: str | None = None) -> str:
        """Create a bucket, one of a new name unless told; returns `s3://NAME`."""
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
