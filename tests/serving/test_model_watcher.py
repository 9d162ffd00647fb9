"""Versions that come, change, break and go while requests are answered; most looks are the test's own."""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import MANIFEST, open_bundle, update_bundle
from regnet_deploy.errors import BundleError, MissingPart, ProofError, UsageError
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.runtimes.golden_set import GoldenSet, golden_to_bytes, load_golden
from regnet_deploy.serving import model_watcher
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.model_version import ServeOptions
from regnet_deploy.serving.server_core import ServerCore
from tests.conftest import tiny_onnx
from tests.serving.conftest import LIMITS, Inside, Open

IMAGES = np.random.default_rng(7).normal(size=(2, 3, 24, 24)).astype(np.float32)


def logits_of(seed: int, images: np.ndarray = IMAGES) -> np.ndarray:
    """What the network of a seed answers; the bundle of the tests begins with that of seed 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(tiny_onnx("float32", seed), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": images})[0])


def retrain(bundle: Path, seed: int, error: float = 0.0) -> None:
    """Give a bundle another network; with ``error`` one that disagrees with its golden set."""
    golden = load_golden(open_bundle(bundle))
    logits = logits_of(seed, normalize(golden.images, default_preprocessing(24))) + np.float32(error)
    files = {
        f"onnx-{name}.onnx": tiny_onnx(kind, seed) for name, kind in (("fp32", "float32"), ("fp32-uint8", "uint8"))
    }
    update_bundle(bundle, {}, {**files, "golden.safetensors": golden_to_bytes(GoldenSet(golden.images, logits))})


def break_(bundle: Path) -> None:
    path = open_bundle(bundle).stored_path("onnx-fp32.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"?")


class Told:
    """What happened, as the log is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, **facts: Any) -> None:
        facts.pop("level", None)
        self.events.append((name, facts))

    def take(self) -> list[str]:
        """Names of what happened since the last time."""
        names = [name for name, _ in self.events]
        self.events.clear()
        return names


def looks(client: Inside, times: int = 2) -> None:
    """Look; a change is believed when it is seen twice."""
    for _ in range(times):
        client.run(client.core._watcher.look())


def body() -> dict[str, Any]:
    head = (
        b'{"inputs":[{"name":"images","shape":[2,3,24,24],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}'
        % IMAGES.nbytes
    )
    return {"content": head + IMAGES.tobytes(), "headers": {"inference-header-content-length": str(len(head))}}


def ask(client: Inside, path: str = "/v2/models/regnet") -> tuple[int, str, list[list[float]]]:
    """Status, version and logits."""
    answer = client.post(path + "/infer", **body())
    document = answer.json()
    if answer.status_code != 200:
        return answer.status_code, document["error"], []
    return 200, document["model_version"], np.reshape(document["outputs"][0]["data"], (2, 6)).tolist()


def states(client: Inside) -> list[tuple[str, str, str]]:
    index = client.post("/v2/repository/index").json()
    return [(entry["name"], entry["version"], entry["state"]) for entry in index]


def answers(client: Inside, version: str, seed: int, path: str = "/v2/models/regnet") -> None:
    """Hold that a model answers as a version, with the network of a seed."""
    status, answered, logits = ask(client, path)
    assert (status, answered) == (200, version)
    np.testing.assert_allclose(logits, logits_of(seed), rtol=1e-4, atol=1e-4)


