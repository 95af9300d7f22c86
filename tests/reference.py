"""Slow twins in float64, written from the papers: loops, no cleverness. Tests hold the package against them.

Whitening follows Ye et al., "Network Deconvolution", ICLR 2020, with the arithmetic of its published implementation:
features of a patch are channel-major, c K + p; C channels are pooled in blocks of B as G = C / B interleaved columns.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def patches(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """Zero-padded patches of x (N, C, *size), (n, C K): images first, then positions in raster order."""
    rows = []
    places = [
        range(0, size + 2 * p - d * (k - 1), s)
        for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    for image in x:
        for place in itertools.product(*places):
            row = []
            for channel in image:
                for offset in itertools.product(*map(range, kernel)):
                    at = [o + i * d - p for o, i, d, p in zip(place, offset, dilation, padding, strict=True)]
                    inside = all(0 <= i < n for i, n in zip(at, channel.shape, strict=True))
                    row.append(channel[tuple(at)] if inside else x.new_zeros(()))
            rows.append(torch.stack(row))
    return torch.stack(rows)


def covariance(rows: Tensor, mean: Tensor | None = None) -> Tensor:
    """Population covariance of rows (n, F) about their mean, or about `mean`: one outer product after the other."""
    middle = sum(rows) / len(rows) if mean is None else mean
    return sum(torch.outer(row - middle, row - middle) for row in rows) / len(rows)


def isqrt(cov: Tensor, ridge: float = 0.0) -> Tensor:
    """(Sigma + ridge I)^(-1/2) by eigenvalues."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors @ torch.diag((values + ridge).rsqrt()) @ vectors.T


def newton_schulz(cov: Tensor, n: int) -> Tensor:
    """The published iteration with all its products."""
    scale = cov.norm()
    y, z, eye = cov / scale, torch.eye(len(cov), dtype=cov.dtype), torch.eye(len(cov), dtype=cov.dtype)
    for _ in range(n):
        t = 0.5 * (3 * eye - z @ y)
        y = y @ t
        z = t @ z
    return z / scale.sqrt()


def divisor(channels: int, block: int) -> int:
    """The published block for so many channels."""
    return channels if block > channels else block if channels % block == 0 else math.gcd(channels, block)


