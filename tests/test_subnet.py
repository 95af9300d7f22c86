"""Edge-popup compared with its slow twin: masks, gradients, random weights, schedules, and what is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pellucid
import reference_subnet as twin
from pellucid.core.errors import InputError
from pellucid.core.train.optimize import make_optimizer
from pellucid.core.train.settings import TrainSettings
from pellucid.edgepopup import draw
from pellucid.edgepopup.layers import masks
from pellucid.edgepopup.mask import annealed, kept, largest, topk_mask
from pellucid.edgepopup.parametrization import fans
from pellucid.edgepopup.subnet import subnet

KEEPS = st.integers(1, 1000).map(lambda n: n / 1000)


def step(model: nn.Module, seed: int = 0, lr: float = 0.1, shape: tuple[int, ...] = (6, 1, 8, 8)) -> None:
    """One real step of SGD on what the model trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    torch.optim.SGD(trained, lr).step()
    model.zero_grad()


def small(**options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(),
        nn.Linear(144, 5),
    )  # fmt: skip
    return subnet(model, **options)


# --- which weights ---


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), KEEPS)
def test_the_mask_is_the_sorted_one_with_ties(values, keep):
    scores = torch.tensor(values, dtype=torch.float32) / 4
    expected = twin.mask(scores.tolist(), twin.kept(str(keep), len(values)))
    assert topk_mask(scores, keep).tolist() == expected
    k = torch.tensor(sum(expected))
    assert largest(scores.abs(), k).tolist() == expected  # the number as a tensor, as in compiled code


@given(st.integers(1, 10**6), KEEPS)
def test_the_fraction_kept_is_exact(n, keep):
    assert kept(keep, n) == twin.kept(str(keep), n)
    assert int(kept(torch.tensor(keep, dtype=torch.float64), n)) == twin.kept(str(keep), n)


@given(KEEPS, st.integers(0, 40), st.integers(1, 30))
def test_annealing_falls_from_one_to_keep(keep, at, steps):
    value = annealed(keep, at, steps)
    assert value == pytest.approx(keep + (1 - keep) * max(0, 1 - at / steps) ** 3, rel=1e-12)
    assert float(annealed(keep, torch.tensor(float(at), dtype=torch.float64), steps)) == value
    assert annealed(keep, at + 1, steps) <= value
    assert annealed(keep, 0, steps) == pytest.approx(1)


def test_masks_have_the_shape_of_the_scores():
    scores = torch.randn(3, 2, 5)
    mask = topk_mask(scores, 0.4)
    assert mask.shape == scores.shape and mask.dtype == torch.bool
    assert int(mask.sum()) == 12
    assert scores[mask].abs().min() > scores[~mask].abs().max()


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan"), True, "0.3"])
def test_a_fraction_out_of_range_is_a_sentence(keep):
    with pytest.raises(InputError, match="above 0, at most 1"):
        topk_mask(torch.randn(4), keep)
    with pytest.raises(InputError, match="above 0, at most 1"):
        subnet(nn.Linear(2, 2), keep)


# --- random weights ---


def test_bits_are_those_of_splitmix():
    seed, n = 2**62 + 12345, 50
    start = twin.mix(seed)
    expected = [((bits >> 12) + 0.5) / 2**52 for bits in twin.splitmix(start, n)]
    assert draw.uniform(seed, (5, 10)).flatten().tolist() == expected
    start = twin.mix((seed + 7 * 0xD1B54A32D192ED03) % 2**64)
    later = [((bits >> 12) + 0.5) / 2**52 for bits in twin.splitmix(start, n)]
    assert draw.uniform(seed, (n,), 7).tolist() == later


def test_each_place_can_be_of_a_round_of_its_own():
    rounds = torch.randint(0, 4, (6, 7))
    whole = draw.weights("kaiming_normal", 0.5, 9, (6, 7), rounds)
    for number in range(4):
        alone = draw.weights("kaiming_normal", 0.5, 9, (6, 7), number)
        assert torch.equal(whole[rounds == number], alone[rounds == number])


