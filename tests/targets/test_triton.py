"""The Triton repository: configurations by Triton's own message, warm-up, labels, the preprocessing beside it."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import bundle_parts as parts
import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.bundle.variants import EngineIdentity
from regnet_deploy.engines.bundle_engines import StoredEngine
from regnet_deploy.errors import MissingExtra, UsageError
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.targets.output_folder import write_folders
from regnet_deploy.targets.packaged_variant import choose_packaged_variant
from regnet_deploy.targets.settings import DeploymentSettings
from regnet_deploy.targets.triton import place_engines, shared_memory_mib, triton_files

pytest.importorskip("google.protobuf")


def parsed(files, model):
    """A configuration, read by tritonclient's copy of the message and not by the one that wrote it."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    return text_format.Parse(files[f"model_repository/{model}/config.pbtxt"].decode(), messages.ModelConfig())


def test_the_classifier_is_bounded_batched_warmed_up_and_labelled(subject):
    settings = DeploymentSettings(
        name="dogs", threads=3, executors=2, max_batch=16, max_queue=50, deadline_ms=250, max_delay_ms=2
    )
    config = parsed(triton_files(subject(), settings), "dogs")
    assert (config.name, config.backend, config.max_batch_size) == ("dogs", "onnxruntime", 16)
    assert [list(config.input[0].dims), list(config.output[0].dims)] == [[3, 24, 24], [6]]
    assert config.output[0].label_filename == "labels.txt"
    group = config.instance_group[0]
    assert (group.count, group.Kind.Name(group.kind)) == (2, "KIND_CPU")
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds, policy.allow_timeout_override) == (
        *(50, 250_000),
        True,
    )
    assert policy.TimeoutAction.Name(policy.timeout_action) == "REJECT"
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [entry.batch_size for entry in config.model_warmup] == [1, 16]
    assert config.version_policy.latest.num_versions == 1


def test_pixels_go_in_as_they_are(subject):
    config = parsed(triton_files(subject(variant="onnx-fp32-uint8"), DeploymentSettings()), "regnet")
    entry = config.input[0]
    assert (list(entry.dims), entry.Format.Name(entry.format), entry.data_type) == ([24, 24, 3], "FORMAT_NHWC", 2)


def test_a_gpu_is_used_as_the_variant_was_proved(exported_bundle):
    chosen = choose_packaged_variant(open_bundle(exported_bundle), "onnx-fp32", gpu=True)
    config = parsed(triton_files(chosen, DeploymentSettings(gpu=True)), "regnet")
    group = config.instance_group[0]
    assert group.Kind.Name(group.kind) == "KIND_GPU"
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert cuda.name == "cuda"
    options = cuda_options_of_triton(config)
    assert (options["use_tf32"], options["cudnn_conv_algo_search"]) == ("0", "HEURISTIC")


def cuda_options_of_triton(config) -> dict[str, str]:
    """Return the options of the CUDA provider as Triton's ONNX Runtime backend merges them (src/onnxruntime.cc).

    The options of the accelerator come first. If the model has any parameters, the backend then reads four options from
    these, and writes its defaults over the accelerator's options where a parameter is missing.
    """
    options = {}
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        assert accelerator.name == "cuda"
        options |= dict(accelerator.parameters)
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    if parameters:
        search = int(parameters.get("cudnn_conv_algo_search", "0"))
        options["cudnn_conv_algo_search"] = ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")[search]
        options["gpu_mem_limit"] = parameters.get("gpu_mem_limit", str(2**64 - 1))
        strategy = int(parameters.get("arena_extend_strategy", "0"))
        options["arena_extend_strategy"] = ("kNextPowerOfTwo", "kSameAsRequested")[strategy]
        options["do_copy_in_default_stream"] = parameters.get("do_copy_in_default_stream", "1")
    return options


