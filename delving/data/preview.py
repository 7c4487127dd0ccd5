"""`delving data preview`: a contact sheet of a data set, and of what augmentation makes of it."""

import numpy as np
import torch

from delving.data.augment import augment, draw_augmentation
from delving.data.images import Images
from delving.data.input import measure_input
from delving.data.loader import Cache

CLASSES, COLUMNS = 12, 10


def sheet_rows(images: Images) -> list[tuple[str, list[np.ndarray]]]:
    """The first images of the first classes, whole, squeezed to squares for the sheet."""
    rows = []
    for label, title in list(enumerate(images.titles))[:CLASSES]:
        chosen = np.flatnonzero(images.labels == label)[:COLUMNS]
        rows.append((title[:14], [np.asarray(images.load(int(i))) for i in chosen]))
    return rows


def augmented_rows(
    images: Images, *, crop: int, sides: tuple[int, int], color: float, seed: int
) -> list[tuple[str, list[np.ndarray]]]:
    """The same few images over epochs, as training sees them before the mean is subtracted."""
    chosen = [int(i) for i in np.linspace(0, len(images) - 1, 6).round()]
    sample = Cache(images.take(np.array(chosen)), 1e9)
    statistics = measure_input(sample, crop=crop, s=8 * crop // 7, normalised=False)
    rows = []
    for row, index in enumerate(chosen):
        views = []
        for epoch in range(COLUMNS):
            draws = draw_augmentation(seed, epoch, len(images))[index]
            view = augment(sample.load(row), draws, crop=crop, sides=sides, flip=True)
            shift = statistics.color_shift(torch.from_numpy(draws[None, 4:]), color)[0].numpy()
            views.append(np.clip(view + shift, 0, 255).astype(np.uint8))
        rows.append((images.titles[images.labels[index]][:14], views))
    return rows
