from regnet_deploy.cli.output import combined_error
from regnet_deploy.errors import MissingExtra, ProofError, UsageError


def test_a_refusal_names_each_variant_once_and_is_of_a_proof_where_one_is():
    error = combined_error(
        {
            "trt-fp32": UsageError("there is no GPU"),
            "onnx-fp16": ProofError("onnx-fp16 does not agree"),
            "trt-fp16": UsageError("there is no GPU"),
        },
        " (the others are written)",
    )
    assert type(error) is ProofError
    assert str(error) == "trt-fp32, trt-fp16: there is no GPU; onnx-fp16 does not agree (the others are written)"


def test_what_keeps_all_engines_from_being_is_said_as_it_is():
    error = combined_error({"engines": MissingExtra("tensorrt is not installed")})
    assert (type(error), str(error)) == (MissingExtra, "tensorrt is not installed")