@pytest.mark.parametrize("scale_fan", [False, True])
@pytest.mark.parametrize("init", [name for name in draw.INITS if name != "given"])
def test_every_initialisation_has_its_statistics(init, scale_fan):
    conv = nn.Conv2d(32, 48, 5, groups=2)
    subnet(conv, 0.4, init=init, scale_fan=scale_fan, seed=5)
    fan_in, fan_out = 16 * 25, 24 * 25
    std = (2 / (fan_in + fan_out if "xavier" in init else fan_in) / (0.4 if scale_fan else 1)) ** 0.5
    weight = conv.parametrizations.weight.original.double()
    n = weight.numel()
    if init == "unsigned_constant":
        torch.testing.assert_close(weight, torch.full_like(weight, std))
        return
    assert abs(float(weight.mean())) < 4 * std / n**0.5
    assert float(weight.square().mean().sqrt()) == pytest.approx(std, rel=0.02)
    shape = float(weight.pow(4).mean()) / std**4  # 1 for two values, 1.8 uniform, 3 normal
    assert shape == pytest.approx(1 if "constant" in init else 1.8 if "uniform" in init else 3, rel=0.05)
    if "uniform" in init:
        assert float(weight.abs().max()) <= 3**0.5 * std * 1.000001
    neighbours = torch.corrcoef(torch.stack([weight.flatten()[:-1], weight.flatten()[1:]]))[0, 1]
    assert abs(float(neighbours)) < 4 / n**0.5


def test_fans_are_those_of_torch_and_right_for_transposed_convolutions():
    for layer in (nn.Linear(7, 3), nn.Conv1d(4, 6, 3), nn.Conv3d(2, 3, (1, 2, 3))):
        assert fans(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)
    assert fans(nn.ConvTranspose2d(6, 4, (2, 3), groups=2)) == (3 * 6, 2 * 6)


def test_seeds_decide_weights_and_scores():
    torch.manual_seed(1)
    a, b, other = small(seed=4), small(seed=4), small(seed=5)
    for name, x in a.state_dict().items():
        y, z = b.state_dict()[name], other.state_dict()[name]
        assert torch.equal(x, y), name
        assert not torch.equal(x, z) or "running" in name or "num_batches" in name, name
    weights = [layer.parametrizations.weight.original for _, layer, _ in masks(small(seed=4))]
    assert not torch.equal(weights[0].flatten()[:36], weights[1].flatten())
    torch.manual_seed(2)
    first = subnet(nn.Linear(4, 4))
    torch.manual_seed(2)
    assert torch.equal(subnet(nn.Linear(4, 4)).weight, first.weight)


# --- training ---


@pytest.mark.parametrize("ranking", ["layer", "global"])
def test_training_is_that_of_the_twin(ranking):
    """Losses and scores after steps of SGD with momentum and weight decay; weights bit for bit as they were."""
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    subnet(model, 0.3, ranking=ranking, init="kaiming_normal", seed=1)
    parts = [mask for _, _, mask in masks(model)]
    weights = [layer.parametrizations.weight.original for _, layer, _ in masks(model)]
    before = [w.clone() for w in weights]
    plain = twin.Perceptron(weights, [part.scores for part in parts], "0.3", ranking)
    settings = TrainSettings(lr=0.05, momentum=0.9, weight_decay=1e-2)
    optimizer = make_optimizer(settings, model)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(part.scores) for part in parts}
    assert optimizer.param_groups[0]["weight_decay"] == 1e-2
    moved = 0
    for number in range(12):
        x, y = torch.randn(2, 8, 6, dtype=torch.float64)[0], torch.randn(8, 3, dtype=torch.float64)
        chosen = [part.mask() for part in parts]
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(plain.step(x, y, 0.05, 0.9, 1e-2), rel=1e-9), number
        for part, scores, mask in zip(parts, plain.scores, chosen, strict=True):
            torch.testing.assert_close(part.scores.detach(), scores, rtol=1e-9, atol=1e-12)
            moved += int((part.mask() != mask).sum())
    assert moved  # or the comparison would be of masks that nothing changes
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    total = [p.scores.numel() for p in parts]
    counts = [int(p.mask().sum()) for p in parts]
    if ranking == "layer":
        assert counts == [twin.kept("0.3", n) for n in total]
    else:
        assert sum(counts) == twin.kept("0.3", sum(total)) and counts != [twin.kept("0.3", n) for n in total]


