r"""Adversarial images: the fast gradient sign method and projected gradient descent (Madry et al., ICLR 2018).

In the ball of radius $\epsilon$ around an image x, intersected with [0, 1], ascend the cross-entropy of the true label:

$$x_{t+1} = \Pi\left(x_t + \alpha\, d(\nabla_x \ell(x_t, y))\right), \qquad
  d(g) = \mathrm{sign}\, g \text{ in } L_\infty, \quad g / \lVert g \rVert_2 \text{ in } L_2$$
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.core.errors import InputError
from pellucid.core.seeds import seed_of

Norm = Literal["linf", "l2"]


def fgsm(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, eps: float, norm: Norm = "linf"
) -> Tensor:
    """Adversarial images by one step of size `eps` (Goodfellow et al. 2015); arguments as in `pgd`."""
    return pgd(model, images, labels, eps=eps, norm=norm, steps=1, step_size=eps, random_start=False)


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    indices: Tensor | None = None,
) -> Tensor:
    """Adversarial images (B, C, H, W), found by projected gradient ascent.

    Of each image the point of highest loss is kept, the clean image included.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K), each image independent of the others (batch norm in
            evaluation mode); wrap a network of normalised input by `Normalization.wrap`.
        images, labels: (B, C, H, W) in [0, 1] and (B,).
        eps: radius of the ball, where the range of pixels is 1 (8/255 = 0.031).
        norm: "linf", or "l2" over all values of an image.
        steps: of gradient ascent.
        step_size: default 2.5 eps / steps.
        random_start: begin at a point drawn uniformly from the ball.
        seed: of the start, with the image's index.
        indices: (B,) indices of the images in their data set; default 0 to B - 1.

    Raises:
        InputError: a value out of range, an unknown norm, or images outside [0, 1].
    """
    step_size = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    if norm not in ("linf", "l2"):
        raise InputError(f"norm={norm!r} must be linf or l2.")
    if not 0 <= eps < math.inf or not 0 <= step_size < math.inf or steps < 1:
        raise InputError(
            f"An attack needs finite eps ({eps}) and step_size ({step_size}) of at least 0, and steps ({steps}) of "
            "at least 1."
        )
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise InputError("Attacks expect images in [0, 1]: wrap a model of normalised input by Normalization.wrap.")
    clean = images.detach()
    best = clean.clone()
    highest = torch.full((len(clean),), -math.inf, device=clean.device)
    x = clean
    if random_start:
        x = (clean + _start(clean, eps, norm, seed, indices)).clamp(0, 1)
        highest = _loss(model, clean, labels)[0]
    for step in range(steps + 1):
        losses, gradient = _loss(model, x, labels, step < steps)
        better = losses > highest
        best = torch.where(_wide(better, x), x, best)
        highest = torch.where(better, losses, highest)
        if gradient is not None:
            direction = gradient.sign() if norm == "linf" else _unit(gradient)
            x = (clean + _project(x + step_size * direction - clean, eps, norm)).clamp(0, 1)
    return best


def _loss(
    model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy per image, (B,), and its gradient if wanted."""
    with torch.set_grad_enabled(gradient):
        x = x.detach().requires_grad_(gradient)
        losses = F.cross_entropy(model(x), labels, reduction="none")
        found = torch.autograd.grad(losses.sum(), x)[0] if gradient else None
    return losses.detach(), found


def _start(images: Tensor, eps: float, norm: Norm, seed: int, indices: Tensor | None) -> Tensor:
    """(B, C, H, W) uniform in the ball, one random stream per image."""
    numbers = torch.arange(len(images)) if indices is None else indices
    drawn = [_in_ball(images.shape[1:], norm, seed_of("attack", seed, index)) for index in numbers.tolist()]
    return eps * torch.stack(drawn).to(images) if drawn else torch.zeros_like(images)


def _in_ball(shape: torch.Size, norm: Norm, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    if norm == "linf":
        return 2 * torch.rand(shape, generator=rng) - 1
    # A normal direction, and a radius whose d-th power is uniform.
    direction = torch.randn(shape, generator=rng)
    return direction / direction.norm() * torch.rand((), generator=rng) ** (1 / direction.numel())


def _project(shift: Tensor, eps: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return shift.clamp(-eps, eps)
    length = shift.flatten(1).norm(dim=1)
    return shift * _wide((eps / length.clamp(min=1e-12)).clamp(max=1), shift)


def _unit(gradient: Tensor) -> Tensor:
    return gradient / _wide(gradient.flatten(1).norm(dim=1).clamp(min=1e-12), gradient)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
