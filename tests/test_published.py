"""Published networks: their own tensors give their own logits, and they are networks like any other."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pellucid
from pellucid import cli
from pellucid.core.errors import InputError
from pellucid.core.facts import facts
from pellucid.core.network import models
from pellucid.core.network.checkpoint import load, save
from pellucid.core.network.projects import PROJECTS
from pellucid.core.network.skeleton import skeleton
from pellucid.core.source import open_network
from pellucid.edgepopup.layers import masks
from pellucid.edgepopup.mask import kept
from pellucid.whiten.recover import recovered
from published import (
    Masked,
    Plain,
    Sparse,
    Whitened,
    akamaster_resnet,
    cifar_densenet,
    cifar_googlenet,
    cifar_inception,
    cifar_mobilenet,
    cifar_resnet,
    cifar_vgg,
    deconv_resnet,
    deconv_vgg,
    hidden_conv,
    hidden_resnet,
    kuangliu_resnet,
    kuangliu_vgg,
    newton_root,
    sdnet,
)

Net = Callable[[Plain, Tensor], Tensor]
KEEP = {"keep": 0.3}


def _networks() -> dict[str, tuple[Callable[[], Plain], Net, dict]]:
    """Every published network: what makes its tensors, what it computes, and its arguments."""
    table: dict[str, tuple[Callable[[], Plain], Net, dict]] = {}

    def add(name: str, make: Callable[[], Plain], net: Callable, args: dict, **how: object) -> None:
        table[name] = (make, functools.partial(net, **how), args)

    for depth in (18, 34, 50):
        add(f"huyvnphan:resnet{depth}", Plain, cifar_resnet, {}, depth=depth)
    for depth in (11, 13, 16, 19):
        add(f"huyvnphan:vgg{depth}", Plain, cifar_vgg, {}, depth=depth)
    dense = {121: ((6, 12, 24, 16), 32), 161: ((6, 12, 36, 24), 48), 169: ((6, 12, 32, 32), 32)}
    for depth, (blocks, growth) in dense.items():
        add(f"huyvnphan:densenet{depth}", Plain, cifar_densenet, {}, blocks=blocks, growth=growth)
    others = {"mobilenet_v2": cifar_mobilenet, "googlenet": cifar_googlenet, "inception_v3": cifar_inception}
    for name, net in others.items():
        add(f"huyvnphan:{name}", Plain, net, {})
    masked = functools.partial(Masked, 0.3)
    for depth in (18, 50, 101):
        add(f"hidden-networks:cResNet{depth}", masked, hidden_resnet, KEEP, depth=depth, cifar=True)
        add(f"hidden-networks:resnet{depth}", masked, hidden_resnet, KEEP, depth=depth, cifar=False)
    for depth in (50, 101):
        name = f"hidden-networks:wide_resnet{depth}_2"
        add(name, masked, hidden_resnet, KEEP, depth=depth, cifar=False, wide=2)
    for depth in (2, 4, 6, 8):
        add(f"hidden-networks:conv{depth}", masked, hidden_conv, KEEP, depth=depth)
    for depth in (18, 34):
        for codes in ("", "all", "all_no_shortcut"):
            for large in (False, True):
                name = f"sdnet:sdnet{depth}{'_' if codes else ''}{codes}{'_imagenet' if large else ''}"
                add(name, Sparse, sdnet, {}, depth=depth, codes=codes, large=large)
    large_head = functools.partial(Whitened, block_fc=64)
    for depth in (11, 13, 16, 19):
        add(f"deconvolution:vgg{depth}", Whitened, deconv_vgg, {}, depth=depth, large=False)
    for depth in (11, 16):
        add(f"deconvolution:vgg{depth}d", large_head, deconv_vgg, {}, depth=depth, large=True)
    for depth in (18, 34, 50, 101):
        add(f"deconvolution:resnet{depth}", Whitened, deconv_resnet, {}, depth=depth, large=False)
        add(f"deconvolution:resnet{depth}d", large_head, deconv_resnet, {}, depth=depth, large=True)
    return table


NETWORKS = _networks()
# Every family once; the other names take some seconds each.
FAST = {
    *(
        f"huyvnphan:{name}"
        for name in ("resnet18", "vgg11", "densenet121", "mobilenet_v2", "googlenet", "inception_v3")
    ),
    *(f"hidden-networks:{name}" for name in ("cResNet18", "conv4")),
    *(f"sdnet:sdnet18{form}" for form in ("", "_all", "_all_no_shortcut", "_imagenet")),
    *(f"deconvolution:{name}" for name in ("vgg11", "resnet18d")),
}


def _project(name: str) -> tuple:
    prefix, _, own = name.partition(":")
    return PROJECTS[prefix], own


@functools.lru_cache(maxsize=2)
def _published(name: str, images: int = 2) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A state dict as the project publishes it, images, and the logits that the project's arithmetic gives them."""
    make, net, _ = NETWORKS[name]
    project, own = _project(name)
    side = 64 if project.image_size(own)[0] > 32 else 32
    x = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(1))
    twin = make()
    logits = net(twin, x.double())
    return twin.state, x, logits