@pytest.mark.parametrize("kind", ["conv", "transposed", "linear"])
def test_the_gradient_is_the_published_one(kind):
    """dL/ds = dL/d(w h) w sign(s), of a loss that is not linear."""
    layer, x = {
        "conv": (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
        "transposed": (nn.ConvTranspose2d(4, 6, 3), torch.randn(2, 4, 5, 5)),
        "linear": (nn.Linear(7, 5), torch.randn(3, 7)),
    }[kind]
    subnet(layer, 0.5, init="kaiming_uniform")
    ((_, _, mask),) = masks(layer)
    layer(x).exp().sum().backward()
    used = layer.weight.detach().requires_grad_()
    (g,) = torch.autograd.grad(torch.func.functional_call(_plain(layer), {"weight": used}, x).exp().sum(), used)
    expected = g * layer.parametrizations.weight.original * mask.scores.detach().sign()
    torch.testing.assert_close(mask.scores.grad, expected)
    assert (mask.scores < 0).any() and mask.scores.grad[~mask.mask()].any()  # pruned weights can come back
    assert layer.parametrizations.weight.original.grad is None


def _plain(layer: nn.Module) -> nn.Module:
    from pellucid.core.network.fold import folded_module

    return folded_module(layer)


@given(st.integers(1, 3), st.lists(st.integers(1, 7), min_size=1, max_size=4), KEEPS, st.integers(0, 3))
def test_one_ranking_of_all_layers_is_exact_with_ties(seed, widths, keep, levels):
    model = nn.Sequential(*[nn.Linear(3, width) for width in widths])
    subnet(model, keep, ranking="global", seed=seed)
    parts = [mask for _, _, mask in masks(model)]
    with torch.no_grad():
        for part in parts:
            part.scores.mul_(levels).round_()
    expected = twin.masks([part.scores for part in parts], str(keep), "global")
    for _ in range(2):
        assert all(torch.equal(part.mask(), mask) for part, mask in zip(parts, expected, strict=True))
    with torch.no_grad():
        parts[-1].scores.fill_(9)
    expected = twin.masks([part.scores for part in parts], str(keep), "global")
    assert all(torch.equal(part.mask(), mask) for part, mask in zip(parts, expected, strict=True))


def test_nothing_but_scores_is_trained_and_batch_norm_has_no_scale():
    model = small()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        f"{name}.parametrizations.weight.0.scores" for name in ("0", "3", "5")
    ]
    norm = model[1]
    assert norm.weight is None and norm.bias is None and not norm.affine and norm.track_running_stats
    assert model[0].bias is None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for seed in range(3):
        step(model.train(), seed)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("original" in name or "extra" in name), name
    kept_affine = small(affine=True)
    assert {"1.weight", "1.bias"} == {
        name for name, p in kept_affine.named_parameters() if p.requires_grad and "scores" not in name
    }
    group = subnet(nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)))
    assert not group[1].weight.requires_grad


