"""`delving data verify`: every image decoded once, counted by class, looked for in both splits."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from delving.data.images import Images, UndecodableImageError, decode


@dataclass
class Report:
    """What a look at every file found."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> images
    bad: list[str] = field(default_factory=list)  # one line each
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (train, val) names

    @property
    def sound(self) -> bool:
        return not self.bad and not self.duplicates


def verify_data(train: Images, val: Images) -> Report:
    """Reads and decodes every image of both splits; files of equal bytes in both are duplicates."""
    report, seen = Report(), {}
    for split, images in (("train", train), ("val", val)):
        labels = Counter(images.labels.tolist())
        report.counts[split] = {name: labels[i] for i, name in enumerate(images.classes)}
        for name in images.names:
            data = images.read(name)
            try:
                decode(data, name)
            except UndecodableImageError as error:
                report.bad.append(str(error))
            digest = hashlib.sha256(data).digest()
            if split == "train":
                seen.setdefault(digest, name)
            elif digest in seen:
                report.duplicates.append((seen[digest], name))
    return report
