"""Declares two operators of torchvision, so that its wheel imports beside a build of PyTorch that it has no wheel for.

Neither of them is used to train a classifier. Import it before torchvision.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
