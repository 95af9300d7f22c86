"""Slow twins of the corruptions in float64: one image (C, H, W) at a time, by definition, with scipy or loops."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image
from scipy import ndimage


def planes(image: np.ndarray, change) -> np.ndarray:
    return np.stack([change(plane) for plane in image])


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return planes(image, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=4.0))


def defocus_blur(image: np.ndarray, radius: float, alias: float) -> np.ndarray:
    """A disk on a wide grid under a 3x3 (beyond radius 8: 5x5) Gaussian."""
    reach = int(radius) + 3
    disk = np.array(
        [[i * i + j * j <= radius * radius for j in range(-reach, reach + 1)] for i in range(-reach, reach + 1)], float
    )
    half = 1 if radius <= 8 else 2
    taps = np.array([math.exp(-(k * k) / (2 * alias * alias)) for k in range(-half, half + 1)])
    rim = np.outer(taps, taps) / np.outer(taps, taps).sum()
    kernel = ndimage.convolve(disk / disk.sum(), rim, mode="constant")
    return planes(image, lambda plane: ndimage.correlate(plane, kernel, mode="mirror"))


def zoom_blur(image: np.ndarray, factors) -> np.ndarray:
    total = image.copy()
    for factor in factors:
        total += np.stack([zoomed(plane, factor) for plane in image])
    return total / (len(factors) + 1)


def zoomed(plane: np.ndarray, factor: float) -> np.ndarray:
    height, width = plane.shape
    cut = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    part = plane[top : top + cut[0], left : left + cut[1]]
    size = [max(n, round(c * factor)) for n, c in zip((height, width), cut, strict=True)]
    rows, columns = (np.linspace(0, c - 1, s) for c, s in zip(cut, size, strict=True))
    large = ndimage.map_coordinates(part, np.meshgrid(rows, columns, indexing="ij"), order=1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[top : top + height, left : left + width]


def motion_blur(image: np.ndarray, sigma: float, steps) -> np.ndarray:
    _, height, width = image.shape
    out = np.zeros_like(image)
    weights = [math.exp(-(k * k) / (2 * sigma * sigma)) for k in range(len(steps))]
    for i in range(height):
        for j in range(width):
            for (down, right), weight in zip(steps, weights, strict=True):
                row, column = min(max(i + down, 0), height - 1), min(max(j + right, 0), width - 1)
                out[:, i, j] += weight / sum(weights) * image[:, row, column]
    return out


def plasma(draws: np.ndarray, decay: float) -> np.ndarray:
    """Cell by cell: a square's centre is the mean of its corners, an edge's middle that of its four neighbours."""
    side = len(draws)
    field = np.zeros((side, side))
    step, amplitude = side, 1.0

    def at(i: int, j: int) -> float:
        return field[i % side, j % side]

    while step >= 2:
        h = step // 2
        for i in range(0, side, step):
            for j in range(0, side, step):
                mean = (at(i, j) + at(i + step, j) + at(i, j + step) + at(i + step, j + step)) / 4
                field[i + h, j + h] = mean + amplitude * draws[i + h, j + h]
        for i in range(0, side, step):
            for j in range(0, side, step):
                for a, b in ((i, j + h), (i + h, j)):
                    mean = (at(a - h, b) + at(a + h, b) + at(a, b - h) + at(a, b + h)) / 4
                    field[a, b] = mean + amplitude * draws[a, b]
        step, amplitude = h, amplitude / decay**2
    return (field - field.min()) / (field.max() - field.min())


def fog(image: np.ndarray, thick: float, decay: float, draws: np.ndarray) -> np.ndarray:
    haze = plasma(draws, decay)[: image.shape[1], : image.shape[2]]
    return (image + thick * haze) * image.max() / (image.max() + thick)


def by_hsv(image: np.ndarray, change) -> np.ndarray:
    out = np.empty_like(image)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            out[:, i, j] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*image[:, i, j])))
    return out


def brightness(image: np.ndarray, rise: float) -> np.ndarray:
    if len(image) == 1:
        return np.clip(image + rise, 0, 1)
    return by_hsv(image, lambda h, s, v: (h, s, min(1.0, v + rise)))


def saturate(image: np.ndarray, times: float, plus: float) -> np.ndarray:
    return by_hsv(image, lambda h, s, v: (h, min(1.0, max(0.0, times * s + plus)), v))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return planes(image, lambda plane: plane.mean() + factor * (plane - plane.mean()))


def pixelate(image: np.ndarray, factor: float) -> np.ndarray:
    """Pillow's own box filter, in floating point."""

    def change(plane: np.ndarray) -> np.ndarray:
        height, width = plane.shape
        small = Image.fromarray(plane.astype(np.float32)).resize(
            (int(width * factor), int(height * factor)), Image.Resampling.BOX
        )
        return np.asarray(small.resize((width, height), Image.Resampling.BOX), dtype=float)

    return planes(image, change)


def elastic(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    def change(plane: np.ndarray) -> np.ndarray:
        turned = ndimage.map_coordinates(plane, maps[:2], order=1, mode="mirror")
        return ndimage.map_coordinates(turned, maps[2:], order=1, mode="reflect")

    return planes(image, change)


def displacement(noise: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    return alpha * planes(noise, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="reflect", truncate=3.0))
