"""Classes of data among those of a network: by name, by number, by a list, and never by chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid import cli
from pellucid.core.data.dataset import load_data
from pellucid.core.data.matching import IMAGENET, match, read_classes
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.core.measure.classes import matched
from test_test_images import HALF, fill

ANIMALS = ("ant", "bee", "cat", "dog")
LIST = "n1 ant\nn2 honey bee\nn3 cat\nn4 dog\n"


@pytest.fixture
def tinted(tmp_path):
    """A network whose answer is the brightest of four parts of an image, and ten such images per class and order."""

    class Brightest(torch.nn.Module):
        def forward(self, x):
            return x.mean(1).unflatten(1, (2, 4)).unflatten(3, (2, 4)).mean((2, 4)).flatten(1)

    def write(root: Path, names: dict[str, int]) -> str:
        from PIL import Image

        for name, place in names.items():
            (root / name).mkdir(parents=True)
            for number in range(3):
                pixels = torch.randint(0, 120, (8, 8, 3), generator=torch.Generator().manual_seed(number)).byte()
                row, column = divmod(place, 2)
                pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
                Image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")
        return f"test:{root}"

    return declare(Brightest(), normalization=HALF), lambda names: write(tmp_path / "images", names)


# ---- what is matched


@pytest.mark.parametrize(
    ("names", "options", "classes"),
    [
        ({"dog": 3, "bee": 1}, {"known": ANIMALS}, ANIMALS),
        ({"Dog": 3, "BEE": 1, "ant": 0}, {"known": ANIMALS}, ANIMALS),
        ({"0003": 3, "1": 1}, {"known": ANIMALS}, ANIMALS),
        ({"2": 2, "00": 0}, {}, ("0", "1", "2", "3")),
        ({"010": 2, "1": 1}, {"known": ("0", "1", "10", "9")}, ("0", "1", "10", "9")),  # by value, not by place
        ({"a": 0, "b": 1, "c": 2, "d": 3}, {}, ("a", "b", "c", "d")),
        ({"n4": 3, "n2": 1}, {"listed": LIST.split("\n")[:4]}, ("ant", "honey bee", "cat", "dog")),
        ({"honey_bee": 1, "cat": 2}, {"listed": LIST.split("\n")[:4]}, ("ant", "honey bee", "cat", "dog")),
        ({"3": 3, "0": 0}, {"listed": LIST.split("\n")[:4]}, ("ant", "honey bee", "cat", "dog")),
        ({"3": 3, "0": 0}, {"listed": ("big cat", "small cat", "big dog", "dog x")}, None),
    ],
)
def test_images_of_some_classes_are_measured_as_those(tinted, names, options, classes):
    model, write = tinted
    data = write(names)
    if "known" in options:
        declare(model, classes=options["known"])
    found = pellucid.evaluate(model, data, classes=options.get("listed"))
    assert found.top1 == 1 and found.n == 3 * len(names)
    assert found.classes == (classes or options["listed"])
    assert {place for place, share in enumerate(found.per_class) if share.n} == set(names.values())


def test_where_nothing_says_more_data_with_training_images_keep_their_order():
    """Numbers that are names: in the order of the folders, as torchvision and a run here number them."""
    names = ("0", "1", "10", "2")
    assert match(names, 4, in_order=True).places == (0, 1, 2, 3)
    with pytest.raises(InputError, match="has the class '10', and the model's 4 classes have the numbers 0 to 3"):
        match(names, 4)


def test_imagenets_classes_are_known_by_id_by_name_and_by_number():
    lines = read_classes(IMAGENET)
    ids, names = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert len({*ids}) == len({*names}) == 1000 and [*ids] == sorted(ids)
    assert (ids[0], names[0], names[1], names[980]) == ("n01440764", "tench", "goldfish", "volcano")
    for found in (["n01443537", "n01440764"], ["goldfish", "Tench"], ["1", "0000"]):
        one = match(found, 1000)
        assert one.places == (1, 0) and one.classes == names
        assert "taken for ImageNet's 1000 (--classes FILE)" in one.sentence and "2 of 1000 have images" in one.sentence
    assert match(["great_white_shark"], 1000).places == (2,)
    assert match(ids, 1000).classes == names
    others = [f"class{number:04d}" for number in range(1000)]  # another thousand
    assert match(others, 1000).classes == tuple(others) and "ImageNet" not in match(others, 1000).sentence


@pytest.mark.parametrize(
    ("found", "outputs", "options", "said"),
    [
        (["dgo", "cat"], 4, {"known": ANIMALS}, "has the class 'dgo', which is none .* did you mean 'dog'"),
        (["a", "b"], 4, {}, "4 classes, whose names it does not record, and x has 2 .* --classes FILE"),
        (["7", "007"], 9, {}, "'7' and '007', which are both the class '7': join them"),
        (["4", "0"], 4, {"known": ANIMALS}, "has the class '4', and the model's 4 classes have the numbers 0 to 3"),
        (["a"], 4, {"listed": ["a", "b"]}, "4 outputs and the list of classes names 2 classes"),
        (["goldfsh", "tench"], 1000, {}, "none of the model's 1000 classes: did you mean 'goldfish'"),
        (["ant", "0"], 4, {"known": ANIMALS}, "has the class '0', which is none of the model's 4 classes: choose ant"),
    ],
)
def test_what_matches_nothing_is_refused(found, outputs, options, said):
    with pytest.raises(InputError, match=said):
        match(found, outputs, data="x", **options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a\n\nb\n", "has an empty line 2"),
        (b"a\nb\na\n", "names 'a' in lines 1 and 3"),
        (b"a\n", "names 1 classes"),
        (b"\xff\xfe\x00", "not a list of classes in UTF-8"),
        (None, "There is no file"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "x").write_bytes(text)
    with pytest.raises(InputError, match=said):
        read_classes(tmp_path / "x")


def test_a_list_does_not_contradict_the_model(tmp_path):
    model = declare(pellucid.build("resnet8", 4, 3, 8).eval(), classes=ANIMALS, normalization=HALF)
    data = load_data(f"test:{fill(tmp_path, {'cat': 2})}")
    assert matched(model, data, LIST.replace("honey ", "").split("\n")[:4])[0].classes == ANIMALS
    with pytest.raises(InputError, match=r"records its own classes \(ant, bee, cat, \.\.\.\), in another order"):
        matched(model, data, ("n1 dog", "n2 cat", "n3 bee", "n4 ant"))


def test_data_that_name_no_folders_are_not_matched(tinted, tmp_path):
    """A network of other classes is not measured on these: "3" of digits is no third class of four."""
    model = declare(pellucid.build("resnet8", 4, 1, 8).eval(), classes=ANIMALS)
    with pytest.raises(InputError, match="trained on the classes ant, bee"):
        pellucid.evaluate(model, "digits")


# ---- commands


@pytest.fixture
def saved(tmp_path):
    """A network of four classes whose names its file does not record, images of two of them, and a list."""
    torch.manual_seed(0)
    net = declare(pellucid.build("resnet8", 4, 3, 8), normalization=HALF)
    pellucid.save(net, tmp_path / "net.safetensors")
    fill(tmp_path / "images" / "train", {"n4": 8, "n2": 8})
    fill(tmp_path / "images" / "test", {"n4": 4, "n2": 3})
    (tmp_path / "names.txt").write_text(LIST)
    return [str(tmp_path / "net.safetensors"), "--data", f"folder:{tmp_path / 'images'}"], str(tmp_path / "names.txt")


def test_evaluate_states_the_classes_that_are_there(saved, capsys):
    words, names = saved
    assert cli.main(["evaluate", *words, "--classes", names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["class"], row["n"]) for row in found["per_class"]] == [("honey bee", 3), ("dog", 4)]
    assert (found["n"], found["present"], found["outputs"]) == (7, 2, 4)
    assert found["assumed"] == ["Classes are matched by name; 2 of 4 have images."]
    assert cli.main(["evaluate", *words, "--classes", names]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Classes are matched by name; 2 of 4 have images.\n")
    assert "all, of 2 of 4 classes" in shown and "ant" not in shown and f"--classes {names}" in shown
    assert cli.main(["evaluate", *words]) == 2
    assert "list the model's classes in its order with --classes FILE" in capsys.readouterr().err


def test_robust_and_decompose_take_a_list(saved, tmp_path, capsys):
    words, names = saved
    kinds = ["--kinds", "gaussian_noise", "--severities", "1", "--json"]
    assert cli.main(["robust", *words, "--classes", names, *kinds]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 7
    out = ["--out", str(tmp_path / "out"), "--json"]
    assert cli.main(["decompose", *words, "--classes", names, *out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["class"] for row in found["classes"]] == ["ant", "honey bee", "cat", "dog"]
    assert cli.main(["decompose", *words, "--classes", names, "dog", "honey bee", *out]) == 0
    assert found["assumed"] == ["Classes are matched by name; 2 of 4 have images."]


def test_a_network_with_random_weights_gets_the_listed_classes(saved, capsys):
    words, names = saved
    assert cli.main(["evaluate", "resnet8", *words[1:], "--classes", names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outputs"] == 4 and [row["class"] for row in found["per_class"]] == ["honey bee", "dog"]
