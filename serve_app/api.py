"""The routes: HTTP in and out of `service.Service`."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_pipeline.errors import HistorayError
from ray_pipeline.slides.grid import MPP_TOLERANCE
from ray_pipeline.slides.resample import RESAMPLE_RULE
from serve_app import metrics as metrics_page
from serve_app import replies
from serve_app.auth import Tokens
from serve_app.errors import BadRequestError, BusyError, ClientGoneError
from serve_app.http_errors import STATUS_OF, error_body, status_of
from serve_app.images import MEDIA_TYPES
from serve_app.schemas import (
    EmbeddingReply,
    EmbeddingRequest,
    ErrorReply,
    Health,
    Info,
    ModelInfo,
    ModelItem,
    ModelList,
    RegionRequest,
    TilesReply,
)
from serve_app.service import ServedModel, Service

_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorReply}
    for code in (400, 401, 403, 404, 406, 408, 409, 413, 415, 422, 429, 500, 502, 503)
}
_VECTORS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            replies.BYTES: {"schema": {"type": "string", "format": "binary"}},
            replies.ARROW: {"schema": {"type": "string", "format": "binary"}},
        },
        "description": "Vectors, in the order of the tiles. As bytes: [n, dim] little-endian, with "
        "n, dim and dtype in the header historay-shape; `; dtype=float32` in Accept for float32.",
    }
}
Model = Annotated[str | None, Query(max_length=64, description="Default: the first one served.")]
Resize = Annotated[bool, Query(description="Bring square images to the model's size.")]


def create_api(service: Service, tokens: Tokens) -> FastAPI:
    """The ASGI application over `service`; `tokens` open it, none leaves it open."""
    api = FastAPI(
        title="historay",
        version=version("historay"),
        summary="Embeddings of pathology tiles. For research only.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    def guard(request: Request) -> None:
        if tokens:
            tokens.check(request.headers.get("authorization"))

    door = [Depends(HTTPBearer(auto_error=False)), Depends(guard)]
    guarded = APIRouter(dependencies=door, responses=_ERRORS)
    _embedding_routes(guarded, service)
    _telling_routes(guarded, service, api)
    api.include_router(guarded)
    _open_routes(api, service)
    _add_error_handlers(api, service)
    api.add_middleware(_Watched, service=service)
    return api


def _embedding_routes(router: APIRouter, service: Service) -> None:
    @router.post(
        "/v1/embeddings",
        response_model=EmbeddingReply,
        openapi_extra=_json_body(EmbeddingRequest),
        summary="Vectors of images, in OpenAI's shape",
    )
    async def embeddings(request: Request) -> Response:
        asked, vectors = await service.embed_inputs(request)
        _count(request, service, vectors)
        body = replies.openai_json(vectors, asked.encoding_format)
        return Response(body, media_type=replies.JSON)

    @router.post(
        "/v1/tiles",
        response_model=TilesReply,
        responses=_VECTORS,
        openapi_extra=_image_body(),
        summary="Vectors of one raw image, or of a form of many",
    )
    async def tiles(request: Request, model: Model = None, resize: Resize = False) -> Response:
        wanted = replies.chosen_format(request.headers.get("accept"))
        vectors = await service.embed_images(request, model, resize=resize)
        _count(request, service, vectors)
        return _in_format(vectors, wanted)

    @router.post(
        "/v1/regions",
        response_model=TilesReply,
        responses=_VECTORS,
        openapi_extra=_json_body(RegionRequest),
        summary="Vectors of tiles of a slide in object storage",
    )
    async def regions(request: Request) -> Response:
        wanted = replies.chosen_format(request.headers.get("accept"))
        vectors = await service.embed_regions(request)
        _count(request, service, vectors)
        return _in_format(vectors, wanted)


def _telling_routes(router: APIRouter, service: Service, api: FastAPI) -> None:
    @router.get("/v1/models", summary="The models that are served")
    async def models() -> ModelList:
        return ModelList(data=[ModelItem(id=name) for name in service.models])

    @router.get("/info", summary="What makes the vectors: encoders, reading, limits, versions")
    async def info() -> Info:
        return Info(
            version=version("historay"),
            reading={
                "level": "coarsest not coarser than mpp",
                "mpp_tolerance": MPP_TOLERANCE,
                "resample": RESAMPLE_RULE,
            },
            limits=service.settings.limits.model_dump(),
            models=[await _model_info(service, model) for model in service.models.values()],
        )

    @router.get("/metrics", response_class=Response, summary="Prometheus metrics of all replicas")
    async def metrics() -> Response:
        gathered = [*service.metrics.collect(), *await service.fleet.metrics()]
        return Response(metrics_page.page(gathered), media_type=metrics_page.CONTENT_TYPE)

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return api.openapi()


def _open_routes(api: FastAPI, service: Service) -> None:
    @api.get("/health", summary="Whether this process answers")
    async def health() -> Health:
        return Health(status="ok")

    @api.get(
        "/ready",
        responses={503: {"model": Health}},
        response_model=Health,
        summary="Whether every model is loaded and warm, and requests are taken",
    )
    async def ready() -> Response:
        if service.draining:
            return JSONResponse(Health(status="draining").model_dump(), 503)
        is_ready = await service.ready()
        status = Health(status="ok" if is_ready else "starting")
        return JSONResponse(status.model_dump(), 200 if is_ready else 503)


def _add_error_handlers(api: FastAPI, service: Service) -> None:
    def reply(request: Request, error: HistorayError, param: str | None = None) -> Response:
        status = status_of(type(error))
        headers = {}
        if isinstance(error, BusyError) or status in (429, 503):
            headers["Retry-After"] = str(service.retry_after_s(error))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        service.metrics.refused(_route_of(request.scope), error.kind)
        return JSONResponse(error_body(error, param), status, headers)

    @api.exception_handler(HistorayError)
    async def refused(request: Request, error: HistorayError) -> Response:
        return reply(request, error)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return reply(request, BadRequestError(f"'{param}': {first['msg']}."), param)

    @api.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        kind = {404: "unknown-route", 405: "wrong-method"}.get(error.status_code, "http")
        body = {"error": {"type": kind, "message": f"{error.detail}.", "param": None}}
        return JSONResponse(body, error.status_code, error.headers)

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        service.metrics.refused(_route_of(request.scope), "internal")
        message = "an error of the service's own: tell the operator when it was."
        return JSONResponse({"error": {"type": "internal", "message": message, "param": None}}, 500)


async def _model_info(service: Service, model: ServedModel) -> ModelInfo:
    facts = await service.facts(model.name)
    by_fingerprint = {fact.fingerprint: fact for fact in facts}
    return ModelInfo(
        name=model.name,
        ready=bool(facts),
        description=model.spec.description,
        licence=model.spec.licence,
        dim=model.spec.dim,
        tile_px=model.spec.tile_px,
        mpp=model.spec.mpp,
        replicas=len(facts),
        encoders=[
            {
                "fingerprint": fact.fingerprint,
                "identity": fact.identity.to_json(),
                "device": fact.device,
                "batch_size": fact.batch_size,
                "versions": dict(fact.versions),
            }
            for fact in by_fingerprint.values()
        ],
    )


def _in_format(vectors: replies.Vectors, wanted: replies.Format) -> Response:
    if wanted.media_type == replies.JSON:
        return Response(replies.tiles_json(vectors), media_type=replies.JSON)
    n, dim = vectors.values.shape
    headers = {"historay-encoder": vectors.encoder, "historay-model": vectors.model}
    if wanted.media_type == replies.ARROW:
        return Response(replies.tiles_arrow(vectors), media_type=replies.ARROW, headers=headers)
    headers["historay-shape"] = f"{n},{dim},{wanted.dtype}"
    body = replies.tiles_bytes(vectors, wanted.dtype)
    return Response(body, media_type=replies.BYTES, headers=headers)


def _count(request: Request, service: Service, vectors: replies.Vectors) -> None:
    service.metrics.embedded(_route_of(request.scope), vectors.model, len(vectors.values))


def _route_of(scope: Scope) -> str:
    """The route's path, as it was declared: what a client made up would be a label of its own."""
    return getattr(scope.get("route"), "path", "other")


class _Watched:
    """ASGI middleware: counts and times every request, and tells when its reply was handed over."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), STATUS_OF[ClientGoneError]

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = 500  # as the client is told outside of this
            raise
        finally:
            self._service.answered(scope)
            self._service.metrics.request(_route_of(scope), status, time.monotonic() - started)


def _json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The documentation of a body that the service reads itself, within its limits."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _image_body() -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "properties": {"image": {"type": "array", "items": binary}},
        "required": ["image"],
    }
    content: dict[str, Any] = {
        media_type: {"schema": binary} for media_type in MEDIA_TYPES if media_type != "image/jpg"
    }
    content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}
