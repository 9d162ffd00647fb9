"""What is added stays, whoever is killed; settings never mix; what is no store, or newer, is refused in one line."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.latency.measurement import GpuMachineState, MachineState, Measurement, Protocol
from regnet_deploy.latency.store import measurements_path, open_measurements, read_measurements
from regnet_deploy.space.network import Network

Make = Callable[..., Measurement]


class Messages:
    """A progress that keeps its messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, description: str, total: float | None = None) -> None: ...

    def update(self, completed: float, total: float | None = None, note: str = "") -> None: ...

    def message(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "measurements.sqlite"


@pytest.fixture
def filled(path: Path, make_measurement: Make) -> Path:
    """Measurements of three batch sizes."""
    with open_measurements(path) as store:
        for batch in (1, 2, 4):
            assert store.add(make_measurement(batch=batch))
    return path


def read(path: Path) -> list[Measurement]:
    with read_measurements(path) as store:
        return store.all()


def assert_one_line(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


#: Adds measurements whose batch sizes start at a number, and says each that is added.
ADDING = """
import json, sys
from pathlib import Path
from regnet_deploy.latency.measurement import Measurement
from regnet_deploy.latency.store import open_measurements
path, data, first, count = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + count):
    with open_measurements(path) as store:
        assert store.add(Measurement.from_json({**data, "batch": number}))
    print(number, flush=True)
"""


def test_what_is_added_reads_back_the_newest_first(path: Path, make_measurement: Make) -> None:
    old = make_measurement(date="2026-11-30T09:00:00+00:00")
    new, again = make_measurement(6.0), make_measurement(7.0)
    with open_measurements(path) as store:
        assert [store.add(each) for each in (new, old, again)] == [True] * 3
        assert store.all() == [again, new, old]
    assert read(path) == [again, new, old]


def test_the_same_measurement_is_kept_once(path: Path, make_measurement: Make) -> None:
    with open_measurements(path) as store:
        assert store.add(make_measurement())
        assert not store.add(make_measurement())
        assert len(store.all()) == 1


def test_settings_never_mix(path: Path, make_measurement: Make) -> None:
    plain = make_measurement()
    execution, machine = plain.execution, plain.machine
    others = [
        *(
            make_measurement(execution=execution.replace(**change))
            for change in (
                {"runtime": "openvino"},
                {"version": "1.24.2"},
                {"precision": "int8"},
                {"threads": 1},
                {"layout": "channels_last"},
                {"options": {"input": "uint8"}},
            )
        ),
        *(
            make_measurement(machine=machine.replace(**change))
            for change in (
                {"cpu": "another"},
                {"cores": 1},
                {"instructions": ("avx2", "avx512f")},
                {"gpu": "NVIDIA T4"},
                {"driver": "580.95.05"},
                {"system": "Linux 6.2"},
                {"governor": "powersave"},
                {"boost": False},
                {"cpu_limit_mhz": 2000.0},
            )
        ),
        make_measurement(protocol=Protocol(warmup_repetitions=1, rounds=4, repetitions=12, interval_ms=50.0)),
        make_measurement(network=Network((1, 2), (32, 64), (8, 8), (1.0, 1.0))),
        make_measurement(resolution=192),
        make_measurement(classes=10),
        make_measurement(batch=2),
    ]
    with open_measurements(path) as store:
        store.add_all([*others, plain])
        exact = {"network": plain.network, "resolution": 224, "classes": 1000, "batch": 1}
        assert store.find(execution=execution, machine=machine, **exact) == [plain]
        assert len(store.find(execution=execution, machine=machine)) == 5
        assert store.find(execution=execution, machine=machine, interval_ms=50) == [others[-5]]
        for each in others:
            found = store.find(
                execution=each.execution,
                machine=each.machine,
                network=each.network,
                resolution=each.resolution,
                classes=each.classes,
                batch=each.batch,
                interval_ms=each.protocol.interval_ms,
            )
            assert found == [each]


def test_a_network_is_found_however_its_numbers_are_written(path: Path, make_measurement: Make) -> None:
    plain = make_measurement()
    same = Network((1, 1), (32, 64), (8, 8), (1, 1), se_ratio=0)
    with open_measurements(path) as store:
        store.add(plain)
        assert store.find(execution=plain.execution, machine=plain.machine, network=same) == [plain]


@pytest.mark.parametrize(
    "state",
    [
        MachineState(cpus=2, busy_cores=1.0),
        MachineState(cpus=2, throttled=True),
        MachineState(cpus=2, gpu=GpuMachineState(throttle_reasons=("hw_slowdown",))),
    ],
)
def test_disturbed_measurements_are_left_out_unless_they_are_asked_for(
    path: Path, make_measurement: Make, state: MachineState
) -> None:
    disturbed = make_measurement(state=state)
    with open_measurements(path) as store:
        store.add(disturbed)
        assert store.find(execution=disturbed.execution, machine=disturbed.machine) == []
        assert store.find(execution=disturbed.execution, machine=disturbed.machine, disturbed=True) == [disturbed]
        assert store.all() == [disturbed]


def test_merging_adds_what_is_new_and_can_be_repeated(filled: Path, tmp_path: Path, make_measurement: Make) -> None:
    other = tmp_path / "other.sqlite"
    with open_measurements(other) as store:
        store.add_all([make_measurement(batch=4), make_measurement(batch=8)])
        assert store.merge(filled) == 2
        assert store.merge(filled) == 0
        assert store.merge(other) == 0
        assert sorted(each.batch for each in store.all()) == [1, 2, 4, 8]
    assert len(read(filled)) == 3


def test_an_exported_file_brings_everything_into_another_store(filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    with read_measurements(filled) as store:
        assert store.export_jsonl(file) == 3
        before = store.all()
    assert len(file.read_text().splitlines()) == 4
    with open_measurements(tmp_path / "b.sqlite") as store:
        assert store.import_jsonl(file) == 3
        assert store.merge(file) == 0
        assert store.all() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: lines[1:], "the first line does not name the format"),
        (lambda lines: ["{}", *lines[1:]], "the first line does not name the format"),
        (lambda lines: ["no json"], "the first line does not name the format"),
        (lambda lines: ['{"regnet_deploy_measurements": "a"}'], "the first line does not name the format"),
        (
            lambda lines: ['{"regnet_deploy_measurements": 2}'],
            "newer regnet-deploy (schema 2, this version reads up to 1)",
        ),
        (lambda lines: [*lines, "{"], "line 5: "),
        (lambda lines: [*lines, "{}"], "line 5: "),
        (lambda lines: [*lines[:3], lines[3].replace('"p50_ms":', '"p50_ms":-')], "line 4: times.p50_ms: "),
        (lambda lines: [*lines[:3], lines[3].replace("2026-12-01T", "yesterday ")], "line 4: date: "),
        (lambda lines: [*lines, "\udcff"], "line 5: "),
        (lambda lines: [*lines, "[" * 100_000], "line 5: "),
    ],
)
def test_of_a_file_that_is_wrong_nothing_is_added(
    filled: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], said: str
) -> None:
    file = tmp_path / "all.jsonl"
    with read_measurements(filled) as store:
        store.export_jsonl(file)
    lines = change(file.read_text().splitlines())
    file.write_bytes("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
    with open_measurements(tmp_path / "b.sqlite") as store:
        for add in (store.import_jsonl, store.merge):
            with pytest.raises(DataError) as error:
                add(file)
            assert_one_line(error, str(file), said)
        assert store.all() == []


def test_what_is_no_file_cannot_be_merged(filled: Path, tmp_path: Path) -> None:
    with open_measurements(filled) as store:
        for other in (tmp_path / "none.sqlite", tmp_path):
            with pytest.raises(DataError) as error:
                store.merge(other)
            assert_one_line(error, f"no file of measurements at {other}")


def test_what_is_added_survives_the_death_of_the_process(path: Path, make_measurement: Make) -> None:
    arguments = (path, json.dumps(make_measurement().to_json()), 1, 1000)
    with run_python(ADDING, *arguments) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        said = [process.stdout.readline() for _ in range(6)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    added = {int(line) for line in said[1:]}
    kept = {each.batch for each in read(path)}
    assert added <= kept
    assert len(kept - added) <= 1  # written, and killed before it was said
    with open_measurements(path) as store:
        assert store.add(make_measurement(batch=2000))


@pytest.mark.parametrize("inside", ["_TABLES", "INSERT"])
def test_a_write_that_a_kill_cuts_off_is_undone(path: Path, make_measurement: Make, inside: str) -> None:
    """While the store is created, and while a measurement is added to an earlier one."""
    if inside == "INSERT":
        with open_measurements(path) as store:
            store.add(make_measurement())
    code = """
import json, os, signal, sys
from pathlib import Path
from regnet_deploy.latency import store as module
from regnet_deploy.latency.measurement import Measurement
module._TABLES = (*module._TABLES, f"SELECT die()")
connect = module.sqlite3.connect
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
class Connection(module.sqlite3.Connection):
    def execute(self, statement, *values):
        if "INSERT" in statement:
            super().execute("PRAGMA cache_size = 1")
            super().execute(statement, *values)
            super().execute("UPDATE measurements SET record = hex(randomblob(200000))")
            die()
        return super().execute(statement, *values)
def opened(*arguments, **options):
    connection = connect(*arguments, **options, factory=Connection)
    connection.create_function("die", 0, die)
    return connection
module.sqlite3.connect = opened
with module.open_measurements(Path(sys.argv[1])) as store:
    store.add(Measurement.from_json(json.loads(sys.argv[2])))
"""
    process = run_python(code, path, json.dumps(make_measurement(batch=2).to_json()))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    if inside == "INSERT":
        assert path.with_name("measurements.sqlite-journal").exists()
    with open_measurements(path) as store:
        assert store.all() == ([make_measurement()] if inside == "INSERT" else [])
        assert store.add(make_measurement(batch=3))


def test_several_processes_create_and_write_it_at_once(path: Path, make_measurement: Make) -> None:
    data, count = json.dumps(make_measurement().to_json()), 8
    processes = [run_python(ADDING, path, data, 1 + 100 * number, count) for number in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert {each.batch for each in read(path)} == {1 + 100 * i + j for i in range(4) for j in range(count)}


def test_it_is_where_the_caller_or_the_environment_says_or_below_the_data_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_measurement: Make
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "new" / "data"))
    default = tmp_path / "new" / "data" / "regnet-deploy" / "measurements.sqlite"
    with read_measurements() as store:
        assert store.all() == []
    assert not default.exists()
    assert measurements_path() == default
    with open_measurements() as store:
        assert store.add(make_measurement())
    assert len(read(default)) == 1
    monkeypatch.setenv("REGNET_DEPLOY_MEASUREMENTS", str(tmp_path / "env.sqlite"))
    assert measurements_path() == tmp_path / "env.sqlite"
    with open_measurements() as store:
        assert store.all() == []
    assert (tmp_path / "env.sqlite").exists()
    assert measurements_path(tmp_path / "a.sqlite") == tmp_path / "a.sqlite"


@pytest.mark.parametrize("data", ["a file", "no home"])
def test_without_a_writable_home_the_work_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_measurement: Make, data: str
) -> None:
    (tmp_path / "file").touch()
    home = {"a file": str(tmp_path / "file"), "no home": "/dev/null"}[data]
    monkeypatch.setenv("XDG_DATA_HOME", home)
    messages = Messages()
    with open_measurements(progress=messages) as store:
        assert store.add(make_measurement())
        assert store.all() == [make_measurement()]
    (line,) = messages.lines
    assert line.startswith(f"measurements are not kept: cannot write {home}/regnet-deploy/measurements.sqlite: ")
    assert "REGNET_DEPLOY_MEASUREMENTS" in line
    with read_measurements() as store:
        assert store.all() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root")
