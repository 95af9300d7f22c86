r"""Layers whose output is the sparse code of their input (SDNet: Dai et al., NeurIPS 2022).

$$\mathrm{CSC}(x) = \arg\min_z\; \lambda \lVert z \rVert_1 + \tfrac{\mu}{2} \lVert z \rVert_2^2
  + \tfrac12 \lVert x - D^* z \rVert_2^2$$

with $D^*$ a transposed convolution whose atoms have norm 1, by `n_steps` steps of `fista.unroll`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pellucid.core.errors import InputError
from pellucid.sparse.dictionary import Dictionary, expected_norm
from pellucid.sparse.fista import SCHEDULES, Schedule, unroll
from pellucid.sparse.solve import Solution, implicit, objective, solve, start

_PLACES = {1: 64, 2: 12, 3: 6}  # most places along an axis that the norm is measured on
_FALL = 0.95  # a norm falls by no more in a step: power iteration comes from below


class CSC(_ConvNd):
    """Sparse coding of any rank; a subclass names its plain twin as second base."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        device: Any = None,
        dtype: Any = None,
        *,
        lam: float | Tensor = 0.1,
        mu: float = 0.0,
        n_steps: int = 2,
        nonnegative: bool = True,
        n_dict: int = 1,
        square_noise: bool = True,
        schedule: Schedule = "published",
        differentiate: Literal["unrolled", "implicit"] = "unrolled",
        cg_steps: int = 50,
        published: bool = False,
    ) -> None:
        _check(padding, n_steps, n_dict, lam, mu, schedule, differentiate, square_noise)
        plain: Any = super()  # the twin's, which _ConvNd does not know
        plain.__init__(
            n_dict * in_channels, out_channels, kernel_size, stride, padding, dilation, 1, False, "zeros", device, dtype
        )
        self.in_channels = in_channels
        self.lam, self.mu, self.n_steps = lam, mu, n_steps
        self.nonnegative, self.n_dict, self.square_noise = nonnegative, n_dict, square_noise
        self.schedule, self.differentiate, self.cg_steps, self.published = schedule, differentiate, cg_steps, published
        rank = len(self.kernel_size)
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        like = torch.empty((), device=self.weight.device, dtype=kind)
        self.norm: Tensor
        self.direction: Tensor
        places = (_PLACES[rank],) * rank
        self.register_buffer("norm", like.new_full((), expected_norm(out_channels, n_dict * in_channels, self.stride)))
        self.register_buffer("direction", start((1, out_channels, *places), like), persistent=not published)

    # --- the code ---

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, *size), or one (C, *size), to codes (B, K, *places), in float32 at least under autocast."""
        if x.dim() == 1 + len(self.kernel_size):
            return self.forward(x.unsqueeze(0)).squeeze(0)
        low = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            images = self._images(x)
            learning = self.training and x.numel() > 0
            if learning and self.published:
                self._published_step(images)
            dictionary = self.dictionary()
            z = self._code(dictionary, images)
            if learning and not self.published:
                self._follow(dictionary, tuple(z.shape[2:]))
        return z if low else z.to(x.dtype)

    def _code(self, dictionary: Dictionary, x: Tensor) -> Tensor:
        lam = self._lam(x)
        # A compiled backward makes anew what is cheap to make, here from a buffer that has changed since: not a cumsum.
        norm = self.norm.reshape(1).cumsum(0).squeeze(0) if torch.compiler.is_compiling() else self.norm
        grad = torch.is_grad_enabled() and self.differentiate == "unrolled"
        with torch.set_grad_enabled(grad):
            z = unroll(
                dictionary,
                x,
                lam,
                self.mu,
                self.n_steps,
                norm,
                nonnegative=self.nonnegative,
                square_noise=self.square_noise,
                schedule=self.schedule,
            )
        if grad or not torch.is_grad_enabled():
            return z
        return implicit(dictionary, x, z, lam, self.mu, self.cg_steps)

    def _images(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, self.norm.dtype))
        return x if self.n_dict == 1 else x.repeat(1, self.n_dict, *[1] * (x.dim() - 2))

    def _lam(self, x: Tensor) -> float | Tensor:
        if not isinstance(self.lam, Tensor):
            return float(self.lam)
        if self.lam.dim() and self.lam.shape != x.shape[:1]:
            raise InputError(
                f"lam has the shape {tuple(self.lam.shape)} for {x.shape[0]} images: give one number, or one an image."
            )
        return self.lam.to(x)

    @property
    def atoms(self) -> Tensor:
        """The dictionary (K, n_dict C, *kernel): the weights, each atom scaled to norm 1, in float32 at least.

        Its gradient is along the sphere; with `published` it is as if there were no scaling."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        length = weight.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (weight.dim() - 1))
        return weight / (length.detach() if self.published else length)

    def dictionary(self) -> Dictionary:
        """D and D* with the atoms as they are."""
        return Dictionary(self.atoms, self.stride, cast("tuple[int, ...]", self.padding), self.dilation)

    # --- the step size ---

    def measure(self, steps: int = 30) -> Tensor:
        """Set `norm`, which step sizes come from, by so many steps of power iteration with the weights as they are.

        Training keeps it up to date; this is for weights that came from elsewhere.
        """
        with torch.no_grad():
            dictionary = self.dictionary()
            norm, direction = dictionary.norm(self.direction.to(dictionary.atoms.dtype), steps)
            self.norm.copy_(torch.minimum(norm, dictionary.bound()))
            self.direction.copy_(direction)
        return self.norm

    @torch.no_grad()
    def _follow(self, dictionary: Dictionary, places: tuple[int, ...]) -> None:
        """One step of power iteration for the next training step's `norm`, on codes as large as these at most."""
        part = (
            slice(None),
            slice(None),
            *(slice(min(n, m)) for n, m in zip(places, self.direction.shape[2:], strict=True)),
        )
        held = replace(dictionary, atoms=dictionary.atoms.detach())
        norm, direction = held.norm(self.direction[part].to(held.atoms.dtype), 1)
        good = norm.isfinite() & (norm > 0)
        self.norm.copy_(torch.where(good, torch.maximum(norm, _FALL * self.norm), self.norm))
        self.direction[part] = torch.where(good, direction, self.direction[part]).to(self.direction.dtype)

    @torch.no_grad()
    def _published_step(self, x: Tensor) -> None:
        """The published order: at most 50 steps of power iteration with the weights as the optimiser left them, on
        codes of this very size; then the weights are scaled in place."""
        dictionary = replace(self.dictionary(), atoms=self.weight.to(self.norm.dtype))
        places, size = dictionary.analyse(x[:1]).shape, tuple(x.shape[2:])
        v = self.direction if self.direction.shape == places else start(places, self.direction)
        going = torch.ones((), dtype=torch.bool, device=x.device)
        for _ in range(50):
            new = dictionary.analyse(dictionary.synthesise(v, size))
            new = new / new.norm().clamp_min(1e-12)
            further = going & ((new - v).square().sum() > 1e-5)
            v, going = torch.where(going, new, v), further
            if not torch.compiler.is_compiling() and not going:
                break
        self.norm.copy_(dictionary.synthesise(v, size).square().sum())
        self.direction = v
        self.weight.copy_(self.atoms)

    # --- reading a code ---

    def decode(self, z: Tensor, size: int | tuple[int, ...] | None = None) -> Tensor:
        """The image D* z (B, C, *size) of codes (B, K, *places), the mean of all dictionaries' images.

        size: of the image, where a stride leaves it open; default the smallest.
        """
        size = (size,) * len(self.kernel_size) if isinstance(size, int) else size
        with torch.autocast(z.device.type, enabled=False):
            dictionary = self.dictionary()
            image = dictionary.synthesise(z.to(dictionary.atoms.dtype), size)
            return image.unflatten(1, (self.n_dict, self.in_channels)).mean(1)

    def residual(self, x: Tensor, z: Tensor) -> Tensor:
        """What codes z (B, K, *places) leave of images x (B, C, *size): x - D* z, (B, n_dict C, *size)."""
        with torch.autocast(x.device.type, enabled=False):
            dictionary = self.dictionary()
            images = self._images(x)
            return images - dictionary.synthesise(z.to(images.dtype), tuple(x.shape[2:]))

    def objective(self, x: Tensor, z: Tensor) -> Tensor:
        """What the layer minimises, at codes z of images x, (B,): each image's own."""
        with torch.autocast(x.device.type, enabled=False):
            r = self.residual(x, z)
            return objective(z.to(r.dtype), r, self._lam(r), self.mu, self.square_noise)

    def solve(self, x: Tensor, tol: float = 1e-6, max_steps: int = 1000) -> Solution:
        """The code itself, not that of `n_steps` steps; without gradients.

        Args:
            x: images (B, C, *size); give float64 for a `tol` below 1e-6.
            tol: the gap to the least objective that is allowed, as a part of the objective of z = 0.
            max_steps: steps after which it ends in any case; see the solution's gap.

        Raises InputError for a layer with `square_noise=False`.
        """
        if not self.square_noise:
            raise InputError("solve() is for the squared residual: set square_noise=True on the layer.")
        with torch.autocast(x.device.type, enabled=False):
            images = self._images(x)
            dictionary = self.dictionary()
            dictionary = replace(dictionary, atoms=dictionary.atoms.detach().to(images.dtype))
            return solve(
                dictionary,
                images,
                self._lam(images),
                self.mu,
                nonnegative=self.nonnegative,
                tol=tol,
                max_steps=max_steps,
            )

    @classmethod
    def as_published(cls, *args: Any, **options: Any) -> Any:
        """The same layer in the paper's published arithmetic: weights are scaled in place in training, their gradient
        is not along the sphere, and the step size is made before every training step by up to 50 steps of power
        iteration on codes of that size. `options` override.

        Not reproduced: the very first training step, of size 0.1 before anything is measured; and that evaluation
        measures once more after the last. The vector of the power iteration is not saved: a resumed run starts it anew.
        """
        return cls(*args, **{"published": True, **options})

    # --- as a module ---

    def extra_repr(self) -> str:
        lam = (
            self.lam
            if not isinstance(self.lam, Tensor)
            else "one for each image"
            if self.lam.dim()
            else float(self.lam)
        )
        more = f", mu={self.mu}" if self.mu else ""
        more += f", n_dict={self.n_dict}" if self.n_dict > 1 else ""
        kept = super().extra_repr().replace(", bias=False", "")
        return f"{kept}, lam={lam}{more}, n_steps={self.n_steps}, schedule={self.schedule!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CSC:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():  # half() and bfloat16() leave the state alone
            made = self._buffers[name]
            if made is not None and made.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = buffer.to(made.device)
        return self