def _file(state: dict[str, Tensor], folder: Path, wrapped: bool = True) -> Path:
    """The state dict as a file of a training script, inside a table and with DataParallel's prefix, or bare."""
    content = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}} if wrapped else state
    torch.save(content, folder / "published.pth")
    return folder / "published.pth"


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """In float64, so that nothing but another arithmetic makes a difference."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def test_every_name_has_a_twin():
    listed = {f"{prefix}:{name}" for prefix in ("huyvnphan", "hidden-networks", "sdnet", "deconvolution")
              for name in PROJECTS[prefix].names()}  # fmt: skip
    assert listed == set(NETWORKS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in NETWORKS],
)
@torch.no_grad()
def test_a_published_file_gives_the_logits_of_its_project(name, tmp_path):
    state, x, logits = _published(name)
    assert logits.std() > 0.1
    model = load(_file(state, tmp_path), name, model_args=NETWORKS[name][2])
    # Step sizes of sparse codes are stored as what they are made from, which rounds them once more.
    torch.testing.assert_close(_logits(model, x), logits, atol=1e-3 if name.startswith("sdnet") else 1e-5, rtol=0)
    described = facts(model).description
    assert described["model"] == name
    assert (described["num_classes"], described["in_channels"]) == (10, 3)
    assert tuple(described["image_size"]) == _project(name)[0].image_size(_project(name)[1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("net", "name"),
    [
        (functools.partial(kuangliu_resnet, depth=18), "resnet18"),
        (functools.partial(kuangliu_vgg, depth=11), "vgg11"),
        (functools.partial(akamaster_resnet, depth=20), "resnet20"),
    ],
)
def test_files_of_projects_that_are_built_in_give_their_logits(net, name, tmp_path):
    twin = Plain()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = net(twin, x.double())
    model = load(_file(twin.state, tmp_path), name)
    torch.testing.assert_close(_logits(model, x), logits, atol=1e-5, rtol=0)


# Numbers of parameters, in millions, as the projects and their papers print them; of subnetworks those that are kept.
SIZES = {
    "huyvnphan:vgg11": 28.150, "huyvnphan:vgg13": 28.334, "huyvnphan:vgg16": 33.647, "huyvnphan:vgg19": 38.959,
    "huyvnphan:resnet18": 11.174, "huyvnphan:resnet34": 21.282, "huyvnphan:resnet50": 23.521,
    "huyvnphan:densenet121": 6.956, "huyvnphan:densenet161": 26.483, "huyvnphan:densenet169": 12.493,
    "huyvnphan:mobilenet_v2": 2.237, "huyvnphan:googlenet": 5.491, "huyvnphan:inception_v3": 21.640,
    "hidden-networks:resnet50": 7.7, "hidden-networks:resnet101": 13.3, "hidden-networks:wide_resnet50_2": 20.6,
    "deconvolution:vgg16": 14.72, "deconvolution:resnet18": 11.17,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_network_is_as_large_as_published(name):
    project, own = _project(name)
    args, hidden = NETWORKS[name][2], name.startswith("hidden")
    classes = 1000 if hidden else 10
    model = skeleton(lambda: models.build(name, classes, 3, project.image_size(own), args=args))
    counted = [p for key, p in model.named_parameters() if not hidden or key.endswith("scores")]
    millions = sum(p.numel() for p in counted) / 1e6 * (0.3 if hidden else 1)
    assert millions == pytest.approx(SIZES[name], abs=0.05 if hidden else 1.1e-3 if name.startswith("huy") else 5e-3)


# --- a file under another name ---


@torch.no_grad()
def test_names_with_the_same_tensors_compute_something_else(tmp_path):
    state, x, logits = _published("huyvnphan:resnet18")
    file = _file(state, tmp_path)
    other = load(file, "resnet18")  # the same tensors, without the pool
    assert facts(other).description["form"] == "small"
    assert not torch.allclose(_logits(other, x), logits, atol=0.1)


@pytest.mark.parametrize(
    ("name", "other", "says"),
    [
        ("huyvnphan:mobilenet_v2", "huyvnphan:googlenet", "no tensor 'conv1.conv.weight'"),
        ("huyvnphan:resnet18", "hidden-networks:cResNet18", "have no scores"),
        ("huyvnphan:resnet18", "sdnet:sdnet18", "missing .conv1.norm"),
        ("huyvnphan:resnet18", "deconvolution:resnet18", "have no running_deconv"),
        ("sdnet:sdnet18", "huyvnphan:resnet18", "no tensor 'conv1.weight'"),
        ("sdnet:sdnet18", "sdnet:sdnet18_all", "missing .*layer1.0.conv1.norm"),
        ("sdnet:sdnet18", "sdnet:sdnet18_imagenet", "but a sdnet:sdnet18[.]"),
        ("sdnet:sdnet18_imagenet", "sdnet:sdnet18", "but a sdnet:sdnet18_imagenet[.]"),
        ("hidden-networks:conv4", "conv4", "have no layer 'features.0'"),
        ("hidden-networks:conv4", "hidden-networks:conv6", "cannot have 8192 inputs"),
    ],
)
def test_a_file_under_another_name_is_refused(name, other, says, tmp_path):
    file = _file(_published(name, images=1)[0], tmp_path)
    with pytest.raises(InputError, match=says):
        load(file, other, model_args=KEEP if other.startswith("hidden") else None)


# --- arguments ---


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("hidden-networks:conv2", {}, "do not say which fraction .*--model-args keep=0.3"),
        ("hidden-networks:conv2", {"keep": 0}, "out of range"),
        ("hidden-networks:conv2", {"keep": "most"}, "out of range"),
        ("hidden-networks:conv2", {"keep": 0.3, "sparsity": 1}, "no argument 'sparsity': it takes keep"),
        ("sdnet:sdnet18", {"lam": -1}, "lam=-1 must be at least 0"),
        ("sdnet:sdnet18", {"depth": 3}, "no argument 'depth'"),
        ("deconvolution:vgg11", {"block": 0}, "block=0 must be a whole number"),
        ("deconvolution:vgg11", {"block_fc": 2.5}, "block_fc=2.5 must be a whole number"),
        ("huyvnphan:resnet18", {"keep": 0.3}, "takes no arguments"),
        ("huyvnphan:resnet19", {}, "has no network 'resnet19'"),
    ],
)
def test_arguments_that_cannot_be_are_named(name, args, says):
    with pytest.raises(InputError, match=says):
        models.build(name, args=args)


def test_what_its_images_were_is_assumed_and_said(tmp_path):
    state = _published("sdnet:sdnet18", images=1)[0]
    file = _file(state, tmp_path)
    model = load(file, "sdnet:sdnet18")
    assert facts(model).normalization.std == (0.2023, 0.1994, 0.2010)
    (remark,) = facts(model).remarks
    assert "images of 32x32 pixels, normalised with mean 0.4914, 0.4822, 0.4465 and standard deviation 0.2023" in remark
    found = open_network(f"sdnet:sdnet18={file}").model  # MODEL=FILE
    assert facts(found).normalization == facts(model).normalization
    given = open_network(file, "sdnet:sdnet18", mean=[0.5] * 3, std=[0.2] * 3).model
    assert facts(given).normalization.std == (0.2,) * 3
    save(given, tmp_path / "ours.safetensors")
    again = load(tmp_path / "ours.safetensors")
    assert facts(again).normalization.std == (0.2,) * 3 and not facts(again).remarks
    with pytest.raises(InputError, match="records its own mean and std"):
        open_network(tmp_path / "ours.safetensors", mean=[0.5] * 3, std=[0.3] * 3)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(InputError, match="at least 32 pixels a side, not 16x16"):
        models.build("hidden-networks:resnet18", image_size=16, args=KEEP)


@torch.no_grad()
def test_a_sparse_network_takes_the_settings_of_its_training(tmp_path):
    twin = Sparse(lam=0.2, mu=0.1, steps=3)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = sdnet(twin, x.double(), depth=18, codes="", large=False)
    twin.state["layer0.0.running_c_loss"] = torch.tensor(3.0)  # of early versions
    file = _file(twin.state, tmp_path, wrapped=False)
    model = load(file, "sdnet:sdnet18", model_args={"lam": 0.2, "mu": 0.1, "n_steps": 3})
    torch.testing.assert_close(_logits(model, x), logits, atol=1e-3, rtol=0)
    assert not torch.allclose(_logits(load(file, "sdnet:sdnet18"), x), logits, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("block", "block_fc", "says"),
    [
        (16, 100, "'features.3' whitens 16 features of its input together, not 64: give --model-args block=16"),
        (64, 0, "not whitened: give --model-args block_fc=0"),
    ],
)
def test_a_whitened_network_takes_its_blocks(block, block_fc, says, tmp_path):
    twin = Whitened(block=block, block_fc=block_fc)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = deconv_vgg(twin, x.double(), depth=11, large=False)
    file = _file(twin.state, tmp_path)
    model = load(file, "deconvolution:vgg11", model_args={"block": block, "block_fc": block_fc})
    torch.testing.assert_close(_logits(model, x), logits, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=says):
        load(file, "deconvolution:vgg11")


# --- what files may hold ---


def test_early_vgg_files_average_to_seven_pixels():
    weight = torch.randn(3, 512 * 49, dtype=torch.float64)
    read = PROJECTS["huyvnphan"].read("vgg11", {"classifier.0.weight": weight}, {})["classifier.0.weight"]
    pixel = torch.randn(2, 512, 1, 1, dtype=torch.float64)  # what is left of 32x32 pixels
    wanted = torch.nn.functional.adaptive_avg_pool2d(pixel, 7).flatten(1) @ weight.T
    torch.testing.assert_close(pixel.flatten(1) @ read.T, wanted)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.8, 0.9])
def test_as_many_weights_are_kept_as_published(keep):
    for name in ("cResNet18", "conv2"):
        project, full = PROJECTS["hidden-networks"], f"hidden-networks:{name}"
        model = skeleton(lambda: models.build(full, 10, 3, project.image_size(name), args={"keep": keep}))  # noqa: B023
        for _, _, mask in masks(model):
            n = mask.scores.numel()
            assert kept(mask.options.keep, n) == n - int((1 - keep) * n)


def test_scores_become_masks_and_the_rest_stays_fixed(tmp_path):
    state, _, _ = _published("hidden-networks:cResNet18", images=1)
    model = load(_file(state, tmp_path), "hidden-networks:cResNet18", model_args=KEEP)
    table = {name: mask for name, _, mask in masks(model)}
    assert isinstance(model.fc, nn.Linear)
    assert set(table) == {
        key.removesuffix(".scores").replace("shortcut", "downsample") for key in state if ".sc" in key
    }
    for name, mask in table.items():
        assert float(mask.mask().float().mean()) == pytest.approx(0.3, abs=1 / mask.scores.numel()), name
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.parametrizations.weight.0.scores" for name in table}


def test_a_fixed_mask_of_another_fraction_is_refused():
    state = {
        "convs.0.weight": torch.ones(2, 1, 2, 2),
        "convs.0.scores": torch.tensor([1.0, 0, 0, 0] * 2).view(2, 1, 2, 2),
    }
    project = PROJECTS["hidden-networks"]
    assert project.read("conv2", state, {"keep": 0.25})
    with pytest.raises(InputError, match="'features.0' are a mask that keeps 2 of 8 weights, which is not keep=0.5"):
        project.read("conv2", state, {"keep": 0.5})


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_size_that_no_network_has_is_refused(step):
    with pytest.raises(InputError, match="The step size 'conv1.dn.step_size' is"):
        PROJECTS["sdnet"].read("sdnet18", {"layer0.0.dn.step_size": torch.tensor(step)}, {})


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "not finite"), (-1.0, "not above 0")])
def test_a_root_that_is_none_is_refused(value, says):
    state = {"classifier.weight": torch.ones(10, 4), "classifier.running_deconv": value * torch.eye(4)}
    with pytest.raises(InputError, match=f"Of layer 'classifier' a stored root .*{says}"):
        PROJECTS["deconvolution"].read("vgg11", state, {})


# --- the covariance of a root ---


@pytest.mark.parametrize("steps", [5, 15])
def test_the_covariance_of_a_root_is_recovered(steps):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64)).Q
    cov = 0.7 * (vectors * torch.logspace(0, -3, 48, dtype=torch.float64)) @ vectors.T
    eye = torch.eye(48, dtype=torch.float64)
    found = recovered(newton_root(cov + 1e-5 * eye, steps), steps, 1e-5)
    assert (found - cov).norm() < 1e-6 * cov.norm()
    rounded = recovered(newton_root(cov + 1e-5 * eye, steps).float(), steps, 1e-5)
    assert (rounded - cov).norm() < 1e-4 * cov.norm()
    inverse = torch.linalg.inv(newton_root(cov, 5) @ newton_root(cov, 5).T)
    assert (inverse - cov).norm() > 0.05 * cov.norm()  # which is why it is not that


def test_of_an_average_of_roots_it_is_nearly_the_average_covariance():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64)).Q
    spread = vectors * torch.logspace(0, -2, 32, dtype=torch.float64).sqrt()
    root = average = torch.eye(32, dtype=torch.float64)
    for _ in range(120):
        rows = spread @ torch.randn(32, 2000, generator=generator, dtype=torch.float64)
        cov = rows @ rows.T / 2000
        root, average = 0.9 * root + 0.1 * newton_root(cov, 5), 0.9 * average + 0.1 * cov
    found = recovered(root, 5, 0.0)
    assert (found - average).norm() < 0.02 * average.norm()
    assert ((found.diagonal() - average.diagonal()) / average.diagonal()).abs().max() < 0.02


# --- networks like any other ---

ONE_EACH = ["huyvnphan:mobilenet_v2", "hidden-networks:conv4", "sdnet:sdnet18", "deconvolution:vgg11"]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_published_network_is_saved_folded_and_read(name, tmp_path):
    state, x, _ = _published(name)
    args = NETWORKS[name][2]
    model = load(_file(state, tmp_path), name, model_args=args)
    save(model, tmp_path / "ours.safetensors")
    again = load(tmp_path / "ours.safetensors")
    assert facts(again).description.get("args", {}) == args
    assert torch.equal(again(x), model(x))
    torch.save(model.state_dict(), tmp_path / "bare.pth")  # under our own names
    assert torch.equal(load(tmp_path / "bare.pth", name, model_args=args)(x), model(x))
    if args:
        with pytest.raises(InputError, match="records its own arguments"):
            load(tmp_path / "ours.safetensors", model_args={"keep": 0.5})
    if not name.startswith("sdnet"):  # a sparse code is not linear
        folded = pellucid.fold(model, x, tolerance=1e-4)
        save(folded, tmp_path / "folded.safetensors")
        torch.testing.assert_close(load(tmp_path / "folded.safetensors")(x), folded(x))
        kinds = {type(m) for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)}
        assert kinds == {nn.Conv2d, nn.Linear}
    if "conv4" not in name:  # which has no batch norm
        table = pellucid.statistics(model)
        assert all(moments.var.isfinite().all() for moments in table.values())
        whitened = [key for key in state if key.endswith(".running_deconv")]
        assert sum(moments.cov is not None for moments in table.values()) == len(whitened)


@torch.no_grad()
def test_commands_take_a_published_file_and_its_arguments(tmp_path, capsys):
    state, x, logits = _published("hidden-networks:conv4")
    named = ["fold", f"hidden-networks:conv4={_file(state, tmp_path)}", "--out", str(tmp_path / "folded.safetensors")]
    assert cli.main(named) == 2
    assert "--model-args keep=0.3" in capsys.readouterr().err
    assert cli.main([*named, "--model-args", "keep=0.3"]) == 0
    folded = load(tmp_path / "folded.safetensors")
    torch.testing.assert_close(_logits(folded, x), logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_published_network_is_inverted_and_decomposed(tmp_path):
    whitened = load(_file(_published("deconvolution:vgg11")[0], tmp_path), "deconvolution:vgg11")
    found = pellucid.invert(whitened, [1, 2], steps=1, quiet=True)  # by covariances that no file holds
    assert found.images.shape == (2, 3, 32, 32) and found.images.isfinite().all()
    state, x, _ = _published("hidden-networks:conv4", images=20)
    masked = load(_file(state, tmp_path), "hidden-networks:conv4", model_args=KEEP)
    filters = pellucid.decompose(masked, (x, torch.arange(20) % 10), k=3)
    assert [len(chosen) for chosen in filters.indices] == [3] * 10


@pytest.mark.slow
def test_a_published_network_trains_on(tmp_path):
    for name in ("hidden-networks:conv4", "sdnet:sdnet18", "deconvolution:vgg11"):
        model = models.build(name, image_size=16, args=NETWORKS[name][2])
        before = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        torch.nn.functional.cross_entropy(model(x), torch.arange(8)).backward()
        optimizer.step()
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert any(key.endswith((".scores", "norm", "root")) for key in changed), name
