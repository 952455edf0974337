"""Only what is plainly under a prefix may be read; every trick is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pipeline.errors import SettingsError
from serve_app.allowed import AllowedUris
from serve_app.errors import ForbiddenUriError
from serve_app.settings import RegionSettings

PREFIXES = ["s3://lab/slides/", "gs://lab-two", "az://pathology/a/b"]

HOSTILE = [
    "",
    " ",
    "/etc/passwd",
    "slides/a.svs",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file://localhost/etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.169.254/latest/meta-data/",
    "http://127.0.0.1:8265/api/jobs/",
    "http://[::1]:8265/",
    "http://0x7f000001/",
    "https://lab/slides/a.svs",
    "ftp://lab/slides/a.svs",
    "gopher://lab/slides/a.svs",
    "data:image/png;base64,AAAA",
    "memory://lab/slides/a.svs",
    "s3:/lab/slides/a.svs",
    "s3:lab/slides/a.svs",
    "s3:///lab/slides/a.svs",
    "s3://",
    "s3://lab",
    "s3://lab/",
    "s3://lab/slides",
    "s3://lab/slides/",
    "s3://lab/slides//a.svs",
    "s3://lab/slides-private/a.svs",
    "s3://lab/slidesa.svs",
    "s3://lab/Slides/a.svs",
    "s3://lab/other/a.svs",
    "s3://lab-private/slides/a.svs",
    "s3://lab.evil.example/slides/a.svs",
    "s3://LAB/slides/a.svs",
    "S3://lab/slides/a.svs",
    "s3a://lab/slides/a.svs",
    "s3://lab/slides/../private/a.svs",
    "s3://lab/slides/./a.svs",
    "s3://lab/slides/x/../../private/a.svs",
    "s3://lab/slides/..",
    "s3://lab/slides/ .. /private/a.svs",
    "s3://lab/./slides/a.svs",
    "s3://lab/slides/%2e%2e/private/a.svs",
    "s3://lab/slides/%2E%2E%2Fprivate/a.svs",
    "s3://lab/slides%2Fa.svs",
    "s3://lab/slides/%252e%252e/a.svs",
    "s3://lab/slides/..\\private\\a.svs",
    "s3://lab\\slides\\a.svs",
    "s3://lab/slides\\..\\private/a.svs",
    "s3://lab/slides/a.svs?X-Amz-Signature=abc",
    "s3://lab/slides/a.svs?versionId=1",
    "s3://lab/slides/a.svs#fragment",
    "s3://lab/slides/a.svs\x00.txt",
    "s3://lab/slides/a.svs\n",
    "s3://lab/slides/\r\nHost: evil.example/a.svs",
    "s3://lab/slides/\ta.svs",
    "s3://user:password@lab/slides/a.svs",
    "s3://lab@evil.example/slides/a.svs",
    "s3://lab:443/slides/a.svs",
    "s3://lab /slides/a.svs",
    " s3://lab/slides/a.svs",
    "s3://läb/slides/a.svs",
    "s3://ｌａｂ/slides/a.svs",
    "s3://lab/slides／a.svs",
    "s3://lab/slides/*.svs",
    "s3://../slides/a.svs",
    "s3://lab/../lab/slides/a.svs",
    "gs://lab-two",
    "gs://lab-twoa/x.svs",
    "gs://lab/slides/a.svs",
    "az://pathology/a/bc/x.svs",
    "az://pathology/a/x.svs",
    "az://pathology//a/b/x.svs",
    "s3://lab/slides/" + "a" * 5000,
]


@pytest.mark.parametrize("uri", HOSTILE)
def test_a_hostile_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ForbiddenUriError) as caught:
        AllowedUris(RegionSettings(prefixes=PREFIXES)).check(uri)
    assert len(uri) < 12 or uri.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://lab/slides/a.svs",
        "s3://lab/slides/2026/case 7/a (1).svs",
        "s3://lab/slides/ü.svs",
        "gs://lab-two/a.svs",
        "az://pathology/a/b/c/d.ndpi",
    ],
)
def test_what_lies_under_a_prefix_is_read_as_it_was_named(uri: str) -> None:
    assert AllowedUris(RegionSettings(prefixes=PREFIXES)).check(uri) == uri


def test_without_prefixes_nothing_is_read() -> None:
    with pytest.raises(ForbiddenUriError):
        AllowedUris(RegionSettings()).check("s3://lab/slides/a.svs")


@given(st.lists(st.sampled_from(["a", "b", "slides", "slides-x", ".", "..", ""]), max_size=6))
def test_a_path_is_allowed_only_segment_by_segment(segments: list[str]) -> None:
    allowed = AllowedUris(RegionSettings(prefixes=["s3://lab/slides/a"]))
    uri = "/".join(["s3://lab", *segments])
    clean = not {".", "..", ""} & set(segments)
    if clean and segments[:2] == ["slides", "a"] and len(segments) > 2:
        assert allowed.check(uri) == uri
    else:
        with pytest.raises(ForbiddenUriError):
            allowed.check(uri)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("https://slides.example.org/", "begins with one of"),
        ("http://localhost/", "begins with one of"),
        ("file:///slides", "allow_file"),
        ("/slides", "begins with one of"),
        ("s3://lab/../x", "no empty"),
        ("s3://lab/x?y", "no escapes"),
        ("s3://", "begins with one of"),
        ("s3://L/x", "a bucket's name"),
    ],
)
def test_a_prefix_that_cant_be_meant_is_refused_at_start(prefix: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        AllowedUris(RegionSettings(prefixes=[prefix]))


def test_a_link_does_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "slides", tmp_path / "private"
    inside.mkdir()
    outside.mkdir()
    (outside / "a.svs").write_bytes(b"x")
    (inside / "b.svs").write_bytes(b"x")
    (inside / "out").symlink_to(outside)
    (inside / "c.svs").symlink_to(outside / "a.svs")
    settings = RegionSettings(prefixes=[f"file://{inside}"], allow_file=True)
    assert AllowedUris(settings).check(f"file://{inside}/b.svs") == f"file://{inside}/b.svs"
    for name in ("out/a.svs", "c.svs"):
        with pytest.raises(ForbiddenUriError):
            AllowedUris(settings).check(f"file://{inside}/{name}")
