"""The server's page for browsers: one self-contained file, sent with a policy that allows nothing but what is in it.

Template, style and script lie beside this module as ``page.html``, ``page.css`` and ``page.js``. The page is static:
what it shows it asks the server for (``GET card``, ``POST classify``), as any other client would.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.variants import Engine, EngineVariant, OnnxVariant, OpenvinoVariant
from regnet_deploy.engines.bundle_engines import fitting_engine, library_here
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.runtimes.runtime import find_variant
from regnet_deploy.space.complexity import network_complexity

_PROOF = ("passed", "images", "max_abs_error", "mean_abs_error", "relative_error", "cosine", "top1_agreement")
_LOSS = ("top1", "images", "drop", "low", "high")


def render_page() -> tuple[bytes, dict[str, str]]:
    """Return the page and the headers that it is sent with; always the same."""
    style, script = _beside("page.css"), _beside("page.js")
    html = _beside("page.html").replace("/*style*/", style, 1).replace("/*script*/", script, 1)
    return html.encode(), {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": _policy(style, script),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-cache",  # another release's page may ask for what this server does not have
        "vary": "accept",
    }


def card_of(bundle: Bundle, variant: str) -> dict[str, Any]:
    """Return what a bundle says of one of its variants, as JSON data: what no request changes.

    Returns:
        ``variant``, ``runtime`` and ``precision``; ``input``, ``[h, w]`` in pixels; ``classes``; ``macs`` and
        ``parameters`` of one image; ``trained``, whether there are trained weights; ``restriction``, None or what the
        license of the weights forbids; ``accuracy``, None or what is known of ``trained`` (``top1`` as a share, of
        validation ``images``) and of ``variant`` (the same, and the points that it loses, ``drop`` with its 95 %
        interval ``low`` to ``high``); ``proof``, None or its figures.

    Raises:
        MissingPart: the bundle has no architecture or preprocessing.
        UsageError: it has no such variant.
    """
    found = find_variant(bundle, variant)
    architecture, side = bundle.architecture, bundle.preprocessing.crop
    total = network_complexity(architecture.network, side, architecture.classes).total
    training = bundle.manifest.training
    best = training.best if training else None
    exported = _exported(bundle, variant)
    loss, proof = (exported.accuracy, exported.proof) if exported else (None, None)
    known = {
        "trained": {"top1": best.val_top1, "images": best.val_images} if best else None,
        "variant": {name: getattr(loss, name) for name in _LOSS} if loss else None,
    }
    return {
        "variant": variant,
        "runtime": found.runtime,
        "precision": found.precision,
        "input": [side, side],
        "classes": architecture.classes,
        "macs": int(total.macs),
        "parameters": int(total.parameters),
        "trained": bundle.is_trained,
        "restriction": bundle.manifest.imported.restriction if bundle.manifest.imported else None,
        "accuracy": known if best or loss else None,
        "proof": {name: getattr(proof, name) for name in _PROOF} if proof else None,
    }


def _exported(bundle: Bundle, name: str) -> OnnxVariant | OpenvinoVariant | Engine | None:
    """Return a variant, or of a variant of engines the one that runs on this machine."""
    variant = find_variant(bundle, name)
    if not isinstance(variant, EngineVariant):
        return variant
    stored = fitting_engine(bundle, name, library_here(variant.runtime), find_gpu())
    return stored.engine if stored else None


def _policy(style: str, script: str) -> str:
    """Return the page's policy: its own style and script by what they are, and markup never from a string."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_source(script)}",
            f"style-src {_source(style)}",
            "img-src blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _beside(name: str) -> str:
    return (files("regnet_deploy.serving") / name).read_text(encoding="utf-8")
