"""What the service refuses on purpose, grouped by what a client does about it.

    HistorayError
    └── ServiceError
        ├── RequestError             the request must change; the same one again fails again
        │   ├── BadRequestError          bad-request           not the JSON, form or parameter due
        │   ├── TokenError               unauthorised          no bearer token, or an unknown one
        │   ├── ForbiddenUriError        forbidden-uri         a slide outside the allowed prefixes
        │   ├── UnknownModelError        unknown-model         no such model is served here
        │   ├── NotAcceptableError       not-acceptable        no format of `Accept` is made
        │   ├── SlowBodyError            slow-body             the body took longer than allowed
        │   ├── BodyTooLargeError        body-too-large        more bytes than one request may have
        │   ├── MediaTypeError           media-type            a body of a type that is not read
        │   ├── TooManyTilesError        too-many-tiles        more tiles than one request may have
        │   ├── ImageError               bad-image             not an image that can become a tile
        │   └── ClientGoneError          client-gone           nobody waits for the answer any more
        ├── BusyError                the same request may succeed later (`Retry-After`)
        │   ├── OverloadedError          overloaded            every place is taken: told at once
        │   ├── UnavailableError         unavailable           not ready, draining, a lost replica
        │   └── DeadlineError            deadline              its time ran out while it waited
        └── EncoderFailedError       encoder-failed        the device gave an error

Like all of historay's errors they take one positional sentence, and `kind` is stable: it is the
`type` of an error's JSON. No sentence repeats a token, a signature or what an image holds.
"""

from __future__ import annotations

from ray_pipeline.errors import HistorayError


class ServiceError(HistorayError):
    """Base of what the service says no to."""

    kind = "service"


class RequestError(ServiceError):
    """The request must change."""

    kind = "request"


class BadRequestError(RequestError):
    """Not the JSON, the form or the parameter that the route takes."""

    kind = "bad-request"


class TokenError(RequestError):
    """No bearer token, or one that is not known."""

    kind = "unauthorised"


class ForbiddenUriError(RequestError):
    """A slide outside the allowed prefixes, or a URI written to look like one inside."""

    kind = "forbidden-uri"


class UnknownModelError(RequestError):
    """No model of this name is served."""

    kind = "unknown-model"


class NotAcceptableError(RequestError):
    """The client accepts none of the formats a reply can have."""

    kind = "not-acceptable"


class SlowBodyError(RequestError):
    """The body did not arrive in the time a body may take."""

    kind = "slow-body"


class BodyTooLargeError(RequestError):
    """The body has more bytes than one request may have."""

    kind = "body-too-large"


class MediaTypeError(RequestError):
    """The body is of a type that the route does not read."""

    kind = "media-type"


class TooManyTilesError(RequestError):
    """More tiles than one request may have."""

    kind = "too-many-tiles"


class ImageError(RequestError):
    """Not an image that can become a tile."""

    kind = "bad-image"


class ClientGoneError(RequestError):
    """The client went away; what it had asked for is not computed."""

    kind = "client-gone"


class BusyError(ServiceError):
    """The same request may succeed later."""

    kind = "busy"


class OverloadedError(BusyError):
    """Every place is taken."""

    kind = "overloaded"


class UnavailableError(BusyError):
    """The model is not ready yet, the service is draining, or a replica was lost."""

    kind = "unavailable"


class DeadlineError(BusyError):
    """The request's time ran out before its tiles were through."""

    kind = "deadline"


class EncoderFailedError(ServiceError):
    """The device gave an error; the replica is being replaced."""

    kind = "encoder-failed"
