"""Write the list of ImageNet's 1000 classes that the package ships: WordNet id and a short name, in the classes' order.

    python benchmarks/core/imagenet_names.py

The ids are those of timm's `ImageNetInfo`, the names those of torchvision's weights, which are all different. The order
of the classes is the sorted order of their ids.
"""

from __future__ import annotations

from pathlib import Path

from pellucid.core import vision

OUT = Path(__file__).resolve().parents[2] / "src/pellucid/core/data/imagenet.txt"


def lines() -> list[str]:
    vision.timm()
    from timm.data import ImageNetInfo

    names = vision.torchvision().models.get_model_weights("resnet50").DEFAULT.meta["categories"]
    ids = ImageNetInfo().label_names()
    if len({*names}) != 1000 or ids != sorted({*ids}):
        raise SystemExit("The names are not all different, or the ids are not in sorted order.")
    return [f"{one} {name}" for one, name in zip(ids, names, strict=True)]


if __name__ == "__main__":
    OUT.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    print(f"Wrote {OUT}")
