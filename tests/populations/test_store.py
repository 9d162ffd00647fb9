"""What is recorded stays, whoever is killed; what is no store, or another sweep's, is refused in one line."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.populations.store import (
    DIVERGED,
    DONE,
    FAILED,
    Trial,
    TrialOutcome,
    check_store_path,
    is_store,
    lock_store,
    open_store,
    read_store,
    sweep_differences,
)

Make = Callable[..., Trial]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.sweep"


@pytest.fixture
def filled(path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]) -> Path:
    """Three trials with an outcome of each state, and one without."""
    with open_store(path, identity) as store:
        store.add([make_trial(number) for number in range(4)])
        for number, outcome in enumerate(outcomes.values()):
            store.record(number, outcome)
    return path


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def read_all(path: Path) -> None:
    with read_store(path) as store:
        assert isinstance(store.identity, dict)
        store.trials()
        store.outcomes()


#: A process that opens the store and says so.
OPENING = """
import json, os, sys
from pathlib import Path
from regnet_deploy.populations.store import TrialOutcome, lock_store, open_store
path = Path(sys.argv[1])
with lock_store(path), open_store(path, json.loads(sys.argv[2])) as store:
    {body}
    print("ready", flush=True)
    sys.stdin.readline()
"""


def assert_one_line(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_every_state_reads_back_as_it_was_written(
    filled: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    with read_store(filled) as store:
        assert store.identity == identity
        assert store.trials() == [make_trial(number) for number in range(4)]
        assert store.outcomes() == dict(enumerate(outcomes.values()))
    assert is_store(filled)


@pytest.mark.parametrize("state", [DONE, DIVERGED, FAILED])
def test_an_outcome_is_json(outcomes: dict[str, TrialOutcome], state: str) -> None:
    assert TrialOutcome(**json.loads(json.dumps(outcomes[state].to_json()))) == outcomes[state]


def test_what_is_recorded_survives_the_death_of_the_process(
    path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    with open_store(path, identity) as store:
        store.add([make_trial(0), make_trial(1)])
    body = f"store.record(1, TrialOutcome(**json.loads({json.dumps(outcomes[DONE].to_json())!r})))"
    with run_python(OPENING.format(body=body), path, json.dumps(identity)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    with open_store(path, identity) as store:  # the hold of the dead process is gone too
        assert store.outcomes() == {1: outcomes[DONE]}
        assert store.trials() == [make_trial(0), make_trial(1)]


def test_a_write_that_a_kill_cuts_off_is_undone(filled: Path, outcomes: dict[str, TrialOutcome]) -> None:
    body = (
        "store._connection.execute('PRAGMA cache_size = 1'); store._connection.execute('BEGIN');"
        "store._connection.execute(\"UPDATE trials SET network = hex(randomblob(200000)), state = 'done'\")"
    )
    with read_store(filled) as store:
        identity = store.identity
    with run_python(OPENING.format(body=body), filled, json.dumps(identity)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert filled.with_name("a.sweep-journal").exists()
    with read_store(filled) as store:
        assert store.outcomes() == dict(enumerate(outcomes.values()))
        assert len(store.trials()) == 4


def test_it_is_readable_while_it_is_written(
    path: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    count, seen, wrong = 30, [0], []
    with open_store(path, identity) as store:
        store.add([make_trial(number) for number in range(count)])
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                with read_store(path) as reader:
                    known = reader.outcomes()
                    wrong.extend(o for o in known.values() if o != outcomes[DONE])
                    seen.append(len(known))

        reading = threading.Thread(target=look)
        reading.start()
        for number in range(count):
            store.record(number, outcomes[DONE])
        stop.set()
        reading.join()
    assert not wrong
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 1 and was 0"),
        ({"recipe": {"lr": 0.1, "epochs": 2, "seed": 7, "flip": False}}, "recipe lr is 0.1 and was 0.05"),
        ({"recipe": {"lr": 0.05, "seed": 7, "flip": False}}, "recipe epochs is null and was 2"),
        ({"mmacs": (0.1, 4.0), "seed": 2}, "seed is 2 and was 0; mmacs is [0.1, 4.0] and was [0.1, 3.0]"),
        ({"more": True}, "more is true and was null"),
    ],
)
def test_the_store_of_another_sweep_is_refused_with_what_differs(
    filled: Path, identity: dict[str, object], change: dict[str, object], said: str
) -> None:
    before = filled.read_bytes()
    with pytest.raises(UsageError) as error, open_store(filled, {**identity, **change}):
        pass
    assert_one_line(error, f"{filled} is the store of another sweep: {said}. ", "--store")
    assert filled.read_bytes() == before


def test_of_many_differences_the_first_are_named(filled: Path, identity: dict[str, object]) -> None:
    with pytest.raises(UsageError) as error, open_store(filled, dict.fromkeys(identity)):
        pass
    assert_one_line(error, "seed is null and was 0; ", "; and 2 more. Run the command with the original options")


def test_no_difference_is_none() -> None:
    assert sweep_differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) == []
    assert sweep_differences({"a": 1}, {"b": 1}) == ["b is 1 and was null", "a is null and was 1"]


def test_a_second_writer_is_refused_while_the_first_holds_it(filled: Path, identity: dict[str, object]) -> None:
    with run_python(OPENING.format(body="pass"), filled, json.dumps(identity)) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        link = filled.with_name("link.sweep")
        link.symlink_to(filled)
        for name in (filled, link):
            with pytest.raises(DataError) as error, lock_store(name):
                pass
            assert_one_line(error, f"another sweep writes {name}: wait until it ends")
        with read_store(filled) as store:
            assert len(store.trials()) == 4
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0
    with open_store(filled, identity) as store:
        assert len(store.trials()) == 4


def test_a_larger_plan_adds_trials_and_keeps_the_outcomes(
    filled: Path, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    with open_store(filled, identity) as store:
        store.add([make_trial(number) for number in range(6)])
        store.add([make_trial(number) for number in range(2)])
        assert [trial.number for trial in store.trials()] == [0, 1, 2, 3, 4, 5]
        assert store.outcomes() == dict(enumerate(outcomes.values()))


def test_a_number_with_another_network_is_refused_and_nothing_is_added(
    filled: Path, make_trial: Make, identity: dict[str, object]
) -> None:
    other = replace(make_trial(1), network=make_trial(2).network)
    with open_store(filled, identity) as store:
        with pytest.raises(UsageError) as error:
            store.add([make_trial(5), other])
        assert_one_line(error, "trial 1 of", "differs from the network", "--store")
        assert len(store.trials()) == 4


def test_states_are_reset_on_their_own(
    filled: Path, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    with open_store(filled, identity) as store:
        assert store.reset((DIVERGED, FAILED)) == 2
        assert store.outcomes() == {0: outcomes[DONE]}
        assert store.reset((DIVERGED, FAILED)) == 0
        assert len(store.trials()) == 4


def some_other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE about (key TEXT, value TEXT)")
    connection.close()


def test_another_database_is_no_store(path: Path, identity: dict[str, object]) -> None:
    some_other_database(path)
    for opened in (read_store(path), open_store(path, identity)):
        with pytest.raises(DataError) as error, opened:
            pass
        assert_one_line(error, f"{path} is not the store of a sweep")


@pytest.mark.parametrize(
    "content", [b"garbage", b"SQLite format 3\0garbage", random.Random(0).randbytes(5000), b"\0" * 4096]
)
def test_garbage_is_no_store(path: Path, content: bytes, identity: dict[str, object]) -> None:
    path.write_bytes(content)
    for opened in (read_store(path), open_store(path, identity)):
        with pytest.raises(DataError) as error, opened:
            pass
        assert_one_line(error, str(path))
    with pytest.raises(DataError):
        check_store_path(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_store_is_one_line(filled: Path, share: float) -> None:
    content = filled.read_bytes()
    filled.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError) as error:
        read_all(filled)
    assert_one_line(error, str(filled))


@pytest.mark.parametrize("seed", range(8))
def test_a_store_with_flipped_bytes_reads_or_is_one_line(filled: Path, seed: int) -> None:
    draw, content = random.Random(seed), bytearray(filled.read_bytes())
    for _ in range(40):
        content[draw.randrange(len(content))] = draw.randrange(256)
    filled.write_bytes(content)
    said = ""
    try:
        read_all(filled)
    except DataError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trials SET network = '{}'",
        "UPDATE trials SET network = 'no json'",
        "UPDATE trials SET network = json_set(network, '$.widths[0]', -1)",
        "UPDATE trials SET outcome = '{\"unknown\": 1}'",
        "UPDATE trials SET outcome = '3'",
        "DELETE FROM about WHERE key = 'identity'",
        "DELETE FROM about WHERE key = 'schema'",
        "UPDATE about SET value = 'x' WHERE key = 'schema'",
        "UPDATE about SET value = 'x' WHERE key = 'identity'",
        "DROP TABLE trials",
    ],
)
def test_content_that_no_sweep_writes_is_one_line(filled: Path, change: str) -> None:
    connection = sqlite3.connect(filled)
    with connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(DataError) as error:
        read_all(filled)
    assert_one_line(error, f"{filled} cannot be read as the store of a sweep")


def test_a_newer_schema_is_refused(filled: Path, identity: dict[str, object]) -> None:
    connection = sqlite3.connect(filled)
    with connection:
        connection.execute("UPDATE about SET value = '2' WHERE key = 'schema'")
    connection.close()
    for opened in (read_store(filled), open_store(filled, identity)):
        with pytest.raises(DataError) as error, opened:
            pass
        assert_one_line(error, "written by a newer regnet-deploy (schema 2, this version reads up to 1)")


def test_an_empty_file_becomes_a_store_and_is_none_to_read(path: Path, identity: dict[str, object]) -> None:
    path.touch()
    with pytest.raises(DataError) as error, read_store(path):
        pass
    assert_one_line(error, "is not the store of a sweep")
    check_store_path(path)
    with open_store(path, identity) as store:
        assert store.trials() == []


def test_a_store_is_made_where_a_link_leads(tmp_path: Path, identity: dict[str, object]) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "a.sweep"
    link.symlink_to("disk/b.sweep")
    check_store_path(link)
    with open_store(link, identity) as store:
        assert store.trials() == []
    assert link.is_symlink()
    assert is_store(tmp_path / "disk" / "b.sweep")


def test_a_pipe_is_not_replaced_by_a_store(tmp_path: Path, identity: dict[str, object]) -> None:
    """As root, a device would become a file."""
    os.mkfifo(tmp_path / "a.sweep")
    with pytest.raises(UsageError, match="is a pipe"):
        check_store_path(tmp_path / "a.sweep")
    with pytest.raises(UsageError, match="is a pipe"), open_store(tmp_path / "a.sweep", identity):
        pass
    assert (tmp_path / "a.sweep").is_fifo()


def test_a_folder_and_a_missing_folder_are_one_line(tmp_path: Path, identity: dict[str, object]) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "a.sweep"):
        with pytest.raises(UsageError) as error, open_store(path, identity):
            pass
        assert_one_line(error, str(path.parent))
        with pytest.raises(DataError) as error, read_store(path):
            pass
        assert_one_line(error, f"no store of a sweep at {path}")
        with pytest.raises(UsageError) as error:
            check_store_path(path)
        assert_one_line(error, "folder")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root")
def test_a_folder_that_cannot_be_written_is_one_line_and_can_be_read(
    filled: Path, tmp_path: Path, identity: dict[str, object]
) -> None:
    filled.with_name(".a.sweep.lock").unlink()
    tmp_path.chmod(0o500)
    try:
        for path in (filled, tmp_path / "b.sweep"):
            with pytest.raises(DataError) as error, open_store(path, identity):
                pass
            assert_one_line(error, f"cannot write {path}: Permission denied")
        with read_store(filled) as store:
            assert len(store.outcomes()) == 3
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_one_line_and_loses_nothing(
    filled: Path, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    code = """
