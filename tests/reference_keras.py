"""A slow twin of the whitening convolution as it is by default, in float64 and numpy: loops, no cleverness.

Written from the paper (Ye et al., ICLR 2020, algorithm 1) and from what the options say: blocks of consecutive
channels, each with its own mean and covariance; a running covariance, corrected for its start, whose root evaluation
and training use alike; the mean of the batch in training.
"""

from __future__ import annotations

import itertools

import numpy as np


class FastDeconv2D:
    """kernel (k, k, C / groups, O), bias (O,); images are channels last."""

    def __init__(self, kernel, bias, *, padding=0, stride=1, groups=1, block=16, refresh=16, sampling_stride=3):
        self.kernel, self.bias = kernel.astype(float), bias.astype(float)
        self.padding, self.stride, self.groups, self.refresh = padding, stride, groups, refresh
        self.sampling = sampling_stride
        channels, self.k = kernel.shape[2] * groups, kernel.shape[0]
        each = channels // groups
        count = -(-each // min(block, each))
        size = -(-each // count)
        self.members = [  # the channels of each block, None where it is filled up
            [g * each + c if c < each else None for c in range(b * size, (b + 1) * size)]
            for g in range(groups)
            for b in range(count)
        ]
        features = size * self.k**2
        self.mean = np.zeros((len(self.members), features))
        self.cov = np.stack([np.eye(features)] * len(self.members))
        self.root = self.cov.copy()
        self.steps = self.updates = 0

    def patches(self, x, every=(1, 1)):
        """(n, blocks, F) at every so many strides."""
        p, k = self.padding, self.k
        x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        rows = []
        for image in x:
            for i in range(0, x.shape[1] - k + 1, self.stride * every[0]):
                for j in range(0, x.shape[2] - k + 1, self.stride * every[1]):
                    patch = image[i : i + k, j : j + k]
                    rows.append(
                        [
                            [
                                0.0 if c is None else patch[u, v, c]
                                for c in block
                                for u, v in itertools.product(range(k), range(k))
                            ]
                            for block in self.members
                        ]
                    )
        return np.array(rows)

    def __call__(self, x, training):
        x = x.astype(float)
        mean = self.mean
        rows = self.patches(x)
        if training:
            self.steps += 1
            mean = rows.mean(0)
            self.mean = self.mean + 0.1 / (1 - 0.9**self.steps) * (mean - self.mean)
            if self.steps <= 50 or self.steps % self.refresh == 0:
                self.take_in(x)
        places = [(n + 2 * self.padding - self.k) // self.stride + 1 for n in x.shape[1:3]]
        out = np.zeros((len(rows), self.kernel.shape[3]))
        for n, row in enumerate(rows):
            white = [self.root[b] @ (row[b] - mean[b]) for b in range(len(row))]
            for o in range(out.shape[1]):
                out[n, o] = self.bias[o] + sum(
                    value * self.tap(o, c, q)
                    for b, block in enumerate(self.members)
                    for (c, q), value in zip(itertools.product(block, range(self.k**2)), white[b], strict=True)
                    if c is not None
                )
        return out.reshape(len(x), *places, -1)

    def tap(self, o, c, q):
        """The weight of channel c at kernel position q for output o, 0 in another convolution group."""
        each, outer = self.kernel.shape[2], self.kernel.shape[3] // self.groups
        if c // each != o // outer:
            return 0.0
        return self.kernel[q // self.k, q % self.k, c % each, o]

    def take_in(self, x):
        places = [(n + 2 * self.padding - self.k) // self.stride + 1 for n in x.shape[1:3]]
        rows = self.patches(x, [max(1, min(self.sampling, n // 8)) for n in places])
        if len(rows) < 2:
            return
        self.updates += 1
        for b in range(len(self.members)):
            cov = np.cov(rows[:, b].T, bias=True)
            self.cov[b] += 0.1 / (1 - 0.9**self.updates) * (cov - self.cov[b])
            whole = self.cov[b] + 1e-5 * np.eye(len(cov))
            scale = np.linalg.norm(whole)
            y, z = whole / scale, np.eye(len(cov))
            for _ in range(5):
                t = 0.5 * (3 * np.eye(len(cov)) - z @ y)
                y, z = y @ t, t @ z
            self.root[b] = z / np.sqrt(scale)


def topk(scores, keep):
    """The mask of (k, k, I, O) scores by sorting all of them; of equal ones the first in the order (O, I, k, k)."""
    flat = np.abs(scores).transpose(3, 2, 0, 1).ravel()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    mask = np.zeros(len(flat))
    mask[order[: max(1, int(np.ceil(keep * len(flat) - 1e-6)))]] = 1
    return mask.reshape(scores.shape[3], scores.shape[2], *scores.shape[:2]).transpose(2, 3, 1, 0)