def test_given_weights_and_biases_stay_as_they_are():
    layer = nn.Conv2d(2, 3, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    subnet(layer, 0.5, init="given")
    assert torch.equal(layer.parametrizations.weight.original, weight) and torch.equal(layer.bias, bias)
    assert not layer.bias.requires_grad
    assert torch.equal(layer.weight, weight * topk_mask(next(masks(layer))[2].scores, 0.5))


def test_the_binary_gain_is_the_mean_magnitude_of_what_stays():
    layer = subnet(nn.Linear(30, 20), 0.3, init="kaiming_normal", binary=True)
    ((_, _, mask),) = masks(layer)
    weight, chosen = layer.parametrizations.weight.original, mask.mask()
    alpha = sum(abs(w) for w in weight[chosen].tolist()) / int(chosen.sum())
    torch.testing.assert_close(layer.weight.detach(), alpha * weight.sign() * chosen)
    assert len(layer.weight.unique()) == 3
    x = torch.randn(5, 30)
    layer(x).exp().sum().backward()
    g = layer(x).exp().detach().T @ x
    torch.testing.assert_close(mask.scores.grad, g * alpha * weight.sign() * mask.scores.detach().sign())


# --- schedules ---


def test_annealing_counts_training_forwards_only():
    model = small(keep=0.2, anneal=5)
    x = torch.randn(2, 1, 8, 8)
    for number in range(8):
        share = 0.2 + 0.8 * max(0, 1 - number / 5) ** 3
        for _, _, mask in masks(model):
            assert int(mask.mask().sum()) == kept(share, mask.scores.numel())
            assert int(mask.steps) == number
        model.eval()(x)
        _ = model.train()[0].weight
        model(x[:0].reshape(0, 1, 8, 8)) if number == 0 else None
        step(model, number)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_pruned_weights_are_drawn_anew_and_kept_ones_never(share):
    layer = subnet(nn.Linear(60, 50), 0.5, init="kaiming_normal", redraw=3, redraw_share=share)
    ((_, _, mask),) = masks(layer)
    original = layer.parametrizations.weight.original
    drawn = 0
    for number in range(1, 10):
        with torch.no_grad():
            mask.scores += 0.05 * torch.randn(50, 60)
        before, chosen = original.clone(), mask.mask()
        layer.eval()(torch.randn(2, 60))
        assert torch.equal(original, before)
        step(layer.train(), number, shape=(2, 60), lr=0.0)
        changed = original != before
        assert not (changed & chosen).any()
        if number % 3:
            assert not changed.any()
        else:
            drawn += int(changed.sum())
            assert int(changed.sum()) == pytest.approx(share * 1500, abs=4 * 1500**0.5 / 2)
            assert torch.equal(mask.rounds == number // 3, changed)
    assert drawn
    assert torch.equal(mask.drawn(mask.rounds).float(), original)  # from seed and rounds alone


@pytest.mark.parametrize("options", [{"anneal": 9, "redraw": 2}, {"ranking": "global", "anneal": 6, "redraw": 3}])
def test_training_goes_on_from_a_state_dict_to_the_same_bits(options):
    whole, half = small(**options, seed=1), small(**options, seed=1)
    for number in range(8):
        step(whole.train(), number)
    for number in range(4):
        step(half.train(), number)
    fresh = small(**options, seed=77)
    fresh.load_state_dict(copy.deepcopy(half.state_dict()))
    for number in range(4, 8):
        step(fresh.train(), number)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_averaging_weights_over_time_leaves_the_seed_alone():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = small(seed=2**60 + 1)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for number in range(3):
        step(model, number)
        mean.update_parameters(model)
    for (_, a, x), (_, b, y) in zip(masks(mean.module), masks(model), strict=True):
        assert x.seed == y.seed
        assert torch.equal(a.parametrizations.weight.original, b.parametrizations.weight.original)


# --- what can be wrong ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranking": "both"}, "ranking='both' is unknown: choose layer or global"),
        ({"init": "zeros"}, "init='zeros' is unknown: choose one of signed_constant"),
        ({"anneal": -1}, "anneal=-1 is out of range"),
        ({"redraw": -1}, "redraw=-1 is out of range"),
        ({"redraw_share": 0}, "redraw_share=0 is out of range"),
        ({"redraw": 3, "init": "given"}, "redraw=3 .* init='given' draws none"),
        ({"scale_fan": True, "init": "given"}, "scale_fan=True .* init='given' draws none"),
    ],
)
def test_bad_options_are_sentences(options, said):
    layer = nn.Linear(2, 2)
    with pytest.raises(InputError, match=said):
        subnet(layer, **options)
    assert type(layer) is nn.Linear and layer.weight.requires_grad


def test_a_module_without_layers_and_one_masked_twice_are_sentences():
    for module in (nn.ReLU(), small()):
        with pytest.raises(InputError, match="no convolution or linear layer to mask"):
            pellucid.subnet(module)
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(InputError, match="to mask"):
        pellucid.subnet(attention)
    with pytest.raises(AttributeError):
        pellucid.nothing  # noqa: B018
