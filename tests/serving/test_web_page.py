"""The page for browsers: what is sent, and what a real browser makes of it with a server of canned answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest
from bundle_parts import accuracy, training
from PIL import Image

from regnet_deploy.bundle import Manifest, open_bundle, update_bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.serving.web_page import card_of, render_page

TOKEN = "the-right-one"
EVIL = "<img src=x onerror=\"document.title='taken'\">"
CARD = {
    "version": "1",
    "default": True,
    "variant": "onnx-fp32",
    "runtime": "onnxruntime 1.22.0",
    "device": "cpu",
    "input": [224, 224],
    "classes": 8,
    "macs": 4_030_000_000,
    "parameters": 22_300_000,
    "trained": True,
    "accuracy": {
        "trained": {"top1": 0.9412, "images": 3720},
        "variant": {"top1": 0.9402, "images": 3720, "drop": 0.1, "low": -0.1, "high": 0.3},
    },
    "proof": {"passed": True, "images": 64, "max_abs_error": 2.1e-6, "top1_agreement": 1.0},
}
MODELS = [
    {"name": "regnet", **CARD},
    {"name": "regnet", **CARD, "version": "2", "default": False, "accuracy": None, "proof": None, "trained": False},
]
LABELS = [EVIL, "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
SHARES = [0.9, 0.06, 0.02, 0.01, 0.005, 0.004, 0.0007, 0.0003]


# What is sent


@pytest.fixture(scope="module")
def sent() -> tuple[str, dict[str, str]]:
    body, headers = render_page()
    return body.decode(), headers


def policy_of(headers: dict[str, str]) -> dict[str, str]:
    directives = (each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
    return {name: " ".join(value) for name, *value in directives}


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(sent):
    html, headers = sent
    policy = policy_of(headers)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) > 1000
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(directive) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "img-src": "blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["vary"] == "accept"
    assert render_page() == (html.encode(), headers)


def test_the_page_loads_nothing_and_has_no_attribute_that_the_policy_would_stop(sent):
    names: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            names.update(name for name, _ in attributes)

    html, _ = sent
    Reader().feed(html)
    assert "aria-labelledby" in names
    assert not names & {"src", "href", "style", "action", "srcset"}
    assert not [name for name in names if name.startswith("on")]
    assert "@import" not in html
    assert "url(" not in html
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage", "cookie"):
        assert way not in html


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_the_contrast_that_wcag_aa_asks_for(sent):
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in re.findall(r":root \{.*?\}", sent[0], re.S)]
    assert [len(theme) for theme in themes] == [17, 17]
    for theme in themes:
        for text, ground in itertools.product(("ink", "soft", "accent", "wrong", "well"), ("paper", "ground", "tint")):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        assert contrast(theme["on-accent"], theme["accent"]) >= 4.5
        for shape in ("edge", "accent", "read", "decode", "queue", "inference", "other", "way"):
            assert contrast(theme[shape], theme["paper"]) >= 3, shape


# The card


def test_the_card_has_what_the_bundle_knows(exported_bundle):
    card = card_of(open_bundle(exported_bundle), "onnx-fp32-uint8")
    assert card["accuracy"] is None
    assert card["trained"] is False
    assert card["restriction"] is None
    assert (card["variant"], card["runtime"], card["precision"]) == ("onnx-fp32-uint8", "onnxruntime", "fp32")
    assert card["input"] == [24, 24]
    assert card["classes"] == 6
    assert card["macs"] > card["parameters"] > 0
    assert card["proof"]["passed"] is True
    assert card["proof"]["images"] == 16

    variants = open_bundle(exported_bundle).variants
    loss = accuracy(images=50, top1=0.9, reference_top1=0.92, drop=2.0, low=-1.0, high=5.0)
    variants["onnx-fp32"] = variants["onnx-fp32"].replace(accuracy=loss)
    parts = Manifest(training=training(0.92), variants=variants)
    shown = card_of(update_bundle(exported_bundle, parts, {"weights.safetensors": b"w"}), "onnx-fp32")["accuracy"]
    assert shown == {
        "trained": {"top1": 0.92, "images": 60},
        "variant": {"top1": 0.9, "images": 50, "drop": 2.0, "low": -1.0, "high": 5.0},
    }
    with pytest.raises(UsageError, match="onnx-fp23"):
        card_of(open_bundle(exported_bundle), "onnx-fp23")


def test_the_card_of_engines_is_that_of_the_engine_that_fits_this_machine(with_h100_engine):
    assert card_of(open_bundle(with_h100_engine), "trt-fp32")["proof"]["images"] == 16


def test_the_card_of_engines_without_one_for_this_machine_has_no_proof(without_engine):
    assert card_of(open_bundle(without_engine), "trt-fp32")["proof"] is None


# A real browser


@dataclass
class Canned:
    """A server of canned answers, and what it was asked."""

    url: str = ""
    token: str | None = None
    models: list[dict[str, Any]] = field(default_factory=lambda: list(MODELS))
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # k, version, bytes

    def reset(self) -> None:
        self.token, self.models = None, list(MODELS)
        self.asked.clear()


def canned_app(canned: Canned) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    body, headers = render_page()

    async def page(request: Request) -> Response:
        return Response(body, headers=headers)

    def refusal(request: Request) -> Response | None:
        given = request.headers.get("authorization")
        if canned.token is None or given == f"Bearer {canned.token}":
            return None
        line = "this server wants a token: send Authorization: Bearer TOKEN" if given is None else "not the token"
        return JSONResponse({"error": line}, 401, {"www-authenticate": "Bearer"})

    async def card(request: Request) -> Response:
        return refusal(request) or JSONResponse({"server": "regnet-deploy 0.1.0", "models": canned.models})

    async def classify(request: Request) -> Response:
        data, asks = await request.body(), request.query_params
        if refused := refusal(request):
            return refused
        canned.asked.append((asks["k"], asks["version"], len(data)))
        if asks["version"] not in {model["version"] for model in canned.models}:
            return JSONResponse({"error": f"regnet has no version {asks['version']}"}, 404)
        if data.startswith(b"%PDF"):
            return JSONResponse({"error": "not an image that is read here: JPEG, PNG or WebP"}, 400)
        rows = enumerate(zip(LABELS, SHARES, strict=True))
        return JSONResponse(
            {
                "model": asks["model"],
                "version": asks["version"],
                "predictions": [{"label": label, "index": i, "probability": share} for i, (label, share) in rows][
                    : int(asks["k"])
                ],
                "timing_ms": {"read": 0.31, "decode": 4.2, "queue": 1.64, "inference": 9.87, "total": 16.5},
            }
        )

    routes = [Route("/", page), Route("/card", card), Route("/classify", classify, methods=["POST"])]
    return Starlette(routes=routes)


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    import uvicorn

    made = Canned()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        config = uvicorn.Config(canned_app(made), log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        yield made
        server.should_exit = True
        thread.join()


@dataclass
class Seen:
    """A page in the browser, and what the browser did for it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def status(self, line: str) -> None:
        self.page.get_by_role("status").get_by_text(line).wait_for()


