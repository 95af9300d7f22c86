"""Weather: snow, frost, fog, brightness, spatter (Hendrycks and Dietterich 2019, section 3).

Frost differs from the published one, which overlays photographs: it overlays a random texture. Spatter's drops are the
published ones; the light on them comes from the distance to their rim, without an edge detector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.core.measure.corrupt.blur import motion, trail
from pellucid.core.measure.corrupt.kind import Kind
from pellucid.core.measure.corrupt.resample import correlate, gaussian, luma, painted, zoomed

ICE = (0.85, 0.95, 1.0)
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
BOX = [[1 / 9] * 3] * 3
LIGHT = [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]  # from the lower right


# --- fog and frost: plasma fractals ---


def grid(x: Tensor, maps: int, rng: torch.Generator) -> Tensor:
    """(maps, M, M) uniform in [-1, 1], one number per cell; M is the power of two that covers the image."""
    side = 1 << (max(x.shape[-2:]) - 1).bit_length()
    return 2 * torch.rand(maps, side, side, generator=rng) - 1


def plasma(draws: Tensor, decay: float) -> Tensor:
    """Diamond-square fractals in [0, 1] on a torus, from draws (..., M, M) in [-1, 1] (Fournier et al. 1982).

    Each cell is the mean of its four neighbours at the step that fills it, plus its random number times an amplitude
    that falls by decay^2 per step: the published code's wobble is an amplitude times a range, and both decay.
    """
    side = draws.shape[-1]
    field = torch.zeros_like(draws)
    step, amplitude = side, 1.0
    while step >= 2:
        half = step // 2
        corners = field[..., ::step, ::step]
        centres = (corners + corners.roll(-1, -2) + corners.roll(-1, -1) + corners.roll((-1, -1), (-2, -1))) / 4
        centres = centres + amplitude * draws[..., half::step, half::step]
        field[..., half::step, half::step] = centres
        across = (corners + corners.roll(-1, -1) + centres + centres.roll(1, -2)) / 4
        field[..., ::step, half::step] = across + amplitude * draws[..., ::step, half::step]
        below = (corners + corners.roll(-1, -2) + centres + centres.roll(1, -1)) / 4
        field[..., half::step, ::step] = below + amplitude * draws[..., half::step, ::step]
        step, amplitude = half, amplitude / decay**2
    low = field.amin((-2, -1), keepdim=True)
    return (field - low) / (field.amax((-2, -1), keepdim=True) - low)


def fog(x: Tensor, level: tuple[float, float], draws: Tensor) -> Tensor:
    thick, decay = level
    haze = plasma(draws, decay)[..., : x.shape[-2], : x.shape[-1]]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thick * haze) * brightest / (brightest + thick)


def frost(x: Tensor, level: tuple[float, float], draws: Tensor) -> Tensor:
    """The image dimmed and covered with ice: needles along the ridges of one fractal, on the haze of another."""
    kept, ice = level
    ridges, haze = plasma(draws, 1.4)[..., : x.shape[-2], : x.shape[-1]].unbind(1)
    needles = (1 - (2 * ridges - 1).abs()) ** 6
    texture = (0.25 + 0.35 * haze + 0.6 * needles).clamp(max=1)
    return kept * x + ice * texture[:, None] * painted(ICE, x)


# --- snow and spatter: layers of drops ---


def flakes(x: Tensor, level: tuple[float, ...], rng: torch.Generator) -> Tensor:
    """(1, H, W): normal noise, enlarged, thresholded, and blown downwards at a random angle."""
    mean, spread, factor, threshold, radius, sigma, _ = level
    layer = zoomed(mean + spread * torch.randn(1, 1, *x.shape[-2:], generator=rng), factor)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    return motion(layer, (radius, sigma), trail(x, (radius, sigma), rng, -135, -45)[None])[0]


def snow(x: Tensor, level: tuple[float, ...], layer: Tensor) -> Tensor:
    kept = level[6]
    pale = torch.maximum(x, 1.5 * luma(x) + 0.5)
    return kept * x + (1 - kept) * pale + layer + layer.flip(-2, -1)


def drops(x: Tensor, level: tuple[float, ...], rng: torch.Generator) -> Tensor:
    """(1, H, W) in [0, 1]: how much of each pixel is light on water, or mud."""
    from scipy.ndimage import distance_transform_edt

    mean, spread, sigma, threshold, strength, mud = level
    liquid = gaussian(mean + spread * torch.randn(1, 1, *x.shape[-2:], generator=rng), sigma)
    wet = liquid > threshold
    if mud:
        cover = gaussian(wet.float(), strength)
        return torch.where(cover < 0.8, 0.0, cover)[0]
    if not wet.any():
        return torch.zeros(1, *x.shape[-2:])
    depth = torch.from_numpy(distance_transform_edt(wet[0, 0].numpy())).float()[None, None].clamp(max=20)
    shine = correlate(correlate(correlate(depth, BOX, "mirror"), LIGHT, "mirror").clamp(min=0), BOX, "mirror")
    shine = torch.where(wet, liquid, 0.0) * shine
    return strength * (shine / shine.amax().clamp(min=1e-6))[0]


def spatter(x: Tensor, level: tuple[float, ...], cover: Tensor) -> Tensor:
    if level[5]:
        return x * (1 - cover) + cover * painted(MUD, x)
    return x + cover * painted(WATER, x)


# --- brightness ---


def brightness(x: Tensor, rise: float, draw: Tensor) -> Tensor:
    """The value in hue, saturation, value (the largest channel) raised by `rise`, up to 1; black becomes grey."""
    value = x.amax(1, keepdim=True)
    raised = (value + rise).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp(min=1e-12)), raised)


KINDS = {
    "snow": Kind(
        "weather",
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "",
        snow,
        flakes,
    ),
    "frost": Kind(
        "weather",
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "",
        frost,
        lambda x, level, rng: grid(x, 2, rng),
    ),
    "fog": Kind(
        "weather",
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "",
        fog,
        lambda x, level, rng: grid(x, 1, rng),
    ),
    "brightness": Kind("weather", (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3), "rise of value", brightness),
    "spatter": Kind(
        "weather",
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "",
        spatter,
        drops,
        extra=True,
    ),
}