def test_the_ensemble_joins_both_steps(subject):
    files = triton_files(subject(), DeploymentSettings(name="dogs"))
    ensemble, preprocess = parsed(files, "dogs_image"), parsed(files, "dogs_preprocess")
    classifier = parsed(files, "dogs")
    first, second = ensemble.ensemble_scheduling.step
    assert [first.model_name, second.model_name] == ["dogs_preprocess", "dogs"]
    assert set(first.input_map) == {entry.name for entry in preprocess.input}
    assert set(first.output_map) == {entry.name for entry in preprocess.output}
    assert set(second.input_map) == {entry.name for entry in classifier.input}
    assert first.output_map["images"] == second.input_map["images"]
    assert preprocess.output[0].dims == classifier.input[0].dims
    assert preprocess.output[0].data_type == classifier.input[0].data_type
    assert preprocess.dynamic_batching.default_queue_policy.max_queue_size == 128
    assert "model_repository/dogs_image/1/.keep" in files  # Triton wants the version's folder


@pytest.mark.parametrize(
    ("dtype", "decoders", "batch", "needed_mib", "asked_mib"),
    [
        # A tensor of 224 px in float32 is 3 * 224 * 224 * 4 = 602,112 bytes, in uint8 a quarter.
        ("float32", 2, 32, 2 * 32 * (2 * 602_112 / 2**20 + 1), 192),
        ("float32", 4, 32, 4 * 32 * (2 * 602_112 / 2**20 + 1), 320),
        ("uint8", 2, 32, 2 * 32 * (2 * 150_528 / 2**20 + 1), 128),
        ("uint8", 1, 1, 1 * (2 * 150_528 / 2**20 + 1), 64),
    ],
)
def test_shared_memory_holds_a_batch_of_each_instance(dtype, decoders, batch, needed_mib, asked_mib):
    shape = (224, 224, 3) if dtype == "uint8" else (3, 224, 224)
    made = shared_memory_mib(SimpleNamespace(image=shape, dtype=dtype), decoders, batch)
    assert made == asked_mib
    assert needed_mib <= made < needed_mib + 64


def test_instances_of_the_preprocessing_do_not_depend_on_the_machine_that_packages(subject, monkeypatch):
    monkeypatch.setattr("regnet_deploy.targets.triton.available_cores", lambda: 64)
    files = triton_files(subject(), DeploymentSettings())
    assert parsed(files, "regnet_preprocess").instance_group[0].count == 2
    assert "are for 2 instances" in files["README.md"].decode()
    files = triton_files(subject(), DeploymentSettings(decoders=5))
    assert parsed(files, "regnet_preprocess").instance_group[0].count == 5
    assert "are for 5 instances" in files["README.md"].decode()


@pytest.mark.parametrize("missing", ["google.protobuf.message", "safetensors.numpy", "PIL.Image"])
def test_what_is_missing_is_of_the_extra_of_packages(subject, monkeypatch, missing):
    chosen = subject()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtra, match=r"regnet-deploy\[package\]"):
        triton_files(chosen, DeploymentSettings())


def test_warm_up_is_a_golden_image(subject):
    chosen = subject()
    files = triton_files(chosen, DeploymentSettings())
    image = load_golden(chosen.bundle).images[:1]
    raw = np.frombuffer(files["model_repository/regnet/warmup/golden"], np.float32).reshape(3, 24, 24)
    np.testing.assert_array_equal(raw, normalize(image, chosen.preprocessing)[0])
    element = files["model_repository/regnet_preprocess/warmup/golden"]
    assert struct.unpack("<I", element[:4]) == (len(element) - 4,)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(element[4:]))), image[0])


def test_a_label_stays_one_line(exported_bundle):
    update_bundle(exported_bundle, {"labels": ["a\nb", "c\r", "d", "e", "f", "gé"]})
    chosen = choose_packaged_variant(open_bundle(exported_bundle), None, gpu=False)
    labels = triton_files(chosen, DeploymentSettings())["model_repository/regnet/labels.txt"].decode()
    assert labels == "a b\nc\nd\ne\nf\ngé\n"


