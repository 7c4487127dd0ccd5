"""Section 2.2 measured over draws of the weights, for nets that differ only in their initialiser
and rectifier."""

from collections.abc import Hashable, Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np
from torch import Tensor

from delving.build import materialise, plan_stds
from delving.probe import open_fresh, some_images
from delving.schema import Config
from delving.session import Session
from delving.signal import bits_per_layer, layer_moments, summarise, theory, weight_layers


def measure_nets(
    nets: Mapping[Hashable, Config], settings: dict, *, bits: bool = True
) -> dict[Hashable, dict]:
    """{layers: signal.summarise, bits: signal.bits_per_layer} of each net, by its key, over as many
    draws of the weights and on as many images as settings' `draws` and `images` say.

    Args:
        nets: of one model and data set, so that images are loaded once and a seed's weights drawn
            once.
        bits: whether `bits` is wanted.
    """
    shelf: dict = {}
    sessions = {key: open_fresh(config, shelf) for key, config in nets.items()}
    seen = {key: some_images(session, settings["images"]) for key, session in sessions.items()}
    draws: dict[Hashable, list] = {key: [] for key in nets}
    for seed in range(settings["draws"]):
        drawn: dict[tuple, Tensor] = {}  # one seed's, up to 0.6 GB at full width
        for key, session in sessions.items():
            draws[key].append(_moments(session, seed, drawn, *seen[key]))
    return {key: _summary(sessions[key], draws[key], bits=bits) for key in nets}


def _moments(session: Session, seed: int, drawn: dict, x: Tensor, labels: Tensor) -> list[dict]:
    config = replace(session.config, seed=seed)
    net = materialise(deepcopy(session.net), config, session.device, drawn)
    # With one small std for all layers the signal ends below what fp32 can tell from 0.
    net = net.double() if config.init.name == "gaussian" else net
    return layer_moments(net, x, labels)


def _summary(session: Session, draws: list, *, bits: bool) -> dict:
    config, layers = session.config, weight_layers(session.net)
    predicted = theory(layers, plan_stds(config)(list(layers.values())), slope=config.act.slope)
    rows = [row | {key: float(np.mean([rows[i][key] for rows in draws]))
                   for key in ("pool_forward", "pool_backward")}
            for i, row in enumerate(summarise(draws, predicted))]  # fmt: skip
    return {"layers": rows} | ({"bits": bits_per_layer(draws, predicted)} if bits else {})
