r"""Lambda at test time: how strongly a trained sparse-coding network is to be told that its input is noisy.

Dai et al. (NeurIPS 2022) raise the $\lambda$ of a trained network as the noise grows, by a line in the
residual whose points are chosen with test labels: `fit_line`, of `oracle` choices. `calibrate` needs no label: on clean
images with noise of known strength added, the $\lambda$ is sought at which the network answers most like itself without
noise, and a new image's $\lambda$ follows from the noise that is estimated in it alone.

All of it is about the layer that sees the image, the first sparse one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.core.errors import InputError
from pellucid.core.measure.corrupt import corrupt_images
from pellucid.core.measure.corrupt.resample import correlate
from pellucid.core.terminal import track
from pellucid.sparse.layers import CSC

Logits = Callable[..., Tensor]  # (images (B, C, H, W) in [0, 1], lam=...) -> logits (B, K)

SIGMAS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)  # noise that is added in calibration
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)  # lambdas that are tried, in units of the trained one
_LAPLACE = [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]


def sparse_layer(model: nn.Module) -> CSC:
    """The sparse-coding layer that sees the image: the first of the model's layers that is one.

    Raises:
        InputError: the model has none.
    """
    for module in model.modules():
        if isinstance(module, CSC):
            return module
    raise InputError("The model has no sparse-coding layer, so it has no lambda: leave out --lam, or give none.")


def trained_lam(layer: CSC) -> float:
    """The one number that `layer` was trained with."""
    if isinstance(layer.lam, Tensor) and layer.lam.dim():
        raise InputError("The layer's lam is set for the images of one batch: set it back to the number trained with.")
    return float(layer.lam)


@contextlib.contextmanager
def lam_at(layer: CSC | None, lam: float | Tensor | None) -> Iterator[None]:
    """While the block runs, `layer` has this lambda (None: its own): one number or (B,) for the images of a batch."""
    if layer is None or lam is None:
        yield
        return
    kept, layer.lam = layer.lam, lam
    try:
        yield
    finally:
        layer.lam = kept


def estimate_noise(images: Tensor) -> Tensor:
    r"""(B,) standard deviation of the noise in each image (B, C, H, W), in the images' unit (Immerkaer 1996):

    $$\hat\sigma = \sqrt{\pi/2}\; \overline{\lvert N * x \rvert} / 6$$

    with N the difference of two Laplacians, which sees neither planes nor edges. Fine texture counts as noise.
    """
    seen = correlate(images, _LAPLACE, "mirror")[..., 1:-1, 1:-1] / 6
    return math.sqrt(math.pi / 2) * seen.abs().flatten(1).mean(1)


@torch.no_grad()
def residual(layer: CSC, images: Tensor) -> Tensor:
    """(B,) root mean square of what the code leaves of each image, normalised as the layer wants them."""
    layer_images = images.to(layer.weight.device)
    return layer.residual(layer_images, layer(layer_images)).flatten(1).square().mean(1).sqrt()


# --- without labels ---


@dataclass(frozen=True)
class Adaptive:
    """Lambda by the noise in each image: linear between calibrated points, constant beyond them.

    estimates: of `estimate_noise`, increasing; lams: not decreasing.
    """

    estimates: tuple[float, ...]
    lams: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) a lambda for each image (B, C, H, W) in [0, 1]."""
        found = np.interp(estimate_noise(images).double().cpu().numpy(), self.estimates, self.lams)
        return torch.from_numpy(found).to(images)


def calibrate(
    logits: Logits,
    images: Tensor,
    trained: float,
    *,
    sigmas: Sequence[float] = SIGMAS,
    factors: Sequence[float] = FACTORS,
    seed: int = 0,
) -> Adaptive:
    """Find lambda by noise on unlabelled clean images: where the network agrees most with its own clean answers.

    Args:
        logits: `(images in [0, 1], lam=number) -> (B, K)`, as the network is to be used later, be that with batch norm
            estimated again.
        images: (B, C, H, W) in [0, 1], clean; a few hundred. No label is asked for.
        trained: the lambda that the network was trained with.
        sigmas: standard deviations of Gaussian noise, the first 0.
        factors: lambdas to try, in units of `trained`, the first 1.
        seed: of the noise.

    Agreement is the share of images that are still answered as without noise; of equal lambdas the smallest. (The mean
    log probability of that answer, though smoother, falls with confidence as lambda rises, and chooses too small ones.)
    Lambda is made not to fall with the noise (a running maximum).
    """
    own = logits(images, lam=trained).argmax(1)
    estimates, lams = [], []
    for sigma in track(sigmas, len(sigmas), "calibrating lambda"):
        noisy = corrupt_images(images, "gaussian_noise", level=sigma, seed=seed) if sigma else images
        estimates.append(float(estimate_noise(noisy).median()))
        agreed = [int((logits(noisy, lam=trained * factor).argmax(1) == own).sum()) for factor in factors]
        lams.append(trained * factors[int(np.argmax(agreed))] if sigma else trained)
    order = np.argsort(estimates, kind="stable")
    rising = np.maximum.accumulate(np.array(lams)[order])
    return Adaptive(tuple(np.array(estimates)[order].tolist()), tuple(rising.tolist()))


# --- with labels ---


def oracle(accuracies: Sequence[float], lams: Sequence[float]) -> tuple[float, float]:
    """(lambda, accuracy) of the best, the smaller lambda of equals. The accuracies are those of the images to be
    answered, with their labels: a bound, and as the best of several a little too high."""
    best = max(range(len(lams)), key=lambda place: (accuracies[place], -lams[place]))
    return lams[best], accuracies[best]


@dataclass(frozen=True)
class Line:
    """The paper's rule, lambda = slope * residual + intercept, not below `least`."""

    slope: float
    intercept: float
    least: float

    def __call__(self, residual: float) -> float:
        return max(self.least, self.slope * residual + self.intercept)


def fit_line(residuals: Sequence[float], lams: Sequence[float], least: float) -> Line:
    """Least squares through (mean residual at the trained lambda, best lambda by labels), one point a noise level.

    A constant where all residuals are the same; `least`, the trained lambda, is the lower end.
    """
    x, y = np.asarray(residuals, dtype=float), np.asarray(lams, dtype=float)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 0.0
    return Line(slope, float(y.mean() - slope * x.mean()), least)
