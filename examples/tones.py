"""Sparse coding of sound-like signals: which tones and chirps are in it, and when?

    python examples/tones.py [--seed 0] [--noise 0.1]

A signal of 320 samples is a sum of three sounds of 64 samples, tones of 16 pitches and chirps that rise or fall, at
any time and loudness, with noise on top. First the dictionary is known, and what the layer finds is compared with what
was put in. Then a small network learns its own dictionary to tell whether a lone sound is a tone, rises or falls,
beside its plain twin.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pellucid

LENGTH, SOUND, SOUNDS = 320, 64, 3


def atoms() -> Tensor:
    """16 tones, 8 rising and 8 falling chirps, (32, 1, 64), each of norm 1."""
    time = torch.arange(SOUND) / SOUND
    window = torch.hann_window(SOUND, periodic=False)
    tones = [torch.sin(2 * math.pi * pitch * time) for pitch in torch.linspace(3, 26, 16)]
    chirps = [torch.sin(2 * math.pi * (pitch + 6 * time) * time) for pitch in torch.linspace(3, 17, 8)]
    sounds = torch.stack([*tones, *chirps, *(chirp.flip(0) for chirp in chirps)]) * window
    return (sounds / sounds.norm(dim=1, keepdim=True)).unsqueeze(1)


def signals(count: int, noise: float, generator: torch.Generator, sounds: int = SOUNDS) -> tuple[Tensor, Tensor]:
    """Signals (count, 1, 320) and the codes (count, 32, 257) that they were made from."""
    places = LENGTH - SOUND + 1
    codes = torch.zeros(count, 32, places)
    for code in codes:
        starts = torch.randperm(places // 24, generator=generator)[:sounds] * 24  # they overlap, but do not coincide
        starts += torch.randint(24, (sounds,), generator=generator)
        kinds = torch.randint(32, (sounds,), generator=generator)
        code[kinds, starts] = 0.5 + torch.rand(sounds, generator=generator)
    clean = F.conv_transpose1d(codes, atoms())
    return clean + noise * torch.randn(clean.shape, generator=generator), codes


def found(code: Tensor, least: float) -> list[tuple[int, int]]:
    """(kind, start) of the local maxima of at least `least` in one code (32, places)."""
    peaks = (code >= least) & (code == F.max_pool1d(code, 9, 1, 4))
    return [(int(kind), int(start)) for kind, start in peaks.nonzero()]


def f1(codes: Tensor, truth: Tensor, least: float) -> float:
    """Harmonic mean of precision and recall; right is the kind, within two samples of the time, each counted once."""
    hits = made = there = 0
    for code, true in zip(codes, truth, strict=True):
        guesses, rest = found(code, least), [(int(k), int(t)) for k, t in true.nonzero()]
        made, there = made + len(guesses), there + len(rest)
        for kind, start in guesses:
            match = next((one for one in rest if one[0] == kind and abs(one[1] - start) <= 2), None)
            if match is not None:
                rest.remove(match)
                hits += 1
    return 2 * hits / max(1, made + there)


def recovery(seed: int, noise: float) -> dict[str, float]:
    """F1 of what is found in 40 signals, each way at the threshold that was best on 40 others."""
    generator = torch.Generator().manual_seed(seed)
    layer = pellucid.CSC1d(1, 32, SOUND, lam=0.1)
    with torch.no_grad():
        layer.weight.copy_(atoms())
    layer.measure()
    (tuning, truth), (x, expected) = signals(40, noise, generator), signals(40, noise, generator)

    def steps(n: int, schedule: str, x: Tensor) -> Tensor:
        layer.n_steps, layer.schedule = n, schedule
        with torch.no_grad():
            return layer.eval()(x)

    ways = {
        "correlation with each atom (control)": lambda x: F.conv1d(x, atoms()).relu(),
        "code after 2 steps": lambda x: steps(2, "barzilai-borwein", x),
        "code after 20 steps": lambda x: steps(20, "barzilai-borwein", x),
        "solved code": lambda x: layer.solve(x, tol=1e-3, max_steps=150).code,
    }
    scores = {}
    for name, way in ways.items():
        codes, levels = way(tuning), [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8]
        best = max(levels, key=lambda level: f1(codes, truth, level))
        scores[name] = f1(way(x), expected, best)
    return scores


def network(sparse: bool) -> nn.Module:
    first = [pellucid.CSC1d(1, 24, 33, 2, 16)] if sparse else [nn.Conv1d(1, 24, 33, 2, 16)]
    rest = [
        nn.BatchNorm1d(24),
        *([] if sparse else [nn.ReLU()]),
        nn.Conv1d(24, 24, 9, 2, 4),
        nn.BatchNorm1d(24),
        nn.ReLU(),
    ]
    return nn.Sequential(*first, *rest, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 3))


def learned(seed: int, noise: float, steps: int = 80) -> dict[str, float]:
    """Accuracy on 600 new signals: is the sound a tone, rising or falling?"""
    generator = torch.Generator().manual_seed(seed)
    (x, codes), (x_test, codes_test) = signals(1200, noise, generator, 1), signals(600, noise, generator, 1)
    y, y_test = (one.amax(2).argmax(1).sub(8).div(8, rounding_mode="floor").clamp(0) for one in (codes, codes_test))
    scores = {}
    for name, sparse in (("sparse coding network", True), ("plain twin", False)):
        torch.manual_seed(seed)
        model = network(sparse)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(steps):
            rows = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            scores[name] = float((model.eval()(x_test).argmax(1) == y_test).float().mean())
    scores["always the commonest"] = float(y_test.bincount().max() / len(y_test))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation, beside sounds of norm 0.5 to 1.5")
    options = parser.parse_args()
    print("Sounds found (F1):")
    for name, score in recovery(options.seed, options.noise).items():
        print(f"  {name:<38} {score:.3f}")
    print("Lone sound named (accuracy):")
    for name, score in learned(options.seed, options.noise).items():
        print(f"  {name:<38} {score:.3f}")


if __name__ == "__main__":
    main()
