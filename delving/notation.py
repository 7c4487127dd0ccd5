"""Layer lists in the paper's notation.

7x7, 64, /2      a conv layer: filter, number of filters, stride (x6 at its end: six of them)
3x3, /3          max pooling: window, stride
{7,3,2,1}        spatial pyramid pooling to 7x7 + 3x3 + 2x2 + 1x1 bins
4096             an fc layer; `classes` for the last
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from delving.words import cut, shown

N, TIMES = "[1-9][0-9]{0,5}", "[1-9][0-9]{0,2}"
NOTATION = {
    "conv": re.compile(rf"({N})x\1, ({N})(?:, /({N}))?(?:, x({TIMES}))?"),
    "pool": re.compile(rf"({N})x\1, /({N})"),
    "spp": re.compile(rf"\{{({N}(?:,{N})*)\}}"),
    "fc": re.compile(rf"({N}|classes)"),
}


@dataclass(frozen=True)
class Layer:
    """`filters` is also the width of an fc layer, 0 for the classifier; `bins` are SPP's levels."""

    name: str
    kind: str
    kernel: int = 0
    filters: int = 0
    stride: int = 1
    bins: tuple[int, ...] = ()

    @property
    def notation(self) -> str:
        if self.kind == "spp":
            return "{" + ",".join(map(str, self.bins)) + "}"
        if self.kind == "fc":
            return str(self.filters or "classes")
        filters = f", {self.filters}" if self.filters else ""
        stride = f", /{self.stride}" if self.stride > 1 or self.kind == "pool" else ""
        return f"{self.kernel}x{self.kernel}{filters}{stride}"


def read_layers(
    lines: Sequence[Mapping[str, str]],
    *,
    depth: int | None = None,
    width: float = 1,
    stem_stride: int | None = None,
) -> list[Layer]:
    """Reads the layer list of a model file.

    Args:
        lines: {name: notation} mappings, as conf/model has them.
        depth: conv and fc layers wanted; the last conv stage is lengthened to reach it.
        width: multiplies every conv layer's filters and every hidden fc layer's width.
        stem_stride: the first layer's stride, if the scale sets another.

    Raises:
        ValueError: names the line that is not in the paper's notation, or the impossible depth.
    """
    layers = [
        layer for line in lines for name, text in line.items() for layer in _read(name, str(text))
    ]
    layers = _lengthen(layers, depth) if depth else layers
    layers = [
        replace(x, filters=max(1, round(x.filters * width)) if x.filters else 0) for x in layers
    ]
    if stem_stride:
        layers[0] = replace(layers[0], stride=stem_stride)
    return layers


def _read(name: str, text: str) -> list[Layer]:
    kind = name.rstrip("0123456789_")
    if kind not in NOTATION:
        kinds = ", ".join(NOTATION)
        raise ValueError(f"layer {shown(name)}: its name is to be one of {kinds}, and a number")
    found = NOTATION[kind].fullmatch(text)
    if not found:
        raise ValueError(
            f"layer {shown(name)}: {cut(text)!r} is not in the paper's notation: conv "
            f"'7x7, 64, /2' or '2x2, 256, x6', pool '3x3, /3', spp '{{7,3,2,1}}', fc '4096' or "
            "'classes'"
        )
    parts = found.groups()
    if kind == "spp":
        return [Layer(name, kind, bins=tuple(map(int, parts[0].split(","))))]
    if kind == "fc":
        return [Layer(name, kind, filters=0 if parts[0] == "classes" else int(parts[0]))]
    if kind == "pool":
        return [Layer(name, kind, int(parts[0]), stride=int(parts[1]))]
    kernel, filters, stride, times = (int(p) if p else 1 for p in parts)
    one = Layer(name, kind, kernel, filters, stride)
    return [replace(one, name=f"{name}_{i + 1}") for i in range(times)] if parts[3] else [one]


def _lengthen(layers: list[Layer], depth: int) -> list[Layer]:
    """paper: 2.2, the 30-layer model is the 14-layer one with sixteen more convs in stage 3."""
    last = max(i for i, x in enumerate(layers) if x.kind == "conv")
    stage, _, number = layers[last].name.partition("_")
    missing = depth - count_depth(layers)
    if not number:
        raise ValueError(f"model.depth={depth}: the last conv layer is in no repeated stage, as xN")
    if missing < 0:
        raise ValueError(f"model.depth={depth}: at least {count_depth(layers)}")
    more = [replace(layers[last], name=f"{stage}_{int(number) + i + 1}") for i in range(missing)]
    return layers[: last + 1] + more + layers[last + 1 :]


def count_depth(layers: Sequence[Layer]) -> int:
    """Layers with weights, conv and fc, as Table 3 counts depth."""
    return sum(x.kind in ("conv", "fc") for x in layers)
