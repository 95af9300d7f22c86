"""What a file that only predicts cannot show, and what each of those cards would need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.audit.vocabulary import Section, Table, Text
from pellucid.core.network.blackbox.box import black_box_in

if TYPE_CHECKING:
    from pellucid.audit.audit import Audit

NEEDS = {  # card -> what it is called, and a sentence
    "learning": ("Learning curve", "It needs the folder of the run that trained the network."),
    "filters": ("Class filters", "They need the last layer and the values that go into it."),
    "whitening": ("Whitening", "It needs the whitening layers, which an export folds into convolutions."),
    "sparse": ("Sparse codes", "They need the sparse-coding layers, with their atoms and lambda."),
    "subnet": ("Subnetwork", "It needs the masks over the weights, which an export folds into them."),
    "robust": ("Lambda under noise", "It needs a sparse-coding layer whose lambda can be set."),
    "inverted": ("Inverted images", "They need the statistics that the layers stored in training."),
}


def black_box(audit: Audit) -> Section | None:
    """The cards that are missing from the page of a black box; None for a network with layers."""
    box = black_box_in(audit.model)
    if box is None:
        return None
    return Section(
        "What this file does not show",
        "",
        [
            Text(
                f"The network was read from {box.kind}, which gives its predictions and nothing else. To see these "
                "cards too, open the run or checkpoint that it was exported from."
            ),
            Table("Cards that are missing here", ["Card", "What it would need"], list(NEEDS.values())),
        ],
        {"kind": box.kind, "needs": {card: sentence for card, (_, sentence) in NEEDS.items()}},
    )
