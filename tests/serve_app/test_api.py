"""The routes: the batch job's vectors in every format, OpenAI's client, and one shape of errors."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import openai
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from ray_pipeline.dataset.schema import embeddings_schema
from tests.serve_app.conftest import BatchSlide
from tests.serve_app.pictures import BOMBS, LOSSLESS, encoded, in_mode, random_tiles
from tests.serve_app.serving import TOKEN, ErrorJson

BYTES = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
PNG = encoded(random_tiles(1)[0])


def form(images: list[bytes], media_type: str = "image/png") -> list[tuple[str, Any]]:
    return [("image", (f"{i}.png", image, media_type)) for i, image in enumerate(images)]


def data_uri(image: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def vectors_in(response: httpx2.Response) -> npt.NDArray[np.float32]:
    """The vectors of a reply, float32 [n, dim], whichever format it has."""
    assert response.status_code == 200, response.text
    kind = response.headers["content-type"]
    if kind == ARROW:
        table = pa.ipc.open_stream(response.content).read_all()
        return np.stack(table["embedding"].to_numpy())
    if kind == BYTES:
        n, dim, dtype = response.headers["historay-shape"].split(",")
        return np.frombuffer(response.content, f"<{np.dtype(dtype).str[1:]}").reshape(
            int(n), int(dim)
        )
    body = response.json()
    rows = body["embeddings"] if "embeddings" in body else [d["embedding"] for d in body["data"]]
    if isinstance(rows[0], str):
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    return np.array(rows, np.float32)


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """The very numbers of the batch job: the encoder and its shapes are the same."""
    assert found.shape == expected.shape
    assert (found.astype(np.float32) == expected.astype(np.float32)).all()


ACCEPTS = ["application/json", BYTES, f"{BYTES}; dtype=float32", ARROW]


@pytest.mark.parametrize("accept", ACCEPTS)
def test_tiles_gives_the_vectors_of_the_batch_job(
    client: TestClient, slide: BatchSlide, accept: str
) -> None:
    found = []
    for start in range(0, len(slide.tiles), 64):
        images = [encoded(tile) for tile in slide.tiles[start : start + 64]]
        found.append(
            vectors_in(client.post("/v1/tiles", files=form(images), headers={"accept": accept}))
        )
    assert_same(np.concatenate(found), slide.vectors)


@pytest.mark.parametrize("accept", ACCEPTS)
def test_regions_gives_the_vectors_of_the_batch_job(
    client: TestClient, slide: BatchSlide, accept: str
) -> None:
    found = []
    for start in range(0, len(slide.xy), 64):
        asked = {
            "uri": f"file://{slide.path}",
            "tiles": slide.xy[start : start + 64].tolist(),
        }
        found.append(vectors_in(client.post("/v1/regions", json=asked, headers={"accept": accept})))
    assert_same(np.concatenate(found), slide.vectors)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_embeddings_gives_the_vectors_of_the_batch_job(
    client: TestClient, slide: BatchSlide, encoding_format: str
) -> None:
    asked = {
        "input": [data_uri(encoded(tile)) for tile in slide.tiles[:20]],
        "model": "toy",
        "encoding_format": encoding_format,
    }
    response = client.post("/v1/embeddings", json=asked)
    assert_same(vectors_in(response), slide.vectors[:20])
    assert response.json()["usage"] == {
        "prompt_tokens": 20 * 261,
        "total_tokens": 20 * 261,
        "tiles": 20,
    }


@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
def test_openais_own_client_is_served(
    client: TestClient, slide: BatchSlide, encoding_format: Any
) -> None:
    asked = {} if encoding_format is None else {"encoding_format": encoding_format}
    # Not closed: it would close the client that all tests share.
    theirs = openai.OpenAI(
        api_key=TOKEN, base_url="http://testserver/v1", http_client=client, max_retries=0
    )
    images = [data_uri(encoded(tile)) for tile in slide.tiles[:3]]
    reply = theirs.embeddings.create(model="toy", input=images, **asked)
    rows = [item.embedding for item in reply.data]
    if encoding_format == "base64":
        rows = [np.frombuffer(base64.b64decode(str(row)), "<f4").tolist() for row in rows]
    assert_same(np.array(rows, np.float32), slide.vectors[:3])
    assert [item.index for item in reply.data] == [0, 1, 2]
    assert reply.usage.total_tokens == 3 * 261
    assert [model.id for model in theirs.models.list()] == ["toy"]
    with pytest.raises(openai.UnprocessableEntityError, match="is a URL"):
        theirs.embeddings.create(model="toy", input="https://example.org/tile.png")
    with pytest.raises(openai.NotFoundError):
        theirs.embeddings.create(model="clip", input=images[0])


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_raw_image_of_any_format_is_one_tile(
    client: TestClient, slide: BatchSlide, kind: str
) -> None:
    response = client.post(
        "/v1/tiles",
        content=encoded(slide.tiles[0], kind),
        headers={"content-type": LOSSLESS[kind]},
    )
    assert_same(vectors_in(response), slide.vectors[:1])
    assert response.json()["dim"] == 64


def test_arrow_has_the_columns_and_types_of_the_batch_jobs_file(
    client: TestClient, slide: BatchSlide
) -> None:
    asked = {"uri": f"file://{slide.path}", "tiles": slide.xy[:3].tolist()}
    response = client.post("/v1/regions", json=asked, headers={"accept": ARROW})
    table = pa.ipc.open_stream(response.content).read_all()
    assert table.column_names == ["tile", "x", "y", "embedding"]
    for name in table.column_names:
        assert table.schema.field(name) == embeddings_schema(64).field(name)
    assert list(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)) == [
        tuple(place) for place in slide.xy[:3].tolist()
    ]
    assert table.schema.metadata[b"model"] == b"toy"


def test_resizing_has_to_be_asked_for(client: TestClient) -> None:
    large = encoded(random_tiles(1, 448)[0])
    headers = {"content-type": "image/png"}
    error = ErrorJson.of(client.post("/v1/tiles", content=large, headers=headers))
    assert (error.status, error.type) == (422, "bad-image")
    assert "448 x 448 px" in error.message
    assert client.post("/v1/tiles?resize=true", content=large, headers=headers).status_code == 200


def test_info_tells_what_makes_the_vectors(client: TestClient) -> None:
    info = client.get("/info").json()
    (model,) = info["models"]
    (encoder,) = model["encoders"]
    assert (model["ready"], model["dim"], model["tile_px"]) == (True, 64, 224)
    assert encoder["identity"]["precision"] == "fp32"
    assert len(encoder["identity"]["weights_digest"]) == 64
    assert info["reading"]["mpp_tolerance"] == 0.02
    reply = client.post("/v1/tiles", content=PNG, headers={"content-type": "image/png"})
    assert reply.json()["encoder"] == encoder["fingerprint"]


def test_metrics_count_what_happened(client: TestClient) -> None:
    client.post("/v1/tiles", files=form([PNG] * 9))
    client.post("/v1/tiles", content=b"x", headers={"content-type": "text/plain"})
    client.get("/v1/nowhere/secret-name")
    text = client.get("/metrics").text
    for line in (
        'historay_refused_total{cause="media-type",replica="test",route="/v1/tiles"}',
        'historay_tiles_total{model="toy",replica="test",route="/v1/tiles"}',
        'historay_request_seconds_count{replica="test",route="/v1/tiles",status="200"}',
        'historay_queue_seconds_count{model="toy",',
        'historay_device_seconds_sum{model="toy",',
        'historay_batch_tiles_bucket{le="8.0",model="toy",',
        'historay_batch_fill_count{model="toy",',
        'historay_tiles_waiting{model="toy",',
        'historay_tiles_in_hand{replica="test"} 0.0',
    ):
        assert line in text, line
    assert "secret-name" not in text
    assert text.count("# TYPE historay_batch_fill histogram") == 1


WITHOUT_TOKEN = [
    ("GET", "/v1/models"),
    ("GET", "/info"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/tiles"),
    ("POST", "/v1/regions"),
    ("POST", "/v1/tiles?resize=banana"),
]


@pytest.mark.parametrize(("method", "path"), WITHOUT_TOKEN)
@pytest.mark.parametrize("header", ["", "Bearer wrong-token-0123456789", f"Token {TOKEN}"])
def test_only_health_and_ready_are_open(
    client: TestClient, method: str, path: str, header: str
) -> None:
    response = client.request(method, path, headers={"authorization": header})
    error = ErrorJson.of(response)
    assert (error.status, error.type) == (401, "unauthorised")
    assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/health", headers={"authorization": header}).json() == {"status": "ok"}
    assert client.get("/ready", headers={"authorization": header}).json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v1", "/v1/tiles/", "//v1/tiles", "/static"])
def test_there_is_nothing_else_and_no_redirect(client: TestClient, path: str) -> None:
    response = client.get(path, follow_redirects=False)
    assert ErrorJson.of(response).status == 404


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
IMAGE = {"content-type": "image/png"}


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "kind"),
    [
        ("/v1/embeddings", JSON, b"", 400, "bad-request"),
        ("/v1/embeddings", JSON, b"{", 400, "bad-request"),
        ("/v1/embeddings", JSON, b"[]", 400, "bad-request"),
        ("/v1/embeddings", JSON, b"\xff\xfe", 400, "bad-request"),
        ("/v1/embeddings", JSON, b"[" * 100_000, 400, "bad-request"),
        ("/v1/embeddings", JSON, b'{"input": []}', 400, "bad-request"),
        ("/v1/embeddings", JSON, b'{"input": [1, 2]}', 400, "bad-request"),
        ("/v1/embeddings", JSON, b'{"input": "AAAA", "extra": 1}', 400, "bad-request"),
        ("/v1/embeddings", JSON, b'{"input": "AAAA", "dimensions": 8}', 400, "bad-request"),
        ("/v1/embeddings", JSON, b'{"input": "AAAA", "model": "x"}', 404, "unknown-model"),
        ("/v1/embeddings", JSON, b'{"input": "AAAA"}', 422, "bad-image"),
        ("/v1/embeddings", JSON, b'{"input": "a b"}', 422, "bad-image"),
        ("/v1/embeddings", JSON, b'{"input": "http://x/a.png"}', 422, "bad-image"),
        ("/v1/embeddings", JSON, b'{"input": "file:///etc/passwd"}', 422, "bad-image"),
        ("/v1/embeddings", JSON, b'{"input": "s3://bucket/a.png"}', 422, "bad-image"),
        ("/v1/embeddings", JSON, b'{"input": "data:image/png,x"}', 422, "bad-image"),
        ("/v1/embeddings", JSON, b'{"input": "data:text/html;base64,AAAA"}', 415, "media-type"),
        (
            "/v1/embeddings",
            JSON,
            json.dumps({"input": ["AAAA"] * 65}).encode(),
            422,
            "too-many-tiles",
        ),
        ("/v1/embeddings", IMAGE, PNG, 415, "media-type"),
        ("/v1/embeddings", {}, b"{}", 415, "media-type"),
        ("/v1/tiles", IMAGE, b"", 422, "bad-image"),
        ("/v1/tiles", {"content-type": "text/html"}, PNG, 415, "media-type"),
        ("/v1/tiles", {"content-type": "image/svg+xml"}, b"<svg/>", 415, "media-type"),
        ("/v1/tiles", {}, PNG, 415, "media-type"),
        ("/v1/tiles", JSON, b"{}", 415, "media-type"),
        ("/v1/tiles?model=clip", IMAGE, PNG, 404, "unknown-model"),
        ("/v1/tiles?resize=banana", IMAGE, PNG, 400, "bad-request"),
        ("/v1/tiles", {**IMAGE, "accept": "text/html"}, PNG, 406, "not-acceptable"),
        ("/v1/tiles", {**IMAGE, "accept": f"{BYTES};dtype=int8"}, PNG, 406, "not-acceptable"),
        ("/v1/tiles", {**IMAGE, "accept": "application/json;q=0"}, PNG, 406, "not-acceptable"),
        ("/v1/tiles", FORM, b"", 400, "bad-request"),
        ("/v1/tiles", FORM, b"--x--\r\n", 400, "bad-request"),
        ("/v1/tiles", {"content-type": "multipart/form-data"}, b"x", 400, "bad-request"),
        (
            "/v1/tiles",
            FORM,
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n--x--\r\n',
            400,
            "bad-request",
        ),
        ("/v1/tiles", {**IMAGE, "content-length": "99999999999999999999999"}, PNG, 413, ""),
        ("/v1/regions", JSON, b'{"uri": "s3://other/a.svs", "tiles": [[0, 0]]}', 403, ""),
        ("/v1/regions", JSON, b'{"uri": "s3://other/a.svs", "tiles": []}', 400, "bad-request"),
        ("/v1/regions", JSON, b'{"uri": "s3://o/a", "tiles": [[-1, 0]]}', 400, "bad-request"),
        ("/v1/regions", JSON, b'{"uri": "s3://o/a", "tiles": [[0.5, 0]]}', 400, "bad-request"),
        ("/v1/regions", JSON, b'{"uri": "s3://o/a", "tiles": [[0, 0, 0]]}', 400, "bad-request"),
        ("/v1/regions", JSON, b'{"uri": "s3://o/a", "tiles": [[0, 99999999999]]}', 400, ""),
        ("/v1/regions", JSON, b'{"uri": "s3://o/a", "tiles": [[0, 0]], "mpp": NaN}', 400, ""),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_status(
    client: TestClient, path: str, headers: dict[str, str], body: bytes, *, status: int, kind: str
) -> None:
    error = ErrorJson.of(client.post(path, content=body, headers=headers))
    assert (error.status, error.type if kind else "") == (status, kind), error
    assert error.message.endswith(".")
    assert len(error.message) < 600


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_422_through_every_door(client: TestClient, bomb: str) -> None:
    data = BOMBS[bomb]
    for response in (
        client.post("/v1/tiles", content=data, headers=IMAGE),
        client.post("/v1/tiles?resize=true", files=form([PNG, data])),
        client.post("/v1/embeddings", json={"input": [data_uri(PNG), data_uri(data)]}),
        client.post("/v1/embeddings", json={"input": data_uri(data), "resize": True}),
    ):
        assert ErrorJson.of(response).status == 422


def test_too_many_images_and_pixels_are_refused(client: TestClient) -> None:
    error = ErrorJson.of(client.post("/v1/tiles", files=form([PNG] * 65)))
    assert (error.status, error.type) == (422, "too-many-tiles")
    large = in_mode("RGB", px=4096)
    error = ErrorJson.of(client.post("/v1/tiles?resize=true", files=form([large] * 5)))
    assert (error.status, error.type) == (422, "bad-image")
    assert "together" in error.message


def test_the_image_at_fault_is_named(client: TestClient) -> None:
    error = ErrorJson.of(client.post("/v1/tiles", files=form([PNG, in_mode("L"), PNG])))
    assert error.message.startswith("image[1] has mode L")
    inputs = [data_uri(PNG), "no base64!"]
    error = ErrorJson.of(client.post("/v1/embeddings", json={"input": inputs}))
    assert error.message.startswith("input[1] ")


def test_no_error_repeats_what_was_sent(client: TestClient) -> None:
    secret = "X-Amz-Signature=0123456789abcdef"
    for response in (
        client.post("/v1/embeddings", json={"input": f"https://h/a.png?{secret}"}),
        client.post("/v1/embeddings", json={"input": "AAAA", secret: 1, "model": secret}),
        client.post("/v1/regions", json={"uri": f"s3://b/a.svs?{secret}", "tiles": [[0, 0]]}),
        client.post(f"/v1/tiles?resize={secret}", content=PNG, headers=IMAGE),
        client.post("/v1/tiles", content=PNG, headers={"content-type": secret}),
        client.post("/v1/tiles", content=PNG, headers={**IMAGE, "accept": secret}),
    ):
        assert response.status_code >= 400
        # The name of a key that is not known is all that is told of it.
        assert secret not in response.text.replace(f"'{secret}': is no known key", "")


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", "application/json"),
        (f"text/html, {ARROW};q=0.5, {BYTES};q=0.9", BYTES),
        (f"application/json;q=0.1, {ARROW}", ARROW),
        ("", "application/json"),
    ],
)
def test_accept_chooses_by_preference(client: TestClient, accept: str, wanted: str) -> None:
    response = client.post("/v1/tiles", content=PNG, headers={**IMAGE, "accept": accept})
    assert response.headers["content-type"] == wanted


def test_regions_names_what_is_wrong_with_the_slide(client: TestClient, slide: BatchSlide) -> None:
    folder = slide.path.parent
    (folder / "empty.svs").write_bytes(b"")
    (folder / "text.svs").write_text("no slide")

    def asked(name: str, **more: Any) -> ErrorJson:
        body = {"uri": f"file://{folder}/{name}", "tiles": [[0, 0]], **more}
        return ErrorJson.of(client.post("/v1/regions", json=body))

    assert asked("none.svs").status == 404
    assert asked("empty.svs").type == "empty-file"
    assert asked("text.svs").type == "not-a-slide"
    outside = asked(slide.path.name, tiles=[[0, 0], [5990, 0]])
    assert (outside.status, outside.message[:8]) == (422, "tiles[1]")
    assert asked(slide.path.name, mpp=1.0).type == "off-spec"
    assert asked(slide.path.name, mpp_override=15.0).type == "too-coarse"
    assert asked(slide.path.name, tiles=[[0, 0]] * 65).type == "too-many-tiles"
