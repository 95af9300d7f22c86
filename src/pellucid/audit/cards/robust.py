"""The card of sparse-coding networks under noise: what raising lambda at test time gains, and its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pellucid.audit import figures
from pellucid.audit.vocabulary import Figure, Section, Table, Text
from pellucid.audit.words import percent, percent_range
from pellucid.core.data.splits import for_fitting
from pellucid.core.errors import InputError
from pellucid.robust.measure import drawn, measure
from pellucid.robust.subject import Subject
from pellucid.robust.trial import Trial
from pellucid.sparse.adapt import sparse_layer

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

LEVELS = (0.05, 0.1, 0.2)
MIDDLE = 1  # index of the level in the summary
NAMES = {
    "none": "as trained",
    "adaptive": "adaptive",
    "fitted": "fitted line (held-out labels)",
    "oracle": "best (labels of these images)",
    "batch norm": "batch norm re-estimated",
    "blur": "light blur",
}


def robust(audit: Audit) -> Section | None:
    """Accuracy under Gaussian noise with lambda as trained, adaptive and fitted; None without a sparse layer."""
    try:
        layer = sparse_layer(audit.model)
    except InputError:
        return None
    if not len(audit.dataset.train):
        needed = "Lambda is calibrated on training images, and these data have none: open the model with its own data."
        return Section("Lambda under noise", blocks=[Text(needed)])
    few = 50 if audit.large else 100  # some forty forward passes each
    subject = Subject(audit.model, audit.normalization, audit.device, few)
    clean = drawn(for_fitting(audit.dataset.train, "Lambda is calibrated"), few, audit.seed)[0]
    trial = Trial(subject, "adaptive", clean, seed=audit.seed, combined=False, sigmas=(0.0, *LEVELS))
    result = measure(trial, audit.dataset, ["gaussian_noise"], levels=LEVELS, images=few)
    rows = result["kinds"]["gaussian_noise"]
    accuracies = {name: [row["shares"][name] for row in rows] for name in NAMES if name in rows[0]["shares"]}
    start = result["clean"]["none"]
    # With labels, the lambda chosen on clean images is the trained one or a better one: the trained one is shown.
    curves = {name: [result["clean"].get(name, start), *found] for name, found in accuracies.items()}
    adaptive, trained = curves["adaptive"][1 + MIDDLE], curves["none"][1 + MIDDLE]
    control = curves.get("batch norm")
    other = "" if control is None else f", {percent(control[1 + MIDDLE]['accuracy'])} with batch norm re-estimated"
    axis = [0.0, *LEVELS]
    drawing = figures.lines(
        axis,
        [
            (name, [one["accuracy"] for one in curves[name]], [one["interval"] for one in curves[name]])
            for name in ("none", "adaptive", "fitted")
            if name in curves
        ],
        title="Accuracy under noise by choice of lambda",
        description=f"At deviation {LEVELS[MIDDLE]:g}: {percent(trained['accuracy'])} with lambda as trained, "
        f"{percent(adaptive['accuracy'])} with lambda set by the noise in each image.",
        x_label="standard deviation of the noise; white is 1",
        ticks=[f"{level:g}" for level in axis],
    )
    lams = [row["lam"] for row in rows]
    return Section(
        "Lambda under noise",
        f"Under noise of deviation {LEVELS[MIDDLE]:g}, accuracy is {percent(trained['accuracy'])} with lambda as "
        f"trained ({layer.lam:g}), {percent(adaptive['accuracy'])} ({percent_range(adaptive['interval'])}) with "
        f"lambda set by the noise estimated in each image{other}.",
        [
            Figure(
                drawing,
                f"Accuracy with its {percent(audit.level, 0)} interval; n = {result['n']}, seed {audit.seed}. None: "
                "lambda as trained. Adaptive: lambda set without labels. Fitted: a line through lambdas chosen with "
                "the labels of held-out images. Best: chosen with the labels of these images, an upper bound.",
                Table(
                    "Accuracy in % by standard deviation of the noise",
                    ["", *(f"{level:g}" for level in axis)],
                    [
                        [NAMES[name], *(f"{100 * one['accuracy']:.0f}" for one in found)]
                        for name, found in curves.items()
                    ]
                    + [
                        [f"lambda, {word}", f"{layer.lam:g}", *(f"{lam[name]:.2g}" for lam in lams)]
                        for name, word in (("fitted", "fitted"), ("oracle", "best"))
                        if name in lams[0]
                    ],
                    numeric=range(1, 1 + len(axis)),
                ),
            ),
            Text(
                "The control is re-estimating batch norm on the noisy images, without labels: where that gains more "
                "than lambda does, lambda is not what the network lacked."
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
        "fitted": [row.get("fitted") for row in lams],
        "oracle": [row["oracle"] for row in lams],
        "adaptive": {"estimates": list(policy.estimates), "lams": list(policy.lams)},
    }
