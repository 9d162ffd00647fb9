import json

import pytest

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.engine_builder import build_plan
from regnet_deploy.engines.inspection import (
    check_types,
    convolution_types,
    layers_of_log,
    layers_of_report,
    report_of,
)
from regnet_deploy.engines.session import deserialize_engine
from regnet_deploy.errors import ProofError, RegnetDeployError

UNTOLD = "N/A due to dynamic shapes"


def layer(name, kind="Half", weights="same", metadata="", layer_type="CaskConvolution", key="Format/Datatype", **more):
    data = {"Name": name, "LayerType": layer_type, "Inputs": [{"Name": "x", key: kind}], "Metadata": metadata, **more}
    if weights:
        data["Weights"] = {"Type": kind if weights == "same" else weights, "Count": 1}
    return data


def types(*layers, names):
    return convolution_types(layers_of_report(json.dumps({"Layers": layers})), names)


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Int8", "int8"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("Row major linear FP32", "fp32"),
        ("Row major linear BF16 format", "bf16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Channel major FP8 E4M3 format", "fp8"),
    ],
)
@pytest.mark.parametrize("key", ["Format/Datatype", "DataType", "Datatype"])
def test_types_are_read_in_the_words_of_both_versions(kind, type_, key):
    assert types(layer("conv", kind, key=key), names=["conv"]) == {"conv": type_}


@pytest.mark.parametrize(
    "written",
    [
        {"name": "s1.b1.f.a"},
        {"name": "s1.b1.f.a + s1.b1.f.a_af"},
        {"name": "s1.b1.f.a.weight + s1.b1.f.a.weight.q + s1.b1.f.a + PWN(s1.b1.f.a_af)"},
        {"name": "s1.b1.proj || s1.b1.f.a"},
        {"name": "__myl_Conv_myl0_3", "metadata": "[ONNX Layer: s1.b1.f.a]\x1f[ONNX Layer: s1.b1.f.a_af]"},
        {
            "name": "fused",
            "metadata": "[ONNX Layer: s1.b1.f.a.weight.dq]\x1e[ONNX Layer: s1.b1.f.a]__gemm_from_conv1x1",
        },
    ],
)
def test_a_convolution_is_found_among_the_nodes_that_a_layer_fuses(written):
    assert types(layer(**written), names=["s1.b1.f.a"]) == {"s1.b1.f.a": "fp16"}


def test_a_name_within_another_is_not_it():
    assert (
        types(layer("s1.b1.f.a_af + s1.b1.f.ab", metadata="[ONNX Layer: s1.b1.f.a.weight]"), names=["s1.b1.f.a"]) == {}
    )


def generated(operators, *inputs, metadata="[ONNX Layer: conv]", **more):
    """A layer whose kernel the compiler generates, with these inputs: type and size of each."""
    tensors = [{"Name": "x", "Dimensions": size, "Format/Datatype": kind} for kind, size in inputs]
    name = f"__myl_{operators}_myl0_5"
    made = layer(name, weights=None, metadata=metadata, layer_type="kgen", TacticName=f"__myl_{operators}_0xfcd0")
    return {**made, "Inputs": tensors, **more}


IMAGE, KERNEL, VECTOR = [8, 16, 32, 32], [24, 16, 1, 1], [1, 24, 1, 1]


@pytest.mark.parametrize("operators", ["ConvAddRelu", "CorrAdd", "MulSum", "FcAddCast", "SlicMulMulAddSigm"])
@pytest.mark.parametrize(("kind", "type_"), [("Half", "fp16"), ("Float", "fp32")])
def test_a_generated_kernel_computes_a_convolution_that_no_other_layer_computes(operators, kind, type_):
    # TensorRT lists the weights first.
    assert types(generated(operators, (kind, KERNEL), ("Half", IMAGE)), names=["conv"]) == {"conv": type_}


def test_a_generated_kernel_before_or_after_a_convolution_says_nothing_of_it():
    after = generated("MulCastAddReluMulMinMaxRounCast", ("Float", IMAGE))
    before = generated("CastReplConc", ("Float", IMAGE))
    assert types(before, layer("conv", "Int8"), after, names=["conv"]) == {"conv": "int8"}
    assert types(before, names=["conv"]) == {}
    untold = layer("conv", UNTOLD, weights=None)
    assert types(untold, after, names=["conv"]) == {}


def test_scales_and_biases_of_a_generated_kernel_are_no_factors():
    assert types(generated("Conv", ("Int8", IMAGE), ("Int8", KERNEL), ("Float", VECTOR)), names=["conv"]) == {
        "conv": "int8"
    }
    assert types(generated("Conv", ("Int8", KERNEL), ("Half", IMAGE)), names=["conv"]) == {"conv": "fp16"}
    assert types(generated("Conv", (UNTOLD, IMAGE), ("Int8", KERNEL)), names=["conv"]) == {}
    one_pixel = generated("MulSum", ("Half", [1, 16, 1, 1]))
    assert types(one_pixel, names=["conv"]) == {"conv": "fp16"}


