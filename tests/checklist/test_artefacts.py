"""Checklist 24-26: what is wrong with a bundle is found before it answers, and what answers goes on."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from regnet_deploy.bundle import MANIFEST, StoredFile, open_bundle, update_bundle
from regnet_deploy.bundle.reading import serialize
from regnet_deploy.errors import BundleError
from regnet_deploy.serving.model_repository import RepositoryListing, list_repository
from regnet_deploy.serving.model_version import load_version


def external(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def in_weights(model: Any, location: str) -> None:
    external(model.graph.initializer[0], location)


def in_constant(model: Any, location: str) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[16])
    external(tensor, location)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def in_sparse(model: Any, location: str) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.dims.append(16)
    sparse.values.name = "s"
    sparse.values.data_type = TensorProto.FLOAT
    external(sparse.values, location)


def in_subgraph(model: Any, location: str) -> None:
    tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[16])
    external(tensor, location)
    output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [16])
    graph = helper.make_graph([], "branch", [], [output], [tensor])
    model.graph.node.insert(0, helper.make_node("If", ["b"], ["o"], then_branch=graph, else_branch=graph))


def in_function(model: Any, location: str) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[16])
    external(tensor, location)
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("own", "f", [], ["c"], [node], [helper.make_opsetid("", 18)]))


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "link", "hardlink", ""])
@pytest.mark.parametrize("where", [in_weights, in_constant, in_sparse, in_subgraph, in_function])
def test_24a_no_network_reads_another_file(
    exported_bundle: Path, where: Callable[[Any, str], None], location: str, tmp_path: Path
):
    (tmp_path / "weights.bin").write_bytes(bytes(4096))
    (exported_bundle / "weights.bin").write_bytes(bytes(4096))
    (exported_bundle / "link").symlink_to(tmp_path / "weights.bin")
    os.link(tmp_path / "weights.bin", exported_bundle / "hardlink")
    model = onnx.load_from_string(open_bundle(exported_bundle).read("onnx-fp32.onnx"))
    where(model, location)
    bundle = update_bundle(exported_bundle, {}, {"onnx-fp32.onnx": model.SerializeToString()})
    with pytest.raises(BundleError, match="external data"):
        load_version(bundle)


def forge(folder: Path, change: Callable[[dict[str, StoredFile]], None]) -> None:
    """Rewrite a manifest, its own checksum with it."""
    bundle = open_bundle(folder)
    files = dict(bundle.files)
    change(files)
    (folder / MANIFEST).write_bytes(serialize(bundle.parts, files))


@pytest.mark.parametrize("name", ["../{}", "/tmp/{}", "sub/{}", "..\\{}", "{}\x00", ".", "..", "", "{}/../{}", "{}\n"])
def test_24b_no_bundle_names_a_file_outside_of_it(exported_bundle: Path, name: str):
    def change(files: dict[str, StoredFile]) -> None:
        stored = files["onnx-fp32.onnx"]
        files["onnx-fp32.onnx"] = replace(stored, name=name.replace("{}", stored.name))

    forge(exported_bundle, change)
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(exported_bundle)


def test_24c_a_link_is_as_good_as_its_bytes(exported_bundle: Path, tmp_path: Path):
    bundle = open_bundle(exported_bundle)
    path = bundle.stored_path("onnx-fp32.onnx")
    shutil.move(path, tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    load_version(bundle)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="damaged"):
        load_version(bundle)


@pytest.mark.parametrize("name", ["a b", "a\nb", "a" * 129, "é", "a%2fb"])
def test_24d_models_have_names_that_can_stand_in_a_url(tmp_path: Path, name: str):
    (tmp_path / name / "1").mkdir(parents=True)
    assert list_repository(tmp_path) == RepositoryListing()  # lost+found of a volume, say
    (tmp_path / name / "1" / MANIFEST).touch()
    listing = list_repository(tmp_path)
    assert listing.bundles == ()
    assert listing.unusable[0].reason.startswith("is not a valid name of a model")


def index(server: Any) -> dict[tuple[str, str], dict[str, str]]:
    return {(one["name"], one["version"]): one for one in server.post("/v2/repository/index").json}


def spoil(folder: Path) -> Path:
    """Change one byte of the network of a bundle."""
    path = open_bundle(folder).stored_path("onnx-fp32.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def test_25_a_spoiled_version_is_refused_while_the_one_before_serves(
    launch: Any, tools: Any, exported_bundle: Path, tmp_path: Path
):
    """In a folder of models: a new version beside the old one, a bundle that is changed where it is."""
    models, beside = tmp_path / "models", tmp_path / "beside"
    shutil.copytree(exported_bundle, models / "alpha" / "1")
    shutil.copytree(exported_bundle, models / "beta")
    server = launch("--poll", "0.05", "--grpc-port", "0", path=models)
    body = tools.infer_body()
    stop, wrong = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            for model in ("alpha", "beta"):
                reply = server.post(f"/v2/models/{model}/infer", body)
                if reply.status != 200:
                    wrong.append(reply)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        before = server.post("/v2/models/beta/infer", body).json["outputs"]
        shutil.copytree(exported_bundle, beside)
        spoil(beside)
        beside.rename(models / "alpha" / "2")
        path = spoil(models / "beta")
        tools.wait_until(lambda: index(server).get(("alpha", "2"), {}).get("state") == "UNAVAILABLE")
        tools.wait_until(lambda: index(server)["beta", "1"]["reason"] != "")
        found = index(server)
        assert found["alpha", "1"]["state"] == found["beta", "1"]["state"] == "READY"
        assert str(tmp_path) not in json.dumps(list(found.values()))
        assert server.get("/v2/models/alpha/versions/2/ready").status != 200
        assert server.post("/v2/models/alpha/versions/2/infer", body).status == 503
        assert server.get("/v2/health/ready").status == 200
        assert server.post("/v2/models/alpha/infer", body).json["model_version"] == "1"
        assert server.post("/v2/models/beta/infer", body).json["outputs"] == before
        # A version that proves itself takes over at once.
        spoil(models / "alpha" / "2")
        tools.wait_until(lambda: index(server)["alpha", "2"]["state"] == "READY")
        assert server.post("/v2/models/alpha/infer", body).json["model_version"] == "2"
        spoil(path.parent)
        tools.wait_until(lambda: index(server)["beta", "1"]["reason"] == "")
    finally:
        stop.set()
        asking.join()
    assert wrong == []


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(command="id"),
        lambda found: found["files"]["onnx-fp32.onnx"].update(url="http://127.0.0.1/x"),
        lambda found: found["files"]["onnx-fp32.onnx"].pop("sha256"),
        lambda found: found.update(schema=True),
        lambda found: found.update(schema=10**9),
        lambda found: found.update(parts=[]),
        lambda found: found.update(files=None),
    ],
)
def test_26a_fields_that_no_manifest_has_are_refused(exported_bundle: Path, change: Callable[[dict[str, Any]], None]):
    import hashlib

    found = document(exported_bundle)
    change(found)
    found.pop("sha256")
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**found, "sha256": digest}, indent=2, sort_keys=True, ensure_ascii=False)
    (exported_bundle / MANIFEST).write_text(text + "\n")
    with pytest.raises(BundleError):
        open_bundle(exported_bundle)


def test_26b_parts_that_are_not_known_run_nothing(exported_bundle: Path):
    code = {"implementation": "os.system", "handler": "handler.py", "!!python/object/apply:os.system": ["touch ran"]}
    (exported_bundle / "handler.py").write_text("raise SystemExit('ran')")
    variants = open_bundle(exported_bundle).parts["variants"]
    variants["onnx-fp32"] |= code
    bundle = update_bundle(exported_bundle, {"unknown": code, "variants": variants})
    assert load_version(bundle).variant == "onnx-fp32"
