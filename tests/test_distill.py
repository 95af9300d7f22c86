"""Students: the loss is the paper's, the images are those asked for, every run is an ordinary one with its controls."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import pellucid
import reference_distill as reference
from pellucid.core.data.batches import Batch
from pellucid.core.data.dataset import load_data
from pellucid.core.errors import InputError
from pellucid.core.facts import declare, facts
from pellucid.core.source import open_network
from pellucid.core.train.run import Run
from pellucid.distillation.features import logits_of
from pellucid.distillation.folder import read
from pellucid.distillation.objective import Distillation
from pellucid.distillation.online import distill_online
from pellucid.distillation.student import distill
from pellucid.distillation.synthesize import synthesize
from pellucid.inversion import export
from processes import run, sentence
from state import unchanged

QUICK = {"epochs": 1, "batch_size": 20, "quiet": True}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    """A network of digits, trained a little, in a file."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(0)
    model = pellucid.build("resnet8", 10, 1, 8)
    norm = {"mean": [0.25], "std": [0.5]}  # not the data's
    declare(model, normalization=norm, classes=digits.classes)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x = (digits.train.images / 255 - 0.25) / 0.5
    for rows in torch.arange(600).split(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), digits.train.labels[rows]).backward()
        optimizer.step()
    pellucid.save(model.eval(), path)
    return str(path)


@pytest.fixture(scope="module")
def images(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "made"
    return str(synthesize(pellucid.load(teacher), path, 4, steps=3, batch_size=20, quiet=True).folder)


def step(objective, indices, logits, images, targets):
    batch = Batch(images, targets if targets.dim() == 1 else targets.argmax(1), indices)
    return objective(lambda _: logits, batch, images, targets)


@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.9), (1.0, 0.5), (2.5, 1.0), (4.0, 0.0)])
def test_the_loss_is_the_papers(digits, teacher, temperature, alpha):
    objective = Distillation(teacher=teacher, temperature=temperature, alpha=alpha)
    dataset = objective.data(digits, 0)
    assert (dataset.mean, dataset.std) == ((0.25,), (0.5,))  # the teacher's, so that both see the same
    objective.prepare(torch.nn.Identity(), dataset, torch.device("cpu"))
    rows = torch.arange(12)
    x, labels = (digits.train.images[rows] / 255 - 0.25) / 0.5, digits.train.labels[rows]
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss, given = step(objective, rows, logits, x, labels)
    twin = reference.distillation(logits.detach(), objective.network(x).detach(), labels, temperature, alpha)
    assert loss.item() == pytest.approx(twin, rel=1e-5)
    assert given is logits or torch.equal(given, logits)
    loss.backward()
    assert logits.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in objective.network.parameters())


def test_stored_answers_are_those_of_the_image(digits, teacher, images):
    objective = Distillation(images=[images], length=100, alpha=1.0)
    dataset = objective.data(digits, 0)
    objective.prepare(torch.nn.Identity(), dataset, torch.device("cpu"))
    assert len(dataset.train) == 100 and len(dataset.val) == 8
    rows = torch.tensor([3, 35, 99])
    own = logits_of(pellucid.load(teacher), dataset.train.images[rows])
    assert torch.allclose(
        objective._teacher_logits(Batch(None, None, rows), None, torch.zeros(3).long()), own, atol=1e-5
    )
    with pytest.raises(InputError, match="unmixed"):
        objective._teacher_logits(Batch(None, None, rows), None, torch.zeros(3, 10))


def test_a_teacher_of_another_normalisation_sees_what_it_knows(digits, teacher):
    objective = Distillation(teacher=teacher)
    objective.data(digits, 0)
    objective.prepare(torch.nn.Identity(), digits, torch.device("cpu"))  # the loop feeds the data's normalisation
    x = digits.train.images[:9]
    fed = (x / 255 - digits.mean[0]) / digits.std[0]
    found = objective._teacher_logits(Batch(fed, None, torch.arange(9)), fed, digits.train.labels[:9])
    assert torch.allclose(found, logits_of(pellucid.load(teacher), x), atol=1e-4)


