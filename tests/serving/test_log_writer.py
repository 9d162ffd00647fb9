import io
import json
import math
import threading

import pytest

from regnet_deploy.serving import log_writer
from regnet_deploy.serving.log_writer import MAX_TEXT, LogWriter, RateLimit, clean, format_json, format_text

HOSTILE = "a\r\nb\x1b[31m\0\x7f\x9b\u2028\u202e\ud800é"


def test_whatever_a_text_holds_it_becomes_one_line_of_printable_ascii():
    for line in (format_json(clean({HOSTILE: [HOSTILE]})), format_text(clean({HOSTILE: {HOSTILE: HOSTILE}}))):
        assert line.isascii()
        assert line.isprintable()
    assert json.loads(format_json(clean(HOSTILE))) == HOSTILE.replace("\ud800", "?")


def test_values_are_cut_to_what_is_read():
    assert clean("x" * 10_240) == "x" * MAX_TEXT + "... (10240 characters)"
    assert clean([math.nan, math.inf, 0.5, True, None, 3]) == ["nan", "inf", 0.5, True, None, 3]
    assert len(clean(list(range(1000)))) == len(clean(dict.fromkeys(range(1000)))) == 50
    nested: list = []
    nested.append(nested)
    assert json.loads(format_json(clean({"nested": nested, "path": pytest})))["nested"][0][0]


def test_text_quotes_what_is_not_one_word():
    facts = {"id": "a/b:1", "error": 'say "no"\n', "ms": {"total": 1.5, "read": 0}, "none": None, "empty": ""}
    assert format_text(facts) == 'id=a/b:1 error="say \\"no\\"\\n" ms.total=1.5 ms.read=0 none=null empty=""'


def test_lines_of_a_kind_are_limited_and_those_kept_back_are_counted():
    limit = RateLimit(2)
    assert [limit.allow("a", now) for now in (10.0, 10.1, 10.2, 10.9)] == [True, True, False, False]
    assert limit.allow("b", 10.9)
    assert limit.waiting()
    assert limit.suppressed(10.95) == {}
    assert [limit.allow("a", now) for now in (11.0, 11.1, 11.2)] == [True, True, False], "another second"
    assert limit.suppressed(11.3) == {"a": 2}
    assert limit.suppressed(99.0) == {"a": 1}
    assert limit.suppressed(99.0) == {}
    assert not limit.waiting()


class Stalled(io.StringIO):
    """A stream whose reader stalls until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.go_on.wait(20)
        return super().write(text)


def test_a_reader_that_stalls_costs_lines_not_the_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_writer, "MAX_WAITING", 5)
    stream = Stalled()
    lines = LogWriter(stream, lambda dropped: [f"dropped {dropped}"] if dropped else [], lambda: False)
    lines.put("first")
    assert stream.entered.wait(20)
    for number in range(8):
        lines.put(str(number))
    lines.close(0.01)  # nor does it keep the server from ending
    stream.go_on.set()
    lines.close(20)
    assert stream.getvalue().split("\n") == ["first", "0", "1", "2", "3", "4", "dropped 3", ""]


def test_a_reader_that_has_gone_is_no_reason_to_end():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    lines = LogWriter(Gone(), lambda dropped: [], lambda: False)
    lines.put("x")
    lines.close(20)
