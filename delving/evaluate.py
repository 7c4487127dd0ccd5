"""Section 3's testing: center, ten_view, dense at one or several scales; error rates.

assumed: scores are averaged after the softmax, over views, windows and scales alike.

assumed: multi-scale means Table 4's three scales; ten_view and center are at s = 8/7 of the crop
for all nets.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from delving import device as devices
from delving.data.augment import center_view, resized_size, ten_views, whole_views
from delving.data.images import UndecodableImageError
from delving.data.input import Input
from delving.data.loader import Cache, Views, iterate
from delving.net import Net
from delving.ranks import ALONE, Ranks

WINDOWS = 1024  # scored by the fc layers at once
KEPT = 500_000_000  # bytes of views; 3,000 views of 224 pixels take 452 million


def name_protocols(protocols: list[str], dense_sides: list[int]) -> list[str]:
    """The names under which scores are saved: dense becomes dense@<s> for each s, and dense."""
    names = []
    for protocol in protocols:
        names += [f"dense@{s}" for s in dense_sides] if protocol == "dense" else []
        names.append(protocol)
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Tester:
    """Scores images with a net; every image counts exactly once, whatever the batch.

    Attributes:
        net, input: on one device; `autocast` makes the context of all forward passes.
        batch: views per forward pass for center and ten_view; dense takes an eighth as many images.
        workers: loader processes; `timeout`, the seconds for which one of them may be silent.
        ranks: processes that share the images.
        heard: signals received; any of them ends the scoring. `folder`, which the error names, has
            the results so far.
        kept: a list that the first scoring fills with its views, if they fit into KEPT bytes, for
            later ones to read; to be given only if all score the same images.
    """

    net: Net
    input: Input
    autocast: Callable[[], AbstractContextManager]
    batch: int = 128
    workers: int = 0
    timeout: float | None = None
    ranks: Ranks = ALONE
    heard: Sequence[int] = ()
    folder: Path | None = None
    kept: list | None = None

    def center(self, source: Cache, s: int, chosen: np.ndarray | None = None) -> np.ndarray:
        """(images, classes) probabilities of the center crop at shorter side s.

        `chosen`, rising indices, limits it to some of the images.
        """
        view = partial(center_view, s=s, crop=self.input.mean.shape[1])
        wanted = np.arange(len(source.images)) if chosen is None else chosen
        return self._score(source, view, _chunks(wanted, self.batch), self._crops)

    def ten_view(self, source: Cache, s: int) -> np.ndarray:
        """The same over four corners, center and flips."""
        view = partial(ten_views, s=s, crop=self.input.mean.shape[1])
        groups = _chunks(np.arange(len(source.images)), max(1, self.batch // 10))
        return self._score(source, view, groups, self._crops)

    def dense(self, source: Cache, s: int) -> np.ndarray:
        """The same over every window of the whole image's feature map, and of its flip's."""
        groups = _groups_by_shape(source, s, max(1, self.batch // 8))
        with devices.without_search():
            return self._score(source, partial(whole_views, s=s), groups, self._windows)

    def _score(
        self,
        source: Cache,
        view: Callable,
        groups: list[np.ndarray],
        score: Callable[[Tensor], Tensor],
    ) -> np.ndarray:
        wanted = np.sort(np.concatenate(groups))
        found: list[tuple[np.ndarray, np.ndarray]] = []
        with self.ranks.same_fate():
            self._score_mine(source, view, groups[self.ranks.rank :: self.ranks.size], score, found)
        self.ranks.stop_if_told(self.heard, self.folder)
        probabilities, counted = self._put_together(found, len(source.images))
        if not (counted[wanted] == 1).all() or counted.sum() != len(wanted):
            raise RuntimeError("an image was not scored exactly once")
        if not np.isfinite(probabilities[wanted]).all():
            raise FloatingPointError("the net's scores are not finite")
        return probabilities[wanted]

    @torch.no_grad()
    def _score_mine(
        self,
        source: Cache,
        view: Callable,
        groups: list[np.ndarray],
        score: Callable[[Tensor], Tensor],
        found: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """Adds (indices, probabilities) of this rank's groups to `found`, until a signal comes."""
        self.net.eval()
        device = self.input.mean.device
        views = Views(source, view, groups)
        pin = device.type == "cuda"
        # One autocast for all groups of images rounds the weights once, not once a group.
        with self.autocast(), devices.advising("eval.batch=... scores fewer images at once"):
            for item in self._items(views, pin):
                if isinstance(item, UndecodableImageError):
                    raise item
                indices, pixels = item
                scores = score(pixels.to(device).flatten(0, 1))  # (images x views, classes)
                mean = scores.unflatten(0, pixels.shape[:2]).mean(1)
                found.append((np.asarray(indices), mean.float().cpu().numpy()))
                if self.heard:
                    return

    def _items(self, views: Views, pin: bool) -> Iterator:
        """The views of all groups; made only once if they are kept."""
        if self.kept:
            yield from self.kept
            return
        room, seen = (0 if self.kept is None else KEPT), []
        keys, workers = range(len(views.groups)), self.workers
        for item in iterate(views, keys, workers=workers, pin=pin, timeout=self.timeout):
            room -= 0 if isinstance(item, UndecodableImageError) else item[1].nbytes
            if room >= 0:
                seen.append(item)
            else:
                seen.clear()  # they are not kept, so nothing shall hold them
            yield item
        if self.kept is not None and room >= 0:
            self.kept.extend(seen)

    def _put_together(
        self, found: list[tuple[np.ndarray, np.ndarray]], images: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """All ranks' (images, classes) probabilities, and how often each image was scored."""
        classes = self.ranks.largest(found[0][1].shape[1] if found else 0)
        probabilities, counted = np.zeros((images, classes), np.float32), np.zeros(images, np.int64)
        for indices, mean in found:
            probabilities[indices] = mean
            np.add.at(counted, indices, 1)
        # Where one rank has probabilities the others have zeros: the sum is exact.
        self.ranks.sum(torch.from_numpy(probabilities))
        self.ranks.sum(torch.from_numpy(counted))
        return probabilities, counted

    def _crops(self, pixels: Tensor) -> Tensor:
        return devices.wide(self.net(self.input(pixels))).softmax(1)

    def _windows(self, pixels: Tensor) -> Tensor:
        return score_windows(self.net, self.input(pixels))


def score_windows(net: Net, x: Tensor) -> Tensor:
    """Dense testing: (N, 3, H, W) to (N, classes), the mean over all windows of the feature map.

    The conv layers run once over the whole image; each window of the training map's size is pooled
    by SPP and scored by the fc layers.
    """
    pooled = net.spp.windows(net.features(x), net.map_size)  # (N, rows, columns, features)
    flat = pooled.flatten(0, 2)
    logits = torch.cat([net.classifier(part) for part in flat.split(WINDOWS)])
    return devices.wide(logits).softmax(1).unflatten(0, pooled.shape[:3]).mean((1, 2))


def _groups_by_shape(source: Cache, s: int, size: int) -> list[np.ndarray]:
    """Groups of up to `size` images whose resized shapes agree, in the order of the shapes."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for i in range(len(source.images)):
        shapes.setdefault(resized_size(source.size(i), s), []).append(i)
    return [part for shape in sorted(shapes) for part in _chunks(np.array(shapes[shape]), size)]


def _chunks(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def error_rates(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """top-1 and top-5 error in percent: the share of images whose class is not among the best k.
    Raises as rank_labels."""
    ranks = rank_labels(probabilities, labels)
    return {f"top{k}_err": round(float(100 * (ranks >= k).mean()), 4) for k in (1, 5)}


def rank_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes rank above each image's own: (images,), 0 where it is the best.

    Classes of equal probability rank in their order, so a net that gives all classes the same
    probability is right only about the first.

    Raises:
        ValueError: a probability is NaN, above which no class would rank.
    """
    unknown = int(np.isnan(probabilities).any(1).sum())
    if unknown:
        raise ValueError(f"probabilities of {unknown} of {len(labels)} images are NaN")
    of_label = probabilities[np.arange(len(labels)), labels][:, None]
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > of_label) | ((probabilities == of_label) & before)).sum(1)
