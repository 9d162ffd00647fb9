"""What is said of ONNX Runtime's kernels is true of the release that is installed."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from regnet_deploy.exporting import cpu_kernels
from regnet_deploy.exporting.cpu_kernels import runs_as_typed, truncates_fp16_to_int8
from regnet_deploy.exporting.precision import PRECISIONS


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.23.2", True), ("1.29.1", True), ("1.30.0", False), ("1.32.0.dev20260901", False), ("2.0", False)],
)
def test_releases_before_1_30_truncate(version, expected):
    assert truncates_fp16_to_int8(version) is expected


def test_the_installed_release_truncates_where_it_is_said_to():
    """One operator: where this fails, the release from which FP16 is rounded is another than is said."""
    ends = [
        helper.make_tensor_value_info(name, kind, ["n"])
        for name, kind in (("x", TensorProto.FLOAT16), ("y", TensorProto.INT8))
    ]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT16, [], [0.5]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.asarray([0.2, 0.3, -0.45, 1.2, 3.3, -3.3, 9.3], np.float16)
    (found,) = session.run(None, {"x": values})
    how = np.trunc if truncates_fp16_to_int8(onnxruntime.__version__) else np.rint
    np.testing.assert_array_equal(found, how(values.astype(np.float32) / 0.5))


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize(("version", "typed"), [("1.23.2", False), ("1.30.0", True)])
def test_what_is_quantised_from_fp16_depends_on_the_release(monkeypatch, precision, version, typed):
    monkeypatch.setattr(cpu_kernels, "installed_onnxruntime", lambda: ("onnxruntime", version))
    expected = {"bf16": False, "int8": typed, "int8-1x1": typed}
    assert runs_as_typed(PRECISIONS[precision]) is expected.get(precision, True)
