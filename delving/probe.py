"""What measurements look at: a batch of a data set, and a trained run, loaded again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from delving import config as configs
from delving import device as devices
from delving.build import allocate, load_weights
from delving.checkpoint import load_checkpoint
from delving.data import load_splits
from delving.data.augment import CENTER, crop_at
from delving.data.images import Images, evenly
from delving.data.loader import Cache
from delving.ranks import ALONE, Ranks
from delving.schema import Config
from delving.session import Session, Watch, check_same_data, measure_for, open_session
from delving.state import read_state

MEASURED = 256  # training images that give a fresh net's mean image


def open_trained(
    folder: Path, config: Config, watch: Watch = lambda event: None, ranks: Ranks = ALONE
) -> Session:
    """A run's session with the weights of its checkpoint.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model or other data.
    """
    with ranks.same_fate():
        saved = load_checkpoint(folder)
        if not saved:
            raise ValueError(f"{folder} has no checkpoint to score")
    tensors, state = saved
    session = open_session(config, folder, watch, ranks=ranks)
    with ranks.same_fate():
        check_same_data(session, read_state(state, folder)["data"])
        session.weights, session.trained = state["weights"], state["precision"]
        session.net = allocate(session.net, config, session.device)
        session.input = session.blank_input()
        load_weights(session.net, session.input, tensors.get("model", {}), folder)
    return session


def open_run(folder: Path | str, *words: str) -> Session:
    """open_trained with the run's own configuration, on this machine's device. `words` change it,
    such as `data.root=...`; `delving eval` takes the same."""
    folder = Path(folder)
    return open_trained(folder, configs.amend(folder / "config.yaml", ["device=auto", *words]))


def open_fresh(config: Config, shelf: dict) -> Session:
    """The session that a net would be trained in, with the input measured on a few training images
    and the net still on the meta device. Its device knows float64. For `shelf` see open_session."""
    device = "cpu" if devices.pick_device(config.device).type == "mps" else config.device
    session = open_session(replace(config, device=device), Path(), lambda event: None, shelf)
    images = session.train_images.images
    session.input = measure_for(session, Cache(images.take(evenly(len(images), MEASURED)), 0))
    return session


@torch.no_grad()
def some_images(session: Session, count: int) -> tuple[Tensor, Tensor]:
    """Center crops of validation images, evenly spaced, and of training images if those are too
    few: input (n, 3, crop, crop), labels (n,), on the session's device."""
    crop, [s] = session.config.data.crop, session.sides([session.config.eval.ten_view_s])
    pixels, labels = [], []
    for images in (session.val_images.images, session.train_images.images):
        chosen = evenly(len(images), count - len(pixels))
        pixels += [crop_at(images.load(int(i)), s, crop, CENTER) for i in chosen]
        labels += images.labels[chosen].tolist()
    batch = torch.from_numpy(np.stack(pixels)).to(session.input.mean.device)
    return session.input(batch), torch.tensor(labels, device=batch.device)


def open_images(folder: Path, *words: str) -> Images:
    """The validation images that a run was scored on; if they have moved since, words such as
    `data.root=...` tell where they lie."""
    config = configs.amend(folder / "config.yaml", words)
    return load_splits(config.data, config.output_root)[1]
