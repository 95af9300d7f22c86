"""What a folder of images is said to be worth: exact scores, and leaks that are really there."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pellucid
import reference_distill as reference
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.modes import evaluating
from pellucid.distillation import folder as folders
from pellucid.distillation import manifolds
from pellucid.distillation.assess import assess, frechet
from pellucid.distillation.features import last_layer, read_features
from processes import run, sentence
from state import unchanged


def points(n: int, seed: int, d: int = 3) -> torch.Tensor:
    """A few of them more than once: ties are where neighbours go wrong."""
    rng = torch.Generator().manual_seed(seed)
    found = torch.randn(n, d, generator=rng)
    return torch.cat([found, found[: n // 3]])


@settings(max_examples=15)
@given(n=st.integers(4, 12), m=st.integers(4, 12), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_alike_is_its_twin(n, m, k, seed):
    real, made = points(n, seed), points(m, seed + 1000) + 0.3
    found = manifolds.alike(real, made, k)
    expected = reference.alike(real, made, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, abs=1e-12)


def test_alike_knows_the_same_from_the_far_and_blocks_change_nothing(monkeypatch):
    real = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    same, far = manifolds.alike(real, real.clone()), manifolds.alike(real, real + 100)
    assert same.precision == same.recall == same.coverage == 1
    assert far.precision == far.recall == far.coverage == far.density == 0
    made = real + 0.5
    whole = manifolds.alike(real, made)
    monkeypatch.setattr(manifolds, "ROWS", 7)
    assert manifolds.alike(real, made) == whole
    with pytest.raises(InputError, match="have no 5 neighbours"):
        manifolds.alike(real, real[:5])


@settings(max_examples=15)
@given(n=st.integers(1, 20), classes=st.integers(1, 4), seed=st.integers(0, 99))
def test_diversity_nearest_and_inception_score_are_their_twins(n, classes, seed):
    rng = torch.Generator().manual_seed(seed)
    features, labels = torch.randn(n, 5, generator=rng), torch.randint(classes, (n,), generator=rng)
    found = manifolds.diversity(features, labels, classes).tolist()
    assert found == pytest.approx(reference.diversity(features, labels, classes), abs=1e-9, nan_ok=True)
    others = torch.randn(7, 5, generator=rng)
    distance, index = manifolds.nearest(features, others)
    twin = reference.nearest(features, others)
    assert distance.tolist() == pytest.approx([d for d, _ in twin])
    assert index.tolist() == [j for _, j in twin]
    p = (4 * torch.randn(n, 4, generator=rng)).softmax(1)
    assert manifolds.inception_score(p) == pytest.approx(reference.inception_score(p))


def test_inception_score_of_certain_answers_is_no_nan():
    certain = torch.eye(4)[torch.tensor([0, 1, 1, 2])]
    assert manifolds.inception_score(certain) == pytest.approx(2**1.5)  # class 3 never shows
    assert manifolds.inception_score(certain[:1].repeat(5, 1)) == pytest.approx(1)


def test_a_copy_is_at_no_distance():
    x = 1000 + torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    distance, index = manifolds.nearest(x, x.flip(0).clone())
    assert distance.tolist() == [0] * 5
    assert index.tolist() == [4, 3, 2, 1, 0]


def test_frechet_distance_is_of_the_gaussians():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(400, 3, generator=rng)
    b = 2 * torch.randn(300, 3, generator=rng) + torch.tensor([1.0, 0, 0])
    ca, cb = torch.cov(a.double().T), torch.cov(b.double().T)
    root = torch.linalg.eigvals(ca @ cb).sqrt().sum().real
    expected = (a.double().mean(0) - b.double().mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * root
    assert frechet(a, b) == pytest.approx(expected.item(), rel=1e-4)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


# --- a folder and a network ---


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def network(digits):
    """A small trained one; what it knows does not matter much, that it is real does."""
    torch.manual_seed(0)
    model = pellucid.build("resnet8", 10, 1, 8)
    norm = {"mean": list(digits.mean), "std": list(digits.std)}
    declare(model, normalization=norm, classes=digits.classes)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x = (digits.train.images / 255 - digits.mean[0]) / digits.std[0]
    for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:600].split(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), digits.train.labels[rows]).backward()
        optimizer.step()
    return model.eval()


def write(path, split, rows, classes):
    for row in rows:
        name = classes[int(split.labels[row])]
        (path / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.images[row, 0].numpy()).save(path / name / f"{row}.png")
    return path


def test_copies_of_training_images_are_a_leak_and_unseen_images_are_none(tmp_path, digits, network):
    copied = write(tmp_path / "copied", digits.train, range(120), digits.classes)
    unseen = write(tmp_path / "unseen", digits.test, range(200), digits.classes)
    picture = tmp_path / "leaks.png"
    found = assess(network, copied, {"again": network}, digits, picture=picture)
    assert [leak.score for leak in found.leaks] == [1, 1]
    for leak in found.leaks:
        assert leak.worst[0].distance == 0
        for pair in leak.worst:
            assert pair.file == f"{digits.classes[int(digits.train.labels[pair.training])]}/{pair.training}.png"
    fresh = assess(network, unseen, None, digits)
    assert all(leak.score <= 0.05 for leak in fresh.leaks)
    assert all(0.5 < leak.median / leak.median_test < 2 for leak in fresh.leaks)
    assert fresh.real == len(digits.train)
    with Image.open(picture) as image:
        assert image.size == (8 * 8 * 8, 4 * 8 * 8 + 3 * 2 * 8)
    assert found.accuracy[0].top1.value == found.accuracy[1].top1.value == _share(network, digits.train, 120)
    assert "resnet" not in found.features and "input of 'fc'" in found.features
    json.dumps(found.to_json())


@pytest.mark.parametrize("held", [False, True])
def test_every_training_image_is_looked_at_however_few_the_other_scores_use(tmp_path, digits, network, held):
    """300 copies spread over the training images, and copies of images that another run may have trained on."""
    split = digits.val if held else digits.train
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(3))[:300].tolist()
    found = assess(network, write(tmp_path, split, rows, digits.classes), None, digits, max_images=40)
    assert found.real <= 40 and [leak.score for leak in found.leaks] == [1, 1]
    assert [leak.searched for leak in found.leaks] == [len(digits.train) + len(digits.val)] * 2
    assert max(pair.distance for pair in found.leaks[1].worst) == 0


def test_copies_are_a_leak_even_where_test_images_are_copies_too(tmp_path, digits, network):
    twice = replace(digits, test=digits.train.take(torch.arange(50)).marked("test"))
    copied = write(tmp_path, digits.train, range(60), digits.classes)
    assert [leak.score for leak in assess(network, copied, None, twice).leaks] == [1, 1]


def test_the_nearest_of_many_is_found_part_by_part(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    points = torch.randint(0, 256, (23, 7), generator=rng, dtype=torch.uint8)
    among = torch.randint(0, 256, (57, 7), generator=rng, dtype=torch.uint8)
    whole = manifolds.nearest(points, among)
    monkeypatch.setattr(manifolds, "ROWS", 5)
    found = manifolds.Nearest(points)
    for part in among.split(11):
        found.add(part)
    assert torch.equal(found.distance, whole[0]) and torch.equal(found.index, whole[1]) and found.seen == 57
    expected = (points[:, None].double() - among.double()).norm(dim=2)
    assert torch.equal(found.index, expected.argmin(1))


def _share(network, split, n):
    x = (split.images[:n] / 255 - facts(network).normalization.mean[0]) / facts(network).normalization.std[0]
    with torch.no_grad():
        return (network(x).argmax(1) == split.labels[:n]).double().mean().item()


def test_noise_is_unlike_and_without_data_nothing_is_compared(tmp_path, digits, network):
    rng = torch.Generator().manual_seed(0)
    for n in range(40):
        (tmp_path / str(n % 10)).mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (8, 8), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / str(n % 10) / f"{n}.png")
    found = assess(network, tmp_path, None, digits)
    real = assess(network, write(tmp_path / "x", digits.test, range(100), digits.classes), None, digits)
    assert found.frechet > 3 * real.frechet
    assert found.alike.coverage < real.alike.coverage / 2
    alone = assess(network, tmp_path / "x")
    assert alone.real == 0 and alone.leaks == [] and alone.frechet is None and alone.alike is None
    assert alone.inception_score == pytest.approx(real.inception_score)
    assert alone.diversity == real.diversity


def test_features_are_what_the_last_layer_reads(digits, network):
    pixels = digits.test.images[:20]
    network.train()
    seen = read_features(network, pixels.split(8))
    assert network.training
    network.eval()
    head = network.get_submodule(seen.layer)
    assert seen.layer == "fc" and seen.features.shape == (20, 64)
    assert torch.allclose(seen.features @ head.weight.T + head.bias, seen.logits, atol=1e-5)
    inner = read_features(network, [pixels], layer="layer2.0.conv1")
    assert inner.features.shape == (20, 16)
    with pytest.raises(InputError, match="nowhere"):
        read_features(network, [pixels], layer="nowhere")
    with evaluating(network), torch.no_grad():
        assert last_layer(network, torch.zeros(1, 1, 8, 8)) == "fc"


def test_images_that_do_not_fit_are_refused_in_a_sentence(tmp_path, digits, network):
    write(tmp_path / "two", digits.test, range(60), digits.classes)
    coloured = pellucid.build("resnet8", 10, 3, 8).eval()
    declare(coloured, normalization={"mean": [0.5] * 3, "std": [0.2] * 3})
    with pytest.raises(InputError, match="1 channels, but the model takes 3"):
        assess(coloured, tmp_path / "two")
    fewer = pellucid.build("resnet8", 7, 1, 8).eval()
    declare(fewer, normalization=facts(network).normalization)
    with pytest.raises(InputError, match="7 classes"):
        assess(fewer, tmp_path / "two", None, digits)
    with pytest.raises(InputError, match="not a folder"):
        assess(network, tmp_path / "nothing")
    (tmp_path / "one" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="at least two"):
        assess(network, tmp_path / "one")
    (tmp_path / "one" / "b").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        assess(network, tmp_path / "one")
    (tmp_path / "two" / folders.MANIFEST).write_text('{"classes": ["../x"]}')
    with pytest.raises(InputError, match="damaged"):
        assess(network, tmp_path / "two")


def test_it_leaves_everything_as_it_was(tmp_path, digits, network):
    write(tmp_path, digits.test, range(60), digits.classes)
    with unchanged(network):
        assess(network, tmp_path, {"again": network}, digits)


def test_data_may_be_a_name_a_dataset_images_or_batches_and_networks_named(tmp_path, digits, network):
    write(tmp_path / "images", digits.test, range(60), digits.classes)
    pellucid.save(network, tmp_path / "net.safetensors")
    whole = assess(network, tmp_path / "images", None, digits)
    named = assess(
        tmp_path / "net.safetensors", tmp_path / "images", {"again": str(tmp_path / "net.safetensors")}, "digits"
    )
    assert named.frechet == whole.frechet and named.leaks == whole.leaks
    assert named.accuracy[1].top1 == whole.accuracy[0].top1
    x, labels = facts(network).normalization.apply(digits.test.images[:200] / 255), digits.test.labels[:200]
    pairs = assess(network, tmp_path / "images", None, (x, labels))
    batches = assess(network, tmp_path / "images", None, iter(zip(x.split(64), labels.split(64), strict=True)))
    assert pairs.real == batches.real == 200 and pairs.leaks == batches.leaks == []  # no training images to leak
    assert pairs.frechet == batches.frechet and pairs.alike == batches.alike
    assert [row.top1 for row in pairs.accuracy] == [row.top1 for row in whole.accuracy]


def test_json_has_the_keys_that_it_had_and_quiet_is_silence(tmp_path, digits, network, capsys, monkeypatch):
    from pellucid.cli import main

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "images", digits.test, range(60), digits.classes)
    pellucid.save(network, "net.safetensors")
    words = ["assess", "net.safetensors", "images", "--max-images", "90", "--batch-size", "50", "--data", "digits"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "images" / "assess.json").read_text())
    assert {
        "images",
        "features",
        "accuracy",
        "inception_score",
        "diversity",
        "real",
        "frechet",
        "alike",
        "leaks",
    } <= set(found)
    row = found["accuracy"][0]
    assert (row["name"], row["n"]) == ("teacher", 60)
    assert row["top1_interval"][0] < row["top1"] < row["top1_interval"][1] and 0 <= row["top5"] <= 1
    assert found["real"] <= 90
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path, digits, network):
    pellucid.save(network, tmp_path / "teacher.safetensors")
    write(tmp_path / "images", digits.test, range(60), digits.classes)
    words = ["assess", "teacher.safetensors", "images"]
    done = run(*words, "--verifier", "teacher.safetensors", "--data", "digits", "--out", "judged", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Leak" in done.stdout and "density" in done.stdout and "Next: pellucid distill" in done.stdout
    content = json.loads((tmp_path / "judged" / "assess.json").read_text())
    assert content["images"] == 60 and not math.isnan(content["frechet"])
    assert (tmp_path / "judged" / "leaks.png").is_file()
    bad = run(*words, "--k", "60", "--data", "digits", cwd=tmp_path)
    assert bad.returncode == 2 and "neighbours" in sentence(bad)
