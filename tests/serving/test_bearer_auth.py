"""The token: where it comes from, and who gets in without it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.serving.bearer_auth import TOKEN_VARIABLE, BearerAuth, check_token, is_bearer, read_token

TOKEN = "0123456789abcdef0123"


@pytest.fixture(autouse=True)
def _no_token_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def test_without_a_file_or_the_variable_there_is_no_token():
    assert read_token(None) is None


def test_the_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TOKEN_VARIABLE, " " + TOKEN + "\n")
    assert read_token(None) == TOKEN
    (tmp_path / "token").write_text("f" * 16 + "\n")
    assert read_token(str(tmp_path / "token")) == "f" * 16


@pytest.mark.parametrize(
    "token",
    ["", " ", "short", "a" * 15, "with a space in the middle", "tab\tin-the-middle-x", "ümlaut-in-a-long-token"],
)
def test_a_token_that_anybody_guesses_or_no_header_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
):
    (tmp_path / "token").write_text(token, encoding="utf-8")
    for path, where in ((str(tmp_path / "token"), "token in /"), (None, f"token in {TOKEN_VARIABLE}")):
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        with pytest.raises(UsageError, match="16 or more printable ASCII") as error:
            read_token(path)
        assert where in str(error.value)
        assert "\n" not in str(error.value)
        assert not token.strip() or token not in str(error.value)  # a secret is not printed


def test_what_is_wrong_with_a_token_is_said_without_it():
    with pytest.raises(UsageError, match="not 22 characters, 1 of which are others: make one with"):
        check_token("ümlaut-in-a-long-token", "it")
    with pytest.raises(UsageError, match="not 5 characters: make one"):
        check_token(" short\n")
    with pytest.raises(UsageError, match="not a bytes: make one"):
        check_token(b"0123456789abcdef0123")  # type: ignore[arg-type]


def test_a_line_end_is_no_part_of_a_token():
    assert check_token(f"{TOKEN}\r\n") == TOKEN

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it is not asked")

    for token in ("", "a", "ümlaut-in-a-long-token"):
        with pytest.raises(UsageError, match="16 or more printable ASCII"):
            BearerAuth(app, token)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"token's file .*/nowhere cannot be read: No such file"):
        read_token(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_token(str(tmp_path))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe" * 10)
    with pytest.raises(UsageError, match="it is not text"):
        read_token(str(tmp_path / "bytes"))


@pytest.mark.parametrize(
    ("header", "is_right"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Bearer  {TOKEN} ", True),
        (TOKEN, False),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer", False),
        ("", False),
        (f"Bearer {TOKEN.upper()}", False),
        ("Bearer \xff\xff", False),
    ],
)
def test_the_header_must_carry_the_token(header: str, is_right: bool):
    assert is_bearer(header.encode("latin-1"), TOKEN) is is_right


def test_no_header_carries_none():
    assert is_bearer(None, TOKEN) is False


def status(path: str, method: str = "GET", headers: Any = (), **scope: Any) -> int:
    """What an application behind a guard, which answers 200 to everything, is seen to answer."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "path": path, "method": method, "headers": list(headers), **scope}
    asyncio.run(BearerAuth(app, TOKEN)(scope, receive, send))
    if sent[0]["status"] == 401:
        assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]
    return int(sent[0]["status"])


PAGE = [(b"accept", b"text/html,application/xhtml+xml,*/*;q=0.8")]


@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v2/health/ready"])
def test_health_and_the_page_are_for_everybody_to_read(path: str):
    headers = PAGE if path == "/" else []
    assert status(path, headers=headers) == status(path, "HEAD", headers) == 200
    assert status(path, "POST", headers) == 401
    assert status("/vision" + path, headers=headers, root_path="/vision") == 200  # of an application within another


@pytest.mark.parametrize(
    "headers", [[], [(b"accept", b"*/*")], [(b"accept", b"application/json")], [(b"accept", b"*/*"), *PAGE]]
)
def test_what_else_is_at_the_root_says_what_is_served_and_is_for_who_shows_the_token(headers: Any):
    assert status("/", headers=headers) == 401
    assert status("/", headers=[*headers, (b"authorization", b"Bearer " + TOKEN.encode())]) == 200


def test_a_refusal_takes_in_what_the_client_still_sends():
    left = [{"type": "http.request", "body": b"x", "more_body": more} for more in (False, True, True)]
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("it was let in")

    async def receive() -> Any:
        assert sent[1]["body"]  # with the answer on its way
        return left.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/classify", "method": "POST", "headers": []}
    asyncio.run(BearerAuth(app, TOKEN)(scope, receive, send))
    assert (b"connection", b"close") in sent[0]["headers"]
    assert not left
    assert not sent[-1].get("more_body", False)


@pytest.mark.parametrize(
    "path",
    ["/card", "/classify", "/metrics", "/v2", "/v2/models/regnet", "/v2/models/regnet/ready", "/v2/health/live/", "//"],
)
def test_all_else_is_for_who_shows_the_token(path: str):
    assert status(path) == 401
    assert status(path, headers=[(b"authorization", b"Bearer " + TOKEN.encode())]) == 200


def test_of_two_headers_the_first_counts():
    right, wrong = (b"authorization", b"Bearer " + TOKEN.encode()), (b"authorization", b"Bearer other")
    assert status("/v2", headers=[wrong, right]) == 401
