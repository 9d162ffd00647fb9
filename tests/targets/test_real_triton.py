"""A real Triton runs what is packaged, as far as its backends go; a twin in NumPy stands in for the network's backend.

Marked `triton`. REAL_TRITON names a program that starts one: see triton_twin/twin.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.runtimes.runtime import classify_pixels, open_variant
from regnet_deploy.targets.output_folder import write_folders
from regnet_deploy.targets.packaged_variant import choose_packaged_variant
from regnet_deploy.targets.settings import DeploymentSettings
from regnet_deploy.targets.triton import REPOSITORY, triton_files

pytestmark = [pytest.mark.triton, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def _there_is_one(twin: Any) -> None:
    reason = twin.why_not()
    if reason:
        pytest.skip(reason)
    pytest.importorskip("tritonclient.http")


@contextlib.contextmanager
def client_of(triton: Any) -> Iterator[Any]:
    import tritonclient.http as http

    client = http.InferenceServerClient(triton.http, concurrency=8)
    try:
        yield client
    finally:
        client.close()  # or Triton waits for the connection when it is stopped


def tensor(name: str, data: np.ndarray) -> Any:
    import tritonclient.http as http

    kind = {"float32": "FP32", "uint8": "UINT8", "object": "BYTES"}[data.dtype.name]
    made = http.InferInput(name, data.shape, kind)
    made.set_data_from_numpy(data)
    return made


def labels_asked(k: int) -> list[Any]:
    import tritonclient.http as http

    return [http.InferRequestedOutput("logits", class_count=k)]


def jpeg(pixels: np.ndarray, side: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((side, side + 31), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    return stream.getvalue()


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-fp32-uint8"])
def test_the_repository_answers_as_our_session_does(exported_bundle, tmp_path, twin, variant):
    bundle = open_bundle(exported_bundle)
    golden, preprocessing = load_golden(bundle), Preprocessing.from_json(bundle.parts["preprocessing"])
    images = golden.images if variant.endswith("uint8") else normalize(golden.images, preprocessing)
    repository = twin.write_twin(exported_bundle, tmp_path / "out", DeploymentSettings(variant=variant))
    files = [jpeg(pixels, 100 + 60 * i) for i, pixels in enumerate(golden.images[:4])]
    seen = np.stack([load_pixels(data, preprocessing) for data in files])
    ours = classify_pixels(open_variant(bundle, variant, device="cpu"), seen, preprocessing)
    flags = ("--disable-auto-complete-config",)  # as the instructions have it
    with twin.running(repository, tmp_path / "log", *flags) as triton, client_of(triton) as client:
        # Tensors: the logits of the golden set, and its first classes by name.
        answer = client.infer("regnet", [tensor("images", images)])
        np.testing.assert_allclose(answer.as_numpy("logits"), golden.logits, atol=1e-3)
        named = client.infer("regnet", [tensor("images", images)], outputs=labels_asked(2)).as_numpy("logits")
        labels = bundle.parts["labels"]
        first = [line.decode().split(":")[2] for line in named[:, 0]]
        assert first == [labels[i] for i in golden.logits.argmax(axis=1)]
        # Files: the same pixels, so the same logits as ours.
        encoded = np.array([[data] for data in files], dtype=object)
        logits = client.infer("regnet_image", [tensor("image", encoded)]).as_numpy("logits")
        np.testing.assert_allclose(logits, ours, atol=1e-3)
        named = client.infer("regnet_image", [tensor("image", encoded)], outputs=labels_asked(1)).as_numpy("logits")
        assert [line.decode().split(":")[2] for line in named[:, 0]] == [labels[i] for i in ours.argmax(axis=1)]
        refuse_what_is_no_image(client)


def refuse_what_is_no_image(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="not an image in a format that is read") as refused:
        client.infer("regnet_image", [tensor("image", np.array([[b"nonsense"]], dtype=object))])
    assert refused.value.status() == "400"
    bomb = Image.new("1", (6000, 6000))  # 36 megapixels in a few kilobytes
    stream = io.BytesIO()
    bomb.save(stream, "PNG")
    with pytest.raises(InferenceServerException, match="more than 25,000,000 pixels"):
        client.infer("regnet_image", [tensor("image", np.array([[stream.getvalue()]], dtype=object))])


def test_the_queue_is_bounded(exported_bundle, tmp_path, twin):
    settings = DeploymentSettings(max_queue=2, max_batch=1, deadline_ms=20_000)
    repository = twin.write_twin(exported_bundle, tmp_path / "out", settings, delay_ms=500, images=False)
    shape = [1, 3, 24, 24]
    image = {"name": "images", "shape": shape, "datatype": "FP32", "data": [0.0] * int(np.prod(shape))}
    body = json.dumps({"inputs": [image]}).encode()

    with twin.running(repository, tmp_path / "log") as triton:

        def ask(_: int) -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://{triton.http}/v2/models/regnet/infer", body, timeout=60) as answer:
                    return answer.status, ""
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, range(8)))
    assert {status for status, _ in answers} == {200, 503}
    assert all("Exceeds maximum queue size" in text for status, text in answers if status == 503)


def test_the_configuration_of_the_network_is_read_as_far_as_its_backend(exported_bundle, tmp_path, twin):
    files = triton_files(choose_packaged_variant(open_bundle(exported_bundle), None, gpu=False), DeploymentSettings())
    model = f"{REPOSITORY}/regnet"
    only = {name: data for name, data in files.items() if name.startswith(f"{model}/")}
    write_folders({tmp_path / "good": only})
    said = twin.log_of(tmp_path / "good" / REPOSITORY, tmp_path / "good.log")
    assert "unable to find backend library for backend 'onnxruntime'" in said
    assert "failed to read text proto" not in said
    broken = only[f"{model}/config.pbtxt"].replace(b"max_batch_size", b"max_batch_sise")
    write_folders({tmp_path / "bad": {**only, f"{model}/config.pbtxt": broken}})
    said = twin.log_of(tmp_path / "bad" / REPOSITORY, tmp_path / "bad.log")
    assert "failed to read text proto" in said


def test_the_configuration_of_engines_is_read_as_far_as_its_backend(with_h100_engine, tmp_path, twin):
    chosen = choose_packaged_variant(open_bundle(with_h100_engine), "trt-fp32", gpu=True)
    files = triton_files(chosen, DeploymentSettings())  # KIND_GPU needs a GPU before the backend is looked for
    model = f"{REPOSITORY}/regnet"
    only = {name: data for name, data in files.items() if name.startswith(f"{model}/")}
    only[f"{model}/config.pbtxt"] = only[f"{model}/config.pbtxt"].replace(b"KIND_GPU", b"KIND_AUTO")
    write_folders({tmp_path / "out": only})
    said = twin.log_of(Path(tmp_path / "out" / REPOSITORY), tmp_path / "log")
    assert "unable to find backend library for backend 'tensorrt'" in said
    assert "failed to read text proto" not in said
