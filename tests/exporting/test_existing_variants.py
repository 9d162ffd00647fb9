from dataclasses import replace

import numpy as np
import pytest
from bundle_parts import engine, engine_variant, onnx_variant, proof

from regnet_deploy.bundle import update_bundle
from regnet_deploy.errors import BundleError, ProofError
from regnet_deploy.exporting.existing_variants import existing_variants, files_of, stored_engines
from regnet_deploy.exporting.golden_images import NewGoldenSet
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.runtimes.gates import GATES, gates_with_overrides
from regnet_deploy.runtimes.golden_set import GoldenSet, golden_to_bytes

OLD = proof("fp16", runtime="onnxruntime 1.0")


@pytest.fixture
def bundle(trained, source, golden):
    """A bundle with fp32, fp16, and engines of fp16: of this machine, of another one, and of a file that is gone."""
    files = {f"onnx-{name}.onnx": source.onnx(PRECISIONS[name]) for name in ("fp32", "fp16")}
    bundle = update_bundle(trained, {}, {**files, "golden.safetensors": golden.data})
    sha256 = bundle.files["onnx-fp16.onnx"].sha256
    identity = engine().identity
    engines = [
        engine(key=where, file=f"{where}.plan", identity=identity.replace(onnx_sha256=of), proof=OLD)
        for where, of in (("here", sha256), ("there", sha256), ("stale", "other"))
    ]
    variants = {
        "onnx-fp32": onnx_variant("onnx-fp32"),
        "onnx-fp16": onnx_variant("onnx-fp16", precision="fp16", proof=OLD),
        "trt-fp16": engine_variant(*engines),
    }
    plans = {f"{where}.plan": where.encode() for where in ("here", "there", "stale")}
    return update_bundle(trained, {"variants": variants}, plans)


@pytest.fixture
def left(bundle, context, golden):
    """Return a function: the variants that stay in the bundle beside new ones."""

    def find(made=(), lost=(), files=None, on=golden, gates=GATES):
        variants = {name: bundle.variants[name] for name in made}
        here = lambda engine: engine.key == "here"  # noqa: E731
        gate = replace(context.gate, golden=on.golden, gates=gates)
        on_golden = replace(context, bundle=bundle, golden=on, gate=gate)
        return existing_variants(on_golden, variants, files or {}, set(lost), here)

    return find


def engines(existing):
    return [one.key for one in existing.variants["trt-fp16"].engines] if "trt-fp16" in existing.variants else []


@pytest.fixture
def other_golden(golden):
    """The golden set with its images in another order: every good graph agrees with it."""
    turned = GoldenSet(golden.golden.images[::-1], golden.golden.logits[::-1])
    return NewGoldenSet(turned, golden.record, golden_to_bytes(turned))


def test_all_that_was_not_made_anew_stays_but_engines_of_another_file(left):
    existing = left(made=["onnx-fp32"])
    assert list(existing.variants) == ["onnx-fp16", "trt-fp16"]
    assert engines(existing) == ["here", "there"]
    assert (existing.unused_files, existing.rejected) == (("stale.plan",), {})
    assert existing.variants["onnx-fp16"].proof == OLD


def test_engines_go_with_the_onnx_file_that_they_were_built_from(left):
    existing = left(made=["onnx-fp32", "onnx-fp16"], files={"onnx-fp16.onnx": b"another file"})
    assert existing.variants == {}
    assert set(existing.unused_files) == {"here.plan", "there.plan", "stale.plan"}


def test_what_was_made_anew_is_not_looked_at(left):
    existing = left(made=["onnx-fp32", "onnx-fp16", "trt-fp16"])
    assert existing.variants == {}
    assert existing.unused_files == ()  # its engines are those of what was made


def test_what_lost_here_goes_and_its_file_too(left):
    existing = left(made=["onnx-fp32", "onnx-fp16"], lost=["trt-fp16"])
    assert engines(existing) == ["there"]  # of another machine, where nobody was elected
    assert set(existing.unused_files) == {"here.plan", "stale.plan"}


def test_the_file_that_an_engine_of_another_machine_is_built_from_stays(left):
    existing = left(made=["onnx-fp32"], lost=["trt-fp16", "onnx-fp16"])
    assert engines(existing) == ["there"]
    assert "onnx-fp16" in existing.variants


def test_a_lost_file_that_nobody_needs_goes(bundle, left):
    variant = bundle.variants["trt-fp16"]
    here = tuple(one for one in variant.engines if one.key == "here")
    bundle.manifest.variants["trt-fp16"] = variant.replace(engines=here)
    existing = left(made=["onnx-fp32"], lost=["trt-fp16", "onnx-fp16"])
    assert existing.variants == {}
    assert set(existing.unused_files) == {"onnx-fp16.onnx", "here.plan"}


def test_on_a_new_golden_set_files_are_proved_again_and_engines_are_not_proved(left, other_golden):
    existing = left(made=["onnx-fp32"], on=other_golden)
    assert existing.variants["onnx-fp16"].proof.passed
    for one in existing.variants["trt-fp16"].engines:
        assert one.proof is None
        assert one.note.startswith("not proved on the present golden set")


def test_engines_that_others_are_added_to_lose_their_proofs_too(bundle, golden, other_golden):
    before = bundle.variants["trt-fp16"]
    assert stored_engines(bundle, golden) == {"trt-fp16": before}
    found = stored_engines(bundle, other_golden)
    assert [one.proof for one in found["trt-fp16"].engines] == [None] * 3
    assert before.engines[0].proof == OLD  # what was read is not changed


def test_a_file_that_does_not_agree_with_the_new_golden_set_goes_with_its_engines_and_the_rest_stays(
    left, golden, other_golden
):
    off = GoldenSet(other_golden.golden.images, other_golden.golden.logits + np.float32(0.5))
    new = NewGoldenSet(off, golden.record, golden_to_bytes(off))
    existing = left(made=["onnx-fp32"], on=new)
    assert existing.variants == {}
    assert isinstance(existing.rejected["onnx-fp16"], ProofError)
    assert "onnx-fp16 does not agree with the model" in str(existing.rejected["onnx-fp16"])
    assert set(existing.unused_files) == {"onnx-fp16.onnx", "here.plan", "there.plan", "stale.plan"}
    loose = gates_with_overrides([("fp16", "mean", 100), ("fp16", "worst", 1e6), ("fp16", "top1", 0)])
    assert "onnx-fp16" in left(made=["onnx-fp32"], on=new, gates=loose).variants


def test_a_precision_of_a_later_version_is_one_line(left, bundle, other_golden):
    bundle.manifest.variants["onnx-fp16"] = bundle.variants["onnx-fp16"].replace(precision="fp4")
    assert "onnx-fp16" in left(made=["onnx-fp32"]).variants  # nothing is proved again
    with pytest.raises(BundleError, match=r"^precision 'fp4' is not known to this version: pip install --upgrade"):
        left(made=["onnx-fp32"], on=other_golden)


def test_before_the_first_export_there_is_nothing(context):
    existing = existing_variants(context, {}, {}, set(), lambda engine: True)
    assert (existing.variants, existing.unused_files, existing.rejected) == ({}, (), {})


def test_files_of_a_variant_are_its_own_or_its_engines():
    assert files_of(onnx_variant("a")) == ["a.onnx"]
    assert files_of(engine_variant(engine(file="a.plan"), engine(file="b.plan"))) == ["a.plan", "b.plan"]