@pytest.fixture(scope="module")
def tab(browser: Any) -> Any:
    """One tab for all tests: a page that is loaded again knows nothing of the one before."""
    tab = browser.new_page(reduced_motion="reduce")
    tab.set_default_timeout(30_000)  # for a busy machine: nothing here is timed
    tab.on("filechooser", lambda chooser: None)  # from now on: a listener of the moment may come after the key
    tab.bring_to_front()
    return tab


@pytest.fixture
def open_page(tab: Any, canned: Canned) -> Iterator[Any]:
    canned.reset()
    tab.set_viewport_size({"width": 1200, "height": 800})
    seen = Seen(tab)

    def on_request(request: Any) -> None:
        seen.requests.append(request.url)

    def on_console(line: Any) -> None:
        # The browser itself notes each answer of 400 and above; anything else, above all of the policy, is the page's.
        if "the server responded with" not in line.text:
            seen.complaints.append(line.text)

    def on_error(error: Any) -> None:
        seen.complaints.append(str(error))

    def open_it(wait_for: str = "#card dd") -> Seen:
        tab.goto(canned.url)
        tab.locator(wait_for).first.wait_for()
        return seen

    listeners = {"request": on_request, "console": on_console, "pageerror": on_error}
    for event, listener in listeners.items():
        tab.on(event, listener)
    yield open_it
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert seen.complaints == []
    assert seen.requests
    assert [url for url in seen.requests if not url.startswith((canned.url, f"blob:{canned.url}"))] == []


