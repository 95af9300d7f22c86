"""The arithmetic of published networks, written out from their descriptions, operation by operation.

A network is a function of a `Plain` and images. Every tensor is drawn when it is first needed, under the project's own
name and with moments that fit its input, and kept in float32; the arithmetic is in float64. So one text says both what
a project's files hold and what its networks compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class Plain:
    """A state dict in the making, and the operations on its tensors."""

    def __init__(self, seed: int = 0) -> None:
        self.state: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor `name`, made when it is first asked for, as a float64."""
        if name not in self.state:
            self.state[name] = make().float()
        return self.state[name].double()

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(*shape, generator=self.generator)

    def weight(self, name: str, out: int, inner: int, kernel: int | tuple[int, int]) -> Tensor:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        fan = inner * math.prod(sides)
        return self.tensor(f"{name}.weight", lambda: self.normal(out, inner, *sides, std=math.sqrt(2 / fan)))

    def conv(
        self,
        name: str,
        x: Tensor,
        out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> Tensor:
        w = self.weight(name, out, x.shape[1] // groups, kernel)
        b = self.tensor(f"{name}.bias", lambda: self.normal(out, std=0.1)) if bias else None
        return F.conv2d(x, w, b, stride, padding, 1, groups)

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        w = self.tensor(f"{name}.weight", lambda: self.normal(out, x.shape[1], std=math.sqrt(2 / x.shape[1])))
        return x @ w.T + self.tensor(f"{name}.bias", lambda: self.normal(out, std=0.1))

    def norm(self, name: str, x: Tensor, eps: float = 1e-5, affine: bool = True) -> Tensor:
        """Batch norm in evaluation; its moments are near those of the first x."""
        c = x.shape[1]
        scale = shift = None
        if affine:
            scale = self.tensor(f"{name}.weight", lambda: 1 + self.normal(c, std=0.1))
            shift = self.tensor(f"{name}.bias", lambda: self.normal(c, std=0.1))
        spread = x.std() + 1e-3
        mean = self.tensor(f"{name}.running_mean", lambda: x.mean((0, 2, 3)) + 0.1 * spread * self.normal(c))
        var = self.tensor(f"{name}.running_var", lambda: (spread * (1 + 0.1 * self.normal(c))).square())
        self.state.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        y = (x - mean[:, None, None]) / (var + eps).sqrt()[:, None, None]
        return y if scale is None else scale[:, None, None] * y + shift[:, None, None]


# --- huyvnphan/PyTorch_CIFAR10 ---

RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
VGGS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def cifar_resnet(p: Plain, x: Tensor, depth: int, classes: int = 10) -> Tensor:
    """torchvision's ResNet with a 3x3 stem of stride 1 and its 3x3 max-pool of stride 2."""
    x = F.relu(p.norm("bn1", p.conv("conv1", x, 64, 3, 1, 1)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate(RESNETS[depth]):
        for i in range(blocks):
            x = _torchvision_block(p, f"layer{stage + 1}.{i}", x, 64 * 2**stage, 2 if stage and not i else 1, depth)
    return p.linear("fc", x.mean((2, 3)), classes)


def _torchvision_block(
    p: Plain, at: str, x: Tensor, width: int, stride: int, depth: int, short: str = "downsample"
) -> Tensor:
    if depth < 50:
        y = F.relu(p.norm(f"{at}.bn1", p.conv(f"{at}.conv1", x, width, 3, stride, 1)))
        y = p.norm(f"{at}.bn2", p.conv(f"{at}.conv2", y, width, 3, 1, 1))
    else:
        y = F.relu(p.norm(f"{at}.bn1", p.conv(f"{at}.conv1", x, width, 1)))
        y = F.relu(p.norm(f"{at}.bn2", p.conv(f"{at}.conv2", y, width, 3, stride, 1)))
        y = p.norm(f"{at}.bn3", p.conv(f"{at}.conv3", y, 4 * width, 1))
    if stride > 1 or x.shape[1] != y.shape[1]:
        x = p.norm(f"{at}.{short}.1", p.conv(f"{at}.{short}.0", x, y.shape[1], 1, stride))
    return F.relu(x + y)


def cifar_vgg(p: Plain, x: Tensor, depth: int, classes: int = 10, pool: int = 1) -> Tensor:
    """torchvision's VGG with batch norm; the average before the three linear layers is to 1x1, in early files 7x7."""
    place = 0
    for width, repeats in zip((64, 128, 256, 512, 512), VGGS[depth], strict=True):
        for _ in range(repeats):
            x = p.conv(f"features.{place}", x, width, 3, 1, 1, bias=True)
            x = F.relu(p.norm(f"features.{place + 1}", x))
            place += 3
        x, place = F.max_pool2d(x, 2), place + 1
    x = F.adaptive_avg_pool2d(x, pool).flatten(1)
    for layer in (0, 3):
        x = F.relu(p.linear(f"classifier.{layer}", x, 4096))
    return p.linear("classifier.6", x, classes)


def cifar_densenet(p: Plain, x: Tensor, blocks: tuple[int, ...], growth: int, classes: int = 10) -> Tensor:
    """torchvision's DenseNet with a 3x3 stem of stride 1 and its max-pool."""
    x = p.conv("features.conv0", x, 2 * growth, 3, 1, 1)
    x = F.max_pool2d(F.relu(p.norm("features.norm0", x)), 3, 2, 1)
    for number, layers in enumerate(blocks, 1):
        for i in range(1, layers + 1):
            at = f"features.denseblock{number}.denselayer{i}"
            y = p.conv(f"{at}.conv1", F.relu(p.norm(f"{at}.norm1", x)), 4 * growth, 1)
            y = p.conv(f"{at}.conv2", F.relu(p.norm(f"{at}.norm2", y)), growth, 3, 1, 1)
            x = torch.cat([x, y], 1)
        if number < len(blocks):
            at = f"features.transition{number}"
            x = F.avg_pool2d(p.conv(f"{at}.conv", F.relu(p.norm(f"{at}.norm", x)), x.shape[1] // 2, 1), 2)
    return p.linear("classifier", F.relu(p.norm("features.norm5", x)).mean((2, 3)), classes)


def cifar_mobilenet(p: Plain, x: Tensor, classes: int = 10) -> Tensor:
    """torchvision's MobileNetV2 with stride 1 in the stem and in the group of 24 channels."""
    x = F.relu6(p.norm("features.0.1", p.conv("features.0.0", x, 32, 3, 1, 1)))
    place = 1
    rows = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, width, repeats, first in rows:
        for i in range(repeats):
            at, y, step = f"features.{place}.conv", x, 0
            wide, stride = expand * x.shape[1], 1 if i else first
            if expand > 1:
                y, step = F.relu6(p.norm(f"{at}.0.1", p.conv(f"{at}.0.0", y, wide, 1))), 1
            y = p.conv(f"{at}.{step}.0", y, wide, 3, stride, 1, groups=wide)
            y = F.relu6(p.norm(f"{at}.{step}.1", y))
            y = p.norm(f"{at}.{step + 2}", p.conv(f"{at}.{step + 1}", y, width, 1))
            x = x + y if stride == 1 and x.shape[1] == width else y
            place += 1
    x = F.relu6(p.norm(f"features.{place}.1", p.conv(f"features.{place}.0", x, 1280, 1)))
    return p.linear("classifier.1", x.mean((2, 3)), classes)


def _basic(p: Plain, at: str, x: Tensor, out: int, kernel: int | tuple[int, int], stride=1, padding=0) -> Tensor:
    """Convolution, batch norm with epsilon 0.001, ReLU."""
    return F.relu(p.norm(f"{at}.bn", p.conv(f"{at}.conv", x, out, kernel, stride, padding), eps=1e-3))


def cifar_googlenet(p: Plain, x: Tensor, classes: int = 10) -> Tensor:
    """torchvision's GoogLeNet without pools before the first block, with padded 3x3 pools between the others."""
    x = _basic(p, "conv1", x, 192, 3, 1, 1)
    table = [
        ("3a", 64, 96, 128, 16, 32, 32), ("3b", 128, 128, 192, 32, 96, 64), (),
        ("4a", 192, 96, 208, 16, 48, 64), ("4b", 160, 112, 224, 24, 64, 64), ("4c", 128, 128, 256, 24, 64, 64),
        ("4d", 112, 144, 288, 32, 64, 64), ("4e", 256, 160, 320, 32, 128, 128), (),
        ("5a", 256, 160, 320, 32, 128, 128), ("5b", 384, 192, 384, 48, 128, 128),
    ]  # fmt: skip
    for row in table:
        if not row:
            x = F.max_pool2d(x, 3, 2, 1)
            continue
        name, one, r3, three, r5, five, pooled = row
        at = f"inception{name}"
        parts = [_basic(p, f"{at}.branch1", x, one, 1)]
        for branch, reduced, out in (("branch2", r3, three), ("branch3", r5, five)):
            y = _basic(p, f"{at}.{branch}.0", x, reduced, 1)
            parts.append(_basic(p, f"{at}.{branch}.1", y, out, 3, 1, 1))
        parts.append(_basic(p, f"{at}.branch4.1", F.max_pool2d(x, 3, 1, 1), pooled, 1))
        x = torch.cat(parts, 1)
    return p.linear("fc", x.mean((2, 3)), classes)


def cifar_inception(p: Plain, x: Tensor, classes: int = 10) -> Tensor:
    """torchvision's Inception v3 with one padded 3x3 convolution for a stem and without the auxiliary head."""

    def wide(at: str, x: Tensor, out: int) -> Tensor:
        return _basic(p, at, x, out, (1, 7), 1, (0, 3))

    def tall(at: str, x: Tensor, out: int) -> Tensor:
        return _basic(p, at, x, out, (7, 1), 1, (3, 0))

    def pooled(at: str, x: Tensor, out: int) -> Tensor:
        return _basic(p, f"{at}.branch_pool", F.avg_pool2d(x, 3, 1, 1), out, 1)

    x = _basic(p, "Conv2d_1a_3x3", x, 192, 3, 1, 1)
    for name, out in (("5b", 32), ("5c", 64), ("5d", 64)):
        at = f"Mixed_{name}"
        y = _basic(p, f"{at}.branch5x5_2", _basic(p, f"{at}.branch5x5_1", x, 48, 1), 64, 5, 1, 2)
        z = _basic(p, f"{at}.branch3x3dbl_2", _basic(p, f"{at}.branch3x3dbl_1", x, 64, 1), 96, 3, 1, 1)
        z = _basic(p, f"{at}.branch3x3dbl_3", z, 96, 3, 1, 1)
        x = torch.cat([_basic(p, f"{at}.branch1x1", x, 64, 1), y, z, pooled(at, x, out)], 1)
    z = _basic(p, "Mixed_6a.branch3x3dbl_2", _basic(p, "Mixed_6a.branch3x3dbl_1", x, 64, 1), 96, 3, 1, 1)
    z = _basic(p, "Mixed_6a.branch3x3dbl_3", z, 96, 3, 2)
    x = torch.cat([_basic(p, "Mixed_6a.branch3x3", x, 384, 3, 2), z, F.max_pool2d(x, 3, 2)], 1)
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        at = f"Mixed_{name}"
        y = _basic(p, f"{at}.branch7x7_1", x, c, 1)
        y = tall(f"{at}.branch7x7_3", wide(f"{at}.branch7x7_2", y, c), 192)
        z = _basic(p, f"{at}.branch7x7dbl_1", x, c, 1)
        z = wide(f"{at}.branch7x7dbl_3", tall(f"{at}.branch7x7dbl_2", z, c), c)
        z = wide(f"{at}.branch7x7dbl_5", tall(f"{at}.branch7x7dbl_4", z, c), 192)
        x = torch.cat([_basic(p, f"{at}.branch1x1", x, 192, 1), y, z, pooled(at, x, 192)], 1)
    y = _basic(p, "Mixed_7a.branch3x3_2", _basic(p, "Mixed_7a.branch3x3_1", x, 192, 1), 320, 3, 2)
    z = wide("Mixed_7a.branch7x7x3_2", _basic(p, "Mixed_7a.branch7x7x3_1", x, 192, 1), 192)
    z = _basic(p, "Mixed_7a.branch7x7x3_4", tall("Mixed_7a.branch7x7x3_3", z, 192), 192, 3, 2)
    x = torch.cat([y, z, F.max_pool2d(x, 3, 2)], 1)
    for name in ("7b", "7c"):
        at = f"Mixed_{name}"
        y = _basic(p, f"{at}.branch3x3_1", x, 384, 1)
        z = _basic(p, f"{at}.branch3x3dbl_2", _basic(p, f"{at}.branch3x3dbl_1", x, 448, 1), 384, 3, 1, 1)
        split = []
        for branch, value in (("branch3x3_2", y), ("branch3x3dbl_3", z)):
            split.append(_basic(p, f"{at}.{branch}a", value, 384, (1, 3), 1, (0, 1)))
            split.append(_basic(p, f"{at}.{branch}b", value, 384, (3, 1), 1, (1, 0)))
        x = torch.cat([_basic(p, f"{at}.branch1x1", x, 320, 1), *split, pooled(at, x, 192)], 1)
    return p.linear("fc", x.mean((2, 3)), classes)


# --- kuangliu/pytorch-cifar and akamaster/pytorch_resnet_cifar10 ---


def kuangliu_resnet(p: Plain, x: Tensor, depth: int, classes: int = 10) -> Tensor:
    """A 3x3 stem without a pool, an average over 4x4 pixels, `shortcut` and `linear`."""
    x = F.relu(p.norm("bn1", p.conv("conv1", x, 64, 3, 1, 1)))
    for stage, blocks in enumerate(RESNETS[depth]):
        for i in range(blocks):
            at, stride = f"layer{stage + 1}.{i}", 2 if stage and not i else 1
            x = _torchvision_block(p, at, x, 64 * 2**stage, stride, depth, "shortcut")
    return p.linear("linear", F.avg_pool2d(x, 4).flatten(1), classes)


def kuangliu_vgg(p: Plain, x: Tensor, depth: int, classes: int = 10) -> Tensor:
    """Batch norm after every convolution, and one linear layer, `classifier`."""
    place = 0
    for width, repeats in zip((64, 128, 256, 512, 512), VGGS[depth], strict=True):
        for _ in range(repeats):
            x = F.relu(p.norm(f"features.{place + 1}", p.conv(f"features.{place}", x, width, 3, 1, 1, bias=True)))
            place += 3
        x, place = F.max_pool2d(x, 2), place + 1
    return p.linear("classifier", x.flatten(1), classes)


def akamaster_resnet(p: Plain, x: Tensor, depth: int, classes: int = 10) -> Tensor:
    """The CIFAR networks of He et al. 2016: 16, 32 and 64 channels, shortcuts without parameters, `linear`."""
    x = F.relu(p.norm("bn1", p.conv("conv1", x, 16, 3, 1, 1)))
    for stage in range(3):
        for i in range((depth - 2) // 6):
            at, width, stride = f"layer{stage + 1}.{i}", 16 * 2**stage, 2 if stage and not i else 1
            y = F.relu(p.norm(f"{at}.bn1", p.conv(f"{at}.conv1", x, width, 3, stride, 1)))
            y = p.norm(f"{at}.bn2", p.conv(f"{at}.conv2", y, width, 3, 1, 1))
            if stride > 1:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, width // 4, width // 4))
            x = F.relu(x + y)
    return p.linear("linear", F.avg_pool2d(x, x.shape[3]).flatten(1), classes)


# --- allenai/hidden-networks ---


class Masked(Plain):
    """Random weights of constant magnitude, of which the fraction `keep` with the largest |scores| is used."""

    def __init__(self, keep: float, seed: int = 0) -> None:
        super().__init__(seed)
        self.keep = keep

    def conv(self, name, x, out, kernel, stride=1, padding=0, groups=1, bias=False):
        shape = (out, x.shape[1], kernel, kernel)
        std = math.sqrt(2 / (x.shape[1] * kernel * kernel))
        # Published weights are sqrt(2 / fan in); larger ones keep networks without batch norm from fading out.
        w = self.tensor(f"{name}.weight", lambda: std / math.sqrt(self.keep) * self.normal(*shape).sign())
        n = math.prod(shape)

        def ranks() -> Tensor:  # all different: which of equal scores are kept, a sort leaves open
            return (1 + torch.randperm(n, generator=self.generator)).view(shape) * self.normal(*shape).sign()

        scores = self.tensor(f"{name}.scores", ranks).float().abs().flatten()
        mask = torch.ones_like(scores)
        mask[scores.sort().indices[: int((1 - self.keep) * len(scores))]] = 0
        return F.conv2d(x, w * mask.view(shape), None, stride, padding)

    def norm(self, name, x, eps=1e-5, affine=True):
        return super().norm(name, x, eps, affine=False)


def hidden_resnet(p: Masked, x: Tensor, depth: int, cifar: bool, wide: int = 1, classes: int = 10) -> Tensor:
    """ResNet; the head is a 1x1 convolution. CIFAR's networks call shortcuts `shortcut`, ImageNet's `downsample`."""
    x = p.conv("conv1", x, 64, 3, 1, 1) if cifar else p.conv("conv1", x, 64, 7, 2, 3)
    x = F.relu(p.norm("bn1", x))
    x = x if cifar else F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate(RESNETS[depth]):
        for i in range(blocks):
            at, width, stride = f"layer{stage + 1}.{i}", 64 * 2**stage, 2 if stage and not i else 1
            if depth < 50:
                y = F.relu(p.norm(f"{at}.bn1", p.conv(f"{at}.conv1", x, width, 3, stride, 1)))
                y = p.norm(f"{at}.bn2", p.conv(f"{at}.conv2", y, width, 3, 1, 1))
            else:
                y = F.relu(p.norm(f"{at}.bn1", p.conv(f"{at}.conv1", x, wide * width, 1)))
                y = F.relu(p.norm(f"{at}.bn2", p.conv(f"{at}.conv2", y, wide * width, 3, stride, 1)))
                y = p.norm(f"{at}.bn3", p.conv(f"{at}.conv3", y, 4 * width, 1))
            if stride > 1 or x.shape[1] != y.shape[1]:
                short = f"{at}.{'shortcut' if cifar else 'downsample'}"
                x = p.norm(f"{short}.1", p.conv(f"{short}.0", x, y.shape[1], 1, stride))
            x = F.relu(x + y)
    return p.conv("fc", x.mean((2, 3), keepdim=True), classes, 1).flatten(1)


def hidden_conv(p: Masked, x: Tensor, depth: int, classes: int = 10) -> Tensor:
    """Conv2 to Conv8: pairs of convolutions and a pool, then three 1x1 convolutions; no batch norm."""
    place = 0
    for width in (64, 128, 256, 512)[: depth // 2]:
        for offset in (0, 2):
            x = F.relu(p.conv(f"convs.{place + offset}", x, width, 3, 1, 1))
        x, place = F.max_pool2d(x, 2), place + 5
    x = x.flatten(1)[:, :, None, None]
    x = F.relu(p.conv("linear.0", x, 256, 1))
    x = F.relu(p.conv("linear.2", x, 256, 1))
    return p.conv("linear.4", x, classes, 1).flatten(1)


# --- Delay-Xili/SDNet ---


class Sparse(Plain):
    """Convolutions whose output is the code of their input after a few steps of the published iteration."""

    def __init__(self, seed: int = 0, lam: float = 0.1, mu: float = 0.0, steps: int = 2) -> None:
        super().__init__(seed)
        self.lam, self.mu, self.steps = lam, mu, steps

    def code(self, name: str, x: Tensor, out: int, kernel: int, stride: int, padding: int) -> Tensor:
        shape = (out, x.shape[1], kernel, kernel)
        w = self.tensor(f"{name}.dn.weight", lambda: self.normal(*shape))
        w = w / w.flatten(1).norm(dim=1)[:, None, None, None]

        def analyse(r: Tensor) -> Tensor:
            return F.conv2d(r, w, None, stride, padding)

        def synthesise(z: Tensor) -> Tensor:
            return F.conv_transpose2d(z, w, None, stride, padding, output_padding=stride - 1)

        def power() -> Tensor:
            v = self.normal(1, *analyse(x[:1]).shape[1:]).double()
            for _ in range(5):
                v = analyse(synthesise(v))
                v = v / v.norm()
            return 0.9 / synthesise(v).square().sum()

        t = self.tensor(f"{name}.dn.step_size", power)

        def prox(u: Tensor) -> Tensor:
            return F.relu(F.softshrink(u / (1 + self.mu * t), float(self.lam * t / (1 + self.mu * t))))

        z = prox(t * analyse(x))
        before, tau = torch.zeros_like(z), (1 + math.sqrt(5)) / 2
        for step in range(1, self.steps):
            y = z
            if step > 1:
                following = (1 + math.sqrt(1 + 4 * tau * tau)) / 2
                y = z + (tau - 1) / following * (z - before)
                tau = following
            before, z = z, prox(y + t * analyse(x - synthesise(z)))
        return z


def sdnet(p: Sparse, x: Tensor, depth: int, codes: str, large: bool, classes: int = 10) -> Tensor:
    """SDNet: `codes` is "" (the first convolution), "all" or "all_no_shortcut"."""
    x = p.code("layer0.0", x, 64, 7, 2, 3) if large else p.code("layer0.0", x, 64, 3, 1, 1)
    x = p.norm("layer0.1", x)
    if large:
        x = p.code("layer0.2", x, 64, 3, 2, 1) if codes else F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate(RESNETS[depth]):
        for i in range(blocks):
            width, stride = 64 * 2**stage, 2 if stage and not i else 1
            if not codes:
                at = f"layer{stage + 1}.{i}"
                y = F.relu(p.norm(f"{at}.bn1", p.conv(f"{at}.conv1", x, width, 3, stride, 1)))
                y = p.norm(f"{at}.bn2", p.conv(f"{at}.conv2", y, width, 3, 1, 1))
            else:
                at = f"layer{stage + 1}.layers.{i}"
                y = p.norm(f"{at}.bn1", p.code(f"{at}.conv1", x, width, 3, stride, 1))
                y = p.norm(f"{at}.bn2", p.code(f"{at}.conv2", y, width, 3, 1, 1))
            if codes.endswith("no_shortcut"):
                x = y
                continue
            if stride > 1 or x.shape[1] != width:
                x = p.norm(f"{at}.shortcut.1", p.conv(f"{at}.shortcut.0", x, width, 1, stride))
            x = F.relu(x + y)
    return p.linear("linear", x.mean((2, 3)), classes)


# --- yechengxi/deconvolution ---


def newton_root(cov: Tensor, steps: int) -> Tensor:
    """The inverse square root of `cov` by so many coupled Newton-Schulz steps from I."""
    size, eye = cov.norm(), torch.eye(len(cov), dtype=cov.dtype)
    y, z = cov / size, eye
    for _ in range(steps):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    return z / size.sqrt()


class Whitened(Plain):
    """Convolutions and linear layers on whitened input, in evaluation; the roots are those of the first input."""

    def __init__(self, seed: int = 0, block: int = 64, block_fc: int = 512) -> None:
        super().__init__(seed)
        self.block, self.block_fc = block, block_fc

    def _moments(self, name: str, rows: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Running mean and root of rows (n, F)."""
        mean = self.tensor(f"{name}.running_mean", lambda: rows.mean(0))

        def root() -> Tensor:
            centred, size = rows - rows.mean(0), rows.shape[1]
            if size > 100:  # Newton steps would take long; what the layer computes does not depend on how it is made
                some = self.normal(size, 8, std=0.1).double()
                return (torch.eye(size, dtype=rows.dtype) + some @ some.T) / (centred.std() + 1e-3)
            return newton_root(centred.T @ centred / len(rows) + 1e-5 * torch.eye(size, dtype=rows.dtype), steps)

        return mean, self.tensor(f"{name}.running_deconv", root)

    def deconv(self, name: str, x: Tensor, out: int, kernel: int, stride: int = 1, padding: int = 0, steps: int = 5):
        """The patches themselves are whitened, block by interleaved block, then multiplied with the weights."""
        n, c = x.shape[:2]
        block = min(self.block, c)
        block = block if c % block == 0 else math.gcd(block, c)
        size, groups = kernel * kernel * block, c // block
        w = self.weight(name, out, c, kernel)
        b = self.tensor(f"{name}.bias", lambda: self.normal(out, std=0.1))
        patches = F.unfold(x, kernel, 1, padding, stride).transpose(1, 2)  # (n, places, c k k)
        # Feature f of group g is column f groups + g.
        rows = patches.reshape(n, -1, size, groups).transpose(2, 3)
        mean, root = self._moments(name, rows.reshape(-1, size), steps)
        white = ((rows - mean) @ root).transpose(2, 3).reshape(n, patches.shape[1], -1)
        y = white @ w.reshape(out, -1).T + b
        side = (x.shape[2] + 2 * padding - kernel) // stride + 1
        return y.transpose(1, 2).reshape(n, out, side, -1)

    def delinear(self, name: str, x: Tensor, out: int) -> Tensor:
        block = min(self.block_fc, x.shape[1])
        if not block:
            return self.linear(name, x, out)
        block = block if x.shape[1] % block == 0 else math.gcd(block, x.shape[1])
        w = self.tensor(f"{name}.weight", lambda: self.normal(out, x.shape[1], std=math.sqrt(1 / x.shape[1])))
        rows = x.reshape(len(x), -1, block)
        mean, root = self._moments(name, rows.reshape(-1, block), 5)
        white = ((rows - mean) @ root).reshape(x.shape)
        return white @ w.T + self.tensor(f"{name}.bias", lambda: self.normal(out, std=0.1))


def deconv_vgg(p: Whitened, x: Tensor, depth: int, large: bool, classes: int = 10) -> Tensor:
    """VGG without batch norm; ImageNet's has three linear layers, and its convolutions run on several devices."""
    place = 0
    for width, repeats in zip((64, 128, 256, 512, 512), VGGS[depth], strict=True):
        for _ in range(repeats):
            name = f"features.{'module.' if large else ''}{place}"
            x = F.relu(p.deconv(name, x, width, 3, 1, 1, steps=5 if place else 15))
            place += 2
        x, place = F.max_pool2d(x, 2), place + 1
    if not large:
        return p.delinear("classifier", x.flatten(1), classes)
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    for layer in (0, 3):
        x = F.relu(p.delinear(f"classifier.{layer}", x, 4096))
    return p.delinear("classifier.6", x, classes)


def deconv_resnet(p: Whitened, x: Tensor, depth: int, large: bool, classes: int = 10) -> Tensor:
    """ResNet without batch norm, but for ImageNet's after what a shortcut projects."""
    x = p.deconv("conv1", x, 64, 7, 2, 3, steps=15) if large else p.deconv("conv1", x, 64, 3, 1, 1)
    x = F.relu(x)
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for stage, blocks in enumerate(RESNETS[depth]):
        for i in range(blocks):
            at, width, stride = f"layer{stage + 1}.{i}", 64 * 2**stage, 2 if stage and not i else 1
            if depth < 50:
                y = F.relu(p.deconv(f"{at}.conv1", x, width, 3, stride, 1))
                y = p.deconv(f"{at}.conv2", y, width, 3, 1, 1)
            else:
                y = F.relu(p.deconv(f"{at}.conv1", x, width, 1))
                y = F.relu(p.deconv(f"{at}.conv2", y, width, 3, stride, 1))
                y = p.deconv(f"{at}.conv3", y, 4 * width, 1)
            if stride > 1 or x.shape[1] != y.shape[1]:
                short = f"{at}.{'downsample' if large else 'shortcut'}.0"
                x = p.deconv(short, x, y.shape[1], 1, stride)
                x = p.norm(f"{short[:-1]}1", x) if large else x
            x = F.relu(x + y)
    return p.delinear("fc" if large else "linear", x.mean((2, 3)), classes)