def _check(
    padding: Any,
    n_steps: int,
    n_dict: int,
    lam: float | Tensor,
    mu: float,
    schedule: str,
    differentiate: str,
    square_noise: bool,
) -> None:
    rules = [
        (not isinstance(padding, str), f"padding={padding!r} must be a number or one for each axis"),
        (n_steps >= 1, f"n_steps={n_steps} must be at least 1"),
        (n_dict >= 1, f"n_dict={n_dict} must be at least 1"),
        (isinstance(lam, Tensor) or (lam >= 0 and math.isfinite(lam)), f"lam={lam} must be at least 0"),
        (mu >= 0 and math.isfinite(mu), f"mu={mu} must be at least 0"),
        (schedule in SCHEDULES, f"schedule={schedule!r} must be {', '.join(SCHEDULES)}"),
        (differentiate in ("unrolled", "implicit"), f"differentiate={differentiate!r} must be unrolled or implicit"),
        (
            square_noise or (schedule in ("published", "long") and differentiate == "unrolled"),
            "square_noise=False goes with the schedules published and long and with differentiate='unrolled' only",
        ),
    ]
    for holds, sentence in rules:
        if not holds:
            raise InputError(f"A sparse coding layer's {sentence}.")


class CSC1d(CSC, nn.Conv1d):
    """The sparse code of signals (B, C, L); arguments as in `CSC2d`."""


