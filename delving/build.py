"""Builds a configuration's net with initial or saved weights; lists how it deviates."""

import contextlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from delving import device as devices
from delving.bounds import DEEPEST
from delving.data import find_source
from delving.data.input import Input
from delving.data.sources import SIZES, list_classes
from delving.device import number_type
from delving.initializer import (
    INITIALIZERS,
    fans,
    gaussian,
    give_storage,
    initialize,
    layer_stds,
    start,
)
from delving.momentum import Momentum
from delving.naming import deviations
from delving.net import Net, build_net, crowded_levels, describe
from delving.notation import Layer, count_depth, read_layers
from delving.rectifier import RECTIFIERS, PReLU, Rectifier
from delving.schema import Config, Init
from delving.signal import WEIGHTED, weight_layers

WIDEST, LARGEST, FINEST = 100_000, 999, 64  # filters, window, SPP's bins along a side
SPARE = 4  # times this machine's memory, so that a net for a larger machine can be looked at here


def count_classes(config: Config) -> int:
    """A configuration's number of classes: its own, else that of what lies at data.root (it may be
    a part of a data set), else its data set's if that is known by name, else ImageNet's."""
    data = config.data
    known, *_ = SIZES.get(data.name, SIZES["imagenet"])
    return data.classes or _count_there(data.name, data.root) or known


@cache
def _count_there(name: str, root: str | None) -> int | None:
    with contextlib.suppress(ValueError, OSError):  # reported once the images are needed
        return len(list_classes(name, find_source(name, root))) if root else None


def build_model(config: Config, classes: int) -> tuple[Net, list[Layer]]:
    """The net of a configuration on the meta device, and its layers."""
    act, model = config.act, config.model
    if act.name not in RECTIFIERS:
        raise ValueError(f"act={act.name}: choose from {', '.join(RECTIFIERS)}")
    if act.name == "relu" and act.slope:  # initialisers would use it
        raise ValueError(f"act.slope={act.slope:g}: relu's is 0; lrelu and prelu take another")
    if config.init.name != "gaussian" and config.init.std != Init.std:
        raise ValueError(f"init.std={config.init.std:g}: init=gaussian's; {config.init.name} has "
                         "its own")  # fmt: skip

    def build_act(channels: int) -> nn.Module:
        return RECTIFIERS[act.name](channels, act.slope)

    try:
        layers = read_layers(
            model.layers, depth=model.depth, width=model.width, stem_stride=model.stem_stride
        )
        check_layers(layers)
        net = build_net(
            layers,
            build_act,
            classes=classes,
            crop=config.data.crop,
            dropout=config.train.dropout,
        )
        check_size(net, number_type(config.precision), times=SPARE)
    except ValueError as error:
        of = f"model.layers of model={model.name} at model.width={model.width:g}"
        of += f", model.stem_stride={model.stem_stride}" if model.stem_stride else ""
        size = f"data.crop={config.data.crop}, data.classes={classes}"
        raise ValueError(f"{of}, {size}: {error}") from error
    check_rectifiers(net, build_act, act=act.name)
    check_stds(net, config)
    return net, layers


def check_rectifiers(net: Net, build_act: Callable[[int], nn.Module], *, act: str) -> None:
    """Tries rectifiers other than the paper's on a map and on a row of the net's widths.

    Raises:
        ValueError: one has a conv or fc layer of its own, fails, changes the shape, writes over
            its input, or has a parameter or buffer without an initial value.
    """
    for chain, map_shape in ((net.features, (4, 4)), (net.classifier, ())):
        layer, *after = chain
        if not after or type(after[0]) in (Rectifier, PReLU):
            continue
        [_, name, *_], shape = dict(chain.named_children()), (2, len(layer.weight), *map_shape)
        try:
            # What it draws at random must not move the caller's draws.
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                _try_rectifier(name, build_act, shape)
        except ValueError as error:
            raise ValueError(f"act={act}: {error}") from error


