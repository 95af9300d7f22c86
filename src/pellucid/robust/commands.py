"""The command `robust`.

Nothing heavy is imported until it runs."""

from __future__ import annotations

import json as json_
import shlex
from typing import TYPE_CHECKING, Any, Literal

from pellucid.core.errors import InputError
from pellucid.core.flags import SourceSettings

if TYPE_CHECKING:
    from pellucid.core.measure.corrupt.published import CorruptedSet


SHOWN = ("adaptive", "fitted", "oracle")  # lambdas that stand in the table of kinds


def robust(
    checkpoint: str,
    /,
    *,
    source: SourceSettings,
    kinds: list[str] | None = None,
    severities: list[int] | None = None,
    levels: list[float] | None = None,
    set: str | None = None,
    lam: Literal["none", "fitted", "adaptive", "oracle"] | float = "none",
    baseline: str | None = None,
    attack: Literal["none", "fgsm", "pgd"] = "none",
    norm: Literal["linf", "l2"] = "linf",
    eps: float = 2 / 255,
    steps: int = 10,
    images: int = 500,
    batch_size: int = 250,
    out: str | None = None,
    device: str = "auto",
    seed: int = 0,
    json: bool = False,
) -> int:
    """Measure what a network keeps of its accuracy on corrupted and adversarial images, beside the cheap remedies.

    Beside the network as it is: batch norm estimated again on each unlabelled batch, a light blur, the baseline, and
    where there are sparse-coding layers the lambda that --lam names, the bound by labels included.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint (.pth, .th, .pt; with --model), or the name of an
            architecture (resnet18, timm:resnet18), which is built with random weights.
        kinds: corruptions; default the fifteen, or with --set those of the set.
        severities: of 1 to 5; default all.
        levels: strengths instead of severities, in the unit of kinds that have one, such as standard deviations of
            gaussian_noise.
        set: folder of CIFAR-10-C or ImageNet-C to read the images from, instead of making them.
        lam: test-time lambda of the first sparse-coding layer. adaptive goes by the noise in each image and knows no
            label; fitted is the paper's line, fitted to choices by the test labels; oracle is the best by the test
            labels. A number is taken as it is.
        baseline: run or checkpoint of a plain network of equal training, on the same data: the mean corruption error is
            relative to it.
        attack: measure adversarial images as well.
        norm: of the attack.
        eps: radius of the attack, where white is 1.
        steps: of pgd.
        images: most test images, drawn by seed; attacks take a fifth of these, at least 50.
        batch_size: images that batch norm is estimated on.
        out: JSON file to write everything to.
        device: auto, cpu, cuda, ...
        seed: of the sample, the corruptions, the attack's start, and an architecture's weights.
        json: print everything as JSON instead of tables.
    """
    from pellucid.core import terminal
    from pellucid.core.files.atomic import write_atomic
    from pellucid.core.measure.corrupt.published import read_corrupted
    from pellucid.core.measure.fits import check_fits
    from pellucid.core.source import open_source
    from pellucid.robust.measure import Trial, drawn, measure, summary
    from pellucid.robust.subject import CALIBRATION, subject_of
    from pellucid.robust.under_attack import under_attack

    _check(images, batch_size, steps, eps, severities, levels, set, lam)
    stored = None if set is None else read_corrupted(set)
    chosen = _kinds(kinds, levels, stored)
    found = open_source(checkpoint, source, device=device, seed=seed)
    check_fits(found.model, found.dataset)
    plain = None
    if baseline is not None:
        other = open_source(baseline, SourceSettings(data=source.data or found.dataset.name), device=device, seed=seed)
        check_fits(other.model, found.dataset)
        plain = subject_of(other.model, found.dataset, found.device, batch_size)
    clean = drawn(found.dataset.train, CALIBRATION, seed)[0] if lam == "adaptive" else None
    subject = subject_of(found.model, found.dataset, found.device, batch_size)
    trial = Trial(subject, lam, clean, plain, seed)
    wanted: dict[str, Any] = {"levels": levels} if levels else {"severities": severities or [1, 2, 3, 4, 5]}
    result = {
        "checkpoint": checkpoint, "data": found.dataset.name, "set": set, "lam": lam, "baseline": baseline,
        "levels": levels, "batch_size": batch_size, "seed": seed,
        **measure(trial, found.dataset, chosen, images=images, stored=stored, **wanted),
    }  # fmt: skip
    result["mean"] = summary(result)
    if attack != "none":
        how = {"eps": eps, "norm": norm, "steps": steps if attack == "pgd" else None}
        few = min(images, max(50, images // 5))
        result["attack"] = under_attack(trial, found.dataset, images=few, **how)
    if out is not None:
        write_atomic(out, json_.dumps(result, indent=1) + "\n")
    if json:
        terminal.say(json_.dumps(result))
        return 0
    _show(result, found.title)
    if out is not None:
        terminal.say(f"Wrote {out}")
    terminal.say(f"Next: {shlex.join(['pellucid', 'open', checkpoint, *source.flags()])}")
    return 0


def _check(
    images: int,
    batch_size: int,
    steps: int,
    eps: float,
    severities: list[int] | None,
    levels: list[float] | None,
    stored: str | None,
    lam: str | float,
) -> None:
    for flag, value in (("images", images), ("batch-size", batch_size), ("steps", steps)):
        if value < 1:
            raise InputError(f"--{flag} {value} must be at least 1.")
    if not 0 <= eps <= 1:
        raise InputError(f"--eps {eps:g} must be from 0 to 1, where white is 1 (2/255 is 0.0078).")
    if severities is not None and (not severities or not {*severities} <= {1, 2, 3, 4, 5}):
        raise InputError(f"--severities {' '.join(map(str, severities))} must be of 1, 2, 3, 4, 5.")
    if levels is not None and (severities is not None or stored is not None):
        raise InputError("--levels are strengths to make: leave out --severities and --set.")
    if isinstance(lam, float) and not 0 <= lam < float("inf"):
        raise InputError(f"--lam {lam:g} must be 0 or more, or none, fitted, adaptive or oracle.")


def _kinds(kinds: list[str] | None, levels: list[float] | None, stored: CorruptedSet | None) -> list[str]:
    """The kinds that are meant, every one of them known."""
    from pellucid.core.measure.corrupt import KINDS, STANDARD

    known = tuple(KINDS) if stored is None else stored.kinds
    chosen = list(dict.fromkeys(kinds or (known if stored is not None else STANDARD)))
    for kind in chosen:
        if kind not in known:
            raise InputError(f"--kinds {kind!r} is unknown: choose from {', '.join(known)}.")
        if levels and not KINDS[kind].unit:
            raise InputError(f"{kind} has no --levels of one number: name other --kinds, or give --severities.")
    return chosen


def _show(result: dict[str, Any], title: str) -> None:
    from pellucid.core import terminal
    from pellucid.core.measure.share import wilson

    mean, kinds, clean = result["mean"], result["kinds"], result["clean"]
    levels = sorted({row.get("severity", row.get("level")) for rows in kinds.values() for row in rows})
    at = f"severities {' '.join(map(str, levels))}" if result["levels"] is None else f"levels {result['levels']}"

    def over_levels(rows: list[dict[str, Any]], name: str) -> str:
        shares = [row["shares"][name] for row in rows]
        accuracy, n = sum(one["accuracy"] for one in shares) / len(shares), shares[0]["n"]
        # The levels show the same images: no more than these are independent.
        low, high = wilson(round(accuracy * n), n)
        return f"{100 * accuracy:.1f} ({100 * low:.0f}-{100 * high:.0f})"

    shown = [name for name in ("none", *SHOWN, "batch norm", "baseline") if name in mean]
    shown += [name for name in mean if name.startswith("lambda ")]
    by_kind = [[kind, *(over_levels(rows, name) for name in shown)] for kind, rows in kinds.items()]
    terminal.show(f"{title} on {result['data']}: accuracy in %, mean over {at}", ["", *shown], by_kind)
    by_remedy = []
    for name, row in mean.items():
        first = terminal.percent(clean[name]["accuracy"], clean[name]["interval"]) if name in clean else "-"
        mce = [] if "mce" not in row else ["-" if row["mce"] is None else f"{100 * row['mce']:.1f}"]
        by_remedy.append([name, first, terminal.percent(row["accuracy"]), *mce])
    headers = ["what is done", "clean images", "corrupted", *(["mCE"] if "baseline" in mean else [])]
    terminal.show(f"The same {result['n']} test images, mean over all {len(kinds)} kinds", headers, by_remedy)
    terminal.say("Intervals: Wilson, 95 %, of as many images as there are, whatever the number of severities.")
    if "oracle" in mean:
        terminal.say("oracle and fitted are chosen with the labels of these very images; all others know none.")
    if "baseline" in mean:
        terminal.say("mCE: errors over the baseline's, mean over kinds; the baseline itself has 100.")
    if "attack" in result:
        found = result["attack"]
        how = "FGSM" if found["steps"] is None else f"PGD with {found['steps']} steps"
        rows = [[name, terminal.percent(one["accuracy"], one["interval"])] for name, one in found["shares"].items()]
        heading = f"{how}, {found['norm']}, eps {found['eps']:.4g}, {found['n']} test images"
        terminal.show(heading, ["the attack", "accuracy (95 % interval)"], rows)