class FastDeconv:
    """The published convolution, 2-D, float64, with its running mean and root; `weight` (O, C/groups, k, k)."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        block: int = 64,
        eps: float = 1e-5,
        n_iter: int = 5,
        momentum: float = 0.1,
        sampling_stride: int = 3,
    ) -> None:
        self.weight = weight.detach().double().requires_grad_()
        self.bias = None if bias is None else bias.detach().double().requires_grad_()
        self.k = weight.shape[-1]
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        channels = weight.shape[1] * groups
        self.block = divisor(channels, block) if groups == 1 else channels // groups
        self.features, self.count = self.k**2 * self.block, channels // self.block
        self.eps, self.n_iter, self.momentum, self.sampling = eps, n_iter, momentum, sampling_stride * stride
        self.matrices = groups
        self.mean = torch.zeros(self.matrices, self.features, dtype=torch.float64)
        self.root = torch.eye(self.features, dtype=torch.float64).repeat(self.matrices, 1, 1)

    def samples(self, x: Tensor) -> list[Tensor]:
        """Rows (n, F) of each matrix."""
        if self.k > 1:
            pairs = [(v, v) for v in (self.k, self.sampling, self.padding, self.dilation)]
            rows = patches(x, *pairs)
        else:
            pixels = [x[n, :, i, j] for n in range(len(x)) for i in range(x.shape[2]) for j in range(x.shape[3])]
            rows = torch.stack(pixels[:: self.sampling**2])
        if self.groups > 1:
            return [rows[:, g * self.features : (g + 1) * self.features] for g in range(self.groups)]
        # Column j is feature j // G of group j mod G, and all groups are samples of one matrix.
        return [torch.stack([row[g :: self.count] for row in rows for g in range(self.count)])]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        if training:
            mean, root = [], []
            for rows in self.samples(x):
                mean.append(rows.mean(0))
                cov = covariance(rows) + self.eps * torch.eye(self.features, dtype=torch.float64)
                root.append(newton_schulz(cov, self.n_iter))
            with torch.no_grad():
                for g in range(self.matrices):
                    self.mean[g] = (1 - self.momentum) * self.mean[g] + self.momentum * mean[g]
                    self.root[g] = (1 - self.momentum) * self.root[g] + self.momentum * root[g]
        else:
            mean, root = list(self.mean), list(self.root)
        made, shift = [], []
        for o, row in enumerate(self.weight.flatten(1)):
            if self.groups > 1:
                g = o // (len(self.weight) // self.groups)
                made.append(row @ root[g])
                shift.append(made[-1] @ mean[g])
                continue
            out = [None] * len(row)
            total = 0
            for g in range(self.count):
                part = row[g :: self.count] @ root[0]
                total = total + part @ mean[0]
                out[g :: self.count] = list(part)
            made.append(torch.stack(out))
            shift.append(total)
        weight = torch.stack(made).reshape(self.weight.shape)
        bias = -torch.stack(shift) + (0 if self.bias is None else self.bias)
        return torch.nn.functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Delinear:
    """The published linear layer: contiguous blocks of features are samples of one matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, block: int = 512, eps: float = 1e-5) -> None:
        self.weight = weight.detach().double().requires_grad_()
        self.bias = None if bias is None else bias.detach().double().requires_grad_()
        self.block, self.eps = divisor(weight.shape[1], block), eps
        self.mean = torch.zeros(1, self.block, dtype=torch.float64)
        self.root = torch.eye(self.block, dtype=torch.float64)[None]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        starts = range(0, x.shape[1], self.block)
        if training:
            rows = torch.stack([row[i : i + self.block] for row in x for i in starts])
            mean = rows.mean(0)
            root = newton_schulz(covariance(rows) + self.eps * torch.eye(self.block, dtype=torch.float64), 5)
            with torch.no_grad():
                self.mean = 0.9 * self.mean + 0.1 * mean
                self.root = 0.9 * self.root + 0.1 * root
        else:
            mean, root = self.mean[0], self.root[0]
        out = 0 if self.bias is None else self.bias
        for i in starts:
            out = out + (x[:, i : i + self.block] - mean) @ root.T @ self.weight[:, i : i + self.block].T
        return out


class ChannelDeconv:
    """The published explicit layer: B rows of C // B consecutive channels, an un-centred covariance, and one scalar
    mean and variance for the channels that remain; the first batch is copied."""

    def __init__(self, block: int, *, eps: float = 1e-5, sampling_stride: int = 3) -> None:
        self.block, self.eps, self.sampling = block, eps, sampling_stride
        self.state: list[Tensor] = []

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        shape = x.shape
        if x.dim() == 2:
            x = x[:, :, None, None]
        each = shape[1] // self.block
        c = each * self.block
        sparse = self.sampling > 1 and min(x.shape[2:]) >= self.sampling
        every = self.sampling**2 if sparse else 1
        rows = torch.stack([torch.cat([x[:, b * each + i].flatten() for i in range(each)]) for b in range(self.block)])
        if training:
            seen = rows[:, ::every]
            root = newton_schulz(covariance(seen.T, 0) + self.eps * torch.eye(self.block, dtype=torch.float64), 5)
            now = [seen.mean(1), root]
            if c < shape[1]:
                rest = torch.stack([image[c:].flatten()[::every] for image in x])
                middle = rest.sum() / rest.numel()
                now += [middle, ((rest - middle) ** 2).sum() / (rest.numel() - 1)]
            with torch.no_grad():
                old = self.state or [value.detach() for value in now]
                self.state = [0.9 * a + 0.1 * b for a, b in zip(old, now, strict=True)]
        else:
            now = self.state
        rows = now[1] @ (rows - now[0][:, None])
        out = [rows[b].reshape(each, len(x), *x.shape[2:]).transpose(0, 1) for b in range(self.block)]
        if c < shape[1]:
            out.append((x[:, c:] - now[2]) / (now[3] + self.eps).sqrt())
        return torch.cat(out, 1).reshape(shape)


def debiased(values: list[Tensor], momentum: float) -> Tensor:
    """The running average from 0, divided by the weight that it has gathered."""
    total, weight = torch.zeros_like(values[0]), 0.0
    for value in values:
        total = (1 - momentum) * total + momentum * value
        weight = (1 - momentum) * weight + momentum
    return total / weight
