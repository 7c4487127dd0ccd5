"""Section 2.2 measured: the second moments of responses and gradients, layer by layer.

Also the text's example, VGG's model B: with std 0.01 the gradient that reaches conv2 from conv10 is
1 / (1.7 x 10^4) of what it is by Eq. 14.
"""

import math
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from delving.artefact import RECTIFIERS, Asked, Claim, Shown, model_title, published
from delving.build import plan_stds
from delving.config import compose
from delving.draws import measure_nets
from delving.initializer import gaussian, he_backward, initialize, layer_stds
from delving.judge import all_of, judge_alike, mean_interval, of_log_normal, settled
from delving.net import build_net
from delving.notation import read_layers
from delving.paper.figure3 import colors_of, title_of
from delving.plot import label_lines, new_figure
from delving.rectifier import build_relu
from delving.signal import (
    constant_std_ratio,
    layer_moments,
    propagated_gradient,
    shrink_classifier,
    weight_layers,
)

# With PReLU, only the two that Eq. 15 is about.
INITS = {"relu": ("he", "he_backward", "xavier", "gaussian"), "prelu": ("he", "he_backward")}
BITS = 0.1  # per layer: a tenth of what He and Xavier differ by
FACTOR = 0.1  # powers of ten, of the example's 1.7e4
EXAMPLE_STD = 0.01  # paper: 2.2


def measure(asked: Asked) -> dict:
    """Moments over draws of the weights for every net and initialiser, and the text's example."""
    usual = [f"scale={asked.scale}", *asked.overrides]
    nets = {act: {} for act in asked.settings["acts"]}
    for model in asked.settings["models"]:
        asked_of = {(act, init): compose([f"model={model}", f"act={act}", f"init={init}", *usual])
                    for act in nets for init in INITS[act]}  # fmt: skip
        for (act, init), found in measure_nets(asked_of, asked.settings).items():
            nets[act].setdefault(model, {})[init] = found
    return {"nets": nets, "example": _measure_example(asked.settings)}


def _measure_example(settings: dict) -> dict:
    """Full-width VGG B at 224 pixels, its fc layers shrunk; normal noise for images."""
    layers = shrink_classifier(read_layers(compose(["model=vgg_b"]).model.layers), 16)
    net = build_net(layers, lambda channels: build_relu(channels, 0.0), classes=16, crop=224)
    net = net.to_empty(device="cpu")
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(settings["full_images"], 3, 224, 224, generator=noise)
    draws, ratios = settings["full_draws"], []
    for draw in range(draws):
        # Independent draws: nothing but the law of large numbers makes the ratio come out.
        reached = [_propagate(net, rule, x, seed) for rule, seed in
                   ((he_backward, draw), (gaussian(EXAMPLE_STD), draws + draw))]  # fmt: skip
        ratios.append(reached[0] / reached[1])
    weighted = list(weight_layers(net).values())
    convs = [m for m in weighted if isinstance(m, torch.nn.Conv2d)]
    rule = plan_stds(compose(["model=vgg_b", "act=relu", "init=he_backward", "init.range=raw"]))
    stds = rule(weighted)[: len(convs)]
    return {"stds": {str(m.out_channels): std for m, std in zip(convs, stds, strict=True)},
            "computed": constant_std_ratio(stds[1:], EXAMPLE_STD), "measured": ratios}  # fmt: skip


def _propagate(net, rule, x: torch.Tensor, seed: int) -> float:
    stds = partial(layer_stds, rule=rule, slope=0.0, range="raw")  # paper: fc 0.01, 0.01, 0.001
    initialize(net, stds, seed=seed)
    labels = torch.zeros(len(x), dtype=torch.long)
    return propagated_gradient(layer_moments(net, x, labels))


def show(asked: Asked) -> Shown:
    found = asked.measured.get("signal", {}).get(())
    if found is None:
        raise ValueError("signal has not been measured")
    gaussian = compose([f"scale={asked.scale}", "init=gaussian", *asked.overrides]).init
    return Shown(
        "Section 2.2, measured: what initialisation does to the signal",
        "Second moments, as powers of two, of the responses y (left), relative to the first "
        "layer's, and of the gradients dx (right), relative to the last conv layer's, with ReLU. "
        f"Line and band: mean and standard deviation of {asked.settings['draws']} draws of the "
        "weights. Dotted: the paper's theory, with pooling and the maps' borders taken into "
        f"account. Gaussian: std {gaussian.std:g}. The table gives the change per conv layer in "
        "bits, with pooling and borders factored out: 0 keeps the signal, -1 is Xavier's halving.",
        table=_tabulate(found),
        figure=draw_signal(found["nets"]["relu"]),
        data=pd.concat([_labelled(list_layers(nets), act) for act, nets in found["nets"].items()]),
        claims=_claims(found),
        notes=_notes(found),
    )


