"""Bodies of requests, read within limits of bytes and time, and taken apart."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from serve_app.errors import (
    BadRequestError,
    BodyTooLargeError,
    ClientGoneError,
    ImageError,
    MediaTypeError,
    SlowBodyError,
    TooManyTilesError,
)
from serve_app.images import MEDIA_TYPES
from serve_app.settings import Limits, sentence_of

Asked = TypeVar("Asked", bound=BaseModel)
Result = TypeVar("Result")

_DATA_URI = re.compile(r"data:([A-Za-z0-9.+/-]*);base64,")


def declared_bytes(request: Request, limits: Limits) -> int:
    """What a body may come to: its Content-Length, or the most where it has none.

    Raises BodyTooLargeError before a byte is read, and BadRequestError for no number.
    """
    declared = request.headers.get("content-length")
    if declared is None:
        return limits.body_bytes
    if not declared.isascii() or not declared.isdigit():
        raise BadRequestError("the header Content-Length is no number.")
    if int(declared[:19]) > limits.body_bytes:
        raise _too_large(limits)
    return int(declared)


def said_bytes(request: Request) -> int:
    """The Content-Length; 0 without one, or where it is no number."""
    declared = request.headers.get("content-length", "")
    return int(declared[:19]) if declared.isascii() and declared.isdigit() else 0


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body. Raises BodyTooLargeError, SlowBodyError, ClientGoneError."""
    parts, total = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                total += len(part)
                if total > limits.body_bytes:
                    raise _too_large(limits)
                parts.append(part)
    except TimeoutError:
        raise SlowBodyError(
            f"the body did not arrive within {limits.body_s:g} s: send less at a time."
        ) from None
    except ClientDisconnect:
        raise ClientGoneError("the client went away before its body was whole.") from None
    return b"".join(parts)


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """What `work` gives; once the client is gone it is cancelled. The body must have been read.

    Raises ClientGoneError.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and gone.exception() is None:
            raise ClientGoneError("the client went away before its answer was ready.")
        return await working
    finally:
        gone.cancel()
        working.cancel()


def media_type_of(headers: Mapping[str, str]) -> str:
    """The type of a body, lower case and without parameters; empty where none is stated."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(headers: Mapping[str, str]) -> None:
    """Raise MediaTypeError unless a body is stated to be JSON."""
    if media_type_of(headers) != "application/json":
        raise MediaTypeError("this route reads JSON: send Content-Type: application/json.")


def parse_json(kind: type[Asked], body: bytes) -> Asked:
    """The request that `body` holds. Raises BadRequestError, which repeats nothing of it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise BadRequestError(sentence_of(error)) from None


def form_images(body: bytes, headers: Headers, most: int) -> list[bytes]:
    """The files of a multipart form, in order; never written to disk. Called in a thread.

    Raises BadRequestError for a broken form or one with other fields, MediaTypeError for files that
    say they are no images, and TooManyTilesError past `most` files.
    """
    return asyncio.run(_form_images(body, headers, most))


def decoded_inputs(inputs: Sequence[str]) -> list[bytes]:
    """The bytes of data URIs, or of plain base64. Raises ImageError; a URL is never fetched."""
    return [_decoded(text, f"input[{index}]") for index, text in enumerate(inputs)]


def check_media_type(said: str, named: str) -> None:
    """Raise MediaTypeError for a stated type that is not an image's. None stated is taken."""
    if said and said not in MEDIA_TYPES and said != "application/octet-stream":
        raise MediaTypeError(
            f"{named} is said to be of a type that is not read: send one of "
            f"{', '.join(sorted(MEDIA_TYPES))}."
        )


def too_many(said: str, most: int) -> TooManyTilesError:
    """The error for a request of `said` tiles."""
    return TooManyTilesError(f"{said} tiles: one request may have {most}; send several.")


async def _form_images(body: bytes, headers: Headers, most: int) -> list[bytes]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, whole(), max_files=most, max_fields=0)
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "files" in error.message:
            raise too_many(f"more than {most}", most) from None
        raise BadRequestError(
            "the form is broken, or has fields that are no files: send each image as a file."
        ) from None
    except (KeyError, ValueError):
        raise BadRequestError("the form is broken: send each image as a file.") from None
    images: list[bytes] = []
    for _, part in form.multi_items():
        assert isinstance(part, UploadFile)
        check_media_type(media_type_of(part.headers), f"image[{len(images)}]")
        images.append(part.file.read())
    await form.close()
    if not images:
        raise BadRequestError("the form holds no file: send each image as one.")
    return images


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _decoded(text: str, named: str) -> bytes:
    if text.startswith("data:"):
        head = _DATA_URI.match(text)
        if head is None:
            raise ImageError(f"{named} is no data URI of base64: data:image/png;base64,...")
        check_media_type(head[1].lower(), named)
        text = text[head.end() :]
    elif "://" in text[:64]:
        raise ImageError(
            f"{named} is a URL, and none is ever fetched: send the image itself, as a data URI; "
            "for tiles of a slide use /v1/regions."
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{named} is no base64.") from None


def _too_large(limits: Limits) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has more than {limits.body_bytes} bytes: send fewer images at a time."
    )
