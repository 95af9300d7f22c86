"""The cards of class filters: how few inputs of the last layer decide each class, and which.

Both cards share one reading of an audit: responses to training images, by which filters are chosen, and to test
images, on which everything is measured. Both are left out for a model whose last layer is not linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.audit import figures
from pellucid.audit.maps import peaks
from pellucid.audit.reading import SHOWN, Reading, reading
from pellucid.audit.thumbnails import thumbnail
from pellucid.audit.vocabulary import Block, Fact, Facts, Figure, Picture, Section, Strip, Table, Text
from pellucid.audit.words import percent, percent_range, short
from pellucid.classfilters.ablation import essentiality
from pellucid.classfilters.accuracy import accuracy
from pellucid.classfilters.curve import accuracy_curve
from pellucid.classfilters.overlap import Association, confusion_overlap, jaccard
from pellucid.classfilters.top import top_sets
from pellucid.core.errors import InputError

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

COUNTS = (1, 2, 3, 5, 10)
DRAWS = 10
NAMED, FEW = 20, 5  # classes that share a filter: all are named in audit.json up to the one, beyond it the other


# --- the model ---


def filters(audit: Audit) -> Section | None:
    """Accuracy with few filters per class, and with as many random ones; None without a linear last layer."""
    if audit.dataset.kind == "test":
        needed = "Filters are chosen on training images, and these data have none: open the model with data that have."
        return Section("Class filters", blocks=[Text(needed)])
    read = reading(audit)
    if read is None:
        return None
    head, n = read.head, len(read.labels)
    counts = [k for k in COUNTS if k <= read.width]
    by_k = {k: top_sets(read.evidence, k, positive=True) for k in counts}
    given = (read.features, read.labels, head.weight, head.bias)
    curve = accuracy_curve(*given, by_k, draws=DRAWS, resamples=200, seed=audit.seed)
    whole = accuracy(*given).overall
    full = whole.correct / n
    # Wilson's, as on the rest of the page: it does not collapse where all predictions are correct.
    bounds = [audit.interval(round(point.accuracy * n), n) for point in curve]
    shown = max(k for k in counts if k <= SHOWN)
    at = next(point for point in curve if point.k == shown)
    shuffled = essentiality(*given, read.sets, noise="permutation", by="answer", draws=DRAWS, seed=audit.seed)
    overlap = jaccard(read.sets, read.width)
    linked = _linked(overlap.pairs, audit)
    used = len({number for chosen in read.sets for number in chosen})
    control = [(point.random, point.random_interval) for point in curve]
    blocks: list[Block] = [
        Figure(
            figures.lines(
                list(range(len(counts))),
                [
                    ("most evidence", [point.accuracy for point in curve], bounds),
                    ("random", [value for value, _ in control], [interval for _, interval in control]),
                ],
                title="Accuracy by filters per class",
                description=f"With {shown} filters per class {percent(at.accuracy)}, random {percent(at.random)}.",
                x_label="filters per class",
                levels=[(f"all {read.width}", full)],
                ticks=[f"{k}" for k in counts],
            ),
            "Each logit uses only the filters with the most evidence for its class, with the model's own weights and "
            f"no training; as the control, as many random filters ({DRAWS} draws). Bands are 95 % intervals.",
            Table(
                "Accuracy by filters per class",
                ["Filters", "Used", "Accuracy", "Interval", "Random", "Interval of random"],
                [
                    [
                        f"{p.k}",
                        f"{p.filters:.4g}",
                        percent(p.accuracy),
                        percent_range(bound),
                        percent(p.random),
                        percent_range(p.random_interval),
                    ]
                    for p, bound in zip(curve, bounds, strict=True)
                ]
                + [[f"all {read.width}", f"{read.width}", percent(full), percent_range(whole.interval), "", ""]],
                numeric=(0, 1, 2, 3, 4, 5),
            ),
        ),
        Facts(
            [
                Fact("Filters in use", f"{used} of {read.width}", f"with {shown} per class"),
                Fact(
                    "Overlap of two classes",
                    f"{overlap.mean:.2f}",
                    f"mean Jaccard index; {overlap.chance:.2f} for random sets",
                ),
                *_association_fact(linked),
                Fact(
                    f"Accuracy, own {shown} shuffled",
                    percent(shuffled.influential.overall.correct / n),
                    f"when the filters of the predicted class take other images' values; with {shown} other filters "
                    f"shuffled {percent(shuffled.others.overall.correct / n)}",
                ),
            ]
        ),
        Text(
            "Filters are the inputs of the last layer. The evidence of a filter for a class is its weight times its "
            f"mean response to images of the class, on {read.found_on}; accuracy is measured on "
            f"{_measured_on(audit, read)}. A filter with evidence for a class need not be specific to it."
        ),
    ]
    return Section(
        "Class filters",
        f"With the {shown} filters per class that have the most evidence, of {read.width}, accuracy is "
        f"{percent(at.accuracy)}; with as many random ones {percent(at.random)}, with all {percent(full)}.",
        blocks,
        {
            "layer": head.name,
            "width": read.width,
            "images": n,
            "accuracy": full,
            "curve": {
                f"{point.k}": {
                    "filters": point.filters,
                    "accuracy": point.accuracy,
                    "interval": bound,
                    "random": point.random,
                    "random_interval": point.random_interval,
                }
                for point, bound in zip(curve, bounds, strict=True)
            },
            "used": used,
            "overlap": overlap.mean,
            "overlap_chance": overlap.chance,
            "overlap_and_confusion": None if linked is None else {"rho": linked.rho, "p": linked.p},
            "shuffled": shuffled.influential.overall.correct / n,
            "others_shuffled": shuffled.others.overall.correct / n,
        },
    )


def _measured_on(audit: Audit, read: Reading) -> str:
    n, every = len(read.rows), len(audit.labels)
    if not len(audit.dataset.train):
        return f"the other {n}"
    return f"a sample of {n} of the {every} test images" if n < every else f"the {n} test images"


def _linked(pairs: Tensor, audit: Audit) -> Association | None:
    """How sharing and confusion go together; None where classes are too few, or nothing is confused or shared."""
    try:
        found = confusion_overlap(pairs, torch.tensor(audit.evaluation.confusion), permutations=199, seed=audit.seed)
    except InputError:
        return None
    return found if found.rho is not None else None


def _association_fact(linked: Association | None) -> list[Fact]:
    if linked is None:
        return []
    note = f"rank correlation over {linked.pairs} pairs of classes, p = {linked.p:.3f} by permutation"
    return [Fact("Sharing and confusion", f"{linked.rho:+.2f}", note)]


# --- a class ---


def class_filters(audit: Audit, index: int) -> Section | None:
    """The filters of a class: their evidence, what removing them costs, which classes share them, what drives them."""
    read = reading(audit)
    if read is None or not read.sets[index]:
        return None
    mine = read.labels == index
    n, rest = int(mine.sum()), int((~mine).sum())
    rows, data = [], []
    for number in read.sets[index]:
        correct = read.correct_without(number)
        lost, lost_others = (int(read.correct[who].sum()) - int(correct[who].sum()) for who in (mine, ~mine))
        sharing = [other for other in read.users[number] if other != index]
        fraction = float(read.fractions[index, number])
        own, others = _change(lost, n), _change(lost_others, rest)
        rows.append([f"{number}", percent(fraction, 0), own, others, _names(audit, sharing)])
        data.append(
            {
                "filter": number,
                "share": fraction,
                "lost": lost,
                "lost_others": lost_others,
                "shared_with": [audit.classes[other] for other in sharing[: FEW if len(sharing) > NAMED else None]],
                "shared_with_count": len(sharing),
            }
        )
    blocks: list[Block] = [
        Table(
            f"The {len(rows)} filters with the most evidence: their fraction of all positive evidence for the class; "
            f"how the number of correct predictions among its {n} images, and among {rest} others, changes without the "
            "filter (held at its mean); other classes that use it",
            ["Filter", "Evidence", "This class", "Others", "Also used by"],
            rows,
            numeric=(0, 1, 2, 3),
        )
    ]
    partner, both = _partner(read, index)
    if partner is not None:
        me, other = (short(audit.classes[i], 10) for i in (index, partner))
        blocks.append(
            Table(
                f"Filters with evidence for both {audit.classes[index]} and {audit.classes[partner]}, with which it "
                "is confused most often",
                ["Filter", f"Evidence, {me}", f"Evidence, {other}"],
                [
                    [f"{number}", *(percent(float(read.fractions[i, number]), 0) for i in (index, partner))]
                    for number in both
                ]
                or [["none", "", ""]],
                numeric=(0, 1, 2),
            )
        )
    if strip := _drivers(audit, read, read.sets[index]):
        blocks.append(strip)
    return Section(
        "Filters",
        blocks=blocks,
        data={
            "filters": data,
            "n": n,
            "mix_up": None if partner is None else {"class": audit.classes[partner], "filters": both},
        },
    )


def _change(lost: int, n: int) -> str:
    return f"{-lost:+d}".replace("-", "−") if lost else "0" if n else "–"


def _names(audit: Audit, classes: Sequence[int], limit: int = 3) -> str:
    names = [short(audit.classes[one], 12) for one in classes[:limit]]
    return ", ".join(names) + (f" and {len(classes) - limit} more" if len(classes) > limit else "") or "none"


def _partner(read: Reading, index: int) -> tuple[int | None, list[int]]:
    """The class most often confused with this one, and the filters with positive evidence for both, most first."""
    confused = read.confused[index]
    partner = int(confused.argmax())
    if not confused[partner] or not read.sets[partner]:
        return None, []
    least = torch.minimum(read.fractions[index], read.fractions[partner])
    order = least.argsort(descending=True, stable=True)[:SHOWN]
    return partner, [int(number) for number in order if least[number] > 0]


# --- images that drive a filter ---


def _drivers(audit: Audit, read: Reading, numbers: Sequence[int]) -> Strip | None:
    """For each filter the test images with its highest responses, cropped around the peak of its map, if it has one."""
    each = audit.examples // 3  # two up to 20 classes, one up to 100, none beyond
    if not each:
        return None
    best = {
        number: read.rows[read.features[:, number].topk(min(each, len(read.rows))).indices].tolist()
        for number in numbers
    }
    boxes = peaks(audit, read.map, best) if read.map is not None else {}
    pictures = []
    for number, shown in best.items():
        for row, image in zip(shown, audit.images(torch.tensor(shown)), strict=True):
            box = boxes.get((number, row))
            if box is not None:
                image = image[:, box[0] : box[1], box[2] : box[3]]
            name = audit.classes[int(audit.labels[row])]
            where = "the part of" if box is not None else ""
            alt = f"{where} test image {row} ({name}) to which filter {number} responds most".strip()
            pictures.append(Picture(thumbnail(image), f"{number}", alt[0].upper() + alt[1:], note=short(name, 12)))
    crop = (
        ", cut to half their size around the peak of the filter's map (its receptive field is larger)" if boxes else ""
    )
    return Strip(
        f"What drives each filter: the test images of any class with the highest responses{crop}; the captions name "
        "the filter and the class",
        pictures,
    )