@pytest.fixture(scope="module")
def photo() -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def drop(seen: Seen, event: str, *files: tuple[str, bytes]) -> None:
    """Drop or paste files on the page, as a browser tells a page of it."""
    seen.page.evaluate(
        """([event, files]) => {
            const data = new DataTransfer();
            for (const [name, text] of files) {
                const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                data.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            const how = { bubbles: true, cancelable: true };
            const made = event === "paste" ? new ClipboardEvent(event, { clipboardData: data, ...how })
                                           : new DragEvent(event, { dataTransfer: data, ...how });
            if (document.body.dispatchEvent(made)) throw new Error("the browser would have left the page");
        }""",
        [event, [(name, base64.b64encode(data).decode()) for name, data in files]],
    )


def test_a_dropped_image_is_shown_with_its_classes_its_latency_and_the_model_card(open_page, canned, photo):
    seen = open_page("body")  # the model card may still be under way
    drop(seen, "drop", ("moon.jpg", photo))
    seen.status(f"moon.jpg: {EVIL}, 90.0 %")
    labels = seen.page.locator(".predictions .label").all_inner_texts()
    assert labels == LABELS[:5]  # the first is markup, and text
    assert seen.page.locator(".share").all_inner_texts() == ["90.0 %", "6.0 %", "2.0 %", "1.0 %", "0.5 %"]
    whole, length = (seen.page.locator(place).first.bounding_box()["width"] for place in (".meter", ".meter span"))
    assert length == pytest.approx(0.9 * whole, abs=1)
    assert seen.page.title() == "Classify images - regnet-deploy"
    assert seen.page.locator(".result img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 256
    assert re.match(r"Round trip [\d.]+ ms, of which 16.5 ms in the server", seen.text(".times p"))
    stages = dict(zip(*(seen.page.locator(f".stages {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert stages.pop("network and browser").endswith(" ms")
    assert stages == {
        "reading the request": "0.31 ms",
        "decoding": "4.20 ms",
        "waiting in the queue": "1.64 ms",
        "inference": "9.87 ms",
        "the rest of the server": "0.48 ms",
    }
    widths = {name: seen.page.locator(f".stack .{name}").bounding_box()["width"] for name in ("decode", "inference")}
    assert widths["inference"] / widths["decode"] == pytest.approx(9.87 / 4.2, rel=0.05)
    facts = dict(zip(*(seen.page.locator(f"#card {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert facts == {
        "name": "regnet",
        "version": "1",
        "variant": "onnx-fp32",
        "runtime": "onnxruntime 1.22.0",
        "device": "cpu",
        "input": "224 x 224 pixels",
        "classes": "8",
        "MACs": "4.03 G",
        "parameters": "22.3 M",
        "top-1": "94.12 % of 3,720 validation images",
        "top-1 lost": "0.10 points (-0.10 to 0.30) by exporting, on 3,720 images",
        "proof": "passed on 64 golden images, same first class on 100.0 %, largest error 2.1e-6",
    }
    assert seen.text("#server") == "regnet-deploy 0.1.0"
    icon = seen.page.locator("link[rel=icon]").get_attribute("href")
    assert icon.startswith("blob:")  # else a browser asks the server for one, and the policy forbids it
    assert canned.asked == [("5", "1", len(photo))]


def test_several_files_are_listed_and_a_bad_one_has_the_servers_own_line(open_page, canned, photo):
    seen = open_page()
    files = [("a.jpg", photo), ("b.pdf", b"%PDF-1.7"), ("<b>c</b>.jpg", photo)]
    payload = [{"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in files]
    seen.page.locator("#files").set_input_files(payload)
    seen.status("2 images classified, 1 could not be")
    assert seen.page.locator(".result h3").all_inner_texts() == ["a.jpg", "b.pdf", "<b>c</b>.jpg"]
    bad = seen.page.locator(".result").nth(1)
    assert bad.locator(".error").inner_text() == "not an image that is read here: JPEG, PNG or WebP"
    assert bad.locator(".picture").inner_text() == "no preview"
    drop(seen, "paste", ("d.jpg", photo))
    seen.status("d.jpg: ")
    assert seen.page.locator(".result h3").first.inner_text() == "d.jpg"
    seen.page.get_by_role("button", name="Clear").click()
    assert seen.page.locator(".result").count() == 0
    drop(seen, "drop", ("b.pdf", b"%PDF-1.7"))
    seen.status("b.pdf could not be classified: not an image that is read here")


def test_another_version_and_another_k_are_asked_for(open_page, canned, photo):
    seen = open_page()
    model = seen.page.get_by_label("Model", exact=True)
    assert model.locator("option").all_inner_texts() == ["regnet, version 1 (default)", "regnet, version 2"]
    model.select_option(index=1)
    assert seen.text("#card-state") == "Not trained: predictions are meaningless."
    shown = seen.page.get_by_label("Classes shown")
    assert shown.locator("option").all_inner_texts() == ["1", "3", "5", "8"]
    shown.select_option("8")
    assert f"curl --data-binary @image.jpg '{canned.url}classify?k=8&model=regnet&version=2'" in seen.text("#shell")
    drop(seen, "drop", ("moon.jpg", photo))
    seen.status("moon.jpg: ")
    assert "regnet, version 2" in seen.text(".about")
    assert seen.page.locator(".share").all_inner_texts()[-2:] == ["0.1 %", "< 0.1 %"]
    model.select_option(index=0)
    seen.page.get_by_role("button", name="Classify again").click()
    seen.page.get_by_text("answered by regnet, version 1").wait_for()
    assert [ask[:2] for ask in canned.asked] == [("8", "2"), ("8", "1")]


def test_where_a_version_made_way_for_another_the_new_one_answers(open_page, canned, photo):
    seen = open_page()
    canned.models[:] = [{**MODELS[0], "version": "3"}]
    drop(seen, "drop", ("moon.jpg", photo))
    seen.page.get_by_text("answered by regnet, version 3").wait_for()
    assert [ask[1] for ask in canned.asked] == ["1", "3"]
    assert not seen.page.get_by_label("Model", exact=True).is_visible()


def test_all_can_be_done_with_the_keyboard(open_page, canned, photo):
    seen = open_page()
    keys = seen.page.keyboard
    keys.press("Tab")
    seen.page.locator("#choose:focus").wait_for()
    with seen.page.expect_file_chooser() as chosen:
        keys.press("Enter")
    chosen.value.set_files({"name": "moon.jpg", "mimeType": "image/jpeg", "buffer": photo})
    seen.status("moon.jpg: ")
    focused = []
    for _ in range(4):
        keys.press("Tab")
        focused.append(
            seen.page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]")
        )
    assert focused == [[name, "solid"] for name in ("model", "k", "again", "clear")]
    keys.press("Enter")
    assert seen.page.locator(".result").count() == 0
    assert seen.page.evaluate("document.activeElement.id") == "choose"  # not lost with the button that was pressed


def test_a_screen_reader_is_told_names_roles_and_results(open_page, canned, photo):
    seen = open_page()
    drop(seen, "drop", ("moon.jpg", photo), ("b.pdf", b"%PDF"))
    seen.status("1 image classified, 1 could not be")
    tree = seen.page.locator("body").aria_snapshot()
    for line in (
        '- heading "Classify images" [level=1]',
        '- region "Images to classify":',
        '- button "Choose images":',
        '- combobox "Model":',
        '- combobox "Classes shown":',
        "- status: 1 image classified, 1 could not be",
        '- region "Results":',
        '- button "Classify again"',
        '- img "moon.jpg"',
        '- heading "moon.jpg" [level=3]',
        '- list "Most probable classes":',
        "- listitem: bee 6.0 %",
        "- term: inference",
        '- complementary "Model card":',
    ):
        assert line in tree, tree
    assert seen.page.evaluate("document.documentElement.lang") == "en"
    for width in (320, 1200):
        seen.page.set_viewport_size({"width": width, "height": 800})
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.page.locator(".meter span").first.evaluate("bar => getComputedStyle(bar).animationName") == "none"
    for theme, colour in (("dark", "rgb(18, 22, 26)"), ("light", "rgb(244, 246, 248)")):
        seen.page.emulate_media(color_scheme=theme)
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == colour


def test_a_server_with_a_token_is_given_it_and_it_is_stored_nowhere(open_page, canned, photo):
    canned.token = TOKEN
    seen = open_page("dialog")
    dialog = seen.page.get_by_role("dialog", name="This server requires a token")
    for given, error in (("two words", "A token consists of printable ASCII"), ("wrong", "not the token")):
        dialog.get_by_label("Bearer token").fill(given)
        seen.page.keyboard.press("Enter")
        dialog.get_by_role("alert").get_by_text(error).wait_for()
    seen.page.keyboard.press("Escape")
    seen.page.locator("#card-state.error").get_by_text("not the token").wait_for()
    seen.page.get_by_role("button", name="Load the model card again").click()
    dialog.get_by_label("Bearer token").fill(TOKEN)
    dialog.get_by_role("button", name="Use token").click()
    seen.page.get_by_text("onnxruntime 1.22.0").wait_for()
    assert not dialog.is_visible()
    drop(seen, "drop", ("moon.jpg", photo))
    seen.status("moon.jpg: ")
    assert seen.page.locator("#token").input_value() == ""
    assert seen.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert not any(TOKEN in url for url in seen.requests)
    assert f'-H "Authorization: Bearer $TOKEN" \'{canned.url}' in seen.text("#shell")
    seen.page.reload()
    dialog.wait_for()


def test_a_server_that_is_gone_is_one_line(open_page, canned, photo):
    seen = open_page()
    seen.page.route("**/classify*", lambda route: route.abort())
    drop(seen, "drop", ("moon.jpg", photo))
    seen.status("moon.jpg could not be classified: no answer: the server is not reachable")
    seen.page.unroute("**/classify*")
    seen.complaints[:] = [line for line in seen.complaints if "net::ERR_FAILED" not in line]


@pytest.fixture
def real_server(canned: Canned, exported_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In place of canned answers the server, as a process of its own."""
    command = [sys.executable, "-m", "regnet_deploy", "serve", str(exported_bundle), "--port", "0", "--json"]
    process = subprocess.Popen([*command, "--decoders", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    monkeypatch.setattr(canned, "url", json.loads(line)["url"] + "/")
    yield
    process.terminate()
    process.communicate(timeout=60)


def test_with_the_real_server_an_image_is_classified_and_a_bad_one_refused(real_server, open_page, photo):
    seen = open_page()
    drop(seen, "drop", ("moon.jpg", photo), ("b.pdf", b"%PDF"))
    seen.status("1 image classified, 1 could not be")
    seen.page.get_by_text("answered by regnet, version 1").wait_for()
    assert "not an image" in seen.text("body")