def test_images_are_those_asked_for(digits, teacher, images):
    def data(*words, **options):
        return Distillation(teacher=teacher, images=list(words), **options).data(digits, 3)

    def every(*words):
        return data(*words, held_out=0.0).train

    few = every("real:3")
    assert few.labels.bincount().tolist() == [3] * 10
    long = data("real:3", length=50, held_out=0.0).train
    assert len(long) == 50 and torch.equal(long.images, torch.cat([few.images, few.images[:20]]))
    short = data("real:3", length=20, held_out=0.0).train
    assert short.labels.bincount().tolist() == [2] * 10, "an epoch that is too short for all has some of every class"
    known = {bytes(image.numpy().tobytes()) for image in digits.train.images}
    assert all(image.numpy().tobytes() in known for image in few.images)
    some = every("random:70")
    assert len(some) == 70 and len({image.numpy().tobytes() for image in some.images}) > 60
    noise = every("noise:30")
    assert noise.images.shape == (30, 1, 8, 8)
    assert torch.equal(noise.labels, logits_of(pellucid.load(teacher), noise.images).argmax(1))
    assert abs(noise.images.float().mean() / 255 - 0.25) < 0.2
    both = every(images, "real:1")
    assert len(both) == 50
    assert torch.equal(both.images[:40], read(images).split.images)
    few = data("real:3")
    assert data("real:3").fingerprint == data("real:3").fingerprint != data("real:4").fingerprint
    # The test set is the data's own, whatever is learned from.
    assert few.test is digits.test


@pytest.mark.parametrize("words", [["real:5"], ["random:50"], ["noise:50"], ["images"], ["images", "real:1"]])
def test_what_is_held_out_is_a_fifth_of_the_images_in_their_proportions_and_not_learned_from(
    digits, teacher, images, words
):
    words = [images if word == "images" else word for word in words]
    whole = Distillation(teacher=teacher, images=words, held_out=0.0).data(digits, 3)
    found = Distillation(teacher=teacher, images=words, length=50).data(digits, 3)
    assert len(whole.val) == 0
    assert len(found.val) == round(0.2 * len(whole.train)) and found.val.role == "val"
    own, held = (
        {(image.numpy().tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)}
        for split in (found.train, found.val)
    )
    every = {(i.numpy().tobytes(), int(c)) for i, c in zip(whole.train.images, whole.train.labels, strict=True)}
    assert not own & held and own | held == every
    each = 0.2 * whole.train.labels.bincount(minlength=10)
    assert ((found.val.labels.bincount(minlength=10) - each).abs() <= 1).all()


