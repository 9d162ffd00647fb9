"""Confusions and worst mistakes on the card, as text, as a picture and as thumbnails."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from bundle_parts import training

from regnet_deploy.bundle import Bundle, Manifest, create_bundle, update_bundle
from regnet_deploy.evaluation.answers import FILE, Answers, Mistake, answers_to_bytes
from regnet_deploy.report.answers_section import answers_section, has_matrix, mistakes_html
from regnet_deploy.report.card import model_card
from regnet_deploy.report.html_page import card_html
from regnet_deploy.report.sections import card_sections
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.bundle_parts import selection_parts
from regnet_deploy.selection.selection import select

LABELS = ("cat", "<b>dog</b>", "$cow$")


def answers(*, channels: int = 3, mistakes: bool = True) -> Answers:
    pixels = np.full((24, 24, channels), 200, np.uint8)
    wrong = (Mistake("val/cat/<i>.png", 0, 1, 0.97, pixels),) if mistakes else ()
    rows = [[0, 0, 5], [0, 1, 3], [1, 1, 4], [1, 2, 1], [2, 2, 7]] if mistakes else [[0, 0, 5], [1, 1, 4]]
    return Answers("the validation images of the training", "model", sum(row[2] for row in rows), np.array(rows), wrong)


@pytest.fixture
def trained(tmp_path: Any) -> Bundle:
    made = create_bundle(tmp_path / "b", selection_parts(select(Budget(16e6, resolution=32, classes=3))))
    return update_bundle(
        made.path,
        Manifest(training=training(), labels=LABELS),
        {"weights.safetensors": b"w", FILE: answers_to_bytes(answers())},
    )


def test_the_most_frequent_confusions_come_first() -> None:
    section = answers_section(answers(), LABELS)
    assert section.facts == [
        ("images", "20: the validation images of the training"),
        ("wrong", "4 (20.00 %)"),
    ]
    assert section.tables[0].rows == [("cat", "<b>dog</b>", "3"), ("<b>dog</b>", "$cow$", "1")]
    assert answers_section(answers(mistakes=False), LABELS).tables == []


def test_the_page_has_curves_matrix_and_thumbnails(trained: Bundle) -> None:
    page = card_html(model_card(trained))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert any(caption.startswith("Top-1 by epoch") for caption in captions)
    assert "Mean cross-entropy by epoch." in captions
    assert "Images by class and answer, of 20: the validation images of the training." in captions
    assert page.count("data:image/png;base64,") == 1
    assert "answer &lt;b&gt;dog&lt;/b&gt; (97%)" in page
    assert "&lt;i&gt;.png" in page
    assert "<b>dog" not in page


def test_the_text_and_the_data_have_them_too(trained: Bundle) -> None:
    card = model_card(trained)
    assert "Confusions" in [section.title for section in card_sections(card)]
    assert card.to_json()["answers"]["mistakes"] == [
        {"image": "val/cat/<i>.png", "class": "cat", "answer": "<b>dog</b>", "probability": 0.97}
    ]


def test_without_mistakes_there_are_no_thumbnails_and_gray_ones_are_drawn() -> None:
    assert mistakes_html(answers(mistakes=False), LABELS) == ""
    assert mistakes_html(answers(channels=1), LABELS).count("<img") == 1


def test_a_matrix_of_very_many_classes_is_not_drawn() -> None:
    assert has_matrix(answers(), 60)
    assert not has_matrix(answers(), 61)
    assert not has_matrix(None, 3)