class CSC2d(CSC, nn.Conv2d):
    """The sparse code of images (B, C, H, W) in a dictionary of convolutional atoms (Dai et al., NeurIPS 2022).

    Arguments are those of `torch.nn.Conv2d` as far as `dilation`, without a bias and with padding by zeros, then by
    keyword:

        lam: weight of |z|_1, a number or a tensor (B,), one for each image of a batch; default 0.1.
        mu: weight of |z|^2 / 2; default 0.
        n_steps: steps of the unrolled iteration, 2 n_steps - 1 convolutions; default 2. A trained network is to be
            run with as many as it was trained with.
        nonnegative: codes are at least 0 (default).
        n_dict: dictionaries, each of which is to give the image by the same code; default 1.
        square_noise: False minimises half the residual's norm, not its square; default True.
        schedule: sizes of the steps, see `fista.unroll`: "published" (default), "long", "greedy", "barzilai-borwein".
        differentiate: "unrolled" (default) through the steps; "implicit" by the equation that holds at convergence, in
            memory that does not grow with n_steps: only right where they do converge.
        cg_steps: steps of conjugate gradients for implicit gradients; default 50.
        published: see `as_published`.

    `lam`, `mu`, `n_steps`, `schedule` and `differentiate` may be set at any time. `norm`, the largest eigenvalue of
    D D*, is a buffer that follows the weights by one step of power iteration a training step, for the next one, on maps
    of the size trained on; evaluation writes nothing.

    Raises InputError for values out of range.
    """


class CSC3d(CSC, nn.Conv3d):
    """The sparse code of volumes (B, C, D, H, W); arguments as in `CSC2d`."""
