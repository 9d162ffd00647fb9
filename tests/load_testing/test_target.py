"""Addresses, tokens and single questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.load_testing.target import Target, client_token, error_of, get, parse_target, post


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8000", Target("127.0.0.1", 8000)),
        ("http://example.org/", Target("example.org", 80)),
        ("https://example.org/vision/", Target("example.org", 443, True, "/vision")),
        ("http://[::1]:9", Target("::1", 9)),
        ("localhost:8000", Target("localhost", 8000)),
    ],
)
def test_addresses(url, target):
    assert parse_target(url) == target
    assert parse_target(target.url) == target


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:99999", "http://x?a=1", "http://u@x", "//a b"])
def test_what_is_no_address_is_one_line(url):
    with pytest.raises(UsageError, match="is not the address of a server such as"):
        parse_target(url)


def test_a_request_has_all_it_needs():
    target = Target("::1", 8000, prefix="/p", token="s3cret")
    head, _, body = post(target, "/classify", b"abc", {"content-type": "image/png"}).partition(b"\r\n\r\n")
    assert body == b"abc"
    first, *fields = head.decode().split("\r\n")
    assert first == "POST /p/classify HTTP/1.1"
    wanted = ["authorization: Bearer s3cret", "content-length: 3", "content-type: image/png", "host: [::1]:8000"]
    assert sorted(fields) == wanted
    assert "s3cret" not in repr(target)


def test_tokens_come_from_a_file_of_one_line(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("abc.def-1\n")
    assert client_token(file) == "abc.def-1"
    for text in ("", "two words", "zwei\nzeilen", "é"):
        file.write_text(text)
        with pytest.raises(UsageError, match="must contain one token"):
            client_token(file)
    with pytest.raises(UsageError, match="cannot read the token file"):
        client_token(tmp_path / "nowhere")


def test_questions_carry_the_token_and_answers_are_json_or_nothing(fake, answer):
    with fake(lambda head, body: answer(404, b'{"error": "no  such\\nmodel"}')) as (target, server):
        status, document = get(Target(target.host, target.port, token="abc"), "/v2")
    assert (status, error_of(document)) == (404, "no such model")
    assert b"authorization: bearer abc" in server.requests[0][0].lower()
    with fake(lambda head, body: answer(200, b"<html>")) as (target, _):
        assert get(target, "/") == (200, None)


@pytest.mark.parametrize("reply", [None, b"SSH-2.0\r\n"])
def test_what_does_not_answer_is_one_line(fake, reply):
    with fake(lambda head, body: reply) as (target, _), pytest.raises(ServerError, match="no server answers at http:"):
        get(target, "/")
    with pytest.raises(ServerError, match="regnet-deploy serve"):
        get(Target("127.0.0.1", 1), "/")
