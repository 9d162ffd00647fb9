import threading

from regnet_deploy.engines.capture_lock import CaptureLock, capture_lock


def test_a_process_has_one_lock():
    assert capture_lock() is capture_lock()


def test_threads_work_together_and_a_capture_is_alone():
    lock, inside, wrong = CaptureLock(), [], []

    def work() -> None:
        for _ in range(200):
            with lock.working():
                inside.append("work")
                if "capture" in inside:
                    wrong.append(list(inside))
                inside.remove("work")

    def capture() -> None:
        for _ in range(50):
            with lock.capturing(10) as alone:
                if not alone or inside:
                    wrong.append((alone, list(inside)))
                inside.append("capture")
                inside.remove("capture")

    threads = [threading.Thread(target=one) for one in (work, work, capture, capture)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_capture_gives_up_where_work_goes_on_and_later_work_goes_on_too():
    lock = CaptureLock()
    with lock.working(), lock.capturing(0.01) as alone:
        assert not alone
        with lock.working():
            pass
    with lock.capturing(0) as alone:
        assert alone
        with lock.capturing(0.01) as second:
            assert not second
    with lock.working():
        pass


def test_work_that_comes_waits_for_a_capture_that_waits():
    lock, order = CaptureLock(), []
    working, waiting = threading.Event(), threading.Event()

    def capture() -> None:
        waiting.set()
        with lock.capturing(10):
            order.append("capture")

    def later() -> None:
        while not lock._waiting:
            pass
        working.set()
        with lock.working():
            order.append("work")

    threads = [threading.Thread(target=one) for one in (capture, later)]
    with lock.working():
        for thread in threads:
            thread.start()
        assert waiting.wait(10)
        assert working.wait(10)
        order.append("first")
    for thread in threads:
        thread.join()
    assert order == ["first", "capture", "work"]


def test_an_error_in_the_body_releases_it():
    lock = CaptureLock()
    for use in (lock.working, lambda: lock.capturing(1)):
        try:
            with use():
                raise ValueError
        except ValueError:
            pass
    with lock.capturing(0) as alone:
        assert alone
