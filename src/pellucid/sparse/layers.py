r"""Layers whose output is the sparse code of their input (SDNet: Dai et al., NeurIPS 2022).

$$\mathrm{CSC}(x) = \arg\min_z\; \lambda \lVert z \rVert_1 + \tfrac{\mu}{2} \lVert z \rVert_2^2
  + \tfrac12 \lVert x - D^* z \rVert_2^2$$

with $D^*$ a transposed convolution whose atoms have norm 1, by `n_steps` steps of `fista.unroll`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.core.device import at_least_single
from pellucid.core.errors import InputError
from pellucid.sparse.dictionary import Dictionary
from pellucid.sparse.fista import Schedule, unroll
from pellucid.sparse.implicit import implicit
from pellucid.sparse.norm import expected_norm, followed, published_norm, start
from pellucid.sparse.options import Differentiate, check
from pellucid.sparse.solve import Solution, objective, solve

_PLACES = {1: 64, 2: 12, 3: 6}  # maximum number of places along an axis that the norm is measured on


class CSC(nn.Module):
    """Sparse coding of any rank; a subclass names its plain twin as second base."""

    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    weight: Tensor

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
        differentiate: Differentiate = "unrolled",
        cg_steps: int = 50,
        published: bool = False,
    ) -> None:
        check(padding, n_steps, n_dict, lam, mu, schedule, differentiate, square_noise)
        plain: Any = super()  # the twin's, which a class of any rank does not know
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
        """Images (B, C, *size), or one image (C, *size), to codes (B, K, *places); under autocast, float32."""
        if x.dim() == 1 + len(self.kernel_size):
            return self.forward(x.unsqueeze(0)).squeeze(0)
        low = torch.is_autocast_enabled(x.device.type)
        # Only where it is on: torch.export would keep the block as an operation of its own.
        with torch.autocast(x.device.type, enabled=False) if low else contextlib.nullcontext():
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
        # A compiled backward recomputes what is cheap, here from a buffer that has changed since; a cumsum it keeps.
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
                f"lam has shape {tuple(self.lam.shape)} for {x.shape[0]} images: give one number, or one per image."
            )
        return self.lam.to(x)

    @property
    def atoms(self) -> Tensor:
        """The dictionary (K, n_dict C, *kernel): the weights, with each atom scaled to norm 1, in float32 at least.

        Its gradient is tangential to the sphere; with `published` it is as if there were no scaling."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        length = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
        length = torch.where(length > 1e-12, length, 1)  # an atom whose weights are all masked has a finite gradient
        return weight / (length.detach() if self.published else length)

    def dictionary(self) -> Dictionary:
        """D and D* with the current atoms."""
        return Dictionary(self.atoms, self.stride, cast("tuple[int, ...]", self.padding), self.dilation)

    # --- the step size ---

    def measure(self, steps: int = 30) -> Tensor:
        """Set `norm`, which step sizes come from, by `steps` steps of power iteration with the current weights.

        Training keeps it up to date; call this after setting weights by hand. Returns `norm`.
        """
        with torch.no_grad():
            dictionary = self.dictionary()
            norm, direction = dictionary.norm(self.direction.to(dictionary.atoms.dtype), steps)
            self.norm.copy_(torch.minimum(norm, dictionary.bound()))
            self.direction.copy_(direction)
        return self.norm

    @torch.no_grad()
    def _follow(self, dictionary: Dictionary, places: tuple[int, ...]) -> None:
        """One step of power iteration for the next training step's `norm`, on codes of at most this size."""
        part = (
            slice(None),
            slice(None),
            *(slice(min(n, m)) for n, m in zip(places, self.direction.shape[2:], strict=True)),
        )
        held = replace(dictionary, atoms=dictionary.atoms.detach())
        norm, direction = followed(held, self.norm, self.direction[part])
        self.norm.copy_(norm)
        self.direction[part] = direction

    @torch.no_grad()
    def _published_step(self, x: Tensor) -> None:
        """The published order: first power iteration with the weights as the optimiser left them, on codes of this
        size; then the weights are scaled in place."""
        dictionary = replace(self.dictionary(), atoms=self.weight.to(self.norm.dtype))
        norm, self.direction = published_norm(dictionary, x, self.direction)
        self.norm.copy_(norm)
        self.weight.copy_(self.atoms)

    # --- reading a code ---

    def decode(self, z: Tensor, size: int | tuple[int, ...] | None = None) -> Tensor:
        """The image D* z (B, C, *size) of codes (B, K, *places), averaged over the dictionaries.

        size: of the image, where a stride leaves it open; default the smallest possible.
        """
        size = (size,) * len(self.kernel_size) if isinstance(size, int) else size
        with torch.autocast(z.device.type, enabled=False):
            dictionary = self.dictionary()
            image = dictionary.synthesise(z.to(dictionary.atoms.dtype), size)
            return image.unflatten(1, (self.n_dict, self.in_channels)).mean(1)

    def residual(self, x: Tensor, z: Tensor) -> Tensor:
        """The residual x - D* z, (B, n_dict C, *size), of images x (B, C, *size) and codes z (B, K, *places)."""
        with torch.autocast(x.device.type, enabled=False):
            dictionary = self.dictionary()
            images = self._images(x)
            return images - dictionary.synthesise(z.to(images.dtype), tuple(x.shape[2:]))

    def objective(self, x: Tensor, z: Tensor) -> Tensor:
        """The objective that the layer minimises, (B,), for each image of x and its code in z."""
        with torch.autocast(x.device.type, enabled=False):
            r = self.residual(x, z)
            return objective(z.to(r.dtype), r, self._lam(r), self.mu, self.square_noise)

    def solve(self, x: Tensor, tol: float = 1e-6, max_steps: int = 1000) -> Solution:
        """The exact code, not that of `n_steps` steps; without gradients.

        Args:
            x: images (B, C, *size); give float64 for a `tol` below 1e-6.
            tol: allowed gap to the minimum of the objective, as a fraction of the objective of z = 0.
            max_steps: stop after this many steps in any case; the solution's `gap` says how far it got.

        Raises:
            InputError: the layer has `square_noise=False`.
        """
        if not self.square_noise:
            raise InputError("solve() needs the squared residual: set square_noise=True on the layer.")
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
        """The same layer in the paper's published arithmetic; `options` override.

        Weights are scaled in place in training, their gradient is not tangential to the sphere, and the step size is
        measured before every training step by up to 50 steps of power iteration on codes of the batch's size.

        Not reproduced: the very first training step, whose size is 0.1 before anything is measured, and the measurement
        that evaluation repeats after the last step. The vector of the power iteration is not saved, so a resumed run
        restarts it.
        """
        return cls(*args, **{"published": True, **options})

    # --- as a module ---

    def extra_repr(self) -> str:
        lam = self.lam if not isinstance(self.lam, Tensor) else "one per image" if self.lam.dim() else float(self.lam)
        more = f", mu={self.mu}" if self.mu else ""
        more += f", n_dict={self.n_dict}" if self.n_dict > 1 else ""
        kept = super().extra_repr().replace(", bias=False", "")
        return f"{kept}, lam={lam}{more}, n_steps={self.n_steps}, schedule={self.schedule!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CSC:  # torch's one hook into half()
        state = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in state.items():
            setattr(self, name, at_least_single(fn)(buffer))
        return self


