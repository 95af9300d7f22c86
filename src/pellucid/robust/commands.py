"""The command `robust`.

Nothing heavy is imported until it runs.
"""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pellucid.core.errors import InputError, listed, near, shown
from pellucid.core.flags import ClassedSettings
from pellucid.core.ranges import Count, NotNegative, Part, Range, Seed

if TYPE_CHECKING:
    from pellucid.core.measure.corrupt.published import CorruptedSet

SHOWN = ("adaptive", "fitted", "oracle")  # policies for lambda in the table of kinds


def robust(
    checkpoint: str,
    /,
    *,
    source: ClassedSettings,
    kinds: list[str] | None = None,
    severities: list[Annotated[int, Range(1, 5)]] | None = None,
    levels: list[NotNegative] | None = None,
    set: str | None = None,
    lam: Literal["none", "fitted", "adaptive", "oracle"] | NotNegative = "none",
    baseline: str | None = None,
    attack: Literal["none", "fgsm", "pgd"] = "none",
    norm: Literal["linf", "l2"] = "linf",
    eps: Part = 2 / 255,
    steps: Count = 10,
    max_images: Count = 500,
    batch_size: Count = 250,
    out: str | None = None,
    device: str = "auto",
    seed: Seed = 0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure accuracy on corrupted and adversarial images, and what cheap remedies win back.

    The network is compared with itself under remedies: batch norm re-estimated on each unlabelled batch, a light blur,
    and, where there are sparse-coding layers, the lambda chosen by --lam; and with the network named by --baseline.

    Args:
        checkpoint: run folder, .safetensors file, foreign checkpoint as MODEL=FILE (or FILE with --model), a file
            that only predicts (.onnx, onnx:FILE, .pt2), or the name of an architecture (resnet18, timm:resnet18), which
            is built with random weights.
        kinds: corruptions; default the fifteen of the benchmark, or with --set all those in the set.
        severities: from 1 to 5; default all. Their strengths are those of ImageNet-C for images of 97 pixels or more,
            and those of CIFAR-10-C below, as on the page of open.
        levels: strengths instead of severities, for kinds whose strength is one number, such as the standard deviation
            of gaussian_noise.
        set: folder of CIFAR-10-C or ImageNet-C from which to read the corrupted images, instead of computing them.
        lam: how lambda of the first sparse-coding layer is chosen at test time. adaptive follows the noise estimated in
            each image and uses no labels; fitted is the paper's line, fitted to choices made with the labels of
            held-out images; oracle is the best lambda by the test labels, an upper bound. A number is used as it is.
        baseline: run, checkpoint or MODEL=FILE of a plain network of equal training, on the same data; the mean
            corruption error is relative to it.
        attack: also measure accuracy on adversarial images; with --lam adaptive the attack differentiates through the
            estimate of lambda.
        norm: of the attack.
        eps: radius of the attack; white is 1.
        steps: of pgd.
        max_images: maximum number of test images, sampled with --seed; attacks use a fifth of them, but at least 50.
        batch_size: images per forward pass, over which batch norm is re-estimated.
        out: JSON file for all results.
        device: auto, cpu, cuda, ...
        seed: of samples, corruptions, the start of the attack, and an architecture's weights.
        overwrite: replace files at --out that this command did not write.
        json: print all results as JSON and nothing else.
        quiet: print nothing but errors.
    """
    from pellucid.core import terminal
    from pellucid.core.data.splits import for_fitting
    from pellucid.core.files.atomic import write_atomic
    from pellucid.core.files.ours import Output, check_outputs, holds
    from pellucid.core.measure.corrupt.published import read_corrupted
    from pellucid.core.measure.fits import check_fits
    from pellucid.core.network.blackbox.box import needs_gradients
    from pellucid.core.source import open_source
    from pellucid.robust.measure import drawn, measure, summary
    from pellucid.robust.subject import CALIBRATION, subject_of
    from pellucid.robust.trial import Trial
    from pellucid.robust.under_attack import under_attack

    if levels is not None and (severities is not None or set is not None):
        raise InputError("--levels sets the strengths itself: leave out --severities and --set.")
    if out is not None:
        file = Output(Path(out), holds("checkpoint", "kinds", "clean", "mean"))
        check_outputs([file], overwrite, command="robust", sources=[checkpoint, source.data, set, baseline])
    stored = None if set is None else read_corrupted(set)
    chosen = _kinds(kinds, levels, stored)
    found = open_source(checkpoint, source, device=device, seed=seed)
    check_fits(found.model, found.dataset)
    if attack != "none":
        needs_gradients(found.model, f"--attack {attack}")
    if not (json or quiet):
        terminal.assumed(found.assumed)
    plain = None
    if baseline is not None:
        other = open_source(
            baseline,
            ClassedSettings(data=source.data or found.dataset.name, classes=source.classes),
            device=device,
            seed=seed,
        )
        check_fits(other.model, found.dataset)
        plain = subject_of(other.model, found.dataset, found.device, batch_size)
    clean = None
    if lam == "adaptive":
        clean = drawn(for_fitting(found.dataset.train, "Lambda is calibrated"), CALIBRATION, seed)[0]
    subject = subject_of(found.model, found.dataset, found.device, batch_size)
    trial = Trial(subject, lam, clean, plain, seed)
    wanted: dict[str, Any] = {"levels": levels} if levels else {"severities": severities or [1, 2, 3, 4, 5]}
    result = {
        "checkpoint": checkpoint, "data": found.dataset.name, "set": set, "lam": lam, "baseline": baseline,
        "levels": levels, "strengths": _strengths(found.dataset.image_size, levels, stored), "batch_size": batch_size,
        "seed": seed, "assumed": list(found.assumed),
        **measure(trial, found.dataset, chosen, images=max_images, stored=stored, **wanted),
    }  # fmt: skip
    result["mean"] = summary(result)
    if attack != "none":
        how = {"eps": eps, "norm": norm, "steps": steps if attack == "pgd" else None}
        few = min(max_images, max(50, max_images // 5))
        result["attack"] = under_attack(trial, found.dataset, images=few, **how)
    if out is not None:
        write_atomic(out, json_.dumps(result, indent=1) + "\n")
    if json:
        print(json_.dumps(result))
    elif not quiet:
        _show(result, found.title)
        if out is not None:
            terminal.say(f"Wrote {out}")
        terminal.say(f"Next: {shlex.join(['pellucid', 'open', checkpoint, *source.flags()])}")
    return 0


def _strengths(size: tuple[int, int], levels: list[float] | None, stored: CorruptedSet | None) -> str:
    """What a severity stands for: "imagenet" or "cifar", as on the page; "levels" or "stored" where there are none."""
    from pellucid.core.measure.corrupt.kind import strengths_for

    return "levels" if levels else "stored" if stored is not None else strengths_for(size)


def _kinds(kinds: list[str] | None, levels: list[float] | None, stored: CorruptedSet | None) -> list[str]:
    """The kinds to measure, all of them known."""
    from pellucid.core.measure.corrupt import KINDS, STANDARD

    known = tuple(KINDS) if stored is None else stored.kinds
    chosen = list(dict.fromkeys(kinds or (known if stored is not None else STANDARD)))
    for kind in chosen:
        if kind not in known:
            hint = near(kind, known, limit=0)
            raise InputError(f"--kinds {shown(kind)} is unknown: {hint or f'choose {listed(known)}.'}")
        if levels and not KINDS[kind].unit:
            raise InputError(f"{kind} has no --levels of one number: name other --kinds, or give --severities.")
    return chosen


def _show(result: dict[str, Any], title: str) -> None:
    """Print one table by kind of corruption, one by remedy, and one for the attack."""
    from pellucid.core import terminal
    from pellucid.core.measure.corrupt.kind import PUBLISHED
    from pellucid.core.measure.share import Share

    mean, kinds, clean = result["mean"], result["kinds"], result["clean"]
    levels = sorted({row.get("severity", row.get("level")) for rows in kinds.values() for row in rows})
    at = f"severities {' '.join(map(str, levels))} of {PUBLISHED.get(result['strengths'], 'the set')}"
    if result["levels"] is not None:
        at = f"levels {result['levels']}"

    def over_levels(rows: list[dict[str, Any]], name: str) -> str:
        found = [row["shares"][name] for row in rows]
        accuracy, n = sum(one["accuracy"] for one in found) / len(found), found[0]["n"]
        # All levels use the same images, so there are no more than n independent ones.
        low, high = Share(round(accuracy * n), n).interval
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
    headers = ["remedy", "clean images", "corrupted", *(["mCE"] if "baseline" in mean else [])]
    terminal.show(f"The same {result['n']} test images, mean over all {len(kinds)} kinds", headers, by_remedy)
    terminal.say("Intervals: Wilson, 95 %, for the number of images, whatever the number of severities.")
    if "oracle" in mean:
        terminal.say(
            "oracle is chosen with the labels of these very images, an upper bound; fitted with the labels of held-out "
            "images, corrupted likewise; all others use no labels."
        )
    if "baseline" in mean:
        terminal.say("mCE: errors relative to the baseline's, mean over kinds; the baseline itself has 100.")
    if "attack" in result:
        found = result["attack"]
        how = "FGSM" if found["steps"] is None else f"PGD with {found['steps']} steps"
        rows = [[name, terminal.percent(one["accuracy"], one["interval"])] for name, one in found["shares"].items()]
        heading = f"{how}, {found['norm']}, eps {found['eps']:.4g}, {found['n']} test images"
        heading += ", its gradient through the estimate of lambda" if result["lam"] == "adaptive" else ""
        terminal.show(heading, ["attack", "accuracy (95 % interval)"], rows)
