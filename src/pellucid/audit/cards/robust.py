"""The card of sparse-coding networks about noise: what raising lambda at test time gives, beside what else would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pellucid.audit import figures
from pellucid.audit.vocabulary import Figure, Section, Table, Text
from pellucid.audit.words import between, percent
from pellucid.core.errors import InputError
from pellucid.robust.measure import Trial, drawn, measure
from pellucid.robust.subject import Subject
from pellucid.sparse.adapt import sparse_layer

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

LEVELS = (0.05, 0.1, 0.2)
MIDDLE = 1  # the place among these that the sentence tells of
NAMES = {
    "none": "as trained",
    "adaptive": "adaptive",
    "fitted": "fitted line (labels)",
    "oracle": "best (labels)",
    "batch norm": "batch norm estimated again",
    "blur": "light blur",
}


def robust(audit: Audit) -> Section | None:
    """Accuracy under Gaussian noise with lambda as trained, adaptive and fitted; None without a sparse layer."""
    try:
        layer = sparse_layer(audit.model)
    except InputError:
        return None
    few = 50 if audit.large else 100  # a forward pass of all of them some forty times
    subject = Subject(audit.model, audit.normalization, audit.device, few)
    clean = drawn(audit.dataset.train, few, audit.seed)[0]
    trial = Trial(subject, "adaptive", clean, seed=audit.seed, combined=False, sigmas=(0.0, *LEVELS))
    result = measure(trial, audit.dataset, ["gaussian_noise"], levels=LEVELS, images=few)
    rows = result["kinds"]["gaussian_noise"]
    shares = {name: [row["shares"][name] for row in rows] for name in NAMES if name in rows[0]["shares"]}
    start = result["clean"]["none"]
    # Chosen by labels, lambda on clean images is the trained one or better: the trained one is what is shown.
    curves = {name: [result["clean"].get(name, start), *found] for name, found in shares.items()}
    by_noise = curves["adaptive"][1 + MIDDLE], curves["none"][1 + MIDDLE]
    again = curves.get("batch norm")
    other = "" if again is None else f", {percent(again[1 + MIDDLE]['accuracy'])} with batch norm estimated again"
    axis = [0.0, *LEVELS]
    drawing = figures.lines(
        axis,
        [
            (name, [one["accuracy"] for one in curves[name]], [one["interval"] for one in curves[name]])
            for name in ("none", "adaptive", "fitted")
        ],
        title="Accuracy under noise by lambda",
        description=f"At deviation {LEVELS[MIDDLE]:g}: {percent(by_noise[1]['accuracy'])} with lambda as trained, "
        f"{percent(by_noise[0]['accuracy'])} with lambda by the noise in each image.",
        x_label="standard deviation of the noise, white = 1",
        ticks=[f"{level:g}" for level in axis],
    )
    lams = [row["lam"] for row in rows]
    return Section(
        "Lambda under noise",
        f"With noise of deviation {LEVELS[MIDDLE]:g}, {percent(by_noise[1]['accuracy'])} right with lambda as trained "
        f"({layer.lam:g}), {percent(by_noise[0]['accuracy'])} ({between(by_noise[0]['interval'])}) with lambda set by "
        f"the noise that is seen in each image{other}.",
        [
            Figure(
                drawing,
                f"Share of right answers with its {percent(audit.level, 0)} interval; n = {result['n']}, seed "
                f"{audit.seed}. None: lambda as trained. Adaptive knows no label; fitted is a line through lambdas "
                "chosen with these images' labels.",
                Table(
                    "Right answers in % by standard deviation of the noise",
                    ["", *(f"{level:g}" for level in axis)],
                    [
                        [NAMES[name], *(f"{100 * one['accuracy']:.0f}" for one in found)]
                        for name, found in curves.items()
                    ]
                    + [
                        ["lambda, fitted", f"{layer.lam:g}", *(f"{lam['fitted']:.2g}" for lam in lams)],
                        ["lambda, best", f"{layer.lam:g}", *(f"{lam['oracle']:.2g}" for lam in lams)],
                    ],
                    numeric=range(1, 1 + len(axis)),
                ),
            ),
            Text(
                "Estimating batch norm again on the noisy images, without labels, is the control: where it gives more "
                "than lambda, lambda is not what the network lacked."
            ),
        ],
        {
            "n": result["n"],
            "levels": axis,
            "accuracy": {name: [one["accuracy"] for one in found] for name, found in curves.items()},
            "interval": {name: [one["interval"] for one in found] for name, found in curves.items()},
            "lam": _lams(lams, trial),
        },
    )


def _lams(lams: list[dict[str, float]], trial: Trial) -> dict[str, Any]:
    policy = trial.calibrated[False]
    return {
        "fitted": [row["fitted"] for row in lams],
        "oracle": [row["oracle"] for row in lams],
        "adaptive": {"estimates": list(policy.estimates), "lams": list(policy.lams)},
    }