@pytest.mark.parametrize("moves", ["Reformat", "kgen", "NoOp", "Constant", "signal"])
def test_layers_that_only_move_or_convert_say_nothing(moves):
    moved = layer("moved", "Float", metadata="[ONNX Layer: conv]", layer_type=moves, weights=None)
    assert types(moved, names=["conv"]) == {}
    assert types(moved, layer("conv", "Half"), names=["conv"]) == {"conv": "fp16"}


@pytest.mark.parametrize(
    "layer_type", ["CaskConvolution", "correlation", "gemm", "runtime_fusion", "CaskGemmConvolution"]
)
def test_layers_that_multiply_are_known_by_their_kind(layer_type):
    made = layer("conv", "Half", weights=None, layer_type=layer_type)
    assert types(made, names=["conv"]) == {"conv": "fp16"}


def test_the_widest_of_input_and_weights_and_of_the_parts_of_a_split_convolution_counts():
    assert types(layer("conv", "Float", weights="Half"), names=["conv"]) == {"conv": "fp32"}
    assert types(layer("conv", "Int8", weights="Half"), names=["conv"]) == {"conv": "fp16"}
    parts = layer("g0", "Int8", metadata="[ONNX Layer: conv]"), layer("g1", "Half", metadata="[ONNX Layer: conv]")
    assert types(*parts, names=["conv"]) == {"conv": "fp16"}


def test_tf32_counts_as_fp32_only_where_it_was_allowed():
    kernel = "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc"
    layers = layers_of_report(json.dumps({"Layers": [layer("conv", "Float", TacticName=kernel)]}))
    assert check_types({"conv": "fp32"}, layers, tf32=True).counts == {"tf32": 1}
    with pytest.raises(ProofError, match=r"1 of 1 convolutions do not .* conv \(fp32 required, tf32 built\)"):
        check_types({"conv": "fp32"}, layers)


def test_another_type_is_how_many_and_the_first_names():
    layers = layers_of_report(
        json.dumps({"Layers": [layer(f"c{i}", "Float") for i in range(5)] + [layer("d", "Half")]})
    )
    with pytest.raises(ProofError) as caught:
        check_types({**{f"c{i}": "fp16" for i in range(5)}, "d": "fp16"}, layers)
    assert str(caught.value) == (
        "5 of 6 convolutions do not compute in the type required: c0 (fp16 required, fp32 built), "
        "c1 (fp16 required, fp32 built), c2 (fp16 required, fp32 built) and 2 more"
    )
    assert caught.value.exit_code == 3


def test_convolutions_that_no_layer_owns_up_to_are_named_and_none_at_all_is_refused():
    layers = layers_of_report(json.dumps({"Layers": [layer("c0")]}))
    asked = {"c0": "fp16", **{f"d{i}": "fp16" for i in range(5)}, "s1.b1.f.se.f_ex.0": "fp16"}
    with pytest.raises(
        ProofError, match=r"in which type 5 of 7 convolutions compute is not known, .*: d0, d1, d2 and 2"
    ):
        check_types(asked, layers)
    checked = check_types(asked, layers, accept_unaccounted=True)
    assert (checked.counts, checked.unaccounted) == ({"fp16": 1}, tuple(asked)[1:])
    gate = check_types({"c0": "fp16", "s1.b1.f.se.f_ex.2": "fp16"}, layers)
    assert (gate.counts, gate.unaccounted) == ({"fp16": 1}, ("s1.b1.f.se.f_ex.2",))
    with pytest.raises(ProofError, match="its report has none of the 2 convolutions"):
        check_types({"c1": "fp16", "c2": "fp16"}, layers)


@pytest.mark.parametrize(
    ("asked", "built", "tactic", "taken"),
    [
        ("fp16", "Float", "", True),
        ("fp16", "Float", "sm80_xmma_tf32f32_tf32f32_f32", True),
        ("bf16", "Float", "", True),
        ("fp32", "Float", "sm80_xmma_tf32f32_tf32f32_f32", False),
        ("fp32", "Half", "", False),
        ("fp16", "BFloat16", "", False),
        ("fp16", "Int8", "", False),
    ],
)
def test_a_gate_may_compute_in_a_wider_float_which_is_recorded(asked, built, tactic, taken):
    name = "s1.b1.f.se.f_ex.0"
    layers = layers_of_report(json.dumps({"Layers": [layer(name, built, TacticName=tactic)]}))
    if taken:
        assert check_types({name: asked}, layers).wider == (name,)
    else:
        with pytest.raises(ProofError, match="1 of 1 convolutions do not compute in the type required"):
            check_types({name: asked}, layers)


