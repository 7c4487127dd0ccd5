"""Table 3: VGG-19, A, B and C at full width and 224 pixels, whatever the scale.

The abstract says that PReLU has "nearly zero extra computational cost", hence the claims on it.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving import device as devices
from delving.artefact import MODELS, Asked, Claim, Shown, printed, published
from delving.build import build_model
from delving.config import compose
from delving.judge import Finding, judge_no_larger, number, settled
from delving.net import CROP, Net, build_net, describe
from delving.notation import Layer, count_depth, read_layers
from delving.rectifier import build_relu
from delving.session import plan_recipe
from delving.train import build_optimizer

TIMED = ("vgg19-relu", "a-relu", "a-prelu", "b-relu", "c-relu")
CLASSES = 1000
# The nets that no claim is about, and their number of rounds: only one if a step of a single image
# takes all the time that there is.
ASIDE, FEW = {"b-relu", "c-relu"}, 3
LEAST = 3  # rounds, however long they take
LARGEST = 128  # images of the paper's mini-batch
NOISE = 1 << 20  # numbers
LIMIT = 2**-6  # of their size: with it no response or gradient vanishes or explodes in any net
ALIGNED = 64  # numbers: where torch itself lets a tensor begin, or a multiple of that
WITHIN, SHARE, SLOWER = 1.0, 0.01, 5.0  # percent
ALLOWED = 100 * math.log(1 + SLOWER / 100)  # log points, the same either way round


def measure(asked: Asked) -> dict:
    """Seconds of each net's training step, in rounds of all nets."""
    device = devices.pick_device(_told_of("device", asked.overrides))
    devices.prepare_backend(device)
    precision = devices.pick_precision(_told_of("precision", asked.overrides), device)
    nets = {name: _build(name) for name in TIMED}
    place = torch.empty(2, max(map(_room_for, nets.values())), device=device,
                        dtype=devices.number_type(precision))  # fmt: skip
    _fill(place)
    steps = {name: _step_of(net, place, precision) for name, net in nets.items()}
    # The first step also allocates and picks algorithms: what it takes is an upper bound.
    first = sum(_timed(step, 1, device) for step in steps.values())
    rounds, limit = asked.settings["rounds"], asked.settings["seconds"]
    # On a GPU the first steps say nothing of time, and memory alone sets the batch.
    cuda = device.type == "cuda"
    batch = LARGEST if cuda else _fit(limit / ((rounds + 1) * first))
    if batch > 1:  # else the first steps were of that batch already
        batch = _warm_up(steps.values(), batch, device)
    few = FEW if batch > 1 else 1
    seconds = {name: [] for name in TIMED}
    for count in range(rounds):
        if count >= LEAST and sum(map(sum, seconds.values())) >= limit:
            break  # even steps of a single image take more time than there is
        for name, step in steps.items():
            if count < (few if name in ASIDE else rounds):
                seconds[name].append(round(_timed(step, batch, device), 5))
    return {"batch": batch, "seconds": seconds, "device": devices.name_device(device),
            "precision": precision}  # fmt: skip


def _warm_up(steps: Iterable[Callable], batch: int, device: torch.device) -> int:
    """The batch, halved until memory holds it for every net. Each net takes a step that does not
    count, since the first of a batch is slower than others."""
    while True:
        try:
            for step in steps:
                _timed(step, batch, device)
            return batch
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2


def _told_of(key: str, overrides: Sequence[str]) -> str:
    """The last value that the overrides give a key, or auto."""
    told = dict(word.partition("=")[::2] for word in overrides)
    return told.get(key, "auto")


def _fit(images: float) -> int:
    """The largest power of two up to `images`, from 1 to the paper's 128."""
    batch = 1
    while 2 * batch <= min(images, LARGEST):
        batch *= 2
    return batch


def _build(name: str) -> Net:
    """A net as it lies in memory, without memory of its own."""
    model, act = name.split("-")
    net = build_model(compose([f"model={model}", f"act={act}", "scale=paper"]), CLASSES)[0]
    return net.to(memory_format=torch.channels_last)


