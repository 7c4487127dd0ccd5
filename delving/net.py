"""The networks of Tables 1 and 3, built from their layer lists, and their cost."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.notation import Layer
from delving.rectifier import PReLU, Rectifier
from delving.spp import SPP
from delving.stem import convolve

CROP = 224  # pixels, the paper's
ACT = "_act"  # ends a rectifier's name, after its layer's
LARGEST = 8  # side of a pooling window that the rectifier can take over


class Dropout(nn.Module):
    """Dropout whose mask for an image depends only on the key and the image's place in the batch.

    So neither a restart nor cutting the batch into micro-batches changes the mask. `seed` is to be
    called before each forward; until then this is torch's dropout. p is the share of units dropped.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p, self.key, self.batch, self.rows = p, 0, 0, slice(0)
        self.recorded: torch.Generator | None = None  # set and seeded by replay.py

    def seed(self, key: int, batch: int, rows: slice) -> None:
        self.key, self.batch, self.rows = key, batch, rows

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if not self.batch:
            return F.dropout(x, self.p)
        draws = self.recorded or torch.Generator(x.device).manual_seed(self.key)
        uniform = torch.rand(self.batch, x.shape[1], generator=draws, device=x.device)
        return x * ((uniform[self.rows] >= self.p) / (1 - self.p)).to(x.dtype)


class Features(nn.Sequential):
    """The conv layers. The rectifier after each also adds its bias and does the max pooling that
    follows, all in one pass; modules that are looked at (see is_looked_at) do their own work."""

    def forward(self, x: Tensor) -> Tensor:
        layers, at = [*self, None, None], 0
        while at < len(self):
            layer, after, beyond = layers[at : at + 3]
            if not _leaves_its_bias(layer, after):
                x, at = layer(x), at + 1
                continue
            x = convolve(layer, x)
            side = _side_of_pooling(beyond)
            x = after.pooled(x, layer.bias, side) if side else after(x, layer.bias)
            at += 3 if side else 2
        return x


def _leaves_its_bias(layer: nn.Module, after: nn.Module | None) -> bool:
    both = isinstance(layer, nn.Conv2d) and _is_the_papers(after)
    return both and not (is_looked_at(layer) or is_looked_at(after))


def _is_the_papers(rectifier: nn.Module | None) -> bool:
    """Whether its forward takes a bias: a subclass of Rectifier may have one that does not."""
    return getattr(type(rectifier), "forward", None) is Rectifier.forward


def is_looked_at(module: nn.Module) -> bool:
    """Whether something depends on the module being called: a hook on it, or a `forward` set."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _side_of_pooling(layer: nn.Module | None) -> int | None:
    """The side of a max pooling's windows if they are small and lie side by side, else None."""
    if type(layer) is not nn.MaxPool2d or is_looked_at(layer):
        return None
    side, plain = layer.kernel_size, (layer.padding, layer.dilation, layer.ceil_mode)
    known = plain == (0, 1, False)
    fits = isinstance(side, int) and side == layer.stride and side <= LARGEST
    return side if known and fits else None


class Net(nn.Module):
    """Conv layers, SPP, fc layers: (N, 3, H, W) to (N, classes) logits.

    Attributes: `features`, `spp`, `classifier` in this order; `map_size`, the side of the last
    feature map at the training crop, hence of a window in dense testing.
    """

    def __init__(self, features: nn.Module, spp: SPP, classifier: nn.Module, map_size: int):
        super().__init__()
        self.features, self.spp, self.classifier = features, spp, classifier
        self.map_size = map_size

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.spp(self.features(x)))

    def slopes(self) -> dict[str, Tensor]:
        """The learned slopes by layer, in order: (channels,) or (1,) each. They are those of PReLU
        and of classes derived from it: what else a rectifier learns need not be a slope."""
        return {
            _layer_of(name): module.slope.detach()
            for name, module in self.named_modules()
            if isinstance(module, PReLU)
        }


def _layer_of(name: str) -> str:
    """The layer that a rectifier, or a module inside one, belongs to."""
    parts = name.split(".")
    return next((part.removesuffix(ACT) for part in parts if part.endswith(ACT)), parts[-1])


def build_net(
    layers: Sequence[Layer],
    rectifier: Callable[[int], nn.Module],
    *,
    classes: int,
    crop: int,
    dropout: float = 0.5,
) -> Net:
    """Builds the net on the meta device: shapes only; `materialise` gives it storage and values.

    A rectifier follows every conv layer and every fc layer but the last, and dropout follows every
    hidden fc layer. Raises ValueError if the crop is too small for the layers.
    """
    with torch.device("meta"):
        features = Features(_conv_layers(layers, rectifier))
        channels, size = _map_of(features, crop)
        # A net without SPP (VGG) reads its map cell by cell: one level, with one bin per cell.
        spp = SPP(next((x.bins for x in layers if x.kind == "spp"), (size,)))
        inputs = channels * sum(b * b for b in spp.levels)
        return Net(
            features,
            spp,
            nn.Sequential(_fc_layers(layers, rectifier, inputs, classes, dropout)),
            size,
        )


