"""The other libraries: builds their networks, saves their weights as they do, and loads weights with strict=True.

It is run by the Python of the oracles' environment (`make oracles`), and imports nothing of regnet-deploy. Each line of
stdin is a JSON object with a ``task``; the answer is a line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

warnings.simplefilter("ignore")
torch.set_num_threads(1)
# torchvision registers its operators in a library that is built for one build of torch; RegNets use none of them.
for _operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def names() -> dict[str, list[str]]:
    import timm
    import torchvision

    return {
        "timm": sorted({name.partition(".")[0] for name in timm.list_pretrained("regnet[xy]*")}),
        "torchvision": torchvision.models.list_models(include="regnet*"),
    }


def build(library: str, name: str, network: dict) -> nn.Module:
    """Return a network with random weights and random batch norm statistics, in evaluation mode."""
    torch.manual_seed(0)
    model = _BUILD[library](name, network)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def _timm(name: str, network: dict) -> nn.Module:
    import timm

    return timm.create_model(name)


def _torchvision(name: str, network: dict) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name)


def _transformers(name: str, network: dict) -> nn.Module:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        depths=network["depths"],
        hidden_sizes=network["widths"],
        groups_width=network["group_width"],
        layer_type=network["family"],
        num_labels=1000,
    )
    return RegNetForImageClassification(config)


def _classy(name: str, network: dict) -> nn.Module:
    import classy_vision.heads  # noqa: F401, it registers the heads
    from classy_vision.models import build_model

    head = {
        "name": "fully_connected",
        "unique_id": "default_head",
        "num_classes": 1000,
        "fork_block": f"block{len(network['depths'])}-{network['depths'][-1] - 1}",
        "in_plane": network["widths"][-1],
        "zero_init_bias": False,
    }
    known = f"regnet_{network['family']}_{name.partition('-')[2].lower()}"  # regnet_x_1.6gf of RegNetX-1.6GF
    return build_model({"name": known, "heads": [head]})


def _pycls(name: str, network: dict) -> nn.Module:
    from pycls.core.config import cfg, reset_cfg
    from pycls.models.regnet import RegNet

    reset_cfg()
    cfg.MODEL.TYPE, cfg.MODEL.NUM_CLASSES = "regnet", 1000
    cfg.REGNET.DEPTH, cfg.REGNET.W0 = network["d"], network["w_0"]
    cfg.REGNET.WA, cfg.REGNET.WM = network["w_a"], network["w_m"]
    cfg.REGNET.GROUP_W, cfg.REGNET.SE_ON = network["group_width"], network["family"] == "y"
    return RegNet()


def _pytorchcv(name: str, network: dict) -> nn.Module:
    from pytorchcv.model_provider import get_model

    return get_model(name)


_BUILD = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "classy": _classy,
    "pycls": _pycls,
    "pytorchcv": _pytorchcv,
}


def save(library: str, model: nn.Module, container: str, file: Path) -> None:
    """Save weights in a container that the library writes."""
    state = model.state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}  # where a checkpoint has weights that are not the best
    arguments = argparse.Namespace(lr=0.1, model="regnet", data="images")
    if container == "safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file, metadata={"format": "pt"})
        return
    if container == "save_pretrained":
        model.save_pretrained(file.parent / "pretrained")
        (file.parent / "pretrained" / "model.safetensors").replace(file)
        return
    content = {
        "zip": state,
        "legacy": state,
        "data parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        "timm's train.py": {"epoch": 3, "arch": "regnet", "state_dict": other, "args": arguments, "metric": 70.0}
        | {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "state_dict_ema": state},
        "torchvision's train.py": {"model": other, "epoch": 3, "args": arguments, "optimizer": {"state": {}}}
        | {"model_ema": {"n_averaged": torch.tensor(7)} | {f"module.{name}": each for name, each in state.items()}},
        "pycls's old checkpoint": {"epoch": 99, "model_state": state, "optimizer_state": {"state": {}}},
        "pycls's checkpoint": {"epoch": 99, "model_state": other, "ema_state": state, "test_err": 30.0, "ema_err": 29.0}
        | {"cfg": "DATA_LOADER:\n  MODE: pytorch\n"},
    }
    if library == "classy":
        content["classy's checkpoint"] = {"classy_state_dict": {"base_model": model.get_classy_state()}}
    legacy = container in ("legacy", "pycls's old checkpoint")
    torch.save(content[container], file, _use_new_zipfile_serialization=not legacy)


def load(model: nn.Module, library: str, file: Path) -> None:
    """Load weights into a network whose own are 0, with every name and shape required."""
    for tensor in model.state_dict().values():
        tensor.zero_()
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model_state"] if library == "pycls" else state, strict=True)


def logits(model: nn.Module, library: str, images: Path, file: Path) -> None:
    pixels = torch.from_numpy(np.load(images))
    with torch.inference_mode():
        answer = model(pixels.flip(1) if library == "pycls" else pixels)  # pycls's loader gives blue, green, red
    np.save(file, getattr(answer, "logits", answer).numpy())


class Session:
    """The network that was built last, and what is done with it."""

    def __init__(self) -> None:
        self.model, self.library = nn.Module(), ""

    def answer(self, order: dict) -> object:
        file = Path(order.get("file", ""))
        match order["task"]:
            case "names":
                return names()
            case "build":
                self.library, self.model = order["library"], nn.Module()  # the earlier network is freed first
                self.model = build(self.library, order["name"], order["network"])
            case "save":
                save(self.library, self.model, order["container"], file)
            case "load":
                load(self.model, self.library, file)
            case "logits":
                logits(self.model, self.library, Path(order["images"]), file)
        return None


def main() -> None:
    session = Session()
    for line in sys.stdin:
        try:
            result = {"answer": session.answer(json.loads(line))}
        except Exception:  # it is shown by the test that asked
            result = {"error": traceback.format_exc()}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
