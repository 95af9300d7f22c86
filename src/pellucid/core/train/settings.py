"""The settings of a training run.

The flags of `pellucid train` and their help, a run's `settings.yaml` and its name all come from one dataclass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pellucid.core.errors import InputError
from pellucid.core.ranges import (
    Count,
    Limit,
    NotNegative,
    Positive,
    Range,
    Rate,
    Seed,
    Side,
    check_ranges,
)

# Settings that do not change what is trained: they enter no run's name, and may differ when a run is continued.
NEUTRAL = frozenset({"checkpoint_seconds", "download", "workers", "memory_gb"})


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run.

    A run is named after what differs from the defaults, so a new setting needs a default that changes nothing.

    Args:
        data: digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH.
        model: a built-in name (resnet20, vgg11, ...), torchvision:NAME, timm:NAME, or your own code, FILE.py:FACTORY
            or PACKAGE.MODULE:FACTORY.
        model_args: arguments of that factory, as NAME=VALUE.
        layers: rule that replaces layers of the model, or several in turn (csc+deconv); plain keeps them.
        options: options of the layer rule, each also as --options.NAME VALUE.
        objective: what to minimise; its options are flags of their own.
        objective_options: options of the objective, each also as --objective-options.NAME VALUE.
        form: variant of the model for small or for ImageNet-sized images; auto chooses by image size.
        init: run or checkpoint to start from, in place of random weights; it must fit the model.
        image_size: side in pixels to resize images to; default the data's own size.
        val_fraction: fraction of the training images to hold out for choosing the best epoch.
        download: fetch the data set if it is missing.
        epochs: passes over the training images.
        batch_size: images per step, over all devices together.
        optimizer: optimisation algorithm.
        lr: peak learning rate; default 0.1 for sgd and 0.001 for adam and adamw.
        momentum: momentum of sgd.
        nesterov: use Nesterov's momentum in sgd.
        weight_decay: weight decay of matrices and convolutions; biases, normalisation and other vectors have none.
        decay_all: apply weight decay to every parameter, vectors included.
        schedule: how the learning rate changes: cosine (to 0), multistep, one-cycle (linearly up, then down) or
            constant.
        warmup: fraction of the steps in which the learning rate rises linearly from 0 (also the rise of one-cycle).
        milestones: points, as fractions of all steps, at which multistep multiplies the learning rate by gamma.
        gamma: factor of multistep at each milestone.
        label_smoothing: fraction of each label's weight to spread over all classes.
        mixup: alpha of mixup's Beta distribution; 0 turns it off.
        cutmix: alpha of CutMix's Beta distribution; 0 turns it off.
        ema: evaluate and keep an exponential moving average of the weights, with this decay per step; 0 turns it off.
        clip: clip the gradient to this norm; 0 turns it off.
        crop: pixels of reflection padding before a random crop; default an eighth of the image side.
        flip: mirror images at random; default on where the labels allow it.
        cutout: side in pixels of a square to erase from each training image; 0 turns it off.
        policy: augmentation policy of torchvision: TrivialAugment, RandAugment or AutoAugment (extra vision).
        precision: 32, bf16-mixed or 16-mixed (GPU only); mixed_bfloat16 and mixed_float16 are other names for the last
            two.
        compile: compile the model with torch.compile.
        channels_last: store images channels-last in memory.
        device: auto, cpu, cuda, cuda:1, mps, ...
        devices: number of processes, one per device; on a CPU they share its cores.
        strategy: how several devices work together: ddp, or auto to choose.
        nodes: number of machines.
        sync_batchnorm: share batch-norm statistics between GPUs.
        workers: number of processes that decode images of a data set too large for memory.
        memory_gb: keep a data set of up to this many GiB decoded in memory.
        deterministic: use deterministic algorithms, so that a resumed run ends with bit-identical weights.
        limit_batches: end every epoch after this many steps, for a quick try; 0 means no limit.
        checkpoint_seconds: write a resumable checkpoint at least this often within an epoch.
        seed: seed of the weights, the order of the images and their augmentation.
        framework: library to train with: torch, or keras for vgg11 to vgg19 and resnet20 (extra keras).
        backend: backend of keras: tensorflow, jax or torch; default Keras's own choice.
    """

    data: str = "digits"
    model: str = "resnet20"
    model_args: dict[str, Any] = field(default_factory=dict)
    layers: str = "plain"
    options: dict[str, Any] = field(default_factory=dict)
    objective: str = "cross-entropy"
    objective_options: dict[str, Any] = field(default_factory=dict)
    form: Literal["auto", "small", "imagenet"] = "auto"
    init: str | None = None
    image_size: Side | None = None
    val_fraction: Annotated[float, Range(0, 0.5, excludes=(0, 0.5))] = 0.1
    download: bool = False
    epochs: Count = 20
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive | None = None
    momentum: Rate = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    decay_all: bool = False
    schedule: Literal["cosine", "multistep", "one-cycle", "constant"] = "cosine"
    warmup: Rate = 0.05
    milestones: list[Annotated[float, Range(0, 1, excludes=(0, 1))]] = field(default_factory=lambda: [0.5, 0.75])
    gamma: Positive = 0.1
    label_smoothing: Rate = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    ema: Rate = 0.0
    clip: NotNegative = 0.0
    crop: Limit | None = None
    flip: bool | None = None
    cutout: Limit = 0
    policy: Literal["none", "trivial", "rand", "auto"] = "none"
    precision: Literal["32", "bf16-mixed", "16-mixed", "mixed_bfloat16", "mixed_float16"] = "32"
    compile: bool = False
    channels_last: bool = False
    device: str = "auto"
    devices: Count = 1
    strategy: Literal["auto", "ddp"] = "auto"
    nodes: Count = 1
    sync_batchnorm: bool = False
    workers: Limit = 2
    memory_gb: NotNegative = 2.0
    deterministic: bool = True
    limit_batches: Limit = 0
    checkpoint_seconds: NotNegative = 60.0
    seed: Seed = 0
    framework: str = "torch"
    backend: Literal["tensorflow", "jax", "torch"] | None = None

    def __post_init__(self) -> None:
        spelling = {"mixed_bfloat16": "bf16-mixed", "mixed_float16": "16-mixed"}
        object.__setattr__(self, "precision", spelling.get(self.precision, self.precision))
        check_ranges(self)
        if self.nesterov and not self.momentum:
            raise InputError("--nesterov needs a momentum: give --momentum above 0 with it.")
        if self.backend is not None and self.framework == "torch":
            raise InputError(f"--backend {self.backend} is a backend of Keras: give --framework keras with it.")
        ranks = self.devices * self.nodes
        if self.batch_size % ranks:
            raise InputError(
                f"--batch-size {self.batch_size} cannot be split over {ranks} processes: give a multiple of {ranks}."
            )
        if (self.mixup or self.cutmix) and (self.batch_size // ranks) % 2:
            raise InputError(
                f"--mixup and --cutmix pair images: give a --batch-size that is even on each process, not "
                f"{self.batch_size} over {ranks}."
            )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: `lr`, or the optimizer's default."""
        return self.lr if self.lr is not None else {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}[self.optimizer]

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        default = TrainSettings()
        return {k: v for k, v in dataclasses.asdict(self).items() if v != getattr(default, k)}

    def name(self) -> str:
        """The run's name: data, model, layers, objective, a hash of whatever else differs from the defaults, the seed.

        Settings that do not change the result (`NEUTRAL`) do not enter it.
        """
        spelled = {"data", "model", "layers", "objective", "seed"}
        rest = {k: v for k, v in self.changed().items() if k not in spelled | NEUTRAL}
        parts = [self.data.rstrip("/").replace(":", "-").rpartition("/")[2], self.model.replace(":", "-")]
        if "/" in self.data:  # folders of the same name at different places are different data
            rest["data"] = self.data
        default = TrainSettings()
        parts += [getattr(self, key) for key in ("layers", "objective") if getattr(self, key) != getattr(default, key)]
        if rest:
            parts.append(hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:6])
        if self.seed:
            parts.append(f"seed{self.seed}")
        return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))