def test_of_a_home_that_cannot_be_written_what_is_there_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_measurement: Make
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with open_measurements() as store:
        store.add(make_measurement())
    folder, messages = measurements_path().parent, Messages()
    folder.chmod(0o500)
    try:
        with open_measurements(progress=messages) as store:
            assert store.add(make_measurement(batch=2))
            assert len(store.all()) == 2
        assert "may not be written" in messages.lines[0]
        assert len(read(measurements_path())) == 1
        with pytest.raises(DataError) as error, open_measurements(measurements_path()):
            pass
        assert_one_line(error, "may not be written")
    finally:
        folder.chmod(0o700)


def test_a_named_file_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_measurement: Make
) -> None:
    for path, said in ((tmp_path / "none" / "a.sqlite", "there is no folder"), (tmp_path, "is a folder")):
        monkeypatch.setenv("REGNET_DEPLOY_MEASUREMENTS", str(path))
        for opened in (open_measurements(path), open_measurements()):
            with pytest.raises(UsageError) as error, opened:
                pass
            assert_one_line(error, said)


@pytest.mark.parametrize(
    "content", [b"garbage", b"SQLite format 3\0garbage", random.Random(0).randbytes(5000), b"\0" * 4096]
)
def test_garbage_is_no_store_and_stays_as_it_is(filled: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)
    for opened in (open_measurements(path), read_measurements(path)):
        with pytest.raises(DataError) as error, opened:
            pass
        assert_one_line(error, str(path))
    with open_measurements(filled) as store:
        with pytest.raises(DataError) as error:
            store.merge(path)
        assert_one_line(error, str(path))
        assert len(store.all()) == 3
    assert path.read_bytes() == content


