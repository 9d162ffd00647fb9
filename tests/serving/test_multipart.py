"""Forms as browsers and curl send them, and as nobody should."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.multipart import FormPart, read_form

KIND = "multipart/form-data; boundary=X"


def form(*parts: tuple[str, bytes], boundary: str = "X") -> bytes:
    written = b"".join(
        f"--{boundary}\r\nContent-Disposition: {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts
    )
    return written + f"--{boundary}--\r\n".encode()


def refused(body: bytes, kind: str = KIND, most: int = 4) -> RequestError:
    with pytest.raises(RequestError) as error:
        read_form(body, kind, most)
    assert "\n" not in str(error.value)
    return error.value


def test_parts_come_in_their_order_with_the_names_of_their_files():
    body = form(
        ('form-data; name="a"; filename="one.png"', b"1\r\n--not it\r\n"),
        ('form-data; name="field"', b""),
        ("form-data", b"\x00\xff"),
        ('form-data; name="a"; filename="ümläut \\"x\\".jpg"', b"4"),
    )
    assert read_form(body, KIND, 4) == [
        FormPart("one.png", b"1\r\n--not it\r\n"),
        FormPart("field", b""),
        FormPart("image 2", b"\x00\xff"),
        FormPart('ümläut "x".jpg', b"4"),
    ]


def test_the_boundary_may_be_quoted_and_what_stands_around_the_parts_is_not_one():
    body = form(('form-data; name="a"', b"1"), boundary="a b") + b"epilogue"
    assert read_form(body, 'Multipart/Form-Data; charset=utf-8; boundary="a b"', 1) == [FormPart("a", b"1")]


def test_a_name_that_is_long_or_not_text_is_made_one():
    body = b'--X\r\nContent-Disposition: form-data; filename="' + b"\xff" * 400 + b'"\r\n\r\n1\r\n--X--\r\n'
    (part,) = read_form(body, KIND, 1)
    assert part == FormPart("\ufffd" * 255, b"1")


def test_more_parts_than_a_request_may_have_are_not_read():
    error = refused(form(*[("form-data", b"x")] * 5))
    assert (error.status, str(error)) == (413, "a form may have 4 images")


def test_what_only_looks_like_boundaries_is_not_parsed():
    body = form(("form-data", b"\r\n--X-" * 1_000_000))
    assert refused(body).status == 413


@pytest.mark.parametrize("headers", [b"A: " + b"b" * 50_000 + b"\r\n", b"A: b\r\n" * 3000])
def test_headers_of_a_part_have_a_limit(headers: bytes):
    assert refused(b"--X\r\n" + headers + b"\r\n1\r\n--X--\r\n").status == 400


def test_a_clients_mistake_is_nothing_for_the_log(caplog: pytest.LogCaptureFixture):
    refused(b"--X\r\nno colon\r\n\r\n1\r\n--X--\r\n")
    refused(b"hello")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", KIND, 400),
        (b"hello", KIND, 400),
        (b"--X--\r\n", KIND, 400),
        (form(("form-data", b"1"))[:-6], KIND, 400),
        (form(("form-data", b"1"), boundary="Y"), KIND, 400),
        (b"--X\r\nno colon\r\n\r\n1\r\n--X--\r\n", KIND, 400),
        (form(("form-data", b"1")), "multipart/form-data", 400),
        (form(("form-data", b"1")), "multipart/form-data; boundary=" + "x" * 71, 400),
        (form(("form-data", b"1")), "multipart/mixed; boundary=X", 415),
        (form(("form-data", b"1")), "multipart/", 415),
    ],
)
def test_what_is_not_such_a_form_is_the_clients_mistake(body: bytes, kind: str, status: int):
    assert refused(body, kind).status == status


@settings(deadline=None)
@given(
    st.binary(max_size=120) | st.text("-X\r\n: ab;", max_size=60).map(str.encode),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
def test_any_bytes_are_a_form_or_refused(body: bytes, after: str):
    for content in (body, b"--X\r\n" + body, form(("form-data", body)) + body):
        for kind in (KIND, KIND + after):
            try:
                parts = read_form(content, kind, 3)
            except RequestError as error:
                assert error.status in (400, 413, 415)  # noqa: PT017 - both outcomes are right
            else:
                assert 1 <= len(parts) <= 3
