"""The model card says what the bundle says, at every point of the pipeline."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from bundle_parts import (
    accuracy,
    calibration,
    candidate,
    choice,
    engine,
    engine_variant,
    latency,
    onnx_variant,
    proof,
    training,
    training_data,
)

from regnet_deploy.bundle import Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Golden
from regnet_deploy.bundle.training import PixelBaseline
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.report.card import baseline, model_card
from regnet_deploy.report.sections import card_sections, headline, quantity
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.bundle_parts import selection_parts
from regnet_deploy.selection.selection import select


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "b"
    return create_bundle(folder, selection_parts(select(Budget(16e6, resolution=32, classes=3))))


@pytest.fixture
def complete(selected, tmp_path):
    shutil.copytree(selected.path, tmp_path / "b")
    return update_bundle(
        tmp_path / "b",
        Manifest(
            training=training(data=training_data(rejected={"train/a/<b>.txt": "not an image"})),
            labels=("cat", "dog & wolf", "<script>alert(1)</script>"),
            golden=Golden(images=16, source="training images", seed=None, weights_sha256=None),
            variants={
                "onnx-fp32": onnx_variant(),
                "rtx-fp32": engine_variant(engine(note="built without a GPU"), runtime="tensorrt-rtx"),
            },
        ),
        {"weights.safetensors": b"w"},
    )


def text_of(card):
    lines = [headline(card)]
    for section in card_sections(card):
        lines += [section.title, *(f"{name}: {value}" for name, value in section.facts)]
        lines += [" ".join(row) for table in section.tables for row in table.rows]
    return "\n".join(lines)


def test_before_training_the_card_says_what_is_missing(selected):
    card = model_card(open_bundle(selected.path))
    text = text_of(card)
    assert "not trained yet" in text
    assert "nothing exported yet: regnet-deploy export --onnx" in text
    assert card.accuracy is None
    assert sum(stage.macs for stage in card.stages) == selected.selection.met.macs


def test_a_complete_card_has_accuracy_with_its_interval_and_every_proof(complete):
    text = text_of(model_card(complete))
    assert "90.00 % of 60 images (95 % interval 79.85 to 95.34 %), epoch 2 of 2; chosen on these images" in text
    assert "files and folders that are no images for training: 1" in text
    assert "passed on onnxruntime 1.32.0 (cpu)" in text
    assert "built without a GPU" in text


@pytest.mark.parametrize(
    ("top1", "verdict"), [(0.5, ""), (0.85, ""), (0.9, "the network is no better"), (0.95, "the network is no better")]
)
def test_accuracy_is_compared_with_a_logistic_regression_on_pixels(complete, top1, verdict):
    counts = {"tested": 100, "right": 60, "mirrored_right": 20, "right_once": 44}
    pixels = PixelBaseline(val_top1=top1, val_images=60, train_images=90, side=8, **counts, seconds=1.0)
    data = training_data(train_by_class=(8, 1, 2), val_by_class=(20, 20, 20))
    bundle = update_bundle(complete.path, Manifest(training=training(data=data).replace(pixels=pixels)))
    assert verdict in baseline(bundle).verdict
    assert bool(baseline(bundle).verdict) == bool(verdict)
    assert f"pixel baseline: {100 * top1:.2f} % of 60 validation images" in text_of(model_card(bundle))


@pytest.mark.parametrize(
    ("recipe", "of_classes", "verdict"),
    [
        ({}, 0.9, "the network is no better than that"),
        ({"sampling": "balanced"}, 0.9, ""),
        ({"class_weights": "square-root"}, 1 / 3, "the network is no better than that in the mean over the classes"),
        ({"sampling": "balanced"}, None, "the network is no better than that"),
    ],
)
def test_a_network_that_was_trained_for_small_classes_is_judged_by_the_mean_over_classes(
    complete, recipe, of_classes, verdict
):
    data = training_data(train_by_class=(8, 1, 2), val_by_class=(4, 55, 1))
    before = training(data=data)
    history = tuple(each.replace(val_class_top1=of_classes) for each in before.history)
    changed = before.replace(recipe={**before.recipe, **recipe}, history=history)
    assert baseline(update_bundle(complete.path, Manifest(training=changed))).verdict == verdict


def test_a_card_without_counts_by_class_has_no_baseline(complete):
    assert model_card(complete).baseline is None


@pytest.mark.parametrize(
    ("val_by_class", "share", "verdict"),
    [
        ((20, 20, 20), 1 / 3, ""),
        ((48, 6, 6), 0.8, "the network is not clearly better than that: 60 images give a 95 % interval of 79.85 to"),
        ((4, 55, 1), 55 / 60, "the network is no better than that"),
    ],
)
def test_accuracy_is_compared_with_always_answering_the_largest_class(complete, val_by_class, share, verdict):
    data = training_data(train_by_class=(8, 1, 2), val_by_class=val_by_class, findings=("3 images show one color",))
    bundle = update_bundle(complete.path, Manifest(training=training(data=data)))
    found = baseline(bundle)
    assert found.top1 == share
    assert found.verdict.startswith(verdict) if verdict else not found.verdict
    card = model_card(bundle)
    text = text_of(card)
    assert f"baseline: {share * 100:.2f} % by always answering {found.label}" in text
    assert verdict in text
    assert f"images by class: cat 8 + {val_by_class[0]}, dog & wolf 1 + {val_by_class[1]}, " in text
    assert "finding: 3 images show one color" in text
    assert card.to_json()["baseline"]["top1"] == share


@pytest.fixture
def chosen(complete):
    """A bundle with an int8 variant, an engine in two makes, and what they were chosen from."""
    gate = Gate(mean=0.25, worst=0.5, cosine=0.95, top1=0.9)
    variants = {
        **complete.variants,
        "onnx-int8-cpu": onnx_variant(
            precision="int8-cpu",
            proof=proof("int8-cpu", relative_error=0.031, gate=gate),
            accuracy=accuracy(),
            calibration=calibration(),
        ),
        "trt-fp16": engine_variant(engine(proof=proof()), engine(note="built elsewhere")),
        "onnx-old": onnx_variant(proof=proof(relative_error=None, top1_decided=None, gate=None)),  # before gates
    }
    rows = (latency("onnx-int8-cpu", 1, 1.25), latency("onnx-int8-cpu", 8, 7.5))
    best = candidate("onnx-int8-cpu", *rows, precision="int8-cpu", reason="fastest of 2", accuracy=accuracy())
    refused = candidate("onnx-fp16", precision="fp16", result="refused", reason="cosine 0.9 (at least 0.999)")
    decided = choice(best, refused).replace(max_drop=0.5, cpu_instructions="VNNI")
    return update_bundle(complete.path, Manifest(variants=variants, choice=decided))


def test_the_card_has_figures_gates_and_accuracy_of_every_variant_and_engine(chosen):
    text = text_of(model_card(chosen))
    assert "onnx-int8-cpu onnxruntime int8-cpu float32 16 2.00e-06 3.00e-07 3.10 % 1.000000 100.0 % 0.50 (-0.10" in text
    assert "0.50 (-0.10 to 1.10) on 3,720 images, 90.50 to 90.00 % passed on onnxruntime 1.32.0 (cpu)" in text
    assert text.count("trt-fp16 tensorrt fp16") == 2
    assert "- built elsewhere" in text
    assert "onnx-old onnxruntime fp32 float32 16 2.00e-06 3.00e-07 - 1.000000" in text
    assert (
        "gate of onnx-fp32, trt-fp16: absolute error 0.0001, and 0.001 of the logit, "
        "same first class on at least 100.0%"
    ) in text
    limits = "mean error 25.00% of the spread, error of each image 50.00% of the spread, cosine at least 0.95"
    assert f"gate of onnx-int8-cpu: {limits}" in text
    assert (
        "calibration of onnx-int8-cpu: entropy (of entropy, minmax) on 512 images of training images, seed 0, "
        f"digest {'cd' * 32}"
    ) in text


def test_the_card_has_winners_losers_and_reasons(chosen):
    (section,) = [one for one in card_sections(model_card(chosen)) if one.title == "Choice of precision"]
    assert ("maximum accuracy loss", "0.5 points of top-1") in section.facts
    assert ("measured on", "a CPU, VNNI") in section.facts
    assert section.tables[0].rows == [
        ("onnx-int8-cpu", "int8-cpu", "kept", "1.25", "7.50", "0.50", "fastest of 2"),
        ("onnx-fp16", "fp16", "refused", "-", "-", "-", "cosine 0.9 (at least 0.999)"),
    ]
    assert all(len(row) == len(section.tables[0].columns) for row in section.tables[0].rows)


def test_every_table_row_has_a_cell_a_column(complete):
    for section in card_sections(model_card(complete)):
        for table in section.tables:
            assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize(
    ("count", "written"), [(4.03e9, "4.03 G"), (22.34e6, "22.3 M"), (1500, "1.5 k"), (512, "512 ")]
)
def test_quantities_have_three_figures_and_a_prefix(count, written):
    assert quantity(count) == written


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


def test_the_page_loads_nothing_and_escapes_what_it_shows(complete):
    pytest.importorskip("matplotlib")
    from regnet_deploy.report.html_page import card_html

    page = card_html(model_card(complete))
    links = Links()
    links.feed(page)
    assert [link for link in links.found if not link.startswith("#")] == []
    assert "script" not in links.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert links.tags.count("figure") == 4
    assert page == card_html(model_card(complete))


def test_a_browser_shows_the_page(complete, tmp_path):
    pytest.importorskip("matplotlib")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    from regnet_deploy.report.html_page import card_html

    (tmp_path / "card.html").write_text(card_html(model_card(complete)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'card.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.search(r"<h1>RegNetY-\d+MF</h1>", done.stdout), done.stderr[-2000:]
    assert done.stdout.count("<svg") == 4
