"""What can be said of single buckets, where the clouds' environment variables speak of all of them.

Those variables come first. `HISTORAY_STORES` tells what differs from bucket to bucket, for public
slides beside a private output, or two regions. It stands in the environment too, as credentials do:
every node needs it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from ray_pipeline.errors import SettingsError
from ray_pipeline.redaction import holds_secret

VARIABLE = "HISTORAY_STORES"
"""JSON: `{"s3://bucket": {"anonymous": true}}`."""


class StoreOptions(BaseModel):
    """How one bucket is reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anonymous: bool = Field(
        default=False, description="Send no credentials, for a public bucket (S3, Google, Azure)."
    )
    region: str | None = Field(
        default=None, min_length=1, description="The bucket's region, instead of AWS_REGION (S3)."
    )
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s?#]+$",
        description="Where the bucket is served, instead of AWS_ENDPOINT_URL (S3).",
    )

    @field_validator("endpoint")
    @classmethod
    def _without_secrets(cls, endpoint: str | None) -> str | None:
        if endpoint and (holds_secret(endpoint) or "@" in endpoint):
            raise ValueError("an endpoint holds no user and no password")
        return endpoint


_BY_BUCKET = TypeAdapter(dict[str, StoreOptions])


def options_of(bucket_uri: str, environment: Mapping[str, str]) -> StoreOptions:
    """What `environment` says of the bucket `scheme://name`.

    Raises SettingsError, which repeats no value: anything may stand there by mistake.
    """
    said = environment.get(VARIABLE, "")
    if not said:
        return StoreOptions()
    try:
        return _BY_BUCKET.validate_json(said).get(bucket_uri, StoreOptions())
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole"
        known = ", ".join(StoreOptions.model_fields)
        raise SettingsError(
            f"{VARIABLE} is not usable at {where} ({problem['msg']}): it is JSON such as "
            f'{{"s3://bucket": {{"anonymous": true}}}}, with the keys {known}.'
        ) from None