@pytest.mark.parametrize("gpu", [False, True])
def test_a_file_for_tensorrt_is_refused_and_what_to_package_is_said(for_tensorrt, gpu):
    with pytest.raises(UsageError) as raised:
        triton_files(for_tensorrt, DeploymentSettings(gpu=gpu))
    (line,) = str(raised.value).splitlines()
    assert line.startswith("variant onnx-int8 is for TensorRT engines, and ONNX Runtime 1.27 of Triton 26.09 does not ")
    assert "--variant trt-int8 --gpu" in line


@pytest.mark.parametrize(("bits", "said"), [(8, True), (7, False), (None, False)])
def test_weights_of_8_bits_say_on_which_cpus_they_are_right(subject, bits, said):
    files = triton_files(replace(subject(), weight_bits=bits), DeploymentSettings())
    assert ("run the network on CPUs that add products of 8 bits in 32" in files["README.md"].decode()) is said


def test_engines_become_plans(with_h100_engine):
    chosen = choose_packaged_variant(open_bundle(with_h100_engine), "trt-fp32", gpu=True)
    files = triton_files(chosen, DeploymentSettings(gpu=True))
    config = parsed(files, "regnet")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert files["model_repository/regnet/1/model.plan"] == chosen.bundle.read(chosen.engines[0].file)
    version = chosen.engines[0].identity.version
    assert f"built by TensorRT {version}" in files["README.md"].decode()
    assert config.max_batch_size <= chosen.engines[0].identity.options.max_batch
    with pytest.raises(UsageError, match="--batch 4096 is larger than"):
        triton_files(chosen, DeploymentSettings(gpu=True, max_batch=4096))


def test_no_place_of_the_instructions_is_left_open(subject):
    files = triton_files(subject(), DeploymentSettings(name="dogs"))
    for name in ("README.md", "Dockerfile"):
        assert "{{" not in files[name].decode()
    assert "dogs_image" in files["README.md"].decode()


def photograph(orientation: int = 1, size: tuple[int, int] = (403, 301)) -> bytes:
    draw = np.random.default_rng(3)
    coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


RUN_IT = """
import json, sys, types
import numpy as np

class Tensor:
    def __init__(self, name, data): self.data = data
    def as_numpy(self): return self.data

class TritonError:
    INVALID_ARG = 1
    def __init__(self, text, code): self.text = text

stub = types.ModuleType("triton_python_backend_utils")
stub.Tensor, stub.TritonError = Tensor, TritonError
stub.get_input_tensor_by_name = lambda request, name: request[name]
class InferenceResponse:
    def __init__(self, output_tensors, error=None): self.tensors, self.error = output_tensors, error
stub.InferenceResponse = InferenceResponse
sys.modules[stub.__name__] = stub
sys.path.insert(0, sys.argv[1])
import model
made = model.TritonPythonModel()
made.initialize({"model_config": sys.argv[2]})
files = [open(path, "rb").read() for path in sys.argv[4:]]
good = {"image": Tensor("image", np.array([[data] for data in files], dtype=object))}
bad = {"image": Tensor("image", np.array([[b"nonsense"]], dtype=object))}
refused, answered = made.execute([bad, good])
assert "not an image" in refused.error.text, refused.error
np.save(sys.argv[3], answered.tensors[0].data)
assert sys.modules["regnet_deploy"].__file__.startswith(sys.argv[1])
assert not {"torch", "safetensors", "click", "rich", "onnxruntime"} & set(sys.modules)
"""


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-fp32-uint8"])
def test_the_preprocessing_gives_our_pixels_with_numpy_and_pillow_alone(subject, tmp_path, variant):
    """In a process of its own, where regnet_deploy is what the repository has of it."""
    import json

    from regnet_deploy.protobuf.messages import parse_text, to_dict

    chosen = subject(variant=variant)
    write_folders({tmp_path / "out": triton_files(chosen, DeploymentSettings())})
    folder = tmp_path / "out" / "model_repository" / "regnet_preprocess"
    config = to_dict(parse_text("inference.ModelConfig", (folder / "config.pbtxt").read_text()))
    files = []
    for orientation in (1, 6, 8):
        files.append(tmp_path / f"{orientation}.jpg")
        files[-1].write_bytes(photograph(orientation))
    command = [sys.executable, "-c", RUN_IT, folder / "1", json.dumps(config), tmp_path / "out.npy", *files]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = np.stack([load_pixels(path.read_bytes(), chosen.preprocessing) for path in files])
    if variant == "onnx-fp32":
        expected = normalize(expected, chosen.preprocessing)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_every_module_that_the_preprocessing_imports_is_copied(subject):
    """What images.preprocess comes to need has to be added to the list in targets/triton.py."""
    import ast

    files = triton_files(subject(), DeploymentSettings())
    prefix = "model_repository/regnet_preprocess/1/"
    sources = {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}
    for name, data in sources.items():
        if not name.endswith(".py"):
            continue
        for node in ast.parse(data).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("regnet_deploy."):
                path = Path(*str(node.module).split("."))
                assert {f"{path}.py", f"{path}/__init__.py"} & set(sources), f"{name} imports {node.module}"


