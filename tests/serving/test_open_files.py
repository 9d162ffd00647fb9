"""How many connections fit into the files that a process may open."""

import resource

import pytest

from regnet_deploy.errors import ServerError
from regnet_deploy.serving import open_files
from regnet_deploy.serving.open_files import fit_connections


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The soft and hard limits of the process, the last one counts; 10 files are open."""
    found = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: found[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: found.append(new))
    monkeypatch.setattr(open_files, "_open_now", lambda: 10)
    return found


def test_what_fits_is_left_as_it_is(limits: list[tuple[int, int]]):
    for may_raise in (False, True):
        assert fit_connections(512, decoders=2, grpc=False, tls=False, may_raise=may_raise).connections == 512
    assert limits == [(1024, 4096)]


def test_the_soft_limit_of_the_own_process_is_raised_as_far_as_needed(limits: list[tuple[int, int]]):
    fitted = fit_connections(2000, decoders=2, grpc=False, tls=False, may_raise=True)
    assert fitted.connections == 2000
    assert limits[-1] == (fitted.needed, 4096)
    assert 2000 < fitted.needed < 2200
    fitted = fit_connections(8000, decoders=2, grpc=False, tls=False, may_raise=True)
    assert limits[-1] == (4096, 4096)
    assert 3900 < fitted.connections < 4096


def test_of_another_process_it_is_not(limits: list[tuple[int, int]]):
    assert fit_connections(2000, decoders=2, grpc=False, tls=False).connections < 1024
    assert len(limits) == 1


def test_grpc_tls_and_decoders_take_their_share(limits: list[tuple[int, int]]):
    limits[:] = [(200, 200)]
    plain = fit_connections(512, decoders=1, grpc=False, tls=False).connections
    assert fit_connections(512, decoders=10, grpc=False, tls=False).connections == plain - 27 + 3  # of the spare ones
    assert fit_connections(512, decoders=1, grpc=False, tls=True).connections < plain
    both = fit_connections(512, decoders=1, grpc=True, tls=False).connections
    assert both <= plain / 2


def test_a_limit_that_is_too_low_for_one_is_an_error(limits: list[tuple[int, int]]):
    limits[:] = [(40, 40)]
    with pytest.raises(
        ServerError, match=r"may open 40 files, too few .* at least: raise the limit \(`ulimit -n 6\d\d`"
    ):
        fit_connections(512, decoders=1, grpc=False, tls=False)


def test_without_a_limit_all_fit(limits: list[tuple[int, int]]):
    limits[:] = [(resource.RLIM_INFINITY, resource.RLIM_INFINITY)]
    fitted = fit_connections(10**6, decoders=1, grpc=True, tls=True, may_raise=True)
    assert (fitted.connections, fitted.open_files) == (10**6, None)


def test_one_more_connection_would_not_fit(limits: list[tuple[int, int]]):
    for soft in range(80, 1000, 7):
        limits[:] = [(soft, soft)]
        fitted = fit_connections(10**6, decoders=1, grpc=True, tls=True)
        assert fit_connections(fitted.connections, decoders=1, grpc=True, tls=True).needed <= soft
        assert fit_connections(fitted.connections + 1, decoders=1, grpc=True, tls=True).needed > soft


def test_where_the_system_does_not_list_open_files_some_are_assumed(monkeypatch: pytest.MonkeyPatch):
    def missing(path: str) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr("os.listdir", missing)
    assert open_files._open_now() > 3


def test_files_that_are_open_are_counted():
    before = open_files._open_now()
    with open(__file__):
        assert open_files._open_now() == before + 1
