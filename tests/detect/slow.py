"""Detection as plain float64 loops: slow, obvious, written from the papers and VOC's devkit alone.

Boxes are x1, y1, x2, y2, half-open; objects are (label, box, difficult), one list an image.
"""

import math


def overlap(a, b):
    """Intersection over union as in VOC's devkit: in pixels, where the last row and column belong
    to the box."""
    ax1, ay1, ax2, ay2 = a[0], a[1], a[2] - 1, a[3] - 1
    bx1, by1, bx2, by2 = b[0], b[1], b[2] - 1, b[3] - 1
    width = min(ax2, bx2) - max(ax1, bx1) + 1
    height = min(ay2, by2) - max(ay1, by1) + 1
    if width <= 0 or height <= 0:
        return 0.0
    both = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1)
    return width * height / (both - width * height)


def judge(detections, truth, label):
    """The (hits, wrong ones) after each detection (image, label, score, box) of a class, and the
    number of its objects."""
    objects = sum(kind == label and not difficult for rows in truth for kind, _, difficult in rows)
    taken, hits, wrong, curve = set(), 0, 0, []
    # Python's sort keeps the order of equal scores.
    for image, _, _, box in sorted((d for d in detections if d[1] == label), key=lambda d: -d[2]):
        most, which = -math.inf, None
        for number, (kind, there, _) in enumerate(truth[image]):
            if kind == label and overlap(box, there) > most:
                most, which = overlap(box, there), number
        if most < 0.5:
            wrong += 1
        elif not truth[image][which][2]:
            if (image, which) in taken:
                wrong += 1
            else:
                hits += 1
                taken.add((image, which))
        curve.append((hits, wrong))
    return curve, objects


def average_precision(detections, truth, label, *, points):
    """Percent, by the metric of 2007 (11 points) or of 2010 and later (None); nan without objects.

    Recalls are compared as fractions of whole numbers, so that 3 of 10 are 0.3.
    """
    curve, objects = judge(detections, truth, label)
    if not objects:
        return math.nan
    rows = [(hits, hits / (hits + wrong) if hits + wrong else 0.0) for hits, wrong in curve]
    if points:
        total = 0.0
        for level in range(points):
            reached = [p for hits, p in rows if hits * (points - 1) >= level * objects]
            total += max(reached, default=0.0)
        return 100 * total / points
    area = 0.0
    for number in range(1, objects + 1):  # from recall (number - 1) / objects to number / objects
        area += max((p for hits, p in rows if hits >= number), default=0.0)
    return 100 * area / objects


def encode(box, truth):
    """R-CNN, appendix C: t_x = (G_x - P_x) / P_w, t_w = log(G_w / P_w)."""
    shifts = []
    for low in (0, 1):
        side = box[low + 2] - box[low]
        centre, there = (box[low] + box[low + 2]) / 2, (truth[low] + truth[low + 2]) / 2
        shifts.append((there - centre) / side)
    for low in (0, 1):
        shifts.append(math.log((truth[low + 2] - truth[low]) / (box[low + 2] - box[low])))
    return shifts


def nearest_cell(pixel, cells, *, start, stride):
    """Which of `cells` in a row has its centre, start + i * stride, nearest to the pixel; the later
    one of two that tie."""
    return min(range(cells), key=lambda i: (abs(start + i * stride - pixel), -i))


def pool(feature_map, roi, bins, *, start, stride):
    """RoI max pooling of a map given as nested lists (channels of rows): (channels, bins, bins)."""
    height, width = len(feature_map[0]), len(feature_map[0][0])
    left, right = (nearest_cell(x, width, start=start, stride=stride)
                   for x in (roi[0], roi[2] - 1))  # fmt: skip
    top, bottom = (nearest_cell(y, height, start=start, stride=stride)
                   for y in (roi[1], roi[3] - 1))  # fmt: skip
    rows, columns = bottom - top + 1, right - left + 1
    return [
        [
            [
                max(
                    channel[top + y][left + x]
                    for y in range(i * rows // bins, -(-(i + 1) * rows // bins))
                    for x in range(j * columns // bins, -(-(j + 1) * columns // bins))
                )
                for j in range(bins)
            ]
            for i in range(bins)
        ]
        for channel in feature_map
    ]


def suppress(boxes, scores, most, *, least, count):
    """[(class, RoI)] of the detections that stay, best first: none overlaps a better one of its
    class by more than `most`; scores are `least` or more; there are `count` at most in all."""
    kept = []
    for label in range(len(scores[0]) if scores else 0):
        order = sorted(range(len(scores)), key=lambda n: -scores[n][label])
        stays = []
        for n in order:
            if scores[n][label] < least:
                continue
            if all(overlap(boxes[n][label], boxes[m][label]) <= most for m in stays):
                stays.append(n)
        kept += [(label, n) for n in stays]
    return sorted(kept, key=lambda pair: -scores[pair[1]][pair[0]])[:count]


def detection_loss(scores, shifts, labels, targets):
    """Fast R-CNN, Eq. 1 to 3: -log p_u and the smooth L1 of class u's shifts, means over RoIs."""
    of_classes = of_boxes = 0.0
    for row, own, label, target in zip(scores, shifts, labels, targets, strict=True):
        most = max(row)
        of_classes += math.log(sum(math.exp(s - most) for s in row)) + most - row[label]
        if label:
            for t, v in zip(own[label - 1], target, strict=True):
                far = abs(t - v)
                of_boxes += 0.5 * far * far if far < 1 else far - 0.5
    return of_classes / len(labels), of_boxes / len(labels)
