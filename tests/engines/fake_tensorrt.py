"""TensorRT without a GPU, as far as this package uses it: it builds what ONNX Runtime then computes.

Its surface is that of the real bindings, which test_fake.py holds it to, member by member and argument by argument.
Enumerations are made from the recording, numbers and all. Objects take no attribute that the real ones do not have.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import weakref
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RECORDING: dict[str, Any] = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text(encoding="utf-8"))
VERSIONS = tuple(RECORDING)
_TYPES = {1: "Float", 10: "Half", 16: "BFloat16", 3: "Int8", 17: "FP8"}
#: What the inspector says in place of a type where the batch may vary and no context says which it is.
_NOT_TOLD = "N/A due to dynamic shapes"
_FORMATS = {"Half": "Channel major FP16 format where channel % 8 == 0", "Float": "Row major linear FP32"}


def fake_tensorrt(version: str, cuda: Any = None, device: str = "H100", *, rtx: bool = False) -> ModuleType:
    """Return a module that can be taken for ``tensorrt`` of this version.

    Args:
        version: one of :data:`VERSIONS`, or another one, which then has the newest's interface.
        cuda: the :class:`fake_cuda.FakeCuda` whose memory engines work in.
        device: of the GPU; timings of another one are refused.
        rtx: it is to be taken for ``tensorrt_rtx``, with what that has beside.

    The module has beside TensorRT's names: ``error`` (what a build that fails says; None: none does), ``steps`` of a
    build and ``step`` (called before each), ``convolutions`` (a function of name and type of a convolution: the type
    it is computed in, or None and no layer names it), ``starts`` (False: no driver), ``built`` (the configurations
    that were built with), ``compiled`` (batch sizes for which TensorRT-RTX compiled kernels).
    """
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version
    trt.error, trt.step, trt.steps, trt.convolutions, trt.starts, trt.built = None, lambda: None, 3, None, True, []
    trt.compiled = []
    recorded = RECORDING.get(version, RECORDING[VERSIONS[-1]])
    for name, members in recorded.items():
        if "members" in members:
            setattr(trt, name, IntEnum(name, members["members"]))

    if rtx:
        trt.BuilderFlag = IntEnum("BuilderFlag", {**trt.BuilderFlag.__members__, "REQUIRE_USER_ALLOCATION": 28})
        trt.DynamicShapesKernelSpecializationStrategy = IntEnum(
            "DynamicShapesKernelSpecializationStrategy", {"LAZY": 0, "EAGER": 1, "NONE": 2}
        )
        trt.ComputeCapability = IntEnum("ComputeCapability", {"SM80": 80, "SM89": 89, "SM120": 120})

    class ILogger:
        Severity = IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    class IErrorRecorder:
        pass

    class IProgressMonitor:
        pass

    class IHostMemory:
        __slots__ = ("_data",)

        def __bytes__(self) -> bytes:
            return bytes(self._data)

    class ITimingCache:
        __slots__ = ("_entries", "_header")

        def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
            if input_cache._header != self._header and not ignore_mismatch:
                return False
            self._entries |= input_cache._entries
            return True

        def serialize(self) -> Any:
            return host_memory(json.dumps([self._header, sorted(self._entries)]).encode())

    class IBuilderConfig:
        __slots__ = (
            "_cache",
            "_flags",
            "_pools",
            "_profiles",
            "builder_optimization_level",
            "hardware_compatibility_level",
            "profiling_verbosity",
            "progress_monitor",
            *(("_targets", "num_compute_capabilities") if rtx else ()),
        )

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._pools[pool.name] = pool_size

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            cache = ITimingCache.__new__(ITimingCache)
            cache._header, cache._entries = [version, device], set()
            if serialized_timing_cache:
                header, entries = json.loads(serialized_timing_cache)
                cache._header, cache._entries = header, set(entries)
            return cache

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            fits = cache._header == [version, device] or ignore_mismatch
            self._cache = cache if fits else None
            return fits

    class IOptimizationProfile:
        __slots__ = ("_shapes",)

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._shapes[input] = (min, opt, max)

    class ITensor:
        __slots__ = ("name", "shape")

    class INetworkDefinition:
        __slots__ = ("_flags", "_input", "_onnx")

        def get_input(self, index: int) -> Any:
            assert index == 0
            return self._input

    class ParserError:
        __slots__ = ("_said",)

        def desc(self) -> str:
            return str(self._said[1])

        def node_name(self) -> str:
            return str(self._said[0])

    class OnnxParser:
        __slots__ = ("_errors", "_network")

        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            error = ParserError.__new__(ParserError)
            error._said = self._errors[index]
            return error

        def parse(self, model: bytes, path: str | None = None) -> bool:
            import onnx

            try:
                graph = onnx.load_from_string(model).graph
            except Exception:  # whatever protobuf raises
                self._errors.append(("", "Failed to parse the ONNX model"))
                return False
            tensor = ITensor.__new__(ITensor)
            tensor.name = graph.input[0].name
            tensor.shape = [dim.dim_value or -1 for dim in graph.input[0].type.tensor_type.shape.dim]
            self._network._input, self._network._onnx = tensor, model
            return True

    class Builder:
        __slots__ = ("_logger", "error_recorder")

        def __init__(self, logger: Any) -> None:
            if not trt.starts:
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger, self.error_recorder = logger, None

        def create_network(self, flags: int = 0) -> Any:
            network = INetworkDefinition.__new__(INetworkDefinition)
            network._flags = flags
            return network

        def create_builder_config(self) -> Any:
            config = IBuilderConfig.__new__(IBuilderConfig)
            config._flags, config._pools, config._profiles, config._cache = {trt.BuilderFlag.TF32}, {}, [], None
            if rtx:
                config._targets = {}
            config.progress_monitor, config.hardware_compatibility_level = None, trt.HardwareCompatibilityLevel.NONE
            return config

        def create_optimization_profile(self) -> Any:
            profile = IOptimizationProfile.__new__(IOptimizationProfile)
            profile._shapes = {}
            return profile

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            trt.built.append(config)
            ((name, shapes),) = config._profiles[0]._shapes.items()
            monitor = config.progress_monitor
            monitor.phase_start("Building Engine", None, trt.steps)
            for step in range(trt.steps):
                trt.step()
                if not monitor.step_complete("Building Engine", step):
                    return None
            monitor.phase_finish("Building Engine")
            if config._cache is not None:
                config._cache._entries.add(hashlib.sha256(network._onnx).hexdigest())
            wrong = [shape for shape in shapes if list(shape[1:]) != network._input.shape[1:]]
            reason = f"Dimension mismatch for tensor {name} and profile 0" if wrong else trt.error
            if reason:
                told = f"IBuilder::buildSerializedNetwork: Error Code 2: {reason}"
                self.error_recorder.report_error(trt.ErrorCodeTRT.FAILED_ALLOCATION, told)
                return None
            detailed = config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
            head = {"version": version, "batches": [shape[0] for shape in shapes], "detailed": detailed}
            layers = report(head, network._onnx, version, trt.convolutions, rtx or shapes[0][0] == shapes[2][0])
            if detailed:
                self._logger.log(ILogger.Severity.VERBOSE, log_of(layers["Layers"], rtx))
            content = json.dumps(head).encode() + b"\n" + network._onnx
            return host_memory(hashlib.sha256(content).digest() + content)

    class EngineInspector:
        __slots__ = ("_engine", "execution_context")

        def get_engine_information(self, format: Any) -> str:
            assert format == trt.LayerInformationFormat.JSON
            low, _, high = self._engine._head["batches"]
            context = self.execution_context
            is_told = low == high or (context is not None and context._batch is not None)
            return json.dumps(report(self._engine._head, self._engine._onnx, version, trt.convolutions, is_told))

    class IRuntimeCache:
        __slots__ = ("__weakref__", "_entries")

        def serialize(self) -> Any:
            return host_memory(json.dumps([[version, device], sorted(self._entries)]).encode())

        def deserialize(self, blob: bytes) -> bool:
            header, entries = json.loads(blob)
            if header != [version, device]:
                return False
            self._entries |= {tuple(entry) for entry in entries}
            return True

    class IRuntimeConfig:
        __slots__ = (
            "__weakref__",
            "_cache",
            "_strategy",
            *(("dynamic_shapes_kernel_specialization_strategy",) if rtx else ()),
        )

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self._strategy = strategy

    class IExecutionContext:
        __slots__ = (
            "__weakref__",
            "_addresses",
            "_batch",
            "_captured",
            "_compiled",
            "_config",
            "_eager",
            "_engine",
            "_memory",
            "_needs_memory",
            "_ran",
            "error_recorder",
        )

        def set_device_memory(self, memory: int, size: int) -> None:
            assert size >= self._engine.device_memory_size_v2
            self._memory = memory

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert not self._captured, "a context that was captured is used otherwise"
            low, _, high = self._engine._head["batches"]
            if not low <= shape[0] <= high:
                return False
            self._batch, self._ran = shape[0], False
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle == 77
            assert self._memory or not self._needs_memory, "no memory was given to the context"
            assert not self._captured, "a context that was captured is used otherwise"
            if cuda.is_capturing:
                assert self._ran, "a context is captured before it ran in its shape"
                assert self._eager or not rtx, "the general kernels are captured"
                self._captured = True
            if self._config is not None:
                self._compile(self._config())
            self._ran = True
            batch, known = self._batch, weakref.ref(self)

            def compute() -> None:
                context = known()
                assert context is not None, "a graph is replayed and its context has gone"
                context._engine._compute(context._addresses, batch)

            cuda.do(compute)
            return True

        def _compile(self, config: Any) -> None:
            """Compile the kernels of the shape, unless this context or its cache has them."""
            assert config is not None, "a context is used and its IRuntimeConfig has gone"
            cache = config._cache()
            assert cache is not None, "a context is used and its IRuntimeCache has gone"
            key = (hashlib.sha256(self._engine._onnx).hexdigest(), self._batch)
            if key not in self._compiled and key not in cache._entries:
                trt.compiled.append(self._batch)
                cache._entries.add(key)
            self._compiled.add(key)

    class ICudaEngine:
        __slots__ = ("_head", "_inference", "_is_lean", "_onnx", "error_recorder")
        device_memory_size_v2 = 1024

        @property
        def num_io_tensors(self) -> int:
            return 2

        def get_tensor_name(self, index: int) -> str:
            return str(ends(self._inference)[index].name)

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name == self.get_tensor_name(0) else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType.FLOAT

        def get_tensor_shape(self, name: str) -> Any:
            shape = next(end.shape for end in ends(self._inference) if end.name == name)
            return (-1, *shape[1:])

        def create_engine_inspector(self) -> Any:
            if self._is_lean:
                return None
            inspector = EngineInspector.__new__(EngineInspector)
            inspector._engine, inspector.execution_context = self, None
            return inspector

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
            assert (name, profile_index) == (self.get_tensor_name(0), 0)
            return [(batch, *self.get_tensor_shape(name)[1:]) for batch in self._head["batches"]]

        def create_runtime_config(self) -> Any:
            config = IRuntimeConfig.__new__(IRuntimeConfig)
            config._strategy = trt.ExecutionContextAllocationStrategy.STATIC
            own = new_runtime_cache()  # without one that is set, kernels are forgotten with the context
            config._cache = lambda: own
            return config

        def create_execution_context(self, strategy: Any = None) -> Any:
            context = IExecutionContext.__new__(IExecutionContext)
            context._engine, context._addresses, context._captured, context._memory = self, {}, False, 0
            context._batch, context._eager, context._compiled, context._config = None, False, set(), None
            if isinstance(strategy, IRuntimeConfig):  # the other overload
                chosen = getattr(strategy, "dynamic_shapes_kernel_specialization_strategy", None)
                context._eager = rtx and chosen == trt.DynamicShapesKernelSpecializationStrategy.EAGER
                context._config = weakref.ref(strategy) if rtx else None  # the real one refers to it and owns it not
                strategy = strategy._strategy
            context._needs_memory = strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return context

        def _compute(self, addresses: dict[str, int], batch: int) -> None:
            entry, leave = ends(self._inference)
            images = view(addresses[entry.name], (batch, *entry.shape[1:]))
            logits = view(addresses[leave.name], (batch, leave.shape[1]))
            logits[:] = self._inference.run(None, {entry.name: images})[0]

    class Runtime:
        __slots__ = ("_is_lean", "_loads", "_logger", "engine_host_code_allowed", "error_recorder")

        def __init__(self, logger: Any) -> None:
            if not trt.starts:
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger, self._loads, self._is_lean = logger, version, False

        def load_runtime(self, path: str) -> Any:
            other = Runtime(self._logger)
            other._loads = Path(path).read_text(encoding="ascii")  # the version whose lean runtime it is
            other._is_lean = True
            return other

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            import onnxruntime

            assert self.engine_host_code_allowed is False
            digest, content = serialized_engine[:32], serialized_engine[32:]
            head, _, onnx = content.partition(b"\n")
            if hashlib.sha256(content).digest() != digest:
                self._logger.log(
                    ILogger.Severity.ERROR,
                    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
                    "stdArchiveReader failed.)",
                )
                return None
            built = json.loads(head)
            if built["version"] != self._loads:
                self._logger.log(ILogger.Severity.ERROR, "The engine plan file is not compatible with this version")
                return None
            engine = ICudaEngine.__new__(ICudaEngine)
            engine._head, engine._onnx, engine._is_lean = built, onnx, self._is_lean
            engine._inference = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
            return engine

    if rtx:

        def set_compute_capability(self: Any, compute_capability: Any, index: int) -> bool:
            self._targets[index] = compute_capability
            return True

        IBuilderConfig.set_compute_capability = set_compute_capability

        def create_runtime_cache(self: Any) -> Any:
            return new_runtime_cache()

        def set_runtime_cache(self: Any, cache: Any) -> bool:
            self._cache = weakref.ref(cache)
            return True

        IRuntimeConfig.create_runtime_cache = create_runtime_cache
        IRuntimeConfig.set_runtime_cache = set_runtime_cache
        trt.IRuntimeCache = IRuntimeCache

    def new_runtime_cache() -> Any:
        cache = IRuntimeCache.__new__(IRuntimeCache)
        cache._entries = set()
        return cache

    def host_memory(data: bytes) -> Any:
        memory = IHostMemory.__new__(IHostMemory)
        memory._data = data
        return memory

    for kind in (
        Builder,
        EngineInspector,
        IBuilderConfig,
        ICudaEngine,
        IErrorRecorder,
        IExecutionContext,
        IHostMemory,
        ILogger,
        INetworkDefinition,
        IOptimizationProfile,
        IProgressMonitor,
        IRuntimeConfig,
        ITensor,
        ITimingCache,
        OnnxParser,
        ParserError,
        Runtime,
    ):
        setattr(trt, kind.__name__, kind)
    if "IRuntimeConfig" not in recorded:  # before 10.14
        del trt.IRuntimeConfig, ICudaEngine.create_runtime_config
    module: ModuleType = trt
    return module


def ends(inference: Any) -> tuple[Any, Any]:
    """Return input and output of a session of ONNX Runtime."""
    return inference.get_inputs()[0], inference.get_outputs()[0]


def view(address: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return memory as an array of float32."""
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(address)).reshape(shape)