def test_of_one_image_per_class_none_is_held_out_and_of_all_real_ones_the_datas_own(digits, teacher):
    few = Distillation(teacher=teacher, images=["real:1"]).data(digits, 0)
    assert len(few.train) == 10 and len(few.val) == 0
    every = Distillation(teacher=teacher).data(digits, 0)
    assert torch.equal(every.train.images, digits.train.images) and every.val is digits.val


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": ["real:0"]}, "whole number"),
        ({"held_out": 0.5}, "0 to below 0.5"),
        ({"held_out": -0.1}, "0 to below 0.5"),
        ({"images": ["random:5000"]}, "ask for fewer"),
        ({"images": ["nowhere"]}, "not a folder"),
        ({"temperature": 0.0}, "above 0"),
        ({"alpha": 1.5}, "from 0 to 1"),
        ({"length": 0}, "at least 1"),
        ({"teacher": None, "images": ["real"]}, "name the --teacher"),
        ({"teacher": None, "images": ["noise:5"]}, "name the --teacher"),
        ({"teacher_mean": [0.5]}, "give both"),
        ({"teacher_mean": [0.5] * 3, "teacher_std": [1.0] * 3}, "1 numbers each"),
        ({"teacher": "nothing.pth"}, "nothing.pth"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(digits, teacher, options, words):
    with pytest.raises(InputError, match=words):
        Distillation(**{"teacher": teacher, **options}).data(digits, 0)


def test_a_teacher_or_images_of_other_classes_are_refused(digits, teacher, images, tmp_path):
    fewer = pellucid.build("resnet8", 7, 1, 8)
    pellucid.save(fewer, tmp_path / "fewer.safetensors")
    with pytest.raises(InputError, match="7 classes"):
        Distillation(teacher=str(tmp_path / "fewer.safetensors")).data(digits, 0)
    other = load_data("digits", image_size=16)
    with pytest.raises(InputError, match="differ in size, 1x8x8 and 1x16x16"):
        Distillation(images=[images]).data(other, 0)
    declare(fewer, classes=tuple("abcdefg"), normalization={"mean": [0.5], "std": [0.2]})
    for _ in range(2):
        fewer(torch.randn(8, 1, 8, 8))
    made = synthesize(fewer, tmp_path / "letters", 1, steps=1, quiet=True)
    with pytest.raises(InputError, match="classes"):
        Distillation(images=[str(made.folder)]).data(digits, 0)


def test_images_of_classes_in_another_order_get_the_datas_labels(digits, teacher, images, tmp_path):
    """A folder of another tool has no manifest, and class folders in the order of their names."""
    import shutil

    shutil.copytree(images, tmp_path / "shuffled")
    file = tmp_path / "shuffled" / "synthesis.json"
    manifest = json.loads(file.read_text())
    manifest["classes"] = manifest["classes"][::-1]
    file.write_text(json.dumps(manifest))
    stored = read(images)
    options = {"teacher": teacher, "held_out": 0.0}
    plain = Distillation(**options, images=[images]).data(digits, 0).train
    turned = Distillation(**options, images=[str(tmp_path / "shuffled")]).data(digits, 0).train
    key = [image.numpy().tobytes() for image in plain.images]
    other = [image.numpy().tobytes() for image in turned.images]
    assert dict(zip(key, plain.labels.tolist(), strict=True)) == dict(zip(other, turned.labels.tolist(), strict=True))
    assert stored.split.labels.bincount().tolist() == [4] * 10


@pytest.fixture(scope="module")
def distilled(teacher, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("students")
    return distill(teacher, "conv2", images, data="digits", out=out, real=(1,), **QUICK)


def test_every_student_stands_beside_its_controls(distilled, teacher, images):
    assert [row.name for row in distilled.rows] == ["teacher", "student", "noise", "real 1", "random"]
    assert [row.images for row in distilled.rows[1:]] == [40, 40, 10, 40]
    assert [row.held_out for row in distilled.rows[1:]] == [8, 8, 0, 8]
    assert {row.steps for row in distilled.rows[1:]} == {2}
    assert {row.tested for row in distilled.rows} == {450}
    folder = distilled.run.path.parent
    assert [row["name"] for row in json.loads((folder / "distill.json").read_text())] == [
        r.name for r in distilled.rows
    ]
    network = pellucid.load(teacher)
    assert distilled["teacher"].accuracy == pellucid.evaluate(network, load_data("digits")).top1
    for row in distilled.rows[1:]:
        run = Run(row.run)
        assert run.settings.objective == "distillation" and run.settings.data == "digits"
        assert len(run.metrics()) == 1
        assert row.validation == run.metrics()[0]["val_accuracy"] and (row.validation is None) == (row.name == "real 1")
        assert pellucid.evaluate(pellucid.load(row.run), load_data("digits")).top1 == row.accuracy


def test_a_finished_call_is_only_read_and_a_run_replays_by_its_settings(distilled, teacher, images, tmp_path):
    folder = distilled.run.path.parent
    again = distill(teacher, "conv2", images, data="digits", out=folder, real=(1,), **QUICK)
    assert again.rows[1:] == distilled.rows[1:]
    replayed = pellucid.train(distilled.run.settings, tmp_path / "replayed", quiet=True)
    own = pellucid.load(distilled.run.path).state_dict()
    for key, value in replayed.model.state_dict().items():
        assert torch.equal(value, own[key]), key


def test_data_in_hand_train_under_their_name_and_fingerprint(distilled, digits, teacher, images, tmp_path):
    """A `Dataset` gives the run of its name, to the bit; images without training images have no real controls."""
    model = pellucid.load(teacher)
    with unchanged(model):
        done = distill(model, "conv2", images, data=digits, out=tmp_path / "data", real=(1,), **QUICK)
    assert [(r.name, r.images, r.score, r.steps) for r in done.rows] == [
        (r.name, r.images, r.score, r.steps) for r in distilled.rows
    ]
    assert done.run.settings.data == f"given:digits@{digits.fingerprint[:8]}"
    key = "fingerprint"
    assert done.run.environment()["data"][key] == distilled.run.environment()["data"][key]
    other = replace(digits, fingerprint="other")
    with pytest.raises(InputError, match="was begun with data"):
        distill(model, "conv2", images, data=other, out=tmp_path / "data", real=(1,), **QUICK)
    x = facts(model).normalization.apply(digits.test.images / 255)
    batches = iter(zip(x.split(99), digits.test.labels.split(99), strict=True))
    pairs = distill(
        Run(distilled.run.path), "conv2", images, data=(x, digits.test.labels), out=tmp_path / "run", **QUICK
    )
    assert pairs["student"].tested == 450
    found = distill(model, "conv2", images, data=batches, out=tmp_path / "pairs", **QUICK)
    assert [row.name for row in found.rows] == ["teacher", "student", "noise"]
    assert found["teacher"].score == distilled["teacher"].score
    assert found["student"].score == distilled["student"].score


def test_rows_keep_the_keys_of_their_file(distilled):
    row = distilled["student"].to_json()
    keys = ["name", "images", "accuracy", "interval", "tested", "steps", "seconds", "run", "validation", "held_out"]
    assert list(row) == keys and row["held_out"] == 8
    assert row["accuracy"] == distilled["student"].score.correct / 450 and row["tested"] == 450
    assert json.loads((distilled.run.path.parent / "distill.json").read_text())[1] == json.loads(json.dumps(row))


def test_json_is_one_object(distilled, teacher, images, capsys):
    from pellucid.cli import main

    out = str(distilled.run.path.parent)
    words = [
        "distill",
        teacher,
        "conv2",
        images,
        "--data",
        "digits",
        "--epochs",
        "1",
        "--batch-size",
        "20",
        "--real",
        "1",
    ]
    assert main([*words, "--out", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == json.loads((distilled.run.path.parent / "distill.json").read_text())
    assert found["run"] == str(distilled.run.path)


def test_a_model_in_hand_can_teach_and_without_data_images_that_none_learned_from_judge(teacher, images, tmp_path):
    done = distill(pellucid.load(teacher), "conv2", images, out=tmp_path, **QUICK)
    assert [row.name for row in done.rows] == ["teacher", "student", "noise"]
    assert done["student"].tested == 8  # a fifth of the images
    settings = done.run.settings
    objective = Distillation(**settings.objective_options)
    found = objective.data(load_data(settings.data, val_fraction=settings.val_fraction), settings.seed)
    tested, learned, held = (
        {image.numpy().tobytes() for image in split.images} for split in (found.test, found.train, found.val)
    )
    assert len(tested) == 8 and not tested & (learned | held) and not learned & held
    assert len(learned | held) == done["student"].images == done["noise"].images == 32
    assert done["student"].held_out == len(held) == 6
    assert (tmp_path / "teacher.safetensors").is_file()
    with pytest.raises(InputError, match="real data"):
        distill(teacher, "conv2", [images, images], out=tmp_path / "x", **QUICK)
    with pytest.raises(InputError, match=r"--held-out 0\.7 is out of range"):
        distill(teacher, "conv2", images, out=tmp_path / "x", **{**QUICK, "held_out": 0.7})
    assert not (tmp_path / "x").exists()


def test_students_do_not_learn_from_a_folder_that_they_are_tested_on(teacher, images):
    with pytest.raises(InputError, match="is the test set of folder:"):
        Distillation(teacher=teacher, images=[images]).data(load_data(f"folder:{images}"), 0)


def test_with_nothing_held_out_the_last_epoch_is_kept_and_the_page_says_so(teacher, images, tmp_path):
    common = {"data": "digits", "controls": False, "held_out": 0.0, **QUICK, "epochs": 2, "lr": 0.1}
    done = distill(teacher, "conv2", images, out=tmp_path / "all", **common)
    row = done["student"]
    assert (row.images, row.held_out, row.validation) == (40, 0, None)
    assert done.run.result()["best"]["epoch"] == 1
    assert [(one["epoch"], one["val_accuracy"]) for one in done.run.metrics()] == [(0, None), (1, None)]
    again = distill(teacher, "conv2", images, out=tmp_path / "all", **common)
    assert again["student"] == row
    report = pellucid.open(done.run, out=tmp_path / "page", max_images=20)
    page = report.path.read_text()
    assert "No image was held out of training: the weights are those of the last epoch, 2." in page
    assert report.audit["learning"]["best_val_accuracy"] is None
    part = distill(teacher, "conv2", images, out=tmp_path / "part", **{**common, "held_out": 0.2})
    page = pellucid.open(part.run, out=tmp_path / "page", max_images=20).path.read_text()
    assert "Accuracy on held-out images is highest after epoch" in page


def test_an_architecture_of_random_weights_teaches_and_real_images_are_resized(tmp_path):
    names = tuple(map(str, range(10)))
    pixels = torch.randint(256, (20, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    small, labels = pixels[:, :, :12, :12].permute(0, 2, 3, 1).numpy(), np.arange(20) % 10
    arrays = {f"{split}_{kind}": value for split in ("train", "val", "test") for kind, value in
              {"images": small, "labels": labels}.items()}  # fmt: skip
    np.savez(tmp_path / "real.npz", **arrays)
    for place, image in enumerate(pixels):
        file = tmp_path / "images" / names[place % 10] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(export.png(image / 255))
    options = {"data": f"npz:{tmp_path / 'real.npz'}", "real": (1,), **QUICK}
    done = distill("resnet8", "conv2", tmp_path / "images", out=tmp_path / "students", **options)
    assert done.run.settings.image_size == 16 and done["student"].images == 20
    own = pellucid.load(tmp_path / "students" / "teacher.safetensors").state_dict()
    drawn = open_network("resnet8", seed=options.get("seed", 0)).model.state_dict()
    assert all(torch.equal(value, drawn[key]) for key, value in own.items())


@pytest.mark.slow
def test_online_the_student_goes_on_with_images_it_disagrees_on(teacher, tmp_path):
    options = {"data": "digits", "steps": 3, "synthesis_batch": 20, "real": (1,), **QUICK}
    done = distill_online(teacher, "conv2", 2, 2, out=tmp_path, **options)
    assert [row.images for row in done.rows[1:]] == [40, 40, 10, 40]
    manifests = [read(tmp_path / f"images-{n}").manifest["settings"] for n in (1, 2)]
    assert manifests[0]["verifier"] is None and "disagreement=None" in manifests[0]["recipe"]
    assert manifests[1]["verifier"] is not None and "Disagreement(weight=1.0" in manifests[1]["recipe"]
    assert Run(done.run.path).settings.init == str(tmp_path / "round-1" / "student")
    assert Run(tmp_path / "noise").settings.init is None
    first = pellucid.load(tmp_path / "round-1" / "student").state_dict()
    assert any(not torch.equal(value, first[key]) for key, value in done.student.state_dict().items())
    again = distill_online(teacher, "conv2", 2, 2, out=tmp_path, **options)
    assert again.rows[1:] == done.rows[1:]


def test_a_foreign_checkpoint_teaches_by_its_architectures_name(teacher, images, tmp_path):
    foreign = pellucid.build("resnet8", 10, 1, 8)
    foreign.load_state_dict(pellucid.load(teacher).state_dict())
    torch.save(foreign.state_dict(), tmp_path / "foreign.pth")
    options = {"data": "digits", "controls": False, "mean": [0.25], "std": [0.5], **QUICK}
    name = f"resnet8={tmp_path / 'foreign.pth'}"
    done = distill(name, "conv2", images, out=tmp_path / "named", **options)
    again = distill(
        str(tmp_path / "foreign.pth"), "conv2", images, out=tmp_path / "x", teacher_model="resnet8", **options
    )
    assert done["student"].accuracy == again["student"].accuracy
    assert done["teacher"].accuracy == again["teacher"].accuracy
    with pytest.raises(InputError, match="names its architecture already"):
        distill(name, "conv2", images, out=tmp_path / "y", teacher_model="resnet20", **options)
    with pytest.raises(InputError, match="'none.pth' does not exist"):
        distill("resnet8=none.pth", "conv2", images, out=tmp_path / "y", **options)
    assert not (tmp_path / "y").exists()


def test_rounds_that_could_not_be_tested_are_not_begun(teacher, tmp_path):
    with pytest.raises(InputError, match="several rounds need real data"):
        distill_online(teacher, "conv2", 2, 2, out=tmp_path / "x", **QUICK)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_command_prints_the_table_and_open_reads_the_student(teacher, images, tmp_path):
    words = ["distill", teacher, "conv2", images, "--data", "digits", "--epochs", "1", "--batch-size", "20"]
    done = run(*words, "--real", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "noise" in done.stdout and "real 2" in done.stdout and "Next: pellucid open students/student" in done.stdout
    assert run("evaluate", "students/student", cwd=tmp_path).returncode == 0
    bad = run(*words[:2], "conv2", "--data", "digits", cwd=tmp_path)
    assert bad.returncode == 2 and "--online" in sentence(bad)
    train = ["train", "--data", "digits", "--model", "conv2", "--objective", "distillation", "--teacher", teacher]
    done = run(*train, "--images", "real:2", "--epochs", "1", "--batch-size", "20", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_full_covariance_teaches_digits_without_a_digit(tmp_path):
    """A whitening network's student sees no real image, and is far above the noise that is its control."""
    settings = pellucid.TrainSettings(model="conv2", layers="deconv", epochs=8, lr=0.03, batch_size=64)
    pellucid.train(settings, tmp_path / "teacher", quiet=True)
    synthesize(pellucid.load(tmp_path / "teacher"), tmp_path / "images", 15, steps=100, batch_size=150, quiet=True)
    common = {
        "data": "digits",
        "out": tmp_path / "students",
        "real": (1,),
        "epochs": 30,
        "batch_size": 50,
        "quiet": True,
    }
    done = distill(str(tmp_path / "teacher"), "conv2", tmp_path / "images", **common)
    assert done["student"].accuracy > 0.8
    assert done["student"].accuracy > done["noise"].accuracy + 0.3