def _conv_layers(layers: Sequence[Layer], rectifier: Callable[[int], nn.Module]) -> OrderedDict:
    modules, channels, even = OrderedDict(), 3, 0
    for x in layers:
        if x.kind == "pool":
            # assumed: pooling drops what its windows do not fill (floor).
            modules[x.name], even = nn.MaxPool2d(x.kernel, x.stride), 0
        if x.kind == "conv":
            padding, even = _padding(x.kernel, even)
            modules[x.name] = nn.Conv2d(channels, x.filters, x.kernel, x.stride, padding)
            modules[f"{x.name}{ACT}"] = rectifier(x.filters)
            channels = x.filters
    return modules


def _padding(kernel: int, even: int) -> tuple[int, int]:
    """(padding, even filters so far in the stage): half the filter; 0, 1, 0, 1, ... for 2x2 ones.

    assumed: of two 2x2 layers one is padded: together they keep the map's size and centre, so that
    maps stay at 36 or 37 and 17 or 18 as He & Sun describe them, and no receptive field drifts.
    """
    if kernel % 2:
        return kernel // 2, even
    return kernel // 2 - 1 + even % 2, even + 1


def _map_of(features: nn.Sequential, crop: int) -> tuple[int, int]:
    """(channels, side) of the last feature map; ValueError names the smallest crop that has one, if
    one below 512 has."""
    side = map_side(features, crop)
    if not side:
        larger = (c for c in range(crop - crop % 7 + 7, 512, 7) if map_side(features, c))
        least = f": at least {found}" if (found := next(larger, None)) else ""
        raise ValueError(f"data.crop={crop} is too small for these layers{least}")
    return next(m for m in reversed(features) if isinstance(m, nn.Conv2d)).out_channels, side


def map_side(features: nn.Sequential, size: int) -> int:
    """The side of the last feature map of an image of side `size`; 0 if a filter or a window is
    larger than its map."""
    for m in features:
        if isinstance(m, nn.Conv2d | nn.MaxPool2d):
            size = _side_after(m, size)
        if not size:
            return 0
    return size


def geometry(layer: nn.Conv2d | nn.MaxPool2d) -> tuple[int, int, int]:
    """A square layer's kernel, stride and padding."""
    sizes = (layer.kernel_size, layer.stride, layer.padding)
    return tuple(n if isinstance(n, int) else n[0] for n in sizes)


def _side_after(layer: nn.Conv2d | nn.MaxPool2d, size: int) -> int:
    kernel, stride, padding = geometry(layer)
    return max(0, (size + 2 * padding - kernel) // stride + 1)


def _fc_layers(layers, rectifier, inputs: int, classes: int, dropout: float) -> OrderedDict:
    modules = OrderedDict()
    for x in layers:
        if x.kind == "fc":
            modules[x.name] = nn.Linear(inputs, x.filters or classes)
            inputs = x.filters
            if x.filters:
                modules[f"{x.name}{ACT}"] = rectifier(x.filters)
                modules[f"{x.name}_drop"] = Dropout(dropout)
    return modules


def describe(net: Net, layers: Sequence[Layer], crop: int) -> list[dict]:
    """One row per layer: name, notation, output, params (slopes included), multiply_adds.

    Output and multiply_adds are those for one crop x crop image; works on a meta net.
    """
    shapes = _output_shapes(net, crop)
    modules = {name.split(".")[-1]: module for name, module in net.named_modules()}
    return [_row(x, modules, shapes["spp" if x.kind == "spp" else x.name]) for x in layers]


def _row(layer: Layer, modules: dict[str, nn.Module], shape: tuple[int, ...]) -> dict:
    own = [modules[n] for n in (layer.name, f"{layer.name}{ACT}") if n in modules]
    weight = getattr(modules.get(layer.name), "weight", None)
    positions = shape[1] * shape[2] if len(shape) == 3 else 1
    return {
        "name": layer.name,
        "notation": layer.notation,
        "output": "x".join(map(str, shape)),
        "params": sum(p.numel() for m in own for p in m.parameters()),
        "multiply_adds": 0 if weight is None else weight.numel() * positions,
    }


def _output_shapes(net: Net, crop: int) -> dict[str, tuple[int, ...]]:
    """Each layer's output shape for an image of the crop's size. Computed by hand, since running a
    net on the meta device makes torch load its compiler."""
    channels, size, shapes = 3, crop, {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            channels, size = getattr(module, "out_channels", channels), _side_after(module, size)
            shape = (channels, size, size)
        elif isinstance(module, SPP):
            shape = (channels * sum(bins * bins for bins in module.levels),)
        elif isinstance(module, nn.Linear):
            shape = (module.out_features,)
        else:
            continue
        shapes[name.split(".")[-1]] = shape
    return shapes


def crowded_levels(net: Net) -> list[int]:
    """SPP levels with at least as many bins as the training map has cells along a side."""
    return [bins for bins in net.spp.levels if bins >= net.map_size and len(net.spp.levels) > 1]
