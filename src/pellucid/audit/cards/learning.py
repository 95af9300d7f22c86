"""How training went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pellucid.audit import figures
from pellucid.audit.cards.accuracy import SPLITS
from pellucid.audit.vocabulary import Figure, Section, Table
from pellucid.audit.words import percent

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit


def learning(audit: Audit) -> Section | None:
    """Loss and accuracy per epoch, from the run that made the model; None without a run."""
    rows = audit.history
    if not rows:
        return None
    epochs = [row["epoch"] + 1 for row in rows]  # counted from 1
    held = rows[0]["val_accuracy"] is not None
    shown = SPLITS if held else {name: split for name, split in SPLITS.items() if split == "train"}
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"])) if held else rows[-1]

    def drawing(quantity: str, **options: Any) -> str:
        curves = {name: [row[f"{split}_{quantity}"] for row in rows] for name, split in shown.items()}
        return figures.lines(
            epochs,
            [(name, values, None) for name, values in curves.items()],
            title=f"{quantity.capitalize()} per epoch",
            description="; ".join(f"{name} ends at {values[-1]:.3f}" for name, values in curves.items()),
            x_label="epoch",
            mark=best["epoch"] + 1,
            **options,
        )

    step = max(1, len(rows) // 20)
    numbers = Table(
        "Learning per epoch" + (f", every {step} epochs" if step > 1 else ""),
        [
            "Epoch",
            *(f"{name.replace(' ', '-').capitalize()} {what}" for what in ("loss", "accuracy") for name in shown),
        ],
        [
            [
                str(row["epoch"] + 1),
                *(f"{row[f'{split}_loss']:.3f}" for split in shown.values()),
                *(percent(row[f"{split}_accuracy"]) for split in shown.values()),
            ]
            for row in rows[::-step][::-1]
        ],
        numeric=range(1 + 2 * len(shown)),
    )
    return Section(
        "Learning",
        f"Accuracy on held-out images is highest after epoch {best['epoch'] + 1} of {epochs[-1]}, at "
        f"{percent(best['val_accuracy'])}; the test images had no part in choosing it."
        if held
        else f"No image was held out of training: the weights are those of the last epoch, {epochs[-1]}.",
        [
            Figure(
                drawing("accuracy", levels=[("chance", 1 / len(audit.classes))]),
                "Accuracy on training images, as augmented in training"
                + (", and on held-out images. The vertical line marks the best epoch." if held else "."),
                numbers,
            ),
            Figure(drawing("loss", percent=False), "Loss per epoch, on a logarithmic scale."),
        ],
        {
            "epochs": len(rows),
            "best_epoch": best["epoch"] + 1,
            "best_val_accuracy": best["val_accuracy"],
            "final_train_loss": rows[-1]["train_loss"],
        },
    )