# Which engine goes to which GPU.


IDENTITY = EngineIdentity(
    onnx_sha256="0" * 64,
    precision="fp16",
    calibration=None,
    runtime="tensorrt",
    version="11.4.0.106",
    toolkit="cu13",
    gpu="NVIDIA H100",
    compute_capability="9.0",
    multiprocessors=132,
    driver="580",
    cuda="13.0",
    system="linux-x86_64",
    options=EngineOptions(),
)


def engine(file: str, **changes: object) -> StoredEngine:
    options = {name: changes.pop(name) for name in list(changes) if hasattr(IDENTITY.options, name)}
    identity = IDENTITY.replace(options=IDENTITY.options.replace(**options), **changes)
    return StoredEngine(parts.engine(file=file, identity=identity), None)


def test_one_engine_is_the_default():
    plans = place_engines("trt-fp16", [engine("a")])
    assert {name: one.file for name, one in plans.files.items()} == {"model.plan": "a"}
    assert not plans.by_capability


def test_each_compute_capability_gets_its_latest_engine():
    plans = place_engines(
        "trt-fp16",
        [engine("old"), engine("a100", compute_capability="8.0", max_batch=16), engine("new", multiprocessors=114)],
    )
    assert {name: one.file for name, one in plans.files.items()} == {"model-9.0.plan": "new", "model-8.0.plan": "a100"}
    assert plans.by_capability == {"8.0": "model-8.0.plan", "9.0": "model-9.0.plan"}
    assert plans.max_batch == 16


def test_an_engine_for_several_kinds_serves_the_rest():
    any_gpu = engine("any", hardware_compatible="ampere+")
    plans = place_engines("trt-fp16", [engine("h100"), any_gpu])
    assert {name: one.file for name, one in plans.files.items()} == {"model-9.0.plan": "h100", "model.plan": "any"}


def test_engines_that_triton_does_not_run_are_refused():
    with pytest.raises(UsageError, match="tensorrt-rtx, which Triton does not run"):
        place_engines("rtx-fp16", [engine("a", runtime="tensorrt-rtx")])
    with pytest.raises(UsageError, match="batches of 4 images or more"):
        place_engines("trt-fp16", [engine("a", min_batch=4)])


def test_engines_of_two_versions_do_not_share_a_server():
    two = [engine("a"), engine("b", compute_capability="8.0", version="10.9.0.34")]
    with pytest.raises(UsageError, match=r"TensorRT 10.9.0.34, 11.4.0.106"):
        place_engines("trt-fp16", two)
    compatible = [engine("a", version_compatible=True)]
    compatible.append(engine("b", compute_capability="8.0", version="10.9.0.34", version_compatible=True))
    # Triton loads no lean runtime, which a later TensorRT needs for the engine of an earlier one.
    with pytest.raises(UsageError, match=r"TensorRT 10.9.0.34, 11.4.0.106"):
        place_engines("trt-fp16", compatible)
    assert place_engines("trt-fp16", compatible[:1]).version_compatible