def log_of(layers: list[dict[str, Any]], rtx: bool) -> str:
    """Return the list of layers that a builder logs at the level VERBOSE.

    That of TensorRT 10 is as https://github.com/NVIDIA/TensorRT/issues/4397 and issue 3583 there quote it; that of
    TensorRT-RTX 1.7 has constants, strides and other separators of nodes beside.
    """
    lines = []
    for layer in layers:
        (tensor,) = layer["Inputs"]
        size = ",".join(map(str, tensor["Dimensions"]))
        kind = tensor.get("Format/Datatype") or tensor["DataType"]
        location, key = ("", "Datatype") if rtx else ("Location: Device, ", "Format/Datatype")
        said = f"{{ Name: {tensor['Name']}, {location}Dimensions: [{size}], {key}: {kind} }}"
        constants = "Constants: [], " if rtx else ""
        weights = "" if rtx else f"ParameterType: Convolution, Weights: {json.dumps(layer['Weights'])}, "
        metadata = layer["Metadata"] if rtx else layer["Metadata"].replace("\x1f", "\x1e")
        lines.append(
            f"Name: {layer['Name']}, LayerType: {layer['LayerType']}, Inputs: [ {said}], {constants}"
            f"Outputs: [ {said}], {weights}TacticName: {layer['TacticName']}, StreamId: 0, Metadata: {metadata}"
        )
    return "\n".join(["Layers:", *lines, "", "Bindings:", "images", "logits"])


