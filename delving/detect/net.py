"""Fast R-CNN (Girshick 2015) made from a trained net: its conv layers, RoI max pooling at its
finest SPP level, its hidden fc layers, and two new heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from delving.device import wide
from delving.initializer import initialize
from delving.net import Net, geometry

SCORE_STD, SHIFT_STD = 0.01, 0.001  # Fast R-CNN's, of the heads' weights; biases are 0
# assumed: the finest SPP level alone pools an RoI, as Fast R-CNN's single level does. fc1 keeps the
# weights that read this level, times sqrt(fan_in / kept), so that its responses keep their variance
# without the others.


class FastRCNN(nn.Module):
    """Maps images and RoIs to class scores and box shifts.

    Attributes:
        classes: how many classes of objects; class 0 of the scores is the background.
        bins: an RoI is pooled to bins x bins.
        stride, start: cell i of the feature map is centred at pixel start + i * stride.
    """

    def __init__(self, features: nn.Sequential, hidden: nn.Sequential, *, bins: int, units: int,
                 classes: int):  # fmt: skip
        super().__init__()
        self.features, self.hidden = features, hidden
        self.scores = nn.Linear(units, classes + 1)
        self.shifts = nn.Linear(units, 4 * classes)
        self.bins, self.classes = bins, classes
        self.stride, self.start = map_geometry(features)

    def forward(self, images: Sequence[Tensor], rois: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (R, classes + 1) and shifts (R, classes, 4) of all RoIs, image by image.

        Args:
            images: (1, 3, height, width) each, of any sizes: none is padded to match another.
            rois: (N, 4) for each image, in its pixels.
        """
        maps = [self.features(image) for image in images]
        pooled = [self.pool(one, boxes) for one, boxes in zip(maps, rois, strict=True)]
        return self.judge(torch.cat(pooled))

    def pool(self, feature_map: Tensor, rois: Tensor) -> Tensor:
        """(1, C, H, W) and (N, 4) to (N, C, bins, bins): the maximum of each bin of each RoI.

        ours: an RoI's first and last pixel go to the cells whose receptive fields' centres are
        nearest (SPP-net, appendix A); Fast R-CNN divides by the stride.
        """
        feature_map = wide(feature_map)
        height, width = feature_map.shape[2:]
        inside = torch.stack([rois[:, 0], rois[:, 1], rois[:, 2] - 1, rois[:, 3] - 1], 1)
        cells = (inside - self.start) / self.stride
        most = cells.new_tensor([width - 1, height - 1, width - 1, height - 1])
        cells = cells.clamp(min=0).minimum(most).to(feature_map.dtype)
        from torchvision.ops import roi_pool  # not at the top: see metric.py

        return roi_pool(feature_map, [cells], self.bins)

    def judge(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and shifts of pooled RoIs."""
        units = self.hidden(pooled.flatten(1))
        return self.scores(units), self.shifts(units).unflatten(1, (self.classes, 4))


def build_detector(net: Net, *, classes: int, frozen: int, seed: int) -> FastRCNN:
    """A detector that has a trained net's weights, and heads drawn by `seed`.

    Args:
        net: on its device, with its weights; its layers become the detector's own. If its conv part
            ends with max pooling, as VGG's does, RoI pooling takes that layer's place.
        frozen: how many of the first conv layers, with their rectifiers, keep their weights.

    Raises:
        ValueError: the net has fewer conv layers than `frozen`, or no hidden fc layer.
    """
    layers = [m for m in net.features if isinstance(m, nn.Conv2d)]
    if frozen > len(layers):
        raise ValueError(f"detect.frozen={frozen}: the net has {len(layers)} conv layers")
    hidden = net.classifier[:-1]
    if not len(hidden):
        raise ValueError("the net has no fc layer but the last: Fast R-CNN takes fc1 and more")
    bins = max(net.spp.levels)
    hidden[0] = _part_of_finest(hidden[0], net.spp.levels)
    units = net.classifier[-1].in_features
    pooled = isinstance(net.features[-1], nn.MaxPool2d)
    features = net.features[:-1] if pooled else net.features
    detector = FastRCNN(features, hidden, bins=bins, units=units, classes=classes)
    weight = net.classifier[-1].weight
    heads = nn.ModuleDict({"scores": detector.scores, "shifts": detector.shifts})
    initialize(heads, lambda layers: [SCORE_STD, SHIFT_STD], seed=seed)
    detector.to(weight.device, weight.dtype)
    _freeze(net.features, frozen)
    return detector


def _part_of_finest(fc: nn.Linear, levels: Sequence[int]) -> nn.Linear:
    """fc1, cut down to the finest level's bins."""
    cells = [bins * bins for bins in levels]
    channels, first = fc.in_features // sum(cells), levels.index(max(levels))
    begin, count = channels * sum(cells[:first]), channels * cells[first]
    part = nn.Linear(count, fc.out_features, device=fc.weight.device, dtype=fc.weight.dtype)
    with torch.no_grad():
        weight = fc.weight[:, begin : begin + count]
        part.weight.copy_(weight * (fc.in_features / count) ** 0.5)
        part.bias.copy_(fc.bias)
    return part


def _freeze(features: nn.Sequential, count: int) -> None:
    """Turns off the gradients of the first `count` conv layers and their rectifiers (Fast R-CNN:
    one layer of small nets, four of VGG-16)."""
    seen = 0
    for module in features:
        seen += isinstance(module, nn.Conv2d)
        if seen <= count:
            module.requires_grad_(False)


def map_geometry(features: nn.Sequential) -> tuple[int, float]:
    """(stride, start): the receptive field of cell i of the last map is centred at the pixel
    start + i * stride, counted from 0."""
    stride, start = 1, 0.0
    for m in features:
        if isinstance(m, nn.Conv2d | nn.MaxPool2d):
            kernel, step, padding = geometry(m)
            start += ((kernel - 1) / 2 - padding) * stride
            stride *= step
    return stride, start
