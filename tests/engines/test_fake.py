"""The fakes have the surface of what they stand in for: or a test that passes with them would say nothing."""

import importlib.util
import inspect
import json
import re
from enum import EnumMeta
from pathlib import Path
from types import FunctionType

import pytest

from regnet_deploy.engines import cuda

HERE = Path(__file__).parent
RECORDING = json.loads((HERE / "tensorrt_api.json").read_text(encoding="utf-8"))
CUDA_RECORDING = json.loads((HERE / "cuda_api.json").read_text(encoding="utf-8"))
#: Enumerations and members of them that the package names.
USED = {
    "BuilderFlag": ("TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"),
    "DataType": ("FLOAT",),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    "LayerInformationFormat": ("JSON",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "ProfilingVerbosity": ("DETAILED",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
}
#: Those of TensorRT-RTX alone.
USED_OF_RTX = {
    "BuilderFlag": ("REQUIRE_USER_ALLOCATION",),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
}
#: Classes that are subclassed: the library calls their methods.
CALLED_BACK = ("ILogger", "IErrorRecorder", "IProgressMonitor")


def recorder(name="record_tensorrt_api"):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters_of(signature):
    """Names of the parameters of a recorded signature, without ``self``."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") -> ")]
    return [name for name in re.findall(r"(?:^|, )(\w+): ", inside) if name != "self"]


def members_of(kind):
    """What a class of the fake has of its own: methods, properties, and attributes that can be set."""
    for name, member in vars(kind).items():
        if name == "__init__" or not name.startswith("_"):
            yield name, member


def surface_problems(trt, recorded):
    """Return one line for each thing that the fake has and the recorded interface does not."""
    problems = []
    for name, kind in vars(trt).items():
        if not isinstance(kind, type):
            continue
        if isinstance(kind, EnumMeta):
            known = recorded[name]["members"]
            problems += [f"{name}.{one.name}" for one in kind if known.get(one.name) != int(one)]
            continue
        for member, value in members_of(kind):
            there = recorded.get(name, {}).get(member)
            if there is None:
                problems.append(f"{name} has no {member}")
            elif isinstance(value, FunctionType):
                mine = list(inspect.signature(value).parameters)[1:]
                takes = [parameters_of(signature) for signature in there]
                if mine not in takes and [*mine, *["kernel_text"]] not in takes:
                    problems.append(f"{name}.{member} takes {takes} and not {mine}")
            elif isinstance(value, property) and there != "read-only property":
                problems.append(f"{name}.{member} is no read-only property")
    return problems


@pytest.mark.parametrize("version", sorted(RECORDING))
def test_the_fake_has_nothing_that_the_real_bindings_do_not_have(fakes, version):
    assert surface_problems(fakes.fake_tensorrt(version), RECORDING[version]) == []


@pytest.mark.parametrize("of_rtx", [False, True])
def test_the_fake_has_nothing_that_the_installed_tensorrt_rtx_does_not_have_but_its_own(fakes, of_rtx):
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    there = recorder().interface_of(rtx)
    trt = fakes.fake_tensorrt("11.4.0.106", rtx=of_rtx)
    of_its_own = {name for name, members in RECORDING["11.4.0.106"].items() if "members" in members}
    found = [one for one in surface_problems(trt, there) if re.split(r"[. ]", one)[0] not in of_its_own]
    assert found == []


def test_the_installed_tensorrt_rtx_has_the_names_that_are_used():
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    for name, members in USED_OF_RTX.items():
        assert set(members) <= set(recorder().interface_of(rtx)[name]["members"])
    for name, members in USED.items():
        for there in (recorder().interface_of(rtx), *RECORDING.values()):
            assert set(members) <= set(there[name]["members"])


def test_a_fake_with_another_surface_is_found(fakes):
    trt = fakes.fake_tensorrt("11.4.0.106")
    trt.Builder.platform_has_fast_fp16 = property(lambda self: True)  # gone in 11
    trt.Runtime.load_runtime = lambda self, name: None
    found = surface_problems(trt, RECORDING["11.4.0.106"])
    assert found == [
        "Builder has no platform_has_fast_fp16",
        "Runtime.load_runtime takes [['path']] and not ['name']",
    ]


@pytest.mark.parametrize("version", sorted(RECORDING))
def test_what_tensorrt_calls_back_has_its_methods_and_arguments(fakes, version):
    from regnet_deploy.engines.builder_log import BuilderLog, BuildMonitor
    from regnet_deploy.progress import NoProgress

    trt = fakes.fake_tensorrt(version)
    log = BuilderLog(trt)
    mine = dict(zip(CALLED_BACK, (log.logger, log.recorder, BuildMonitor(trt, NoProgress()).hook), strict=True))
    for name, made in mine.items():
        methods = {method: told for method, told in RECORDING[version][name].items() if isinstance(told, list)}
        compared = 0
        for method in methods.keys() - {"__init__"}:
            takes = inspect.signature(getattr(made, method)).parameters
            for signature in methods[method]:
                assert len(takes) == len(parameters_of(signature)), f"{name}.{method}"
                compared += 1
        assert compared, name


@pytest.mark.parametrize("version", sorted(CUDA_RECORDING))
def test_the_fake_of_cuda_takes_what_every_supported_version_takes(machine, version):
    recorded = CUDA_RECORDING[version]
    for name, method in vars(type(machine.cuda)).items():
        if name.startswith("cuda"):
            assert list(inspect.signature(method).parameters)[1:] == recorded[name], name


def test_what_is_called_of_cuda_is_recorded_and_the_installed_version_has_it(machine):
    source = Path(cuda.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r"\bcuda[A-Z]\w*(?:_t)?\b", source))
    for recorded in (*CUDA_RECORDING.values(), recorder("record_cuda_api").interface_of(machine.cuda._real)):
        assert named <= {*recorded, *(member for one in recorded.values() if isinstance(one, dict) for member in one)}
        assert recorded == CUDA_RECORDING["12.9.0"]


def test_the_recorder_reads_properties_methods_overloads_and_enumerations():
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    found = recorder().interface_of(rtx)
    assert found["Builder"]["error_recorder"] == "property"
    assert found["ICudaEngine"]["num_io_tensors"] == "read-only property"
    assert len(found["IExecutionContext"]["set_input_shape"]) == 3
    assert parameters_of(found["IExecutionContext"]["set_input_shape"][0]) == ["name", "shape"]
    assert found["TensorIOMode"] == {"members": {"INPUT": 1, "NONE": 0, "OUTPUT": 2}}