def _tabulate(found: dict) -> pd.DataFrame:
    rows = []
    for act, nets in found["nets"].items():
        for model, by_init in nets.items():
            for init, net in by_init.items():
                row = {"net": model_title(model), "rectifier": RECTIFIERS[act], "init": init}
                for way in ("forward", "backward"):
                    bits = np.array(net["bits"][way])
                    row[f"{way}, theory"] = f"{net['bits'][f'{way}_theory']:.2f}"
                    row[f"{way}, measured"] = f"{bits.mean():.2f} ± {bits.std(ddof=1):.2f}"
                rows.append(row)
    return pd.DataFrame(rows)


def _labelled(layers: pd.DataFrame, act: str) -> pd.DataFrame:
    layers.insert(1, "act", act)
    return layers


def list_layers(nets: dict) -> pd.DataFrame:
    """A row per net, initialiser and layer: signal.summarise, and pooling's own factors."""
    rows = [
        {"net": model, "init": init}
        | {k: round(v, 4) if isinstance(v, float) else v for k, v in layer.items()}
        for model, by_init in nets.items()
        for init, net in by_init.items()
        for layer in net["layers"]
    ]
    return pd.DataFrame(rows)


def draw_signal(nets: dict[str, dict[str, dict]]) -> Figure:
    """Responses and gradients against depth. nets: {net: {initialiser: see measure_nets}}."""
    figure, axes = new_figure(len(nets), 2, size=(7.2, 2.3 * len(nets) + 0.25))
    told = "solid: measured, mean of the draws, and their spread; dotted: theory on these layers"
    figure.suptitle(told, fontsize=8, color="#555555")
    for (model, by_init), line in zip(nets.items(), axes, strict=True):
        for panel, key, title in zip(line, ("y2", "dx2"), ("responses", "gradients"), strict=True):
            panel.set_title(f"{model_title(model)}, {title}", fontsize=9)
            panel.set(xlabel="layer", ylabel="log2 of second moment")
            limits = _limits(by_init, key)
            color = colors_of(by_init)
            ends = [
                (*_draw_init(panel, net["layers"], key, color[i], limits), title_of(i), color[i])
                for i, net in by_init.items()
            ]
            depth = max(len(net["layers"]) for net in by_init.values())
            end = depth if depth > 3 else depth + 1  # the last tick is left out
            panel.set_xticks(MaxNLocator(7, integer=True, prune="both").tick_values(0, end))
            panel.set(xlim=(1, 1.25 * depth), ylim=limits)
            label_lines(panel, ends)
    return figure


def _limits(by_init: dict, key: str) -> tuple[float, float]:
    """A panel's y limits; `gaussian` falls so far that it may leave the panel."""
    inits = [init for init in by_init if init != "gaussian"] or by_init
    rows = [row for init in inits for row in by_init[init]["layers"]]
    low = min(row[f"{key}_measured"] - row[f"{key}_spread"] for row in rows)
    high = max(row[f"{key}_measured"] + row[f"{key}_spread"] for row in rows)
    return low - 0.15 * (high - low), high + 0.15 * (high - low)


def _draw_init(
    panel: Axes, rows: list[dict], key: str, color: str, limits: tuple[float, float]
) -> tuple[float, float]:
    """Draws an initialiser's mean, spread and theory; returns where its line ends, or first crosses
    the panel's bottom, since beside that point there is room for a name."""
    depth = np.arange(1, len(rows) + 1)
    mean, spread, here = (np.array([row[f"{key}_{part}"] for row in rows])
                          for part in ("measured", "spread", "here"))  # fmt: skip
    panel.plot(depth, mean, color=color, lw=1.4)
    panel.fill_between(depth, mean - spread, mean + spread, color=color, alpha=0.18, lw=0)
    panel.plot(depth, here, color=color, lw=1.1, ls=":")
    below = mean < limits[0]
    crossings = np.flatnonzero(below[1:] != below[:-1])
    if not len(crossings):
        return float(depth[-1]), float(mean[-1])
    i = crossings[0]
    return float(depth[i] + (limits[0] - mean[i]) / (mean[i + 1] - mean[i])), limits[0]


