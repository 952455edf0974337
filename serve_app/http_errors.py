"""The one table from error class to HTTP status, and the shape of an error's JSON."""

from __future__ import annotations

from ray_pipeline import errors as base
from ray_pipeline.errors import HistorayError
from serve_app import errors

STATUS_OF: dict[type[HistorayError], int] = {
    errors.BadRequestError: 400,
    errors.TokenError: 401,
    errors.ForbiddenUriError: 403,
    errors.UnknownModelError: 404,
    errors.NotAcceptableError: 406,
    errors.SlowBodyError: 408,
    errors.BodyTooLargeError: 413,
    errors.MediaTypeError: 415,
    errors.TooManyTilesError: 422,
    errors.ImageError: 422,
    errors.ClientGoneError: 499,  # for the metrics: nobody gets it
    errors.OverloadedError: 429,
    errors.UnavailableError: 503,
    errors.DeadlineError: 503,
    errors.EncoderFailedError: 503,
    # A slide in object storage, through /v1/regions.
    base.SettingsError: 422,
    base.OffSpecError: 422,
    base.SlideError: 422,
    base.NotFoundError: 404,
    base.AccessError: 403,
    base.ObjectReplacedError: 409,
    base.UnreachableError: 503,
    base.StoreError: 502,
    base.NotFiniteError: 500,
    HistorayError: 500,
}
"""By the nearest class: a subclass without its own line has the status of its parent."""


def status_of(error: type[HistorayError]) -> int:
    """The status of the nearest class of `error` that is in the table."""
    return next(STATUS_OF[cls] for cls in error.__mro__ if cls in STATUS_OF)


def error_body(error: HistorayError, param: str | None = None) -> dict[str, dict[str, str | None]]:
    """The JSON of an error: its kind, its sentence, and the parameter at fault, if one is."""
    return {"error": {"type": error.kind, "message": str(error), "param": param}}