@pytest.mark.parametrize(
    ("tactic", "type_"),
    [
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_tilesize128x64x64", "int8"),
        ("sm80_xmma_fprop_implicit_gemm_indexed_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x128x32", "fp16"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize64x64x64", "bf16"),
        ("sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n_tilesize64x64x64", "fp8"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nchw", "tf32"),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nchw", "fp32"),
    ],
)
def test_where_no_type_is_told_the_name_of_the_kernel_tells_it(tactic, type_):
    assert types(layer("c", UNTOLD, weights=None, TacticName=tactic), names=["c"]) == {"c": type_}


def test_small_weights_alone_do_not_tell_that_small_numbers_are_multiplied():
    assert types(layer("c", UNTOLD, weights="Int8", TacticName="sm80_some_kernel"), names=["c"]) == {}
    assert types(layer("c", UNTOLD, weights="Half"), names=["c"]) == {"c": "fp16"}


def test_types_are_read_in_a_shape_for_without_one_none_is_told(machine, onnx_of):
    plan = machine.build(onnx_of("int8"))
    engine = deserialize_engine(machine.library, plan).engine
    unshaped = layers_of_report(report_of(machine.library, engine, None))
    assert {layer.input for layer in unshaped} == {None}
    assert {layer.input for layer in machine.session(onnx_of("int8")).layers()} == {"int8", "fp16"}


def test_a_report_of_names_alone_is_one_line():
    with pytest.raises(ProofError, match="lists the names of its layers without their types"):
        layers_of_report(json.dumps({"Layers": ["conv + relu"], "Bindings": ["images"]}))


@pytest.mark.parametrize("report", ["", "{}", "[]", '{"Layers": [{"LayerType": "x"}]}', '{"Layers": 3}', "null"])
def test_a_report_that_cannot_be_read_is_one_line(report):
    with pytest.raises(ProofError, match="the inspector's report cannot be read") as caught:
        layers_of_report(report)
    assert "\n" not in str(caught.value)


def test_control_characters_in_a_report_are_borne():
    report = '{"Layers": [{"Name": "x", "LayerType": "gemm", "Inputs": [{"DataType": "Half"}], '
    report += '"Metadata": "[ONNX Layer: a]\x1f[ONNX Layer: b]"}]}'
    assert convolution_types(layers_of_report(report), ["a", "b"]) == {"a": "fp16", "b": "fp16"}


def test_lines_of_a_builders_log_are_read_and_others_passed_over():
    log = (
        "Layers:\nName: conv_U0_myl0_2, LayerType: correlation, "
        "Inputs: [ { Name: x, Dimensions: [-1,4,128,128], Datatype: Half, Format: (NHWC) Channel major format }], "
        "Constants: [ { Name: w, Dimensions: [32,4,3,3], Datatype: Float, Format: x }], Outputs: [], "
        "TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: conv]\x1f[ONNX Layer: af]\n"
        "Name: signal_0, LayerType: signal\n\n"
    )
    assert convolution_types(layers_of_log(log), ["conv"]) == {"conv": "fp16"}


def test_names_of_nodes_in_a_log_are_separated_by_either_control_character():
    line = (
        "Name: conv1 + af, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: "
        "[1,3,32,32], Format/Datatype: Half }], Outputs: [ { Name: y, Location: Device, Dimensions: [1,8,32,32], "
        "Format/Datatype: Half }], ParameterType: Convolution, TacticName: some, StreamId: 0, Metadata: "
    )
    for separator in ("\x1e", "\x1f"):
        metadata = f"[ONNX Layer: a]{separator}[ONNX Layer: b]{separator}[ONNX Layer: c]"
        layers = layers_of_log(f"Layers:\n{line}{metadata}\n")
        assert convolution_types(layers, ["a", "b", "c"]) == {"a": "fp16", "b": "fp16", "c": "fp16"}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_log_of_tensorrt_rtx_accounts_for_the_convolutions_that_it_generates_kernels_for(
    rtx, onnx_of, types_of, precision
):
    options = EngineOptions.up_to(4, compute_capabilities=("8.9",))
    layers = build_plan(rtx, None, onnx_of(precision), 32, options).layers
    gates = {name for layer in layers if layer.may_multiply for name in layer.names if name.endswith(".se.f_ex.2")}
    assert gates  # two multiplications of the squeeze-and-excitation are unrolled into such a kernel
    found = convolution_types(layers, types_of(precision))
    assert found == types_of(precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-1x1", "fp8-1x1"])
def test_an_engine_tells_its_types_in_the_report_of_its_version(machine, onnx_of, types_of, precision):
    asked = types_of(precision)
    checked = check_types(asked, machine.session(onnx_of(precision)).layers())
    assert sum(checked.counts.values()) == len(asked)
    assert set(checked.counts) == set(asked.values())


def test_fp16_that_was_asked_and_is_fp32_in_the_engine_is_refused(machine, onnx_of, types_of):
    machine.trt.convolutions = lambda name, kind: "Float" if name == "s1.b1.f.b" else kind
    with pytest.raises(ProofError, match=r"1 of \d+ convolutions .*: s1\.b1\.f\.b \(fp16 required, fp32 built\)"):
        check_types(types_of("fp16"), machine.session(onnx_of("fp16")).layers())


def test_a_plan_that_does_not_load_is_one_line(machine, onnx_of):
    with pytest.raises(RegnetDeployError, match="does not load the engine: Serialization"):
        deserialize_engine(machine.library, machine.build(onnx_of())[:-100])