def _claims(found: dict) -> list[Claim]:
    claims = [
        _follows(found["nets"], "responses follow Eq. 9 and 15", "forward", "he"),
        _follows(found["nets"], "gradients follow Eq. 13 and 15", "backward", "he_backward"),
    ]
    example = found["example"]
    stds = {int(k): v for k, v in example["stds"].items()}
    paper = published()["text"]
    equal = all(f"{stds[filters]:.3f}" == f"{std:.3f}"
                for filters, std in paper["vgg_b_eq14_std"].items())  # fmt: skip
    told = ", ".join(f"{filters} filters {std:.3f}" for filters, std in stds.items())
    claims.append(
        _exact("Eq. 14's stds for VGG's model B", "equal to the printed digits", equal, told)
    )
    close = abs(math.log10(example["computed"] / paper["vgg_b_gradient_ratio_std001"]))
    claims.append(
        _exact(
            "with std 0.01 conv2's gradient is 1 / (1.7 x 10^4) of Eq. 14's, computed",
            "equal to two digits",
            f"{example['computed']:.1e}" == f"{paper['vgg_b_gradient_ratio_std001']:.1e}",
            f"{example['computed']:.3e} from unrounded stds ({close:.3f} powers of ten off)",
        )
    )
    off = [math.log10(ratio / example["computed"]) for ratio in example["measured"]]
    claims.append(
        Claim(
            "the same, measured on the full-width net",
            "log10 of measured over computed, independent draws of both nets: the 90 % interval "
            f"over pairs of draws lies within ±{FACTOR}",
            FACTOR,
            judge_alike(off, delta=FACTOR, unit="powers of ten"),
            0,
        )
    )
    return claims


def _follows(nets: dict, claim: str, way: str, init: str) -> Claim:
    parts = {}
    for act, by_model in nets.items():
        for model, by_init in by_model.items():
            net = by_init[init]
            off = _off_theory(net, way)[1]
            name = f"{model_title(model)}, {RECTIFIERS[act]}"
            parts[name] = judge_alike(off, delta=BITS, unit="bits")
    rule = (
        f"bits per conv layer, measured minus theory, for {init} on each net, with ReLU and PReLU: "
        f"the 90 % interval over draws of the weights lies within ±{BITS}. Theory predicts the "
        "mean of the draws, the interval is of their logarithms: each draw is given its share of "
        "the amount by which the former exceeds the latter if draws are log-normal. Xavier's "
        "draws are the same, scaled"
    )
    return Claim(claim, rule, BITS, all_of(parts), 0)


def _off_theory(net: dict, way: str) -> tuple[list[float], list[float]]:
    """Bits per conv layer of each draw, less theory's, as measured and as judged."""
    off = [value - net["bits"][f"{way}_theory"] for value in net["bits"][way]]
    convs = sum(row["kind"] == "conv" for row in net["layers"])
    return off, of_log_normal(off, convs - (1 if way == "forward" else 2))


def _exact(claim: str, rule: str, holds: bool, told: str) -> Claim:
    return Claim(claim, rule, None, settled(holds, told), 0)


WHY = (
    "Theory predicts the mean over draws. Draws of narrow nets scatter roughly log-normally, so "
    "that the mean of their logarithms, which is shown, lies ln(2)/2 times their variance below "
    "it; the verdicts add that. Bits per layer minus theory, forward, He, as shown and as judged "
    "(± half of the 90 % interval, which is wider for narrower nets): "
)


def _notes(found: dict) -> list[str]:
    told = []
    for model, by_init in found["nets"]["relu"].items():
        shown, judged = (mean_interval(off, 0.9) for off in _off_theory(by_init["he"], "forward"))
        told.append(f"{model_title(model)} {shown.mean:+.2f} and {judged.mean:+.2f} ± "
                    f"{judged.high - judged.mean:.2f}")  # fmt: skip
    return [f"{WHY}{', '.join(told)}."]
