import threading

import pytest

from regnet_deploy.serving.admission import Admission, Budget


def test_bytes_count_while_their_request_is_inside():
    admission = Admission(4, max_bytes=100)
    with admission.enter() as first, admission.enter() as second:
        assert first.take(60)
        assert not second.take(41)
        assert second.take(40)
        assert admission.bytes_in_flight == 100
        assert not first.take(1)
    assert admission.bytes_in_flight == 0


def test_who_wants_more_than_is_left_waits():
    budget, entered, done = Budget(10), threading.Event(), threading.Event()

    def want() -> None:
        with budget.hold(5):
            entered.set()
        done.set()

    thread = threading.Thread(target=want)
    with budget.hold(6):
        thread.start()
        with budget.hold(4):  # there is room for this one beside
            assert not entered.wait(0.1)
    assert done.wait(10)
    thread.join()


def test_more_than_there_is_in_all_is_everything():
    budget = Budget(10)
    with budget.hold(1000):
        pass
    with pytest.raises(ZeroDivisionError), budget.hold(10):
        _ = 1 / 0
    with budget.hold(10):  # what failed gave back what it held
        pass
