"""Training by `model.fit`, with the data, schedule and run folder of `pellucid train --framework keras`.

best.keras   the model of the best epoch
last.keras   model and optimizer after the last finished epoch, from which a stopped run continues
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pellucid.keras import models
from pellucid.keras.convert import to_torch
from pellucid.keras.randomness import seeded
from pellucid.keras.schedule import RateTable

_POLICIES = {"32": "float32", "bf16-mixed": "mixed_bfloat16", "16-mixed": "mixed_float16"}


def train(job: Any) -> np.ndarray:
    """Train the network that `job` (a `Job` of the training command) describes, continuing after its last epoch.

    The weights of the best epoch are loaded into `job.twin`. Afterwards Keras's dtype policy and Python's random state
    are what they were before.

    Returns the logits (N, K) of the test images in the best epoch.

    Raises ValueError for a network that Keras does not have here, or another backend than the running one.
    """
    settings = job.settings
    wanted = settings["backend"]
    if wanted is not None and keras.backend.backend() != wanted:
        raise ValueError(f"Keras already runs on {keras.backend.backend()}: start a new process for {wanted}.")
    if keras.config.image_data_format() != "channels_last":
        raise ValueError("Keras is set to channels_first: set image_data_format to channels_last in its configuration.")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_POLICIES[settings["precision"]])
    try:
        with seeded(job.seed):
            return _fit(job, settings)
    finally:
        keras.config.set_dtype_policy(before)


def _fit(job: Any, settings: dict[str, Any]) -> np.ndarray:
    last, best = job.folder / "last.keras", job.folder / "best.keras"
    model = _network(job, settings)
    smoothed = {"from_logits": True, "label_smoothing": settings["label_smoothing"]}
    model.compile(
        _optimizer(job, settings, model),
        keras.losses.CategoricalCrossentropy(**smoothed),
        metrics=["accuracy", keras.metrics.CategoricalCrossentropy(name="entropy", **smoothed)],
        **({"jit_compile": True} if settings["compile"] else {}),
    )
    if last.exists():
        begun = keras.saving.load_model(last)
        model.set_weights(begun.get_weights())
        model.optimizer.build(model.trainable_variables)
        for variable, value in zip(model.optimizer.variables, begun.optimizer.variables, strict=True):
            variable.assign(value)
    done = int(model.optimizer.iterations) // job.steps_per_epoch
    for epoch in range(done, settings["epochs"]):
        fitted = model.fit(
            job.batches(epoch),
            steps_per_epoch=job.steps_per_epoch,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            verbose=0,
        )
        seen = {name: values[-1] for name, values in fitted.history.items()}
        logits = model.predict(job.val, batch_size=512, verbose=0)
        if job.close_epoch(epoch, seen["entropy"], seen["accuracy"], logits):
            _save(model, best)
        _save(model, last)
    chosen = keras.saving.load_model(best)
    to_torch(chosen, job.twin)
    return chosen.predict(job.test, batch_size=512, verbose=0)


def _network(job: Any, settings: dict[str, Any]) -> keras.Model:
    name, form = settings["model"], settings["form"]
    arguments = (job.num_classes, job.image_shape, settings["layers"])
    if form in ("auto", "small") and min(job.image_shape[:2]) < 97:
        if name == "resnet20":
            return models.ResNet20(*arguments, **settings["options"])
        if name in ("vgg11", "vgg13", "vgg16", "vgg19"):
            return models.VGG(int(name[3:]), *arguments, **settings["options"])
    raise ValueError(f"There is no {name} of this form in Keras: choose vgg11, vgg13, vgg16, vgg19 or resnet20.")


def _optimizer(job: Any, settings: dict[str, Any], model: keras.Model) -> Any:
    """The optimizer; weight decay leaves out biases, normalisation and other vectors unless `decay_all` is set."""
    rates, clip = RateTable(job.rates), settings["clip"] or None
    trained, every = model.trainable_variables, settings["decay_all"]
    if settings["optimizer"] == "adamw":
        made = keras.optimizers.AdamW(rates, settings["weight_decay"], global_clipnorm=clip, epsilon=1e-8)
        made.exclude_from_weight_decay([v for v in trained if len(v.shape) <= 1 and not every])
        return made
    for variable in trained:
        if len(variable.shape) > 1 or every:
            # As in torch, weight decay is the gradient of a penalty and passes through the momentum.
            variable.regularizer = keras.regularizers.L2(settings["weight_decay"] / 2)
    if settings["optimizer"] == "adam":
        return keras.optimizers.Adam(rates, global_clipnorm=clip, epsilon=1e-8)
    return keras.optimizers.SGD(rates, settings["momentum"], settings["nesterov"], global_clipnorm=clip)


def _save(model: keras.Model, file: Path) -> None:
    """Write the file of a model whole or not at all."""
    draft = file.with_name(f".{file.stem}.tmp.keras")
    model.save(draft)
    with open(draft, "rb") as written:
        os.fsync(written.fileno())
    os.replace(draft, file)
