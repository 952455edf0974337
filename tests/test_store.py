"""Every verb of `Store`, on a local folder, on moto and on Ceph's gateway."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline import store as store_module
from ray_pipeline.errors import (
    AccessError,
    NotFoundError,
    ObjectReplacedError,
    PreconditionError,
    SettingsError,
    StoreError,
    UnreachableError,
)
from ray_pipeline.ranged_file import BLOCK_BYTES
from ray_pipeline.store import ObjectInfo, Store
from ray_pipeline.uris import shown_uri, split_uri
from tests.servers.moto import MotoServer
from tests.servers.s3 import S3Server, free_port

KEYS = [
    "plain.svs",
    "deep/er/plain.svs",
    "with space.svs",
    "#1 (ä)+é.svs",
    "100%25/50%.svs",
    "a=1/b&c",
]
"""Names that slides and hive folders have in the wild."""

on_all = pytest.mark.parametrize(
    "root", ["folder", "moto", pytest.param("ceph", marks=pytest.mark.ceph)], indirect=True
)


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty root URI of each kind of store."""
    if request.param == "folder":
        return str(tmp_path / "some folder")
    server: S3Server = request.getfixturevalue("s3" if request.param == "moto" else "ceph")
    return server.bucket() + "/some folder"


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.bucket()


def test_a_file_in_a_folders_place_is_said_without_talk_of_networks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = Store.open(str(tmp_path / "file"))
    with pytest.raises(UnreachableError, match="the file system could not write it") as caught:
        store.put("key", b"")
    assert "network" not in str(caught.value)


@on_all
@pytest.mark.parametrize("key", KEYS)
def test_what_is_put_is_found_read_listed_and_deleted(root: str, key: str) -> None:
    store = Store.open(root)
    store.put(key, b"some bytes")

    info = store.head(key)
    assert (info.key, info.size_bytes) == (key, 10)
    assert store.get(key) == b"some bytes"
    assert list(store.list()) == [info]

    store.delete([key])
    assert list(store.list()) == []


@on_all
def test_put_returns_the_etag_that_head_and_list_tell(root: str) -> None:
    store = Store.open(root)
    etag = store.put("a", b"1")
    assert etag == store.head("a").etag == next(store.list()).etag
    assert etag
    assert '"' not in etag


@on_all
def test_a_put_replaces_and_changes_the_etag(root: str) -> None:
    store = Store.open(root)
    first = store.put("a", b"one")
    second = store.put("a", b"other")
    assert first != second
    assert store.get("a") == b"other"


@on_all
def test_an_empty_object_is_an_object(root: str) -> None:
    store = Store.open(root)
    store.put("done/x", b"", if_absent=True)
    assert store.head("done/x").size_bytes == 0
    assert store.get("done/x") == b""


