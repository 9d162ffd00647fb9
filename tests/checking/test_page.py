"""The page shows findings, figures and contact sheets, loads nothing, and can be read everywhere."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import regnet_deploy as rd
from regnet_deploy.checking import page as page_module
from regnet_deploy.checking.page import check_page

NASTY = "<script>alert('1')<"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    data, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 3)):
        for label in ("cat", NASTY, "a-long-name-of-a-class-" * 4):
            folder = data / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                size = (200, 150, 3) if i == 1 else (24, 20, 3)
                Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{'long' * 20}{i}.png")
    for i in range(30):
        name = f"{'long' * 20}{i}.png"
        shutil.copy(data / "train/cat" / name, data / "train" / NASTY / f"copy-{name}")
    (data / "train/cat/broken.png").write_bytes(b"")
    (data / "loose.png").write_bytes(b"")
    return check_page(rd.check_folder(data))


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]


def test_it_loads_nothing_and_shows_names_as_text(page: str) -> None:
    seen = Seen()
    seen.feed(page)
    assert not {"script", "link", "iframe", "form"} & set(seen.tags)
    sources = [value for _, name, value in seen.attributes if name == "src"]
    assert sources
    assert all(re.match(r"data:image/(png|jpeg);base64,[\w+/=]+$", value) for value in sources)
    anchors = {value for _, name, value in seen.attributes if name == "id"}
    links = [value for _, name, value in seen.attributes if name == "href"]
    assert links
    assert {value.removeprefix("#") for value in links} <= anchors
    assert all(any(name == "alt" for _, name, _ in seen.attributes) for tag in seen.tags if tag == "img")
    assert "<script>" not in page


def test_findings_come_with_what_to_do_and_some_of_their_cases(page: str) -> None:
    assert "30 images are in two classes, of which one is wrong." in page
    assert "Look at each and delete it from the wrong class, or from both." in page
    assert "24 of 30 cases" in page
    assert "1 of 130 files are broken images" in page
    assert "train/cat/broken.png<br>empty file" in page
    assert "loose.png" in page
    assert "cat: 25 of 33 images" in page


def test_of_very_many_classes_some_have_a_contact_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    for label in "abcdef":
        (tmp_path / label).mkdir()
        for i in range(9):
            Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / label / f"{i}.png")
    monkeypatch.setattr(page_module, "_PICTURES", 12)  # four on each of three
    shown = check_page(rd.check_folder(tmp_path))
    assert "Of 3 of 6 classes." in shown
    assert shown.count("<summary>") - shown.count("cases</summary>") == 3
    assert shown.count(": 4 of 9 images") == 3
    links = set(re.findall('href="#(class-[0-9]+)"', shown))
    assert links == set(re.findall('id="(class-[0-9]+)"', shown)) == {"class-0", "class-2", "class-4"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 700, 1280])
def test_it_fits_every_width(browser: Any, page: str, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests: list[str] = []
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(f"file://{tmp_path}/page.html")
    shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    clipped = (
        "[...document.querySelectorAll('section, table, td, dd, li, p')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    )
    assert shown.evaluate(f"{clipped}.map(e => e.outerHTML.slice(0, 80))") == []
    assert shown.evaluate("[...document.images].every(e => e.complete && e.naturalWidth > 0)")
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    shown.close()


def test_it_works_by_keyboard(browser: Any, page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    shown = browser.new_page(viewport={"width": 800, "height": 600})
    shown.goto(f"file://{tmp_path}/page.html")
    shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = false)")
    reached = set()
    for _ in range(40):
        shown.keyboard.press("Tab")
        kind, outline = shown.evaluate(
            "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.add(kind)
        assert kind == "BODY" or outline == "solid"
        if kind == "SUMMARY":
            shown.keyboard.press("Enter")
    assert {"A", "SUMMARY"} <= reached
    assert shown.evaluate("[...document.querySelectorAll('details')].every(e => e.open)")
    shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = false)")
    shown.locator("#classes a").first.focus()
    shown.keyboard.press("Enter")
    target = "document.querySelector(location.hash).closest('details').open"
    shown.wait_for_function(target)
    shown.close()
