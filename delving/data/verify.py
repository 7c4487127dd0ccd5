"""`delving data verify`: decodes every image once, counts them by class, finds duplicates."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from delving.data.images import Images, UndecodableImageError, decode
from delving.data.loader import decoding_threads

TOGETHER = 1000  # images handed to the threads at once


@dataclass
class Report:
    """What a look at every file found, in the data's order."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> images
    decoded: dict[str, int] = field(default_factory=dict)  # split -> images that can be decoded
    bad: list[tuple[str, str]] = field(default_factory=list)  # (name, what is wrong)
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (train, val) names

    @property
    def sound(self) -> bool:
        return not self.bad and not self.duplicates


def verify_data(
    train: Images, val: Images, tell: Callable[[str, int, int], None] = lambda *told: None
) -> Report:
    """Reads and decodes every image of both splits, on all cores, whatever is wrong with some.

    Files with equal bytes in both are duplicates; a hash of each training file is kept for that.

    Args:
        tell: is called with the split, how many of its images have been looked at, and how many
            are bad, every TOGETHER images.
    """
    report, seen = Report(), {}
    with decoding_threads() as pool:
        for split, images in (("train", train), ("val", val)):
            labels, bad = Counter(images.labels.tolist()), []
            report.counts[split] = {name: labels[i] for i, name in enumerate(images.classes)}
            for start in range(0, len(images), TOGETHER):
                some = range(start, min(start + TOGETHER, len(images)))
                found = pool.map(partial(_look_at, images), some)
                for index, (digest, problem) in zip(some, found, strict=True):
                    if split == "train" and digest:
                        seen.setdefault(digest, index)
                    elif digest in seen:
                        of_train = train.names[seen[digest]]
                        report.duplicates.append((of_train, images.names[index]))
                    if problem:
                        bad.append((images.names[index], problem))
                tell(split, some.stop, len(bad))
            report.decoded[split] = len(images) - len(bad)
            report.bad += bad
    return report


def _look_at(images: Images, index: int) -> tuple[bytes | None, str]:
    """A file's hash, or None if it cannot be read; and what is wrong with it, if anything."""
    digest = None
    try:
        data = images.bytes_of(index)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        decode(data, images.names[index])
    except UndecodableImageError as error:
        return digest, str(error)
    return digest, ""
