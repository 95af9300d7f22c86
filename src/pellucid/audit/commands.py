"""The command `pellucid open`. Nothing heavy is imported until it runs."""

from __future__ import annotations

from pellucid.core.errors import InputError
from pellucid.core.settings import TrainSettings

# What is trained where no model is named: small enough for seconds on two cores.
DEMO = TrainSettings(data="digits", model="resnet20", epochs=15, batch_size=64, schedule="one-cycle", warmup=0.2)


def open(
    checkpoint: str | None = None,
    /,
    *,
    data: str | None = None,
    model: str | None = None,
    out: str = "report",
    gate: list[str] | None = None,
    image_size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: str = "auto",
    batch_size: int = 512,
    seed: int = 0,
) -> int:
    """Open a network: write a page and audit.json on what it knows, confuses and withstands.

    Without a model, a small one is trained on scikit-learn's digits first.

    Args:
        checkpoint: run folder, .safetensors file, or foreign checkpoint (.pth, .th, .pt; with --model).
        data: digits, cifar10[:PATH], cifar100[:PATH], folder:PATH or npz:PATH; default the run's own data.
        model: architecture of a foreign checkpoint, as in train.
        out: folder of the page (index.html) and of audit.json.
        gate: conditions such as "accuracy.top1 >= 0.95" on audit.json; if one fails the exit status is 1.
        image_size: side in pixels that images are resized to; default what the model was trained on.
        mean: mean of each input channel (pixels in 0 to 1), where the checkpoint does not know it.
        std: standard deviation of each input channel, where the checkpoint does not know it.
        device: auto, cpu, cuda, ...
        batch_size: images in a step.
        seed: what noise is drawn from.
    """
    from pellucid.audit import gates as gates_
    from pellucid.audit import page
    from pellucid.core import terminal
    from pellucid.core.launch import choose_device
    from pellucid.core.source import open_source

    wanted = [gates_.Gate.parse(text) for text in gate or []]  # a bad one must not cost the work before it
    device = choose_device(device)
    if checkpoint is None:
        if data is not None or model is not None:
            raise InputError("--data and --model go with a checkpoint: name it, or train one with pellucid train.")
        from pellucid.core.train import train

        terminal.say("No model named: training a small network on digits.")
        checkpoint = str(train(DEMO).run.path)
    source = open_source(checkpoint, data, model=model, image_size=image_size, mean=mean, std=std)
    report = page.open(
        source.model,
        source.dataset,
        out,
        gate=wanted,
        device=device,
        batch_size=batch_size,
        seed=seed,
        run=source.run,
        source=checkpoint,
    )
    return page.tell(report)
