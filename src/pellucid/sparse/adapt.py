r"""Lambda at test time: how noisy a trained sparse coding network should take its input to be.

Dai et al. (NeurIPS 2022) raise the $\lambda$ of a trained network as the noise grows, by a line in the residual that
they fit with test labels: `fit_line`, through the choices of `oracle`, here on held-out images. `calibrate` needs no
labels: it adds noise of known strength to clean images and finds the $\lambda$ at which the network's predictions agree
best with those without noise; the $\lambda$ of a new image then follows from the noise estimated in that image alone.

All of this concerns the layer that sees the image, the first sparse one.
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
from pellucid.core.modes import evaluating
from pellucid.core.terminal import track
from pellucid.sparse.layers import CSC

Logits = Callable[..., Tensor]  # (images (B, C, H, W) in [0, 1], lam=...) -> logits (B, K)

SIGMAS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)  # noise added in calibration
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)  # lambdas to try, in units of the trained one
_LAPLACE = [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]


def sparse_layer(model: nn.Module) -> CSC:
    """The sparse coding layer that sees the image: the model's first.

    Raises:
        InputError: the model has none.
    """
    for module in model.modules():
        if isinstance(module, CSC):
            return module
    raise InputError("The model has no sparse-coding layer and thus no lambda: leave out --lam.")


def trained_lam(layer: CSC) -> float:
    """The lambda that `layer` was trained with.

    Raises:
        InputError: the layer's lambda is set image by image.
    """
    if isinstance(layer.lam, Tensor) and layer.lam.dim():
        raise InputError(
            "The layer's lam is set for the images of one batch: set it to the number it was trained with."
        )
    return float(layer.lam)


@contextlib.contextmanager
def lam_at(layer: CSC | None, lam: float | Tensor | None) -> Iterator[None]:
    """Give `layer` this lambda while the block runs: a number, (B,) for the images of a batch, or None for its own."""
    if layer is None or lam is None:
        yield
        return
    kept, layer.lam = layer.lam, lam
    try:
        yield
    finally:
        layer.lam = kept


def estimate_noise(images: Tensor) -> Tensor:
    r"""Standard deviation (B,) of the noise in each image of (B, C, H, W), in the unit of the images (Immerkaer 1996):

    $$\hat\sigma = \sqrt{\pi/2}\; \overline{\lvert N * x \rvert} / 6$$

    with N the difference of two Laplacians, which responds to neither planes nor edges. Fine texture counts as noise.
    """
    seen = correlate(images, _LAPLACE, "mirror")[..., 1:-1, 1:-1] / 6
    return math.sqrt(math.pi / 2) * seen.abs().flatten(1).mean(1)


@torch.no_grad()
def residual(layer: CSC, images: Tensor) -> Tensor:
    """Root mean square (B,) of the residual that the layer's code leaves of each image (B, C, H, W).

    The images are normalised as the layer expects them. The layer evaluates, whatever mode it is in.
    """
    layer_images = images.to(layer.weight.device)
    with evaluating(layer):
        return layer.residual(layer_images, layer(layer_images)).flatten(1).square().mean(1).sqrt()


# --- without labels ---


@dataclass(frozen=True)
class Adaptive:
    """Lambda as a function of the noise in each image: linear between calibrated points, constant beyond them.

    estimates: values of `estimate_noise`, increasing.
    lams: lambda at each, not decreasing.
    """

    estimates: tuple[float, ...]
    lams: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """A lambda (B,) for each image of (B, C, H, W), with values in [0, 1].

        Differentiable by the images wherever it is a smooth function of them; beyond the calibrated points it is
        constant, and its gradient 0.
        """
        # On the CPU, since not every device has float64.
        found = _interpolated(estimate_noise(images).cpu().double(), self.estimates, self.lams)
        return found.to(images.dtype).to(images.device)


def _interpolated(x: Tensor, places: Sequence[float], values: Sequence[float]) -> Tensor:
    """`values` (n) at increasing `places`, linear between them and constant beyond: at x (B,), float64."""
    at, of = (torch.tensor([*row, row[-1]], dtype=torch.float64) for row in (places, values))
    right = torch.searchsorted(at[:-1].contiguous(), x.detach(), right=True).clamp(min=1)
    gap = at[right] - at[right - 1]
    part = torch.where(gap > 0, (x - at[right - 1]) / gap.where(gap > 0, 1.0), (x >= at[right]).double())
    return of[right - 1] + part.clamp(0, 1) * (of[right] - of[right - 1])


def calibrate(
    logits: Logits,
    images: Tensor,
    trained: float,
    *,
    sigmas: Sequence[float] = SIGMAS,
    factors: Sequence[float] = FACTORS,
    seed: int = 0,
) -> Adaptive:
    """Find lambda as a function of noise, on clean images without labels.

    For each strength of noise, the best lambda is the one with which most predictions agree with those of the network
    on the clean images; of several, the smallest. (The mean log probability of the clean prediction would be smoother,
    but it falls with confidence as lambda rises, and so favours lambdas that are too small.) A running maximum keeps
    lambda from falling as the noise grows.

    Args:
        logits: `(images in [0, 1], lam=number) -> (B, K)`, the network as it will be used later, for instance with
            batch norm re-estimated.
        images: (B, C, H, W) in [0, 1], clean; a few hundred.
        trained: the lambda that the network was trained with.
        sigmas: standard deviations of the Gaussian noise; the first is 0.
        factors: lambdas to try, in units of `trained`; the first is 1.
        seed: of the noise.
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
    """The best lambda, the smaller of equals, and its accuracy.

    Where the accuracies come from the test images and their labels, this is an upper bound, and as the maximum of
    several noisy numbers a little too high.
    """
    best = max(range(len(lams)), key=lambda place: (accuracies[place], -lams[place]))
    return lams[best], accuracies[best]


@dataclass(frozen=True)
class Line:
    """The paper's rule: lambda = slope * residual + intercept, but at least `least`."""

    slope: float
    intercept: float
    least: float

    def __call__(self, residual: float) -> float:
        return max(self.least, self.slope * residual + self.intercept)


def fit_line(residuals: Sequence[float], lams: Sequence[float], least: float) -> Line:
    """Fit the paper's rule by least squares, with one point per noise level.

    residuals: mean residual at the trained lambda. lams: best lambda according to labels. least: the trained lambda, as
    the lower limit. The line is constant if all residuals are equal.
    """
    x, y = np.asarray(residuals, dtype=float), np.asarray(lams, dtype=float)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 0.0
    return Line(slope, float(y.mean() - slope * x.mean()), least)