def report(
    head: dict[str, Any],
    data: bytes,
    version: str,
    override: Callable[[str, str], str | None] | None = None,
    is_told: bool = True,
) -> dict[str, Any]:
    """Return what the engine inspector of a version tells of a file's convolutions; the types of tensors if told.

    Args:
        head: of the plan.
        data: the ONNX file that it was built from.
        version: of TensorRT.
        override: see :func:`fake_tensorrt`.
        is_told: whether the types of tensors are known.
    """
    import onnx

    if not head["detailed"]:
        return {"Layers": ["names only"], "Bindings": ["images", "logits"]}
    graph = onnx.load_from_string(data).graph
    kinds = {constant.name: constant.data_type for constant in graph.initializer}
    small = {node.output[0]: kinds[node.input[0]] for node in graph.node if node.input[0] in kinds}
    layers = []
    for node in graph.node:
        if node.op_type == "Conv":
            kind = _TYPES[small.get(node.input[1], kinds.get(node.input[1]))]
            kind = override(node.name, kind) if override else kind
            if kind is None:
                continue
            tensor = {"Name": node.input[0], "Dimensions": [1, 8, 8, 8]}
            if int(version.split(".")[0]) < 11:
                tensor["Format/Datatype"] = _FORMATS.get(kind, kind) if is_told else _NOT_TOLD
            elif is_told:
                tensor |= {"Format": "Channel major", "DataType": kind}
            else:
                tensor |= {"Format": _NOT_TOLD, "DataType": _NOT_TOLD}
            layers.append(
                {
                    "Name": f"{node.name} + {node.name}_af",
                    "LayerType": "CaskConvolution",
                    "Inputs": [tensor],
                    "Weights": {"Type": kind, "Count": 8},
                    "TacticName": "sm90_xmma_fprop_implicit_gemm",
                    "Metadata": f"[ONNX Layer: {node.name}]\x1f[ONNX Layer: {node.name}_af]",
                }
            )
    tensors = {"Bindings": ["images", "logits"]}
    if int(version.split(".")[0]) >= 11:
        tensors = {"I/O Tensors": [{"Name": "images"}, {"Name": "logits"}]}
    return {"Layers": layers, **tensors}
