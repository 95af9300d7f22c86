"""One harness that every layer passes, whatever its idea: a table of cases, and what must hold of each.

A file of tests makes its cases and calls `hold(case, name)`; a `Case` says how to make the layer, its plain twin and an
input. Layers without a plain twin (`plain=None`) are the identity before any training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pellucid


@dataclass(frozen=True)
class Case:
    """One layer to hold to the harness.

    make: a new layer. plain: its twin of torch.nn with the same arguments, or None. shape: of a batch; other: of one of
    another size. unbatched: it takes one image, too. refreshes: training steps after which its state changes in
    another way than before. whole_gradient: its gradient is that of all it computes, of its state too, not with parts
    of it held constant. weights: what of the layer its plain twin is loaded with. ranked: endings of the names of
    parameters that are ranked only: their gradient is by design not the derivative, and halves leave them alone.
    overflows: in halves, huge input is infinite output, as in the plain twin.
    """

    name: str
    make: Callable[[], nn.Module]
    plain: Callable[[], nn.Module] | None
    shape: tuple[int, ...]
    other: tuple[int, ...] | None = None
    unbatched: bool = False
    refreshes: int = 2
    whole_gradient: bool = False
    weights: Callable[[nn.Module], dict[str, Tensor]] = nn.Module.state_dict
    ranked: tuple[str, ...] = ()
    overflows: bool = False

    def new(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def input(self, seed: int = 0, shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch with a mean, correlated along the channels."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape or self.shape, generator=generator, dtype=torch.float64)
        return (x + 0.5 * x.roll(1, 1) + 0.3).to(dtype)


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def trained(case: Case, steps: int = 3) -> nn.Module:
    """The layer after a few real steps of SGD."""
    layer = case.new().train()
    optimizer = torch.optim.SGD([*layer.parameters(), nn.Parameter(torch.zeros(1))], 0.01)
    for step in range(steps):
        backward(layer(case.input(step).requires_grad_()), step)
        optimizer.step()
        optimizer.zero_grad()
    return layer


def backward(y: Tensor, seed: int = 0) -> None:
    """From random directions, since sums of outputs hide errors."""
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (y.float() * towards.to(y.device, torch.float32) if y.dtype != torch.float64 else y * towards).sum().backward()


def before_any_training_it_is_its_plain_twin(case: Case, folder: Path) -> None:
    layer, x = case.new().eval(), case.input()
    if case.plain is None:
        expected = x
    else:
        plain = case.plain()
        weights = case.weights(layer)
        plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
        assert isinstance(layer, type(plain))
        expected = plain(x)
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)
    assert layer.train()(x).shape == expected.shape


def evaluation_changes_nothing(case: Case, folder: Path) -> None:
    layer = trained(case).eval()
    before, x = state(layer), case.input(9)
    y = layer(x)
    assert y.isfinite().all() and torch.equal(layer(x), y)
    alone = torch.cat([layer(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, y, atol=1e-5, rtol=1e-4)  # an image does not see the others
    same(before, state(layer))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), y)
        assert layer.train()(x).isfinite().all()
    backward(layer(x.requires_grad_()))  # nothing of inference is kept for a backward pass


def state_dicts_go_round(case: Case, folder: Path) -> None:
    layer, x = trained(case).eval(), case.input(9)
    twin = case.new().eval()
    twin.load_state_dict(layer.state_dict())
    same(state(layer), state(twin))
    assert torch.equal(layer(x), twin(x))
    file = folder / "layer.safetensors"
    pellucid.save(layer, file)
    loaded = pellucid.load(file, model=case.new())
    same(state(layer), state(loaded))
    x.requires_grad_()
    backward(layer.train()(x))
    backward(twin.train()(x))
    same(state(layer), state(twin))


def copies_are_independent(case: Case, folder: Path) -> None:
    layer = trained(case)
    twin = copy.deepcopy(layer)
    before, x = state(layer), case.input(9)
    y = twin(x)
    same(before, state(layer))
    assert torch.equal(layer(x), y)
    same(state(layer), state(twin))


def another_size_follows(case: Case, folder: Path) -> None:
    layer = trained(case)
    if case.other is not None:
        for shape in (case.other, case.shape, case.other):
            y = layer(case.input(5, shape).requires_grad_())
            backward(y)
            assert y.isfinite().all() and len(y) == shape[0]
    if case.unbatched:
        x = case.input(6)
        layer.eval()
        torch.testing.assert_close(layer(x[0]), layer(x)[0], atol=1e-5, rtol=1e-4)
        assert layer.train()(x[0]).dim() == x.dim() - 1
    layer.train()
    before = state(layer)
    assert layer(case.input(6)[:0]).shape[0] == 0  # no image: nothing to learn
    same(before, state(layer))


def gradients_are_exact(case: Case, folder: Path) -> None:
    """In float64, of weight, bias and input: with the state as it is, or through it where the layer says so."""
    layer = trained(case).double()
    exact = [(name, p) for name, p in layer.named_parameters() if p.requires_grad and not name.endswith(case.ranked)]
    names, parameters = zip(*exact, strict=True) if exact else ((), ())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(copy.deepcopy(layer), dict(zip(names, values, strict=True)), x)

    small = (min(2, case.shape[0]), *case.shape[1:]) if not case.whole_gradient else case.shape
    x = case.input(3, small, torch.float64).requires_grad_()
    values = [p.detach().clone().requires_grad_() for p in parameters]
    layer.eval()
    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)
    layer.train()
    if case.whole_gradient:
        assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True, atol=1e-4)
    elif values:
        held = x.detach()
        assert torch.autograd.gradcheck(lambda *v: run(held, *v), values, fast_mode=True)


def low_precision_is_finite(case: Case, folder: Path) -> None:
    """Under autocast, with what breaks halves: constant and dead channels, one image, tiny and huge values."""
    for dtype in (torch.bfloat16, torch.float16):
        for kind in ("plain", "constant", "dead", "one", "tiny", "huge", "offset"):
            if kind == "huge" and case.overflows:
                continue
            layer, x = case.new(), case.input(1)
            if kind == "constant":
                x[:, :2] = 1e4
            elif kind == "dead":
                x = torch.zeros_like(x)
            elif kind == "one":
                x = x[:1]
            elif kind == "offset":
                x = 1 + 1e-3 * x
            x = x * {"tiny": 1e-6, "huge": 1e6}.get(kind, 1.0)
            for step in range(3):
                layer.train()
                leaf = x.clone().requires_grad_()
                with torch.autocast("cpu", dtype):
                    y = layer(leaf)
                assert y.dtype in (dtype, torch.float32)
                assert y.isfinite().all(), (dtype, kind, step)
                backward(y / 128)
                assert leaf.grad.isfinite().all() or kind in ("constant", "dead"), (dtype, kind, step)
            with torch.autocast("cpu", dtype), torch.no_grad():
                low = layer.eval()(x)
            assert low.isfinite().all(), (dtype, kind)
            assert all(v.isfinite().all() for v in layer.state_dict().values())
            assert all(v.dtype in (torch.float32, torch.int64) for v in layer.state_dict().values())
            if kind == "plain":
                full = layer(x).detach()
                assert (low - full).norm() < 0.05 * full.norm() + 0.05


def halves_keep_their_statistics(case: Case, folder: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        layer = trained(case)
        names = {name for name, _ in layer.named_parameters() if not name.endswith(case.ranked)}
        before = state(layer)
        full = layer.eval()(case.input(2)).detach()
        layer.to(dtype)
        for name, value in layer.state_dict().items():
            if name in names:
                assert value.dtype == dtype
            else:
                assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
        x = case.input(2, dtype=dtype)
        y = layer(x)
        assert y.dtype == dtype
        assert (y - full).norm() < 0.05 * full.norm() + 0.05
        assert layer.train()(x).isfinite().all()


def a_layer_can_be_used_twice(case: Case, folder: Path) -> None:
    """Twice in one pass, before its backward: the gradient is that of both uses."""
    layer, x = trained(case, case.refreshes + 2), case.input(4).requires_grad_()
    a = layer(x)
    b = layer(2 * x)
    backward(torch.cat([a, b]))
    assert x.grad.isfinite().all()


def memory_formats_do_not_matter(case: Case, folder: Path) -> None:
    if len(case.shape) != 4:
        return
    layer, other, x = trained(case), trained(case), case.input(4)
    a = layer(x)
    b = other.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    strange = case.input(4).transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(layer.eval()(strange), layer(x), atol=1e-5, rtol=1e-5)


def it_exports(case: Case, folder: Path) -> None:
    layer, x = trained(case).eval(), case.input(5)
    program = torch.export.export(layer, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), layer(x), atol=1e-6, rtol=1e-5)


def it_compiles(case: Case, folder: Path) -> None:
    """Whole, with the gradients and the state of the eager layer, before and after a change of its schedule."""
    torch._dynamo.reset()
    eager = case.new().train()
    layer = case.new().train()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    follow(case, eager, layer, compiled)


def it_compiles_to_code(case: Case, folder: Path) -> None:
    torch._dynamo.reset()
    eager, layer = case.new().train(), case.new().train()
    follow(case, eager, layer, torch.compile(layer, fullgraph=True))


def follow(case: Case, eager: nn.Module, layer: nn.Module, compiled: Any) -> None:
    for step in range(case.refreshes + 3):
        found = []
        for module in (eager, compiled):
            x = case.input(step).requires_grad_()
            module.zero_grad()
            with torch._dynamo.config.patch(error_on_recompile=step > 0):  # one graph for all steps
                y = module(x)
            backward(y, step)
            owner = layer if module is compiled else eager
            found.append([y.detach(), x.grad, *(p.grad.clone() for p in owner.parameters() if p.requires_grad)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        for (name, a), b in zip(eager.state_dict().items(), layer.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    x = case.input(77)
    eager.eval()
    compiled.eval()
    torch.testing.assert_close(eager(x), compiled(x), atol=1e-5, rtol=1e-4)
    eager.train()
    layer.train()
    torch.testing.assert_close(eager(x), layer(x), atol=1e-4, rtol=1e-4)  # eager goes on where compiled code stopped


FAST = [
    before_any_training_it_is_its_plain_twin,
    evaluation_changes_nothing,
    state_dicts_go_round,
    copies_are_independent,
    another_size_follows,
    gradients_are_exact,
    low_precision_is_finite,
    halves_keep_their_statistics,
    a_layer_can_be_used_twice,
    memory_formats_do_not_matter,
    it_exports,
]
SLOW = [it_compiles_to_code]
