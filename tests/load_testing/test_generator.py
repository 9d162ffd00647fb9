"""Open and closed loops against servers that pause, refuse, close, and answer nonsense."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.errors import ServerError
from regnet_deploy.load_testing.event_loop import run_on_event_loop
from regnet_deploy.load_testing.generator import (
    Arrivals,
    Load,
    LoadLimits,
    arrival_schedule,
    closed_loop,
    open_loop,
    request_each,
)
from regnet_deploy.load_testing.http_client import BROKEN, TIMED_OUT
from regnet_deploy.load_testing.samples import DROPPED, PENDING, Recorder, Samples
from regnet_deploy.load_testing.target import Target, get, post
from regnet_deploy.progress import NoProgress


def load(target: Target, count: int = 4, check: Any = lambda number, reply: True) -> Load:
    return Load(target, [post(target, "/x", f"body {i}".encode(), {}) for i in range(count)], check)


def opened(target: Target, due: np.ndarray, loaded: Load | None = None, **rules: Any) -> Samples:
    recorder = Recorder()
    run_on_event_loop(lambda: open_loop(loaded or load(target), due, recorder, LoadLimits(**rules)))
    return recorder.samples()


def test_every_request_is_sent_when_it_is_due_and_answered(fake):
    due = arrival_schedule(200, 0.5)
    with fake() as (target, server):
        samples = opened(target, due)
    assert len(samples) == len(due) == len(server.requests)
    assert (samples.status == 200).all()
    np.testing.assert_allclose(samples.intended, due, atol=1e-6)
    assert (samples.sent >= samples.intended).all()
    assert (samples.done >= samples.sent).all()
    assert server.connections < len(due)  # they are kept


def test_requests_take_turns_with_the_payloads_and_answers_are_checked_by_number(fake):
    seen = []

    def check(number: int, reply: Any) -> bool:
        seen.append((number, reply.body))
        return number != 2

    with fake() as (target, _):
        samples = opened(target, np.linspace(0, 0.05, 9), load(target, 3, check))
    assert all(body == f"body {number}".encode() for number, body in seen)
    assert sorted(number for number, _ in seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert samples.wrong.tolist() == [False, False, True] * 3


def test_a_pause_of_the_server_is_seen_by_all_that_were_due_meanwhile(fake):
    """No coordinated omission: one request that hangs must not keep the others from being sent and counted."""
    busy = threading.Lock()  # the server answers one at a time, the first one after half a second

    def one_at_a_time(head: bytes, body: bytes) -> bytes:
        with busy:
            if body == b"body 0":
                time.sleep(0.5)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    with fake(one_at_a_time) as (target, _):
        samples = opened(target, np.arange(50) / 100, load(target, 50))
    took = samples.done - samples.intended
    assert (samples.status == 200).all()
    assert (took > 0.1).sum() >= 35  # a closed loop would have one such sample


def test_what_has_no_room_in_flight_is_dropped_not_delayed(fake):
    with fake(delay_s=lambda count: 0.5) as (target, server):
        samples = opened(target, np.arange(10) / 100, connections=3)
    dropped = samples.status == DROPPED
    assert dropped.sum() >= 1
    assert (samples.status == 200).sum() == len(server.requests) == 10 - dropped.sum()
    assert server.connections <= 3


def test_a_server_that_does_not_answer_in_time_has_failed(fake):
    with fake(delay_s=lambda count: 60.0 if count == 2 else 0.0) as (target, _):
        samples = opened(target, np.arange(4) / 50, timeout_s=1.0)
    assert sorted(samples.status.tolist()) == [TIMED_OUT, 200, 200, 200]


def test_statuses_are_told_and_connections_that_the_server_closes_are_opened_again(fake, answer):
    with fake(lambda head, body: answer(503, b"full", "connection: close\r\n")) as (target, server):
        samples = opened(target, np.arange(5) / 50)
    assert (samples.status == 503).all()
    assert server.connections == 5


@pytest.mark.parametrize("reply", [None, b"SSH-2.0-OpenSSH\r\n\r\n"])
def test_closed_connections_and_what_is_not_http_have_failed(fake, reply):
    with fake(lambda head, body: reply) as (target, _):
        samples = opened(target, np.arange(5) / 50)
    assert (samples.status == BROKEN).all()


def test_nobody_there_has_failed():
    samples = opened(Target("127.0.0.1", 1), np.arange(5) / 50)
    assert (samples.status == BROKEN).all()


def test_chunked_answers_are_put_together(fake):
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    bodies = []
    with fake(lambda head, body: chunked) as (target, _):
        opened(target, np.arange(3) / 100, load(target, 1, lambda number, reply: bool(bodies.append(reply.body))))
    assert bodies == [b"abcde"] * 3


def test_a_closed_loop_keeps_as_many_in_flight_as_asked(fake):
    recorder = Recorder()
    with fake(delay_s=lambda count: 0.02) as (target, server):
        run_on_event_loop(lambda: closed_loop(load(target), 3, 0.4, recorder))
    samples = recorder.samples()
    assert server.connections == 3
    assert (samples.status == PENDING).sum() <= 3
    assert 0 < (samples.status == 200).sum() <= 60


def test_answers_one_by_one_and_why_there_is_none(fake, answer):
    def refuse(head: bytes, body: bytes) -> bytes | None:
        return None if body == b"body 1" else answer(200, body, "Inference-Header-Content-Length: 4\r\n")

    with fake(refuse) as (target, _):
        first, second, third = run_on_event_loop(lambda: request_each(target, load(target, 3).requests))
    assert (first.body, first.json_bytes, third.body) == (b"body 0", 4, b"body 2")
    assert "closed before the answer" in second


def test_an_interrupt_leaves_what_was_measured(fake):
    recorder = Recorder()

    class Interrupt(NoProgress):
        def update(self, completed: float, total: float | None = None, note: str = "") -> None:
            if completed > 0.3:
                raise KeyboardInterrupt

    with fake() as (target, _), pytest.raises(KeyboardInterrupt):
        run_on_event_loop(lambda: open_loop(load(target), np.arange(1000) / 100, recorder, None, Interrupt()))
    assert 0 < len(recorder.samples()) < 500


def test_https_is_spoken_to_whom_the_users_authority_vouches_for(fake, tmp_path, monkeypatch):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    due = np.arange(5) / 50
    with fake(context=context) as (target, server):
        assert target.url.startswith("https://")
        assert (opened(target, due).status == BROKEN).all()
        with pytest.raises(ServerError, match="is not trusted"):
            get(target, "/")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert (opened(target, due).status == 200).all()
        assert get(target, "/")[0] == 200
    assert len(server.requests) == 6


RATES, SECONDS = st.floats(0.1, 2000), st.floats(0.01, 5)


@settings(max_examples=60, deadline=None)
@given(rate=RATES, seconds=SECONDS, arrivals=st.sampled_from(get_args(Arrivals)), seed=st.integers(0, 2**32))
def test_as_many_requests_as_the_rate_says_are_due_in_order_and_before_the_end(rate, seconds, arrivals, seed):
    times = arrival_schedule(rate, seconds, arrivals, seed)
    assert len(times) == max(1, round(rate * seconds))
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < seconds)).all()
    assert (arrival_schedule(rate, seconds, arrivals, seed) == times).all()


@settings(max_examples=60, deadline=None)
@given(rate=RATES, seconds=SECONDS)
def test_constant_arrivals_are_equally_far_apart(rate, seconds):
    times = arrival_schedule(rate, seconds, "constant")
    np.testing.assert_allclose(np.diff(times), seconds / len(times), rtol=1e-6)


@pytest.mark.parametrize("rate", [3.0, 200.0])
def test_poisson_arrivals_are_as_many_and_as_uneven_as_those_of_independent_clients(rate):
    gaps = np.concatenate([np.diff(arrival_schedule(rate, 2000 / rate, seed=seed)) for seed in range(20)])
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential distribution