@on_all
def test_a_file_is_put_in_parts_and_stands_whole(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PART_BYTES", 5 << 20)  # S3 takes no smaller ones
    store, data = Store.open(root), random.Random(3).randbytes((11 << 20) + 7)
    store.put("a", b"what stood there")
    (tmp_path / "local").write_bytes(data)
    store.put_file("a", tmp_path / "local")
    assert store.get("a") == data
    assert [info.key for info in store.list()] == ["a"]


@on_all
def test_put_if_absent_writes_once(root: str) -> None:
    store = Store.open(root)
    store.put("a", b"first", if_absent=True)
    with pytest.raises(PreconditionError, match="some folder/a"):
        store.put("a", b"second", if_absent=True)
    assert store.get("a") == b"first"


@on_all
def test_put_if_match_replaces_that_version_only(root: str) -> None:
    store = Store.open(root)
    first = store.put("a", b"first")
    second = store.put("a", b"second!", if_match=first)
    with pytest.raises(PreconditionError):
        store.put("a", b"third", if_match=first)
    assert store.get("a") == b"second!"
    assert store.head("a").etag == second


@on_all
def test_put_if_match_of_an_absent_object_writes_nothing(root: str) -> None:
    store = Store.open(root)
    with pytest.raises((PreconditionError, NotFoundError)):
        store.put("a", b"x", if_match="0123456789abcdef0123456789abcdef")
    assert list(store.list()) == []


@on_all
def test_get_range_reads_those_bytes(root: str) -> None:
    store = Store.open(root)
    store.put("a", bytes(range(100)))
    assert store.get_range("a", 0, 100) == bytes(range(100))
    assert store.get_range("a", 17, 5) == bytes(range(17, 22))
    assert bytes(store.get_range("a", 99, 1, etag=store.head("a").etag)) == b"\x63"


@on_all
def test_get_range_of_a_replaced_object_is_no_chimera(root: str) -> None:
    store = Store.open(root)
    etag = store.put("a", b"old old old")
    store.put("a", b"new new new new")
    with pytest.raises(ObjectReplacedError, match="was replaced while it was read"):
        store.get_range("a", 0, 3, etag=etag)


@on_all
def test_get_range_past_the_end_is_an_error(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LONGEST_PAUSE_S", 0.01)
    store = Store.open(root)
    store.put("a", b"0123456789")
    with pytest.raises(StoreError, match="some folder/a"):
        store.get_range("a", 5, 10)


@on_all
def test_list_takes_whole_segments_and_tells_keys_below_the_root(root: str) -> None:
    store = Store.open(root)
    for key in ("slides/1", "slides/deep/2", "slides-private/3", "slides.txt"):
        store.put(key, b"")
    assert {info.key for info in store.list("slides")} == {"slides/1", "slides/deep/2"}
    below = Store.open(f"{root}/slides")
    assert {info.key for info in below.list()} == {"1", "deep/2"}
    assert {info.key for info in below.list("deep")} == {"deep/2"}
    assert list(store.list("no-such-folder")) == []


@on_all
def test_folders_are_the_names_right_below(root: str) -> None:
    store = Store.open(root)
    for key in ("recipe=a/slide=1/x", "recipe=a/slide=2/x", "recipe=b/x", "file"):
        store.put(key, b"")
    assert list(store.folders()) == ["recipe=a", "recipe=b"]
    assert list(store.folders("recipe=a")) == ["slide=1", "slide=2"]
    assert list(store.folders("recipe=a/slide=1")) == []
    assert list(store.folders("no-such-folder")) == []


@on_all
def test_list_yields_every_object_past_the_first_chunk(root: str) -> None:
    store = Store.open(root)
    for index in range(60):  # obstore hands out chunks of 50
        store.put(f"{index:03}", b"x" * index)
    found = sorted(store.list(), key=lambda info: info.key)
    assert [(info.key, info.size_bytes) for info in found] == [(f"{i:03}", i) for i in range(60)]


@on_all
def test_a_listing_in_parts_yields_every_object_once(root: str) -> None:
    store = Store.open(root)
    keys = [f"a/{name}/{number}" for name in ("%20", "é", "x", "x-y", "x0") for number in range(3)]
    for key in [*keys, "b/x"]:
        store.put(key, b"")
    names = ["a", "a/", "a/%20", "a/x", "a/x/1", "a/x-y", "a/x-y/0", "a/zz", "b", ""]
    for number in range(1, 1 << len(names), 7):
        cuts = [name for bit, name in enumerate(names) if number >> bit & 1]
        assert sorted(info.key for info in store.list("a", cuts=cuts)) == sorted(keys), cuts


@on_all
def test_a_listing_in_parts_that_is_left_early_or_fails_ends(root: str) -> None:
    store = Store.open(root)
    for number in range(5):
        store.put(f"a/{number}", b"")
    assert next(store.list("a", cuts=["a/1", "a/3"])).key.startswith("a/")
    if store.scheme != "file":
        with pytest.raises(NotFoundError, match="bucket"):
            list(Store.open("s3://no-such-bucket-here").list("a", cuts=["a/1", "a/3"]))


@on_all
def test_delete_forgives_what_is_not_there(root: str) -> None:
    store = Store.open(root)
    for key in ("a", "b", "c"):
        store.put(key, b"")
    store.delete(["a", "never", "b"])
    store.delete(["a"])
    store.delete([])
    assert [info.key for info in store.list()] == ["c"]


@on_all
@pytest.mark.parametrize(
    "action",
    [
        pytest.param(lambda store: store.head("403/no.svs"), id="head"),
        pytest.param(lambda store: store.get("403/no.svs"), id="get"),
        pytest.param(lambda store: store.get_range("403/no.svs", 0, 4), id="get_range"),
        pytest.param(lambda store: store.open_file("403/no.svs"), id="open_file"),
    ],
)
def test_an_absent_object_is_not_found(root: str, action: Callable[[Store], object]) -> None:
    with pytest.raises(NotFoundError, match=r"some folder/403/no\.svs does not exist"):
        action(Store.open(root))


@on_all
def test_an_open_store_survives_pickling(root: str) -> None:
    store = Store.open(root)
    store.put("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.get("a") == b"1"


@on_all
def test_open_file_reads_by_blocks_and_pins_the_version(root: str) -> None:
    store = Store.open(root)
    data = random.Random(1).randbytes(5 * BLOCK_BYTES + 1000)
    store.put("a.svs", data)

    file = store.open_file("a.svs", first_get_bytes=BLOCK_BYTES)
    assert file.counts.gets == 0
    assert file.read(100) == data[:100]
    assert file.read(100) == data[100:200]
    assert file.counts.gets == 1
    file.seek(-10, io.SEEK_END)
    assert file.read() == data[-10:]
    assert file.counts.gets == 2
    assert file.counts.bytes_fetched == BLOCK_BYTES + 1000

    store.put("a.svs", data[::-1])
    file.seek(2 * BLOCK_BYTES)
    with pytest.raises(ObjectReplacedError, match=r"a\.svs"):
        file.read(10)


def test_reading_on_doubles_the_request_and_a_long_read_is_one(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    data = random.Random(1).randbytes(100 * BLOCK_BYTES)
    store.put("a.svs", data)
    file = store.open_file("a.svs", first_get_bytes=BLOCK_BYTES)
    for block in range(15):
        assert file.read(BLOCK_BYTES) == data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    assert file.counts.gets == 4  # 1 + 2 + 4 + 8 blocks
    file.seek(40 * BLOCK_BYTES + 5)
    assert file.read(30 * BLOCK_BYTES) == data[40 * BLOCK_BYTES + 5 :][: 30 * BLOCK_BYTES]
    assert file.counts.gets == 5
    assert file.counts.bytes_fetched == (15 + 31) * BLOCK_BYTES


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    data = random.Random(2).randbytes(2 * BLOCK_BYTES + 12_345)
    path = tmp_path_factory.mktemp("long") / "long.bin"
    path.write_bytes(data)
    return path, data


@st.composite
def _walks(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Seeks (offset, whence) and reads (size), with offsets crowded around block borders."""
    near = st.sampled_from([0, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 12_345])
    offset = st.builds(lambda base, d: max(0, base + d), near, st.integers(-50, 50))
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        whence = draw(st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]))
        value = draw(offset) * (-1 if whence == io.SEEK_END else 1)
        size = draw(st.one_of(st.integers(-1, 300), st.just(BLOCK_BYTES + 7)))
        steps.append((value, whence, size))
    return steps


@given(walk=_walks())
def test_open_file_reads_as_a_local_file_does(
    long_file: tuple[Path, bytes], walk: list[tuple[int, int, int]]
) -> None:
    path, data = long_file
    ours = Store.open(str(path.parent)).open_file(path.name)
    theirs = io.BytesIO(data)
    for offset, whence, size in walk:
        if whence == io.SEEK_END and len(data) + offset < 0:
            continue
        assert ours.seek(offset, whence) == theirs.seek(offset, whence)
        assert ours.read(size) == theirs.read(size)
        assert ours.tell() == theirs.tell()


def test_open_file_fits_a_buffer(long_file: tuple[Path, bytes]) -> None:
    path, data = long_file
    file = Store.open(str(path.parent)).open_file(path.name)
    file.seek(BLOCK_BYTES - 3)
    buffer = bytearray(10)
    assert file.readinto(buffer) == 10
    assert bytes(buffer) == data[BLOCK_BYTES - 3 : BLOCK_BYTES + 7]
    with pytest.raises(ValueError, match="before the start"):
        file.seek(-1)


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(lambda store: list(store.list()), id="list"),
        pytest.param(lambda store: store.get("a"), id="get"),
        pytest.param(lambda store: store.put("a", b""), id="put"),
        pytest.param(lambda store: store.put("a", b"", if_absent=True), id="put_if_absent"),
    ],
)
def test_an_absent_bucket_is_named(s3_server: S3Server, action: Callable[[Store], object]) -> None:
    del s3_server
    with pytest.raises(NotFoundError, match="there is no bucket 'no-such-bucket'"):
        action(Store.open("s3://no-such-bucket/prefix"))


def test_head_in_an_absent_bucket_is_not_found(s3_server: S3Server) -> None:
    """A HEAD has no body, so that the bucket's absence can't be told from the key's."""
    del s3_server
    with pytest.raises(NotFoundError):
        Store.open("s3://no-such-bucket/prefix").head("a")


EVERY_VERB = [
    pytest.param(lambda store: store.head("a"), id="head"),
    pytest.param(lambda store: store.get("a"), id="get"),
    pytest.param(lambda store: store.get_range("a", 0, 1), id="get_range"),
    pytest.param(lambda store: list(store.list()), id="list"),
    pytest.param(lambda store: store.put("a", b""), id="put"),
    pytest.param(lambda store: store.put("a", b"", if_absent=True), id="put_if_absent"),
    pytest.param(lambda store: store.delete(["a"]), id="delete"),
]


@pytest.mark.ceph
@pytest.mark.parametrize("action", EVERY_VERB)
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys_are_refused_in_one_sentence_without_them(
    ceph: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    action: Callable[[Store], object],
) -> None:
    bucket = ceph.bucket()
    monkeypatch.setenv(variable, "hunter2hunter2")
    with pytest.raises(AccessError, match="AWS_ACCESS_KEY_ID") as caught:
        action(Store.open(bucket))
    _tells_no_secret(caught.value, "hunter2hunter2", ceph.secret_key)


@pytest.fixture(scope="module")
def strict_moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A moto that refuses every key."""
    moto = MotoServer(tmp_path_factory.mktemp("moto") / "moto.log", check_keys=True)
    yield moto.start()
    moto.stop()


@pytest.mark.parametrize("action", EVERY_VERB)
def test_unknown_keys_are_refused(
    strict_moto: S3Server, monkeypatch: pytest.MonkeyPatch, action: Callable[[Store], object]
) -> None:
    for name, value in {**strict_moto.env, "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError) as caught:
        action(Store.open("s3://some-bucket"))
    _tells_no_secret(caught.value, "hunter2hunter2")


@pytest.mark.parametrize("action", EVERY_VERB)
def test_an_endpoint_that_nobody_answers_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, action: Callable[[Store], object]
) -> None:
    monkeypatch.setattr(store_module, "LONGEST_PAUSE_S", 0.5)
    nobody = S3Server(
        name="nobody",
        endpoint_url=f"http://127.0.0.1:{free_port()}",
        access_key="key",
        secret_key="hunter2hunter2",
    )
    for name, value in nobody.env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnreachableError, match="check the endpoint") as caught:
        action(Store.open("s3://some-bucket"))
    _tells_no_secret(caught.value, "hunter2hunter2")


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/below"):
        Store.open(str(tmp_path)).put("file/below", b"")


def _tells_no_secret(error: StoreError, *secrets: str) -> None:
    sentence = str(error)
    for word in (*secrets, "Signature=", "X-Amz-", "Authorization", "<?xml"):
        assert word not in sentence
    assert "\n" not in sentence
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == sentence


@pytest.mark.parametrize(
    ("uri", "root", "key"),
    [
        ("s3://bucket/a/b.svs", "s3://bucket/a", "b.svs"),
        ("s3://bucket/b.svs", "s3://bucket", "b.svs"),
        ("https://host.org:8443/x/b.svs", "https://host.org:8443/x", "b.svs"),
        ("/data/a/b.svs", "/data/a", "b.svs"),
        ("/b.svs", "/", "b.svs"),
        ("b.svs", ".", "b.svs"),
        ("a/b.svs", "a", "b.svs"),
    ],
)
def test_split_uri(uri: str, root: str, key: str) -> None:
    assert split_uri(uri) == (root, key)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "https://host"])
def test_split_uri_needs_an_object(uri: str) -> None:
    with pytest.raises(SettingsError, match="names no object"):
        split_uri(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/a", "unknown scheme 'ftp'"),
        ("s3://", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("https://user:hunter2@host/a", "carries credentials"),
        ("https://host/a?X-Amz-Signature=hunter2", "carries credentials"),
        ("s3://key:hunter2@bucket/a", "carries credentials"),
    ],
)
def test_a_uri_that_is_no_store_is_refused_unshown(uri: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Store.open(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/a b", "s3://bucket/a b"),
        ("https://u:p@host/a?sig=1#x", "https://host/a"),
        ("s3://u:p@bucket/what?.svs", "s3://bucket/what?.svs"),
        ("/local/what?.svs", "/local/what?.svs"),
    ],
)
def test_shown_uri_is_fit_for_logs(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


def test_a_store_is_opened_by_path_file_uri_or_s3_uri(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x").write_bytes(b"1")
    for uri in (tmp_path / "a b", f"{tmp_path}/a b/", (tmp_path / "a b").as_uri()):
        store = Store.open(str(uri))
        assert store.uri == str(tmp_path / "a b")
        assert store.get("x") == b"1"
    assert Store.open("s3://bucket/a/").uri == "s3://bucket/a"
    assert Store.open("s3://bucket/a").uri_of("k/x") == "s3://bucket/a/k/x"
    assert Store.open("s3://bucket").uri_of("") == "s3://bucket"


def test_opening_a_store_does_no_io() -> None:
    assert Store.open("s3://bucket-that-is-nowhere/a").uri == "s3://bucket-that-is-nowhere/a"


def test_object_info_is_a_value() -> None:
    info = ObjectInfo(key="a", size_bytes=1, etag="e")
    assert info == ObjectInfo(key="a", size_bytes=1, etag="e")
    assert {info: 1}[info] == 1


@pytest.mark.parametrize(
    "uri",
    [
        "https://lab.example/a.svs?X-Amz-Signature=0f1e2d",
        "https://lab.example/folder%2Fa.svs?X-Amz-Signature=0f1e2d",
        "https://lab.example/a/b.svs?sig=a%2Fb%2F",
        "s3://user:0f1e2d@bucket/a.svs",
    ],
)
def test_no_object_is_named_by_a_uri_that_holds_a_secret(uri: str) -> None:
    for taken in (split_uri, Store.open):
        with pytest.raises(SettingsError, match="carries credentials or a signature") as caught:
            taken(uri)
        assert "0f1e2d" not in str(caught.value)
        assert "sig" not in str(caught.value).replace("signature", "")


def test_a_clients_own_words_are_not_kept_as_a_cause(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        Store.open(str(tmp_path)).get("absent")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("name", ["a%20b.svs", "ü #?.svs", "50%"])
def test_a_local_range_is_of_the_version_that_the_listing_tells(tmp_path: Path, name: str) -> None:
    store = Store.open(str(tmp_path))
    store.put(name, b"0123456789")
    (listed,) = store.list()
    assert bytes(store.get_range(name, 2, 3, etag=listed.etag)) == b"234"
    (tmp_path / name).write_bytes(b"012345678")
    with pytest.raises(ObjectReplacedError, match=f"was {listed.etag}, is {store.head(name).etag}"):
        store.get_range(name, 2, 3, etag=listed.etag)