def _room_for(net: Net) -> int:
    """How many numbers `_lay_out` needs for each of weights and velocities."""
    return sum(_aligned(p.numel()) for p in net.parameters())


def _aligned(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED


def _fill(place: Tensor) -> None:
    """Fills the weights with the same noise over and over, the velocities with zeros. Times depend
    on values only if they are not finite; drawing all of them would take as long as the steps."""
    weights, velocities = place
    noise = torch.empty(NOISE, device=place.device, dtype=place.dtype).uniform_(-LIMIT, LIMIT)
    for part in weights.split(NOISE):
        part.copy_(noise[: len(part)])
    velocities.zero_()


def _lay_out(net: Net, place: Tensor) -> dict[nn.Parameter, Tensor]:
    """Puts a net's parameters into the first row of `place`; returns their velocities, which lie in
    the second. All nets lie in the same place, as no two take a step at once: side by side they
    would need 12 GB on a CPU."""
    velocities, first = {}, 0
    for module in net.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            weights, velocity = (row[first:].as_strided(p.shape, p.stride()) for row in place)
            setattr(module, name, nn.Parameter(weights))
            velocities[getattr(module, name)] = velocity
            first += _aligned(p.numel())
    return velocities


def _step_of(net: Net, place: Tensor, precision: str) -> Callable[[int], None]:
    """A function that takes a step on `batch` images of noise: forward, backward, update."""
    device, number = place.device, place.dtype
    velocities = _lay_out(net.train(), place)
    optimizer = build_optimizer(net, plan_recipe(compose(["scale=paper"]), CLASSES))
    optimizer.velocity = velocities

    def step(batch: int) -> None:
        x = torch.randn(batch, 3, CROP, CROP, device=device, dtype=number)
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        for layer in net.modules():
            if hasattr(layer, "seed"):
                layer.seed(0, batch, slice(0, batch))
        with devices.autocast(device, precision):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(devices.wide(logits), labels).backward()
        optimizer.step(1e-12)  # so small a rate leaves the weights as they are
        optimizer.zero_grad()  # here, since the other nets need the memory meanwhile

    return step


def _timed(step: Callable[[int], None], batch: int, device: torch.device) -> float:
    start = time.perf_counter()
    step(batch)
    devices.settle(device)
    return time.perf_counter() - start


def show(asked: Asked) -> Shown:
    times = asked.measured.get("table3", {}).get(())
    cards = {model: count(model) for model in MODELS}
    return Shown(
        "Table 3. Architectures of the large models",
        "At full width and 224 pixels with a stem of stride 2, whatever the scale. Mult-adds count "
        "conv and fc layers. Seconds per training step (forward, backward, update) on noise, "
        f"median of rounds (few for B and C): {_told(times)}; the paper's are for 128 images on "
        "four K20 GPUs. data.csv lists every layer.",
        table=_tabulate(cards, times),
        data=list_layers(),
        claims=_claims(cards, times),
    )


def count(model: str) -> dict:
    """depth, params, multiply_adds of a full-width net with ReLU; the slopes that PReLU adds."""
    layers = _layers_of(model)
    rows = _describe(layers)
    return {
        "depth": count_depth(layers),
        "params": sum(row["params"] for row in rows),
        "multiply_adds": sum(row["multiply_adds"] for row in rows),
        "slopes": sum(x.filters for x in layers),  # one a channel; the classifier has no rectifier
    }


def list_layers() -> pd.DataFrame:
    """Columns model, name, notation, output, params, multiply_adds: Table 3's nets layer by layer,
    at full width with ReLU."""
    return pd.DataFrame([
        {"model": title} | row
        for model, title in MODELS.items()
        for row in _describe(_layers_of(model))
    ])  # fmt: skip


def _layers_of(model: str) -> list[Layer]:
    return read_layers(compose([f"model={model}", "act=relu", "scale=paper"]).model.layers)


def _describe(layers: list[Layer]) -> list[dict]:
    net = build_net(layers, partial(build_relu, slope=0.0), classes=CLASSES, crop=CROP)
    return describe(net, layers, CROP)


def _told(times: dict | None) -> str:
    if times is None:
        return "not measured"
    images = "image" if times["batch"] == 1 else "images"
    return f"{times['batch']} {images}, {times['device']}, {times['precision']}"


def _tabulate(cards: dict[str, dict], times: dict | None) -> pd.DataFrame:
    paper, clock = published()["table3"], published()["text"]["seconds_per_minibatch_128_4xK20"]
    rows = []
    for model, title in MODELS.items():
        card = cards[model]
        rows.append(
            {
                "model": title,
                "depth, paper": str(paper["depth"][model]),
                "depth, ours": str(card["depth"]),
                "mult-adds / 10^10, paper": printed(paper["complexity_1e10"][model]),
                "mult-adds / 10^10, ours": f"{card['multiply_adds'] / 1e10:.3f}",
                "parameters / 10^6": f"{card['params'] / 1e6:.1f}",
                "seconds, paper": printed(clock.get(model), 1),
                "seconds, ours": _seconds(times, f"{model}-relu"),
                "with PReLU": _seconds(times, f"{model}-prelu"),
            }
        )
    return pd.DataFrame(rows)


def _seconds(times: dict | None, name: str) -> str:
    if times is None or name not in times["seconds"]:
        return "-"
    seconds = statistics.median(times["seconds"][name])
    return f"{seconds:.{2 if seconds >= 1 else 3}f}"


def _claims(cards: dict[str, dict], times: dict | None) -> list[Claim]:
    claims = [_complexity(cards), _few_slopes(cards)]
    if times:
        rounds = times["seconds"]
        rule = (
            "100 times the natural logarithm of the ratio of step times in interleaved rounds, "
            f"positive if {{}} is faster: the 95 % interval lies above {number(-ALLOWED)}, which "
            f"is {SLOWER:g} % slower"
        )
        claims += [
            Claim("A is no slower than VGG-19", rule.format("A's step"), SLOWER,
                  _no_slower(rounds["a-relu"], rounds["vgg19-relu"]), 0),
            Claim("PReLU costs almost nothing: A's step", rule.format("PReLU's step"), SLOWER,
                  _no_slower(rounds["a-prelu"], rounds["a-relu"]), 0),
        ]  # fmt: skip
    return claims


def _complexity(cards: dict[str, dict]) -> Claim:
    paper = published()["table3"]
    off = {
        model: 100 * (cards[model]["multiply_adds"] / 1e10 / paper["complexity_1e10"][model] - 1)
        for model in MODELS
    }
    same = all(cards[model]["depth"] == paper["depth"][model] for model in MODELS)
    holds = same and max(map(abs, off.values())) <= WITHIN
    told = ", ".join(f"{MODELS[model]} {value:+.2f} %" for model, value in off.items())
    rule = f"depths equal, mult-adds within {WITHIN:g} % of the printed ones"
    return Claim("depth and complexity are the paper's", rule, WITHIN, settled(holds, told), 0)


def _few_slopes(cards: dict[str, dict]) -> Claim:
    shares = {
        model: 100 * cards[model]["slopes"] / (cards[model]["params"] + cards[model]["slopes"])
        for model in ("a", "b", "c")
    }
    told = ", ".join(f"{MODELS[model]} {share:.4f} %" for model, share in shares.items())
    rule = f"channel-wise slopes are below {SHARE:g} % of all parameters"
    holds = max(shares.values()) < SHARE
    return Claim("PReLU's extra parameters are negligible", rule, SHARE, settled(holds, told), 0)


def _no_slower(ours: list[float], theirs: list[float]) -> Finding:
    faster = [100 * math.log(b / a) for a, b in zip(ours, theirs, strict=True)]
    return judge_no_larger(faster, delta=ALLOWED, unit="log points")