class CSC1d(CSC, nn.Conv1d):
    """The sparse code of signals (B, C, L); arguments as in `CSC2d`."""


class CSC2d(CSC, nn.Conv2d):
    """The sparse code of images (B, C, H, W) in a dictionary of convolutional atoms (Dai et al., NeurIPS 2022).

    The arguments are those of `torch.nn.Conv2d` up to `dilation`, without a bias and with zero padding only, followed
    by these, by keyword:

        lam: weight of |z|_1, a number or a tensor (B,) with one value per image of a batch; default 0.1.
        mu: weight of |z|^2 / 2; default 0.
        n_steps: number of steps of the unrolled iteration, which take 2 n_steps - 1 convolutions; default 2. Run a
            trained network with as many steps as it was trained with.
        nonnegative: restrict codes to z >= 0; default True.
        n_dict: number of dictionaries, each of which is to reconstruct the image from the same code; default 1.
        square_noise: False minimises half the norm of the residual instead of half its square; default True.
        schedule: how step sizes are chosen, see `fista.unroll`: "published" (default), "long", "greedy" or
            "barzilai-borwein".
        differentiate: "unrolled" (default) differentiates through the steps; "implicit" differentiates the equation
            that holds at convergence, in memory that does not grow with n_steps: right only if the steps do converge.
        cg_steps: number of steps of conjugate gradients for implicit gradients; default 50.
        published: see `as_published`.

    `lam`, `mu`, `n_steps`, `schedule` and `differentiate` may be set at any time. The buffer `norm`, the largest
    eigenvalue of D D*, follows the weights: each training step takes one step of power iteration for the next, on maps
    of the size trained on. Evaluation writes nothing.

    Raises:
        InputError: a value out of range, or values that exclude each other.
    """


class CSC3d(CSC, nn.Conv3d):
    """The sparse code of volumes (B, C, D, H, W); arguments as in `CSC2d`."""