def test_another_database_is_no_store(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE measurements (digest TEXT)")
    connection.close()
    for opened in (open_measurements(path), read_measurements(path)):
        with pytest.raises(DataError) as error, opened:
            pass
        assert_one_line(error, f"{path} is not a store of measurements")


def test_a_store_of_a_newer_version_is_refused_and_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, filled: Path, tmp_path: Path
) -> None:
    connection = sqlite3.connect(filled)
    with connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = filled.read_bytes()
    for opened in (open_measurements(filled), read_measurements(filled)):
        with pytest.raises(DataError) as error, opened:
            pass
        assert_one_line(error, "written by a newer regnet-deploy (schema 2, this version reads up to 1)", "upgrade")
    with open_measurements(tmp_path / "b.sqlite") as store, pytest.raises(DataError, match="newer"):
        store.merge(filled)
    assert filled.read_bytes() == before


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_of_a_truncated_store_everything_is_read_or_one_line_says_that_it_is_damaged(
    filled: Path, share: float
) -> None:
    before, content = read(filled), filled.read_bytes()
    filled.write_bytes(content[: int(share * len(content))])
    try:
        assert read(filled) == before  # what is missing are pages of an index
    except DataError as error:
        said = f"{error}"
        assert said.startswith(f"{filled} cannot be read as a store of measurements: ")
        assert "\n" not in said
    else:
        assert share > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_a_store_with_flipped_bytes_reads_or_is_one_line(filled: Path, seed: int) -> None:
    draw, content = random.Random(seed), bytearray(filled.read_bytes())
    for _ in range(40):
        content[draw.randrange(len(content))] = draw.randrange(256)
    filled.write_bytes(content)
    said = ""
    try:
        read(filled)
    except DataError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE measurements SET record = '{}'",
        "UPDATE measurements SET record = 'no json'",
        "UPDATE measurements SET record = json_set(record, '$.network.widths[0]', -1)",
        "DROP TABLE measurements",
    ],
)
def test_content_that_no_version_writes_is_one_line(filled: Path, change: str) -> None:
    connection = sqlite3.connect(filled)
    with connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(DataError) as error:
        read(filled)
    assert_one_line(error, f"{filled} cannot be read as a store of measurements")


def test_a_full_disk_is_one_line_and_loses_nothing(filled: Path, make_measurement: Make) -> None:
    code = """
import json, resource, signal, sys
from pathlib import Path
from regnet_deploy.errors import DataError
from regnet_deploy.latency.measurement import Measurement
from regnet_deploy.latency.store import open_measurements
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, data = Path(sys.argv[1]), json.loads(sys.argv[2])
with open_measurements(path) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size,) * 2)
    try:
        store.add_all(Measurement.from_json({**data, "batch": batch}) for batch in range(10, 200))
    except DataError as error:
        print(error)
"""
    with run_python(code, filled, json.dumps(make_measurement().to_json())) as process:
        said, _ = process.communicate(timeout=60)
    assert said.count("\n") == 1
    assert f"cannot write {filled}: " in said
    assert "earlier measurements are intact" in said
    assert len(read(filled)) == 3


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with open_measurements(path) as store:
        assert store.all() == []
    assert read(path) == []


def test_a_pipe_is_not_replaced_by_a_store(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is a pipe"), open_measurements(path):
        pass
    assert path.is_fifo()
