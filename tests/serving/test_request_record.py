import logging

import pytest

from regnet_deploy.serving.request_record import RequestRecord, notify_all

FINISHED = RequestRecord(
    *("regnet", "1", "http", "infer", 200, 1, 1, 1_700_000_000.0),
    *(0.001, 0.0, 0.002, 0.003, 0.007, "id", None, None),
)


def test_every_observer_is_told_whatever_the_others_do(caplog: pytest.LogCaptureFixture):
    told: list[object] = []

    def fails(finished: RequestRecord) -> None:
        told.append("failing")
        raise (KeyError if len(told) > 5 else ValueError)("no")

    observe = notify_all([told.append, fails, told.append])
    with caplog.at_level(logging.ERROR, "regnet_deploy.serving"):
        for _ in range(3):
            observe(FINISHED)
    assert told == [FINISHED, "failing", FINISHED] * 3
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, KeyError], "once for each kind"


def test_without_observers_nothing_is_told():
    notify_all([])(FINISHED)