import json, resource, signal, sys
from pathlib import Path
from regnet_deploy.errors import DataError
from regnet_deploy.populations.store import TrialOutcome, open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
with open_store(path, json.loads(sys.argv[2])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size,) * 2)
    try:
        store.record(3, TrialOutcome("done", 1.0, message="x" * 100_000))
    except DataError as error:
        print(error)
"""
    with run_python(code, filled, json.dumps(identity)) as process:
        said, _ = process.communicate(timeout=20)
    assert said.count("\n") == 1
    assert f"cannot write {filled}: " in said
    assert "the earlier results are intact" in said
    with read_store(filled) as store:
        assert store.outcomes() == dict(enumerate(outcomes.values()))


@pytest.mark.parametrize("after", ["connect", "executescript", "identity"])
def test_killed_while_it_is_made_nothing_half_made_is_left(
    path: Path, make_trial: Make, identity: dict[str, object], after: str
) -> None:
    body = {
        "connect": "connection.execute('CREATE TABLE half (made TEXT)')",
        "executescript": "connection.executescript(store._TABLES)",
        "identity": (
            "connection.executescript(store._TABLES); connection.execute('BEGIN');"
            "connection.execute(\"INSERT INTO about VALUES ('schema', '1')\")"
        ),
    }[after]
    code = f"""
import os, signal, sqlite3, sys
from pathlib import Path
from regnet_deploy.populations import store
def killed(path):
    connection = sqlite3.connect(path)
    {body}
    os.kill(os.getpid(), signal.SIGKILL)
class Module:
    Error = sqlite3.Error
    connect = staticmethod(killed)
store.sqlite3 = Module
with store.open_store(Path(sys.argv[1]), {{}}):
    pass
"""
    with run_python(code, path) as process:
        pass
    assert process.returncode == -signal.SIGKILL
    assert not path.exists()
    with open_store(path, identity) as store:
        store.add([make_trial(0)])
        assert store.identity == identity
    assert sorted(each.name for each in path.parent.iterdir()) == ["a.sweep"]
