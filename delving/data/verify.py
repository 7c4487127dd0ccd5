"""`delving data verify`: every image decoded once, counted by class, looked for in both splits."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from delving.data.images import Images, UndecodableImageError, decode


@dataclass
class Report:
    """What a look at every file found, in the data's order."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> images
    decoded: dict[str, int] = field(default_factory=dict)  # split -> images that can be
    bad: list[tuple[str, str]] = field(default_factory=list)  # (name, what is wrong)
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (train, val) names

    @property
    def sound(self) -> bool:
        return not self.bad and not self.duplicates


def verify_data(train: Images, val: Images) -> Report:
    """Reads and decodes every image of both splits, whatever is wrong with some of them.

    Files of equal bytes in both are duplicates; a hash of each training file is kept for that.
    """
    report, seen = Report(), {}
    for split, images in (("train", train), ("val", val)):
        labels = Counter(images.labels.tolist())
        report.counts[split] = {name: labels[i] for i, name in enumerate(images.classes)}
        report.decoded[split] = 0
        for index, name in enumerate(images.names):
            try:
                data = images.bytes_of(index)
                digest = hashlib.blake2b(data, digest_size=16).digest()
                if split == "train":
                    seen.setdefault(digest, index)
                elif digest in seen:
                    report.duplicates.append((train.names[seen[digest]], name))
                decode(data, name)
                report.decoded[split] += 1
            except UndecodableImageError as error:
                report.bad.append((name, str(error)))
    return report
