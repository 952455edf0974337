"""Who has a token comes in; who opens the door to all has to say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_pipeline.errors import SettingsError
from serve_app.auth import TOKENS_VARIABLE, Tokens, check_door, is_loopback, load_tokens
from serve_app.errors import TokenError

OLD, NEW = "old-token-0123456789", "new-token-0123456789"


@pytest.mark.parametrize("token", [OLD, NEW])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_every_token_opens_so_that_they_can_be_rotated(token: str, scheme: str) -> None:
    Tokens([OLD, NEW]).check(f"{scheme} {token}")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {OLD}",
        OLD,
        f"Bearer {OLD[:-1]}",
        f"Bearer {OLD}x",
        f"Bearer {OLD} {NEW}",
        f"Bearer {OLD.upper()}",
        "Bearer \udcff\udcfe",
    ],
)
def test_nothing_else_does_and_no_error_repeats_it(header: str | None) -> None:
    with pytest.raises(TokenError) as caught:
        Tokens([OLD, NEW]).check(header)
    assert OLD[:10] not in str(caught.value)


def test_tokens_are_not_kept_as_they_are() -> None:
    assert OLD not in repr(vars(Tokens([OLD])))


def test_tokens_come_from_the_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# rotated in spring\n\n  {OLD}  \n")
    monkeypatch.setenv(TOKENS_VARIABLE, NEW)
    for token in (OLD, NEW):
        load_tokens(str(file)).check(f"Bearer {token}")
    monkeypatch.delenv(TOKENS_VARIABLE)
    assert not load_tokens(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [("# none\n", "holds no token"), ("short\n", "too short"), (None, "can't be read")],
)
def test_a_file_that_gives_no_good_token_is_refused(
    tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "tokens"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=words) as caught:
        load_tokens(str(file))
    assert "short\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "anonymous", "host", "opens"),
    [
        ([OLD], False, "0.0.0.0", True),
        ([OLD], False, None, True),
        ([], False, "127.0.0.1", False),
        ([], False, None, False),
        ([], True, None, True),
        ([], True, "127.0.0.1", True),
        ([], True, "::1", True),
        ([], True, "localhost", True),
        ([], True, "0.0.0.0", False),
        ([], True, "::", False),
        ([], True, "10.0.0.4", False),
        ([], True, "example.org", False),
    ],
)
def test_an_open_door_has_to_be_asked_for(
    tokens: list[str], anonymous: bool, host: str | None, opens: bool
) -> None:
    if opens:
        check_door(Tokens(tokens), allow_anonymous=anonymous, host=host)
    else:
        with pytest.raises(SettingsError, match=r"tokens_file.*" + TOKENS_VARIABLE):
            check_door(Tokens(tokens), allow_anonymous=anonymous, host=host)


def test_loopback_is_all_of_127() -> None:
    assert is_loopback("127.8.8.8")
    assert not is_loopback("127.0.0.1.example.org")