def executors(name: str = "regnet") -> int:
    return sum(thread.name.startswith(f"{name}-") for thread in threading.enumerate())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Load:
    """Clients that ask again and again, on the loop of an assembly."""

    def __init__(self, client: Inside, clients: int = 3) -> None:
        self._client, self._clients = client, clients
        self._ended = False
        self.answers: list[tuple[int, str, list[float]]] = []

    def __enter__(self) -> "Load":
        self._work: Future[Any] = asyncio.run_coroutine_threadsafe(self._all(), self._client.loop)
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        self._work.result(30)

    async def _all(self) -> None:
        await asyncio.gather(*(self._one() for _ in range(self._clients)))

    async def _one(self) -> None:
        import httpx

        transport = httpx.ASGITransport(self._client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            while not self._ended:
                answer = await client.post("/v2/models/regnet/infer", **body())
                document = answer.json()
                data = document["outputs"][0]["data"] if answer.status_code == 200 else []
                self.answers.append((answer.status_code, document.get("model_version", document.get("error")), data))


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_bundle_that_changes_takes_its_own_place_without_losing_a_request(
    inside: Open, exported_bundle: Path, told: Told
):
    client = inside(log_event=told, poll_s=0.01)
    before = executors()
    with Load(client) as load:
        for seed in (2, 3):
            known = len(load.answers)
            until(lambda known=known: len(load.answers) > known + 5)
            retrain(exported_bundle, seed)
            until(lambda seed=seed: load.answers[-1][1] == str(seed))
    answers(client, "3", 3)
    wanted = {str(seed): logits_of(seed).ravel() for seed in (1, 2, 3)}
    assert {status for status, _, _ in load.answers} == {200}
    assert {version for _, version, _ in load.answers} == set(wanted)
    for _, version, logits in load.answers:
        np.testing.assert_allclose(logits, wanted[version], rtol=1e-4, atol=1e-4)
    numbers = [int(version) for _, version, _ in load.answers]
    assert max(np.maximum.accumulate(numbers) - numbers) <= 1  # nobody goes back, but who had begun
    assert states(client) == [("regnet", "3", "READY")]
    assert client.get("/v2/models/regnet").json()["versions"] == ["3"]
    until(lambda: executors() == before)
    assert told.take() == ["swapped", "swapped"]
    assert ask(client, "/v2/models/regnet/versions/1")[0] == 404


def test_a_version_that_disagrees_is_refused_while_the_one_before_goes_on(
    inside: Open, exported_bundle: Path, told: Told
):
    client = inside(log_event=told)
    threads = executors()
    retrain(exported_bundle, 2, error=0.5)
    looks(client)
    answers(client, "1", 1)
    assert states(client) == [("regnet", "1", "READY"), ("regnet", "2", "UNAVAILABLE")]
    assert client.get("/v2/models/regnet").json()["versions"] == ["1"]
    reason = client.post("/v2/repository/index").json()[1]["reason"]
    assert reason == "ProofError; the server's log has the details"  # and no path of this machine
    assert "does not agree with its golden set" in told.events[0][1]["error"]
    status, error, _ = ask(client, "/v2/models/regnet/versions/2")
    assert (status, error) == (503, "version 2 of model regnet is not ready")
    assert client.get("/v2/health/ready").status_code == 200
    looks(client, 3)  # nothing has changed: it is not tried again
    assert told.take() == ["refused"]
    retrain(exported_bundle, 3)
    looks(client)
    answers(client, "2", 3)
    assert states(client) == [("regnet", "2", "READY")]
    assert executors() <= threads + 1
    until(lambda: executors() == threads)


def test_what_was_served_and_comes_back_is_not_loaded_again(
    inside: Open, exported_bundle: Path, tmp_path: Path, told: Told
):
    client = inside(log_event=told)
    served = client.core.service.models.get("regnet")
    kept = shutil.copytree(exported_bundle, tmp_path / "kept")
    break_(exported_bundle)
    looks(client)
    assert states(client) == [("regnet", "1", "READY")]
    reason = client.post("/v2/repository/index").json()[0]["reason"]
    assert reason == "still serves the version before: BundleError; the server's log has the details"
    shutil.rmtree(exported_bundle)
    shutil.copytree(kept, exported_bundle)
    looks(client)
    assert states(client) == [("regnet", "1", "READY")]
    assert client.core.service.models.get("regnet") is served
    assert told.take() == ["refused"]


def test_what_profile_tune_and_another_export_write_keeps_the_number_of_the_version(
    inside: Open, exported_bundle: Path, told: Told
):
    """The network is the same, so clients that ask for version 1 go on; a replica that starts later says 1 as well."""
    client = inside(log_event=told, options=ServeOptions())
    variants = open_bundle(exported_bundle).parts["variants"]
    served = client.core.service.models.get("regnet")
    for change in ({"environment": {"profile": {}}}, {"variants": {"onnx-fp32-uint8": variants["onnx-fp32-uint8"]}}):
        update_bundle(exported_bundle, change)
        looks(client)
        assert client.get("/v2/models/regnet/versions/1").status_code == 200
        assert states(client) == [("regnet", "1", "READY")]
    assert told.take() == ["swapped", "swapped"]
    now = client.core.service.models.get("regnet", "1")
    assert (served.variant, now.variant) == ("onnx-fp32", "onnx-fp32-uint8")


def test_a_refused_version_is_not_listed_once_the_network_before_is_back(
    inside: Open, exported_bundle: Path, tmp_path: Path, told: Told
):
    client = inside(log_event=told)
    golden = open_bundle(exported_bundle).read("golden.safetensors")
    retrain(exported_bundle, 2, error=0.5)
    looks(client)
    assert states(client) == [("regnet", "1", "READY"), ("regnet", "2", "UNAVAILABLE")]
    retrain(exported_bundle, 1)
    update_bundle(exported_bundle, {"environment": {"export": {}}}, {"golden.safetensors": golden})
    looks(client)
    assert states(client) == [("regnet", "1", "READY")]
    answers(client, "1", 1)
    assert told.take() == ["refused", "swapped"]


def test_a_bundle_that_is_gone_goes_on_answering(inside: Open, exported_bundle: Path, told: Told):
    client = inside(log_event=told)
    away = exported_bundle.rename(exported_bundle.with_name("away"))
    looks(client, 4)
    answers(client, "1", 1)
    away.rename(exported_bundle)
    looks(client)
    answers(client, "1", 1)
    assert told.take() == []


def test_a_look_while_a_bundle_is_being_written_waits_for_the_next(inside: Open, exported_bundle: Path, told: Told):
    client = inside(log_event=told)
    for seed in (2, 3, 4):
        retrain(exported_bundle, seed)
        looks(client, 1)
        answers(client, "1", 1)
    looks(client, 1)
    answers(client, "2", 4)
    assert told.take() == ["swapped"]


@pytest.mark.parametrize("error", [MemoryError("8 GB"), RuntimeError("onnx")])
def test_whatever_a_new_version_ends_in_the_one_before_goes_on(
    inside: Open, exported_bundle: Path, told: Told, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    client = inside(log_event=told)

    def fails(*arguments: Any, **options: Any) -> Any:
        raise error

    retrain(exported_bundle, 2)
    monkeypatch.setattr(model_watcher, "load_version", fails)
    looks(client)
    answers(client, "1", 1)
    assert told.events[0][1]["error"] == f"{type(error).__name__}: {error}"
    monkeypatch.undo()
    retrain(exported_bundle, 3)
    looks(client)
    answers(client, "2", 3)


def test_a_request_in_flight_ends_with_the_version_that_it_began_with(
    inside: Open, exported_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    client = inside()
    threads = executors()
    old = client.core.opened[0]
    entered, gate, run = threading.Event(), threading.Event(), old.session.run

    def slow(images: np.ndarray) -> np.ndarray:
        entered.set()
        assert gate.wait(30)
        return run(images)

    monkeypatch.setattr(old.session, "run", slow)
    slow_answer: list[Any] = []
    asking = threading.Thread(target=lambda: slow_answer.append(ask(client)))
    asking.start()
    assert entered.wait(30)
    retrain(exported_bundle, 2)
    looks(client)
    answers(client, "2", 2)
    assert executors() == threads + 1  # the old one is there for the request that has it
    assert client.core.opened == [old]
    gate.set()
    asking.join(30)
    status, version, logits = slow_answer[0]
    assert (status, version) == (200, "1")
    np.testing.assert_allclose(logits, logits_of(1), rtol=1e-4, atol=1e-4)
    until(lambda: executors() == threads)
    assert client.core.opened == []  # and nothing holds its memory any more


def test_an_executor_of_an_old_version_that_hangs_is_said_to(
    inside: Open, exported_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    from dataclasses import replace

    client = inside(limits=replace(LIMITS, hung_s=1e-9))
    old = client.core.opened[0]
    entered, gate, run = threading.Event(), threading.Event(), old.session.run
    monkeypatch.setattr(old.session, "run", lambda images: (entered.set(), gate.wait(30), run(images))[2])
    asking = threading.Thread(target=lambda: ask(client))
    asking.start()
    assert entered.wait(30)
    retrain(exported_bundle, 2)
    looks(client)
    answer = client.get("/v2/health/live")
    gate.set()
    asking.join(30)
    assert answer.status_code == 503
    assert "executor of model regnet version 1 does not come back" in answer.json()["error"]
    until(lambda: client.get("/v2/health/live").status_code == 200)


# A folder of models


@pytest.fixture
def models(_exported: Path, tmp_path: Path) -> Path:
    """A repository: ``cats`` in version 1, and ``dogs``, which is a bundle."""
    shutil.copytree(_exported, tmp_path / "models" / "cats" / "1")
    retrain(Path(shutil.copytree(_exported, tmp_path / "models" / "dogs")), 5)
    return tmp_path / "models"


CATS, DOGS = "/v2/models/cats", "/v2/models/dogs"


def test_several_models_are_served_at_once_and_change_on_their_own(inside: Open, models: Path, told: Told):
    client = inside(models, log_event=told)
    assert states(client) == [("cats", "1", "READY"), ("dogs", "1", "READY")]
    answers(client, "1", 1, CATS)
    answers(client, "1", 5, DOGS)
    assert [model["name"] for model in client.get("/").json()["models"]] == ["cats", "dogs"]
    retrain(models / "dogs", 6)
    shutil.copytree(models / "cats" / "1", models / "cats" / "12")
    retrain(models / "cats" / "12", 7)
    looks(client)
    answers(client, "2", 6, DOGS)
    answers(client, "12", 7, CATS)
    answers(client, "1", 1, CATS + "/versions/1")
    assert client.get(CATS).json()["versions"] == ["1", "12"]
    assert client.get(CATS + "/versions/1").json()["versions"] == ["1", "12"]
    stats = client.get(CATS + "/stats").json()["model_stats"]
    assert [(row["version"], row["inference_stats"]["success"]["count"]) for row in stats] == [("1", 2), ("12", 1)]
    assert len(client.get("/v2/models/stats").json()["model_stats"]) == 3
    assert sorted(told.take()) == ["swapped", "swapped"]


def test_a_version_that_is_half_there_is_taken_when_it_is_complete(inside: Open, models: Path, told: Told):
    client = inside(models, log_event=told)
    new, source = models / "cats" / "2", models / "cats" / "1"
    new.mkdir()
    files = sorted(source.iterdir(), key=lambda path: path.name != MANIFEST)  # its manifest first
    for path in files[:2]:
        shutil.copy2(path, new)
    looks(client, 1)
    assert states(client)[:1] == [("cats", "1", "READY")]
    looks(client, 1)  # a copy that pauses
    assert states(client)[:2] == [("cats", "1", "READY"), ("cats", "2", "UNAVAILABLE")]
    assert ask(client, CATS)[:2] == (200, "1")
    for path in files[2:]:
        data = path.read_bytes()
        (new / path.name).write_bytes(data[:20])
        looks(client, 1)
        (new / path.name).write_bytes(data)
    looks(client)
    assert states(client)[:2] == [("cats", "1", "READY"), ("cats", "2", "READY")]
    answers(client, "2", 1, CATS)
    assert told.take() == ["refused", "swapped"]


def test_a_version_that_is_removed_answers_no_more_and_neither_does_a_model_without_any(
    inside: Open, models: Path, told: Told
):
    shutil.copytree(models / "cats" / "1", models / "cats" / "2")
    client = inside(models, log_event=told)
    threads = executors("cats")
    assert ask(client, CATS)[1] == "2"
    shutil.rmtree(models / "cats" / "2")
    looks(client)
    assert ask(client, CATS)[1] == "1"
    status, error, _ = ask(client, CATS + "/versions/2")
    assert (status, error) == (404, "unknown version '2'; available versions of cats: 1")
    until(lambda: executors("cats") == threads - 1)
    shutil.rmtree(models / "cats")
    looks(client)
    status, error, _ = ask(client, CATS)
    assert (status, error) == (404, "unknown model 'cats'; this server has dogs")
    assert told.take() == ["removed", "removed"]
    shutil.rmtree(models / "dogs")
    looks(client)
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200
    assert client.post("/classify", content=b"x").status_code == 404


def test_a_folder_that_is_away_for_a_moment_is_not_unloaded(inside: Open, models: Path, told: Told):
    client = inside(models, log_event=told)
    for name in ("cats", "dogs", "cats/1"):
        away = (models / name).rename(models.parent / "away")
        looks(client, 1)
        assert ask(client, CATS)[0] == ask(client, DOGS)[0] == 200
        away.rename(models / name)
        looks(client, 3)
    away = models.rename(models.parent / "away")
    looks(client, 3)  # all of it: a volume that is not mounted, say
    assert told.take() == ["unreadable"]
    assert ask(client, CATS)[0] == ask(client, DOGS)[0] == 200
    away.rename(models)
    looks(client)
    assert states(client) == [("cats", "1", "READY"), ("dogs", "1", "READY")]
    assert told.take() == []


def test_a_version_that_is_replaced_by_a_bad_one_under_its_number_goes_on(inside: Open, models: Path, told: Told):
    client = inside(models, log_event=told)
    retrain(models / "cats" / "1", 2, error=0.5)
    looks(client)
    answers(client, "1", 1, CATS)
    entry = client.post("/v2/repository/index").json()[0]
    assert (entry["version"], entry["state"]) == ("1", "READY")
    assert entry["reason"].startswith("still serves the version before: ProofError")
    retrain(models / "cats" / "1", 3)
    looks(client)
    answers(client, "1", 3, CATS)
    assert client.post("/v2/repository/index").json()[0]["reason"] == ""
    assert told.take() == ["refused", "swapped"]


def test_a_folder_with_an_odd_name_is_told_once_and_the_other_models_go_on(inside: Open, models: Path, told: Told):
    client = inside(models, log_event=told, ready="all")
    bad = Path(shutil.copytree(models / "cats", models / "cats (copy)"))
    looks(client, 3)
    assert told.events == [
        (
            "refused",
            {
                "model": "cats (copy)",
                "error": f"{bad} is not a valid name of a model: letters, digits, '.', '_' or '-', 128 at most, "
                "not beginning with '.'",
            },
        )
    ]
    *_, entry = client.post("/v2/repository/index").json()
    assert (entry["name"], entry["state"]) == ("cats (copy)", "UNAVAILABLE")
    assert entry["reason"].startswith("is not a valid name of a model")
    assert b'model_load_failed{model="cats (copy)",version=""} 1.0' in client.run(client.core.metrics.scrape())[0]
    assert client.get("/v2/health/ready").json()["error"] == "1 of 3 models are not ready"
    assert client.get(CATS + "/ready").status_code == 200
    told.take()
    shutil.copytree(models / "cats" / "1", models / "cats" / "2")
    retrain(models / "dogs", 6)
    looks(client)
    answers(client, "2", 1, CATS)
    answers(client, "2", 6, DOGS)
    shutil.rmtree(bad)
    looks(client)
    assert told.take() == ["swapped", "swapped"]
    assert client.get("/v2/health/ready").status_code == 200


def cannot_be_read(path: Path) -> Callable[[], None]:
    """Have every reading of a folder fail, also that of root; returns what mends it."""
    moved = path.rename(path.with_name(f".{path.name}"))
    path.symlink_to(path.name)  # a link to itself

    def mend() -> None:
        path.unlink()
        moved.rename(path)

    return mend


def dangles(path: Path) -> Callable[[], None]:
    """Have a folder be a link to what is gone, as where a volume is not mounted; returns what mends it."""
    moved = path.rename(path.with_name(f".{path.name}"))
    path.symlink_to("nowhere")

    def mend() -> None:
        path.unlink()
        moved.rename(path)

    return mend


def is_a_file(path: Path) -> Callable[[], None]:
    moved = path.rename(path.with_name(f".{path.name}"))
    path.write_text("a file")

    def mend() -> None:
        path.unlink()
        moved.rename(path)

    return mend


@pytest.mark.parametrize("spoil", [cannot_be_read, dangles, is_a_file])
@pytest.mark.parametrize(("where", "name"), [("cats", "cats"), ("cats/1", "cats"), ("dogs", "dogs")])
def test_a_model_whose_folder_becomes_ill_goes_on_with_its_last_version(
    inside: Open, models: Path, told: Told, spoil: Callable[[Path], Callable[[], None]], where: str, name: str
):
    client = inside(models, log_event=told, ready="all")
    mend = spoil(models / where)
    looks(client, 4)
    answers(client, "1", {"cats": 1, "dogs": 5}[name], f"/v2/models/{name}")
    assert told.take() == ["refused"]
    (entry,) = (entry for entry in client.post("/v2/repository/index").json() if entry["name"] == name)
    assert entry["state"] == "READY"
    assert entry["reason"].startswith("still serves the version before: ")
    assert str(models) not in entry["reason"]
    metrics = client.run(client.core.metrics.scrape())[0].decode()
    assert f'model_load_failed{{model="{name}",version="1"}} 1.0' in metrics
    assert f'model_ready{{model="{name}",version="1"}} 1.0' in metrics
    assert client.get("/v2/health/ready").status_code == 200
    other = {"cats": "dogs", "dogs": "cats/1"}[name]
    retrain(models / other, 9)
    looks(client)
    answers(client, {"cats": "2", "dogs": "1"}[name], 9, f"/v2/models/{other.split('/')[0]}")
    mend()
    looks(client)
    assert {entry["reason"] for entry in client.post("/v2/repository/index").json()} == {""}
    assert told.take() == ["swapped"]


def test_a_bundle_with_a_link_to_nothing_beside_its_files_is_watched(inside: Open, models: Path, told: Told):
    client = inside(models, log_event=told)
    (models / "dogs" / ".#lock").symlink_to("user@host.1234:1700000000")  # as an editor makes it
    retrain(models / "dogs", 6)
    looks(client)
    answers(client, "2", 6, DOGS)


def test_permissions_that_are_mended_have_a_refused_version_tried_again(
    inside: Open, models: Path, told: Told, monkeypatch: pytest.MonkeyPatch
):
    client = inside(models, log_event=told)
    new = Path(shutil.copytree(models / "cats" / "1", models / "cats" / "2"))
    closed = open_bundle(new).stored_path("onnx-fp32.onnx")
    closed.chmod(0)
    opened = os.open

    def refuses(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path) == closed and not closed.stat().st_mode & 0o777:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuses)
    looks(client)
    assert [name for name, _ in told.events] == ["refused"]
    assert "Permission denied" in told.events[0][1]["error"]
    told.take()
    closed.chmod(0o644)
    looks(client)
    assert told.take() == ["swapped"]
    answers(client, "2", 1, CATS)


@pytest.mark.parametrize("error", [MemoryError("8 GB"), OSError(5, "Input/output error")])
def test_what_failed_for_a_reason_outside_the_bundle_is_tried_again_and_logged_once(
    inside: Open, exported_bundle: Path, told: Told, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    client = inside(log_event=told)
    tries = []

    def fails(*arguments: Any, **options: Any) -> Any:
        tries.append(arguments)
        raise error

    retrain(exported_bundle, 2)
    monkeypatch.setattr(model_watcher, "load_version", fails)
    looks(client, 16)
    assert len(tries) == 4  # at looks 2, 4, 8 and 16: later and later
    assert told.take() == ["refused"]
    assert states(client) == [("regnet", "1", "READY"), ("regnet", "2", "UNAVAILABLE")]
    monkeypatch.undo()
    looks(client, 16)
    answers(client, "2", 2)


def test_a_folder_of_models_that_cannot_be_read_does_not_end_the_looking(
    inside: Open, models: Path, told: Told, monkeypatch: pytest.MonkeyPatch
):
    client = inside(models, log_event=told, poll_s=0.01)
    monkeypatch.setattr(
        model_watcher, "list_repository", lambda *arguments: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    until(lambda: bool(told.events))
    assert told.take() == ["unreadable"]
    monkeypatch.undo()
    retrain(models / "dogs", 6)
    until(lambda: ask(client, DOGS)[1] == "2")


def test_the_last_version_stays_while_the_one_in_its_place_is_ill(inside: Open, models: Path, told: Told):
    client = inside(models, log_event=told)
    source = shutil.copytree(models / "cats" / "1", models.parent / "source")
    shutil.copytree(source, models / "cats" / "2")
    break_(models / "cats" / "2")
    shutil.rmtree(models / "cats" / "1")
    looks(client, 4)
    answers(client, "1", 1, CATS)
    shutil.rmtree(models / "cats" / "2")
    shutil.copytree(source, models / "cats" / "2")
    looks(client, 3)
    answers(client, "2", 1, CATS)
    assert states(client)[0] == ("cats", "2", "READY")
    assert ask(client, CATS + "/versions/1")[0] == 404


def test_a_bundle_that_becomes_a_folder_of_versions_and_back_answers_all_the_while(
    inside: Open, models: Path, told: Told
):
    client = inside(models, log_event=told)
    source = shutil.copytree(models / "dogs", models.parent / "source")
    retrain(source, 7)
    shutil.rmtree(models / "dogs")
    (models / "dogs" / "1").mkdir(parents=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name != MANIFEST):  # a copy that takes its time
        shutil.copy2(path, models / "dogs" / "1")
        looks(client, 1)
        assert ask(client, DOGS)[0] == 200
    for _ in range(3):
        looks(client, 1)
        assert ask(client, DOGS)[0] == 200
    answers(client, "1", 7, DOGS)
    retrain(source, 8)
    shutil.rmtree(models / "dogs")
    shutil.copytree(source, models / "dogs")
    for _ in range(3):
        looks(client, 1)
        assert ask(client, DOGS)[0] == 200
    answers(client, "1", 8, DOGS)
    assert states(client) == [("cats", "1", "READY"), ("dogs", "1", "READY")]
    assert told.take()[-2:] == ["swapped", "removed"]


def test_whatever_a_look_ends_in_the_next_one_comes(
    inside: Open, models: Path, told: Told, monkeypatch: pytest.MonkeyPatch
):
    client = inside(models, log_event=told, poll_s=0.01)

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(model_watcher, "run_in_daemon_thread", fails)
    until(lambda: bool(told.events))
    assert told.events == [("unreadable", {"error": "RuntimeError: can't start new thread"})]  # once
    monkeypatch.undo()
    retrain(models / "dogs", 6)
    until(lambda: ask(client, DOGS)[1] == "2")


# The start


def test_a_version_that_does_not_open_or_agree_at_the_start_leaves_the_others_of_its_model(
    inside: Open, models: Path, told: Told
):
    for version in ("2", "3", "4"):
        shutil.copytree(models / "cats" / "1", models / "cats" / version)
    break_(models / "cats" / "2")
    retrain(models / "cats" / "3", 3, error=0.5)
    retrain(models / "cats" / "4", 4)
    client = inside(models, log_event=told)
    assert [(one.name, one.version) for one in client.core.opened] == [("cats", "1"), ("cats", "4"), ("dogs", "1")]
    assert states(client) == [
        ("cats", "1", "READY"),
        ("cats", "2", "UNAVAILABLE"),
        ("cats", "3", "UNAVAILABLE"),
        ("cats", "4", "READY"),
        ("dogs", "1", "READY"),
    ]
    answers(client, "4", 4, CATS)
    assert told.take() == ["refused", "refused"]
    looks(client)
    assert told.take() == []
    retrain(models / "cats" / "3", 6)
    looks(client)
    answers(client, "3", 6, CATS + "/versions/3")


def half_copied(models: Path) -> None:
    source = models / "cats" / "1"
    (models / "half" / "1").mkdir(parents=True)
    shutil.copy2(source / MANIFEST, models / "half" / "1")


def without_its_manifest(models: Path) -> None:
    shutil.copytree(models / "cats" / "1", models / "half" / "1")
    (models / "half" / "1" / MANIFEST).unlink()


def cut_off(models: Path) -> None:
    shutil.copytree(models / "cats" / "1", models / "half" / "1")
    manifest = models / "half" / "1" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:100])


def disagrees(models: Path) -> None:
    retrain(Path(shutil.copytree(models / "cats" / "1", models / "half" / "1")), 2, error=0.5)


def not_exported(models: Path) -> None:
    bundle = Path(shutil.copytree(models / "cats" / "1", models / "half" / "1"))
    update_bundle(bundle, {}, drop=("variants", "onnx-fp32.onnx", "onnx-fp32-uint8.onnx"))


def link_to_nothing(models: Path) -> None:
    (models / "half").mkdir()
    (models / "half" / "1").symlink_to("nowhere")


@pytest.mark.parametrize(
    "spoil", [half_copied, without_its_manifest, cut_off, disagrees, not_exported, link_to_nothing]
)
def test_a_model_that_is_ill_at_the_start_leaves_the_others_and_is_served_when_it_heals(
    inside: Open, models: Path, told: Told, spoil: Callable[[Path], None]
):
    spoil(models)
    client = inside(models, log_event=told, ready="all")
    assert [name for name, _ in told.events] == ["refused", "unready"]
    assert (told.events[0][1]["model"], told.events[0][1]["version"]) == ("half", "1")
    assert told.events[1][1]["error"] == "1 of 3 models are not ready"
    told.take()
    answers(client, "1", 1, CATS)
    answers(client, "1", 5, DOGS)
    assert states(client)[-1] == ("half", "1", "UNAVAILABLE")
    assert client.post("/v2/repository/index").json()[-1]["reason"]
    assert ask(client, "/v2/models/half")[0] == 503
    assert client.get("/v2/models/half/ready").status_code == 503
    assert client.get("/v2/health/ready").status_code == 503
    assert b'model_ready{model="half",version="1"} 0.0' in client.run(client.core.metrics.scrape())[0]
    assert b"regnet_deploy_ready 0.0" in client.run(client.core.metrics.scrape())[0]
    looks(client, 4)
    assert told.take() == []
    if (models / "half" / "1").is_symlink():
        (models / "half" / "1").unlink()
    shutil.copytree(models / "cats" / "1", models / "half" / "1", dirs_exist_ok=True)
    for stale in {path.name for path in (models / "half" / "1").iterdir()} - {
        path.name for path in (models / "cats" / "1").iterdir()
    }:
        (models / "half" / "1" / stale).unlink()
    looks(client)
    answers(client, "1", 1, "/v2/models/half")
    assert told.take() == ["swapped"]
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("ready", "before", "after"), [("any", 200, 200), ("all", 503, 200), ("cats", 200, 200), ("half", 503, 200)]
)
def test_the_policy_says_which_models_must_answer(inside: Open, models: Path, ready: str, before: int, after: int):
    half_copied(models)
    client = inside(models, ready=ready)
    assert client.get("/v2/health/ready").status_code == before
    assert client.get("/v2/health/live").status_code == 200
    assert client.get(CATS + "/ready").status_code == 200
    shutil.copytree(models / "cats" / "1", models / "half" / "1", dirs_exist_ok=True)
    looks(client)
    assert client.get("/v2/health/ready").status_code == after


def test_a_new_model_makes_a_server_that_waits_for_all_unready_only_once_it_is_refused(inside: Open, models: Path):
    client = inside(models, ready="all")
    (models / "birds").mkdir()
    (models / "birds" / "1").mkdir()
    for path in sorted((models / "cats" / "1").iterdir(), key=lambda path: path.name == MANIFEST):
        shutil.copy2(path, models / "birds" / "1")
        looks(client, 1)
        assert client.get("/v2/health/ready").status_code == 200
    looks(client)
    assert client.get("/v2/models/birds/ready").status_code == 200
    shutil.copytree(models / "cats", models / "fish")
    break_(models / "fish" / "1")
    looks(client)
    assert client.get("/v2/health/ready").status_code == 503


def test_a_server_whose_only_model_is_half_copied_waits_for_it(inside: Open, models: Path, told: Told):
    half_copied(models)
    source = (models / "cats").rename(models.parent / "source")
    shutil.rmtree(models / "dogs")
    with pytest.raises(BundleError, match="half/1"):
        ServerCore(models, CoreSettings(limits=LIMITS, poll_s=0))  # there would be no second look
    client = inside(models, log_event=told, poll_s=0.01)
    assert told.take() == ["refused", "waiting", "unready"]
    assert client.get("/v2/health/ready").json() == {"ready": False, "error": "no model is ready"}
    assert client.get("/v2/health/live").status_code == 200
    assert ask(client, "/v2/models/half")[0] == 503
    shutil.copytree(source / "1", models / "half" / "1", dirs_exist_ok=True)
    until(lambda: client.get("/v2/health/ready").status_code == 200)
    answers(client, "1", 1, "/v2/models/half")


def test_a_start_with_models_that_cannot_be_served_ends_with_the_first_reason(models: Path):
    for bundle in (models / "cats" / "1", models / "dogs"):
        update_bundle(bundle, {}, drop=("variants", "onnx-fp32.onnx", "onnx-fp32-uint8.onnx"))
    with pytest.raises(MissingPart, match=r"cats/1 has no .*export --onnx"):
        ServerCore(models, CoreSettings(limits=LIMITS))


def test_a_start_with_models_that_disagree_ends(models: Path):
    retrain(models / "cats" / "1", 2, error=0.5)
    retrain(models / "dogs", 2, error=0.5)

    async def start() -> None:
        core = ServerCore(models, CoreSettings(limits=LIMITS, decoders=1, options=ServeOptions(variant="onnx-fp32")))
        try:
            await core.start()
        finally:
            await core.stop()

    before = threading.active_count()
    with pytest.raises(ProofError, match="does not agree"):
        asyncio.run(start())
    until(lambda: threading.active_count() <= before)


# Policies of versions


def with_versions(models: Path, *versions: int) -> None:
    """Have versions of ``cats``; the network of each has its number as its seed."""
    for version in versions:
        target = Path(shutil.copytree(models.parent / "source", models / "cats" / str(version)))
        retrain(target, version)


@pytest.fixture
def versions(models: Path) -> Path:
    """A repository: ``cats`` in versions 1, 2 and 3."""
    shutil.rmtree(models / "dogs")
    (models / "cats" / "1").rename(models.parent / "source")
    with_versions(models, 1, 2, 3)
    return models


def served(client: Inside) -> list[str]:
    return client.core.service.models.versions("cats")


@pytest.mark.parametrize(
    ("policy", "numbers", "config"),
    [
        ("all", ["1", "2", "3"], {"all": {}}),
        ("latest", ["3"], {"latest": {"num_versions": 1}}),
        ("latest:2", ["2", "3"], {"latest": {"num_versions": 2}}),
        ("latest:9", ["1", "2", "3"], {"latest": {"num_versions": 9}}),
        ("3,1", ["1", "3"], {"specific": {"versions": [1, 3]}}),
        ("cats=2", ["2"], {"specific": {"versions": [2]}}),
        ("dogs=2", ["1", "2", "3"], {"all": {}}),
    ],
)
def test_a_policy_says_which_versions_are_served(
    inside: Open, versions: Path, policy: str, numbers: list[str], config: dict[str, Any]
):
    client = inside(versions, versions=(policy,))
    looks(client)
    assert served(client) == numbers
    assert [version for _, version, _ in states(client)] == numbers
    assert client.get(CATS + "/config").json()["version_policy"] == config
    answers(client, numbers[-1], int(numbers[-1]), CATS)


def test_the_newest_versions_follow_what_comes_and_goes(inside: Open, versions: Path, told: Told):
    client = inside(versions, log_event=told, versions=("latest:2",))
    with_versions(versions, 4)
    looks(client)
    assert served(client) == ["3", "4"]
    assert told.events[-1] == ("removed", {"model": "cats", "version": "2", "reason": "version policy"})
    assert ask(client, CATS + "/versions/2")[0] == 404
    shutil.rmtree(versions / "cats" / "4")  # a rollback
    looks(client)
    assert served(client) == ["2", "3"]
    answers(client, "3", 3, CATS)
    answers(client, "2", 2, CATS + "/versions/2")


@pytest.mark.parametrize("spoil", [break_, lambda bundle: retrain(bundle, 9, error=0.5)])
def test_a_newest_version_that_is_ill_leaves_the_one_before_in_its_place(
    inside: Open, versions: Path, told: Told, spoil: Callable[[Path], None]
):
    spoil(versions / "cats" / "3")
    client = inside(versions, log_event=told, versions=("latest",))
    assert served(client) == ["2"]
    assert states(client) == [("cats", "2", "READY"), ("cats", "3", "UNAVAILABLE")]
    shutil.rmtree(versions / "cats" / "3")
    with_versions(versions, 3)
    looks(client, 3)
    assert states(client) == [("cats", "3", "READY")]
    with_versions(versions, 4)
    spoil(versions / "cats" / "4")
    looks(client, 3)
    assert states(client) == [("cats", "3", "READY"), ("cats", "4", "UNAVAILABLE")]
    answers(client, "3", 3, CATS)


def test_a_named_version_that_is_not_there_is_told(inside: Open, versions: Path, told: Told):
    client = inside(versions, log_event=told, versions=("cats=2,7",))
    assert told.events == [("refused", {"model": "cats", "version": "7", "error": "model cats has no version 7"})]
    assert states(client) == [("cats", "2", "READY"), ("cats", "7", "UNAVAILABLE")]
    assert ask(client, CATS + "/versions/7")[0] == 503
    with_versions(versions, 7)
    looks(client)
    answers(client, "7", 7, CATS)
    shutil.rmtree(versions / "cats" / "7")
    looks(client)
    assert states(client) == [("cats", "2", "READY"), ("cats", "7", "UNAVAILABLE")]
    with pytest.raises(UsageError, match="model cats has no version 8"):
        ServerCore(versions, CoreSettings(limits=LIMITS, versions=("8",)))


def test_models_that_options_name_and_that_are_not_there_are_told(inside: Open, versions: Path, told: Told):
    inside(versions, log_event=told, versions=("cats=latest:1", "nope=latest:1"), ready="nosuch")
    errors = [facts["error"] for name, facts in told.events if name == "no_such_model"]
    assert errors == [
        f"--ready: there is no model nosuch in {versions} now; there are: cats",
        f"--versions: there is no model nope in {versions} now; there are: cats",
    ]


def test_the_folder_of_one_model_is_told(inside: Open, versions: Path, told: Told):
    inside(versions / "cats", log_event=told)
    (error,) = [facts["error"] for name, facts in told.events if name == "versions_as_models"]
    assert f"`regnet-deploy serve {versions}` serves the model cats" in error


def test_a_folder_without_a_bundle_names_what_makes_one(tmp_path: Path):
    (tmp_path / "cats" / "v1").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"neither a bundle nor a folder of models .* `regnet-deploy select "):
        ServerCore(tmp_path)