def _try_rectifier(name: str, build_act: Callable, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        act = nn.Sequential(OrderedDict({name: build_act(shape[1])}))
    if own := [place for place, m in act.named_modules() if isinstance(m, WEIGHTED)]:
        inside = own[0].removeprefix(f"{name}.")
        raise ValueError(f"{name} has a layer of its own ({inside}): a rectifier may have no conv "
                         "or fc layers")  # fmt: skip
    start(act, torch.device("cpu"), partial(initialize, stds=lambda layers: [], seed=0))
    given = torch.linspace(-100, 101, math.prod(shape)).view(shape)
    y = given.clone()
    try:
        made = act.eval()(y).shape
    except Exception as error:
        raise ValueError(f"{name} fails on {shape}: {error}") from error
    if made != shape:
        raise ValueError(f"a rectifier keeps its layer's shape, but makes {tuple(made)} of {shape}")
    if not torch.equal(y, given):
        raise ValueError(f"{name} writes over its input (inplace=True?), which others still read")


def check_layers(layers: Sequence[Layer]) -> None:
    """Refuses layers that do not make a net, or one beyond all bounds.

    Raises:
        ValueError: names the layer or the bound, or says which order is right.
    """
    if count_depth(layers) > DEEPEST:
        raise ValueError(f"{count_depth(layers):,} conv and fc layers: at most {DEEPEST:,}")
    for x in layers:
        if x.filters > WIDEST or x.kernel > LARGEST or max(x.bins, default=0) > FINEST:
            raise ValueError(
                f"layer {x.name}: {x.notation} is beyond {WIDEST:,} filters or units, windows of "
                f"{LARGEST}, {FINEST}x{FINEST} bins"
            )
    order = "".join(x.kind[0] for x in layers)
    last = [x.name for x in layers if x.kind == "fc" and not x.filters] == [layers[-1].name]
    if not re.fullmatch("c[cp]*s?f+", order) or not last:
        raise ValueError("the order is conv and pool, then spp, then fc, the last `classes`")


def check_size(net: Net, number: torch.dtype, *, times: float) -> None:
    """Refuses a net whose parameters, of this type, take more than `times` times this machine's
    memory.

    Raises:
        ValueError: with the figures.
    """
    count, there = sum(p.numel() for p in net.parameters()), devices.memory()
    need = count * number.itemsize
    if need > times * there:
        raise ValueError(
            f"a net of {count:,} parameters, {need / 1e9:,.0f} GB in fp{8 * number.itemsize}; "
            f"this machine has {there / 1e9:,.0f} GB of memory"
        )


def images_at_once(config: Config) -> int:
    """How many of a batch's images are on the device together."""
    train = config.train
    return min(train.micro_batch or train.batch, train.batch)


def _check_room(net: Net, config: Config, device: torch.device) -> None:
    """Refuses a net too large for a CPU's memory: there the system would kill some process, perhaps
    another user's, whereas a GPU refuses by itself."""
    if device.type == "cpu":
        check_size(net, number_type(config.precision), times=1)


def describe_model(config: Config) -> dict:
    """What `delving show` prints: layers, totals and deviations. It needs no data; count_classes
    gives the number of classes."""
    net, layers = build_model(config, count_classes(config))
    rows = describe(net, layers, config.data.crop)
    precision = devices.pick_precision(config.precision, devices.pick_device(config.device))
    return {
        "model": config.model.name,
        "depth": count_depth(layers),
        "params": sum(row["params"] for row in rows),
        "multiply_adds": sum(row["multiply_adds"] for row in rows),
        "layers": rows,
        "deviations": list_deviations(config, net, precision),
    }


def plan_stds(config: Config) -> Callable[[Sequence[nn.Module]], list[float]]:
    """The function that gives weight layers their stds by the configuration's initialiser."""
    init, slope = config.init, config.act.slope
    return partial(
        layer_stds, rule=_rule(init), slope=slope, range=init.range, classifier=init.classifier
    )


def _rule(init: Init) -> Callable[[int, int, float], float]:
    rules = INITIALIZERS | {"gaussian": gaussian(init.std)}
    if init.name not in rules:
        raise ValueError(f"init={init.name}: choose from {', '.join(rules)}")
    return rules[init.name]


def check_stds(net: Net, config: Config) -> None:
    """ValueError names the layer for which the initialiser fails, or gives what is no std."""
    rule = _rule(config.init)
    for name, layer in weight_layers(net).items():
        n, nhat = fans(layer)
        of = f"init={config.init.name}: {name}, with fan_in={n} and fan_out={nhat}"
        try:
            std = rule(n, nhat, config.act.slope)
            fits = 0 <= std < math.inf
        except Exception as error:
            raise ValueError(f"{of}: {error}") from error
        if not fits:
            raise ValueError(f"{of}: a std of {std}, which must be finite and at least 0")


def allocate(net: Net, config: Config, device: torch.device) -> Net:
    """Gives a meta net its storage, with no values yet."""
    _check_room(net, config, device)
    give_storage(net, device, number_type(config.precision))
    return net.to(memory_format=torch.channels_last)


def materialise(
    net: Net, config: Config, device: torch.device, drawn: dict[tuple, Tensor] | None = None
) -> Net:
    """Gives a meta net its storage and its initial values, which are drawn in fp32 whatever type
    the net is kept in; for `drawn` see initialize.

    Raises:
        ValueError: see start.
    """
    _check_room(net, config, device)
    start(net, device, partial(initialize, stds=plan_stds(config), seed=config.seed, drawn=drawn))
    return net.to(number_type(config.precision)).to(memory_format=torch.channels_last)


def list_deviations(config: Config, net: Net, precision: str) -> list[str]:
    """What differs from the paper's recipe, knobs first, then what follows from them."""
    lines = deviations(config)
    if precision == "bf16":
        lines.append(f"precision {precision} (paper: fp32)")
    cells = f"{net.map_size}x{net.map_size}"
    lines += [
        f"SPP level {n}x{n} on a map of {cells} (paper: more cells than bins)"
        for n in crowded_levels(net)
    ]
    return lines


def tensors_of(net: nn.Module, input: Input, optimizer: Momentum) -> dict[str, dict[str, Tensor]]:
    """{file: {name: tensor}} of a checkpoint, as load_weights and load_momentum read it."""
    model = {f"net.{k}": v.contiguous() for k, v in net.state_dict().items()}
    model |= {f"input.{k}": v.contiguous() for k, v in input.state_dict().items()}
    velocity = optimizer.velocity
    momentum = {
        name: velocity[p].contiguous() for name, p in net.named_parameters() if p in velocity
    }
    return {"model": model, "optimizer": momentum}


def load_weights(net: nn.Module, input: Input, tensors: dict, folder: Path) -> None:
    """Loads net and input from a checkpoint's model.safetensors; ValueError names what does not
    fit."""
    wanted = {f"net.{k}": v for k, v in net.state_dict().items()}
    wanted |= {f"input.{k}": v for k, v in input.state_dict().items()}
    if set(wanted) != set(tensors):
        odd = ", ".join(sorted(set(wanted) ^ set(tensors))[:4])
        raise ValueError(f"{folder}: its checkpoint is of another model (differs in {odd})")
    for key, value in wanted.items():
        if value.shape != tensors[key].shape:
            raise ValueError(
                f"{folder}: its checkpoint is of another model ({key} is "
                f"{list(tensors[key].shape)}, here {list(value.shape)})"
            )
        value.copy_(tensors[key])


def load_momentum(net: nn.Module, optimizer: Momentum, tensors: dict, folder: Path) -> None:
    """Loads velocities from a checkpoint's optimizer.safetensors; ValueError names what does not
    fit."""
    for name, p in net.named_parameters():
        if name in tensors:
            if tensors[name].shape != p.shape:
                raise ValueError(
                    f"{folder}: its checkpoint is of another model (momentum of {name})"
                )
            optimizer.velocity[p] = torch.empty_like(p).copy_(tensors[name])
