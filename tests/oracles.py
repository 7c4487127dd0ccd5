"""The paper's formulas as plain float64 loops: slow, obvious, written from the paper alone."""

import math

import numpy as np

PAPERS = ("relu", "lrelu", "prelu", "prelu_shared")  # its rectifiers


def rectify(y, slopes):
    """Eq. 1, one response after the other. y (N, C, ...); one slope a channel, or a single one."""
    out = np.empty(y.shape, np.float64)
    for place in np.ndindex(y.shape):
        a = slopes[place[1] % len(slopes)]
        out[place] = y[place] if y[place] > 0 else a * y[place]
    return out


def rectify_gradients(y, slopes, grad):
    """dE/dy by the chain rule and dE/da by Eq. 2-3, given dE/df(y)."""
    grad_y, grad_a = np.empty(y.shape, np.float64), np.zeros(len(slopes), np.float64)
    for place in np.ndindex(y.shape):
        channel = place[1] % len(slopes)
        positive = y[place] > 0
        grad_y[place] = grad[place] * (1.0 if positive else slopes[channel])
        grad_a[channel] += grad[place] * (0.0 if positive else y[place])
    return grad_y, grad_a


def gain(slope):
    """1/2 (1 + a^2): what a rectifier of slope a leaves of a symmetric response's second moment."""
    return 0.5 * (1 + slope * slope)


def bins(size, count):
    """[floor(i n / b), ceil((i + 1) n / b)) for each of b bins on n cells."""
    return [(math.floor(i * size / count), math.ceil((i + 1) * size / count)) for i in range(count)]


def pool_pyramid(maps, levels):
    """Spatial pyramid pooling of one image: maps (C, H, W) to a vector, level by level."""
    channels, height, width = maps.shape
    out = []
    for level in levels:
        for c in range(channels):
            for top, bottom in bins(height, level):
                for left, right in bins(width, level):
                    best = -math.inf
                    for y in range(top, bottom):
                        for x in range(left, right):
                            best = max(best, float(maps[c, y, x]))
                    out.append(best)
    return np.array(out)


def pool_every_window(maps, size, levels):
    """The same for each size x size window of maps (C, H, W): (rows, columns, features)."""
    _, height, width = maps.shape
    return np.array(
        [
            [
                pool_pyramid(maps[:, y : y + size, x : x + size], levels)
                for x in range(width - size + 1)
            ]
            for y in range(height - size + 1)
        ]
    )


def softmax(logits):
    powers = [math.exp(v - max(logits)) for v in logits]
    return [p / sum(powers) for p in powers]


def top_k_error(probabilities, labels, k):
    """Percent of images whose class is not among the k first of a sort by falling probability."""
    wrong = 0
    for scores, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        ranking = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
        wrong += label not in ranking[:k]
    return 100 * wrong / len(labels)


def sgd(weight, velocity, gradient, *, lr, momentum, decay):
    """One step of momentum SGD with weight decay, the rate outside the velocity: copies of both."""
    weight, velocity = weight.copy(), velocity.copy()
    for place in np.ndindex(weight.shape):
        pull = gradient[place] + decay * weight[place]
        velocity[place] = momentum * velocity[place] + pull
        weight[place] -= lr * velocity[place]
    return weight, velocity
