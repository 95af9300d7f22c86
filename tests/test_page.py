"""The page of `pellucid open`, its numbers and its gates."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pellucid.audit import figures, page
from pellucid.audit.audit import make_audit
from pellucid.audit.commands import show
from pellucid.audit.gates import OPERATORS, Gate, check
from pellucid.audit.registry import CARDS, register, sections_of
from pellucid.audit.thumbnails import Thumbnails, data_uri, thumbnail
from pellucid.audit.vocabulary import Fact, Facts, Figure, Picture, Section, Strip, Table, Text
from pellucid.audit.words import printable, short
from pellucid.core.data.dataset import Dataset, load_data
from pellucid.core.data.splits import MemorySplit
from pellucid.core.errors import InputError
from pellucid.core.facts import declare
from pellucid.core.measure.corrupt import kind

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><b>x",
    "日本語",
    "a.b c",
    '$x_1$ & "q"',
    "\udcff\x01",
    "é" * 60,
    "مرحبا",
)


class Templates(nn.Module):
    """Nearest class mean: a classifier of real digits that needs no training loop, and makes real mistakes."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        labels = dataset.train.labels
        images = dataset.train.fetch(torch.arange(len(labels))).float() / 255
        means = [images[labels == label].mean(0).flatten() for label in range(len(dataset.classes))]
        self.means = nn.Parameter(torch.stack(means))
        norm = {"mean": [0.0] * dataset.channels, "std": [1.0] * dataset.channels}
        declare(self, normalization=norm, description={"model": "templates", "options": {}})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -(torch.cdist(x.flatten(1), self.means) ** 2)


class Silent(nn.Module):
    """What a diverged training leaves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 10), math.nan)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="module")
def hostile() -> Dataset:
    """Grey noise images under names that must not break the page."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(len(HOSTILE)).repeat_interleave(6)
    centres = torch.randint(0, 256, (len(HOSTILE), 3, 6, 5), generator=rng)
    noise = torch.randint(-120, 121, (len(labels), 3, 6, 5), generator=rng)
    split = MemorySplit((centres[labels] + noise).clamp(0, 255).byte(), labels)
    return Dataset("folder:/x/<b>", HOSTILE, 3, (6, 5), split, split, split, (0.5,) * 3, (0.25,) * 3, True, "0" * 64)


@pytest.fixture(scope="module")
def history() -> list[dict[str, float]]:
    keys = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    return [{"epoch": e, **dict.fromkeys(keys[:2], 2 / (e + 1)), **dict.fromkeys(keys[2:], e / 5)} for e in range(5)]


@pytest.fixture(scope="module")
def report(digits, tmp_path_factory):
    return page.open(Templates(digits), digits, tmp_path_factory.mktemp("a") / "report", gate="accuracy.top1 > 50%")


@pytest.fixture(scope="module")
def hostile_report(hostile, tmp_path_factory):
    return page.open(Templates(hostile), hostile, tmp_path_factory.mktemp("b"), gate=["accuracy.top1 > 2"])


class Tags(HTMLParser):
    """Start tags with their attributes, and the text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self._inside = "", ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module", params=["report", "hostile_report"])
def tags(request) -> Tags:
    return Tags(request.getfixturevalue(request.param).path.read_text(encoding="utf-8"))


# --- the file ---


def test_nothing_points_outside_the_page(tags):
    for tag, attributes in tags.tags:
        for key in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
            if key in attributes:
                assert attributes[key].startswith(("#", "data:image/")), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(key.startswith("on") or key == "style" for key in attributes), (tag, attributes)


def test_ids_are_unique_and_references_lead_somewhere(tags):
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags.tags:
        references = [attributes["href"][1:]] if attributes.get("href", "").startswith("#") else []
        for key in ("aria-labelledby",):
            references += attributes.get(key, "").split()
        references += [value[5:-1] for value in attributes.values() if value.startswith("url(#")]
        assert set(references) <= set(ids), attributes


def test_every_image_and_drawing_has_words(tags):
    images = [attributes for tag, attributes in tags.tags if tag == "img"]
    assert len(images) > 20
    assert all(attributes["alt"] for attributes in images)
    for tag, attributes in tags.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") or (attributes["role"] == "img" and attributes["aria-labelledby"])
        if tag == "th":
            assert attributes["scope"] in ("row", "col")


def test_landmarks_and_order_of_headings(tags):
    names = [tag for tag, _ in tags.tags]
    for landmark in ("header", "main", "footer", "h1"):
        assert names.count(landmark) == 1
    levels = [int(name[1]) for name in names if name in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_class_names_are_shown_and_never_obeyed(hostile_report):
    html = hostile_report.path.read_text(encoding="utf-8")
    tags = Tags(html)
    assert [tag for tag, _ in tags.tags].count("script") == 1
    assert html.count("</style>") == 1
    for name in HOSTILE[:5]:
        assert name in tags.text
    assert "\x01" not in html


def test_the_policy_admits_only_the_own_style_and_script(tags):
    policies = [a["content"] for tag, a in tags.tags if tag == "meta" and a.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    assert "unsafe" not in policies[0]


def test_many_classes_fold_their_cards_and_keep_the_page_small(tmp_path):
    classes = 120
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(3)
    split = MemorySplit(torch.randint(0, 256, (len(labels), 3, 8, 8), generator=rng).byte(), labels)
    names = tuple(f"class {i}" for i in range(classes))
    data = Dataset("npz:x", names, 3, (8, 8), split, split, split, (0.5,) * 3, (0.25,) * 3, True, "0" * 64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    report = page.open(model, data, tmp_path / "out")
    tags = Tags(report.path.read_text(encoding="utf-8"))
    assert [tag for tag, _ in tags.tags].count("article") == classes
    assert [tag for tag, _ in tags.tags].count("details") >= classes
    assert report.path.stat().st_size < 3e6
    assert report.audit["confusion"]["matrix"] is None
    assert report.audit["accuracy"]["lowest"]["n"] == 3


# --- the numbers ---


def test_audit_json_is_strict_and_equals_the_report(report):
    def refuse(word):
        raise AssertionError(word)

    text = (report.path.parent / "audit.json").read_text()
    assert json.loads(text, parse_constant=refuse) == report.audit
    assert set(report.audit) == {
        *("schema", "made", "model", "data", "assumed", "left_out", "classes", "gates", "passed"),
        *("accuracy", "calibration", "confusion", "noise"),
    }


def test_numbers_agree_with_a_plain_count(report, digits):
    model = Templates(digits)
    images = digits.test.fetch(torch.arange(len(digits.test))).float() / 255
    answers = model(images).argmax(1)
    right = answers == digits.test.labels
    audit = report.audit
    assert audit["accuracy"]["correct"] == int(right.sum())
    assert audit["accuracy"]["top1"] == pytest.approx(float(right.float().mean()))
    matrix = np.zeros((10, 10), int)
    for truth, answer in zip(digits.test.labels.tolist(), answers.tolist(), strict=True):
        matrix[truth, answer] += 1
    assert audit["confusion"]["matrix"] == matrix.tolist()
    worst = audit["confusion"]["pairs"][0]
    assert worst["count"] == (matrix - np.diag(matrix.diagonal())).max()
    three = audit["classes"]["3"]["answers"]
    assert three["precision"] == pytest.approx(matrix[3, 3] / matrix[:, 3].sum())
    assert three["answered"] == matrix[:, 3].sum()


def test_examples_are_what_their_captions_say(digits):
    audit = make_audit(Templates(digits), digits, device="cpu")
    shown = sections_of(audit, 8)["examples"].data
    for key, sign in (("surest_right", -1), ("least_sure_right", 1), ("surest_wrong", -1)):
        confidence = [sign * float(audit.confidence[i]) for i in shown[key]]
        assert shown[key] and confidence == sorted(confidence)
        assert all(audit.labels[i] == 8 and (audit.predictions[i] == 8) == ("right" in key) for i in shown[key])
    assert not set(shown["surest_right"]) & set(shown["least_sure_right"])


def test_noise_starts_clean_depends_on_the_seed_only_and_falls(digits, monkeypatch):
    monkeypatch.setattr(kind, "LARGE", 8)  # the strengths of ImageNet-C: the milder ones hardly move so simple a model

    def severities(seed, batch_size):
        audit = make_audit(Templates(digits), digits, device="cpu", seed=seed, batch_size=batch_size)
        return sections_of(audit)["noise"].data["severities"]

    first, again, other = severities(0, 512), severities(0, 100), severities(1, 512)
    assert [row["accuracy"] for row in first] == [row["accuracy"] for row in again]
    assert first != other
    assert first[0]["sigma"] == 0
    assert first[5]["accuracy"] < first[0]["accuracy"] - 0.05


def test_a_calibrated_model_is_within_its_control_and_a_boastful_one_is_not(digits):
    audit = make_audit(Templates(digits), digits, device="cpu")
    boastful = dataclasses.replace(audit, logits=10 * audit.logits)
    boastful.evaluation = dataclasses.replace(audit.evaluation, ece=1 - audit.evaluation.top1)
    data = sections_of(boastful)["calibration"].data
    assert data["ece"] > data["control"]["p95"]
    assert sum(row["n"] for row in data["bins"]) == len(digits.test)


def test_a_class_without_test_images_is_reported_as_such(digits, tmp_path):
    kept = (digits.test.labels != 4).nonzero()[:, 0]
    report = page.open(Templates(digits), dataclasses.replace(digits, test=digits.test.take(kept)), tmp_path)
    four = report.audit["classes"]["4"]["answers"]
    assert (four["n"], four["accuracy"], four["interval"]) == (0, None, [0, 1])
    assert "examples" not in report.audit["classes"]["4"]
    assert "no test image" in report.path.read_text(encoding="utf-8")


def test_learning_curve_comes_from_the_run(digits, history):
    audit = make_audit(Templates(digits), digits, device="cpu")
    assert "learning" not in sections_of(audit)
    audit.history = history
    data = sections_of(audit)["learning"].data
    assert data == {"epochs": 5, "best_epoch": 5, "best_val_accuracy": 0.8, "final_train_loss": 0.4}


# --- what can go wrong ---


def test_a_model_that_does_not_fit_is_refused_and_nothing_is_written(digits, tmp_path):
    with pytest.raises(InputError, match="10 classes"):
        page.open(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), digits, tmp_path / "out")
    with pytest.raises(InputError, match="8x8"):
        page.open(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), digits, tmp_path / "out")
    with pytest.raises(InputError, match="not numbers"):
        page.open(Silent(), digits, tmp_path / "out")
    with pytest.raises(InputError, match="nearest are accuracy.top1"):
        page.open(Templates(digits), digits, tmp_path / "out", gate="accuracy.topp1 > 0")
    with pytest.raises(InputError, match="data="):
        page.open(Templates(digits), None, tmp_path / "out")
    with pytest.raises(InputError, match="nothing to open"):
        page.open(None, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        page.open(Templates(digits), digits, tmp_path / "file")


def test_a_run_folder_brings_its_data_and_its_learning_curve(tmp_path):
    from pellucid.core.train.loop import train
    from pellucid.core.train.settings import TrainSettings

    trained = train(TrainSettings(model="conv2", epochs=2, batch_size=256), tmp_path / "run", quiet=True)
    report = page.open(tmp_path / "run", out=tmp_path / "out")
    assert report.audit["learning"]["epochs"] == 2
    assert report.audit["accuracy"]["top1"] == trained.result["test"]["top1"]
    assert report.audit["model"]["source"] == str(tmp_path / "run")
    again = page.open(trained.run, "digits", tmp_path / "out")
    assert again.audit["noise"] == report.audit["noise"]
    assert not list((tmp_path / "out").glob(".*"))


# --- cards from elsewhere ---


def test_a_registered_card_appears_on_the_page_and_in_the_numbers(digits, tmp_path, monkeypatch):
    for cards in CARDS.values():
        monkeypatch.setattr(cards, "_registered", {})
    shade = np.full((4, 4), 200, np.uint8)

    def card(audit):
        table = Table("A <table>", ["x", "y"], [["a", "1"]], numeric=[1])
        drawing = figures.lines([1, 2], [("<c>", [0.1, 0.2], None)], title="T", description="D", x_label="x")
        blocks = [Text("Mind this.", "bad"), Facts([Fact("n", "3")]), table, Figure(drawing, "C", wide=True)]
        return Section(
            "Novel", "Found <it>.", [*blocks, Strip("Nothing", [])], {"value": np.float32(0.5), "bad": math.nan}
        )

    def class_card(audit, index):
        if index == 2:
            return Section("Only two", blocks=[Strip("S", [Picture(shade, "c", "alt")])], data={"n": index})
        return None

    register("novel", card, order=1)
    register("novel", class_card, scope="class")
    report = page.open(Templates(digits), digits, tmp_path, gate="novel.value == 0.5")
    assert report.passed
    assert report.audit["novel"] == {"value": 0.5, "bad": None}
    assert [name for name, of_class in report.audit["classes"].items() if "novel" in of_class] == ["2"]
    tags = Tags(report.path.read_text(encoding="utf-8"))
    for text in ("Novel", "Found <it>.", "A <table>", "Warning:", "Only two"):
        assert text in tags.text
    assert report.findings[0] == "Novel: Found <it>."


@pytest.mark.parametrize("name", ["classes", "gates", "a.b", "", "1x"])
def test_a_card_cannot_take_a_name_that_gates_could_not_tell(name):
    with pytest.raises(ValueError, match="cannot be named"):
        register(name, lambda audit: None)


# --- pictures and drawings ---


def test_pictures_are_exact_when_small_and_shrunk_when_large():
    from PIL import Image

    small = (torch.arange(64).reshape(1, 8, 8) / 63).contiguous()
    encoded = data_uri(thumbnail(small))
    decoded = np.array(Image.open(io.BytesIO(base64.b64decode(encoded.partition(",")[2]))))
    assert np.array_equal(decoded, (255 * small[0]).round().byte().numpy())
    assert thumbnail(torch.rand(3, 200, 300)).shape == (64, 96, 3)
    assert thumbnail(torch.rand(7, 5, 5)).shape == (5, 5, 1)


def test_thumbnails_keep_what_was_offered_first():
    pictures = [Picture(np.random.default_rng(i).integers(0, 255, (16, 16), np.uint8), "", "") for i in range(6)]
    shown = Thumbnails(room=3 * len(data_uri(pictures[0].image)) + 50)
    shown.offer([Section("s", blocks=[Strip("", pictures)])])
    assert [shown.source(one) is not None for one in pictures] == [True] * 3 + [False] * 3
    assert shown.left_out == 3


def test_a_drawing_has_roles_for_colours_and_no_style():
    svg = figures.heat(HOSTILE, np.eye(8, dtype=int) + 1, np.full(8, 9), title="<t>", description="&d")
    assert "style=" not in svg
    assert "<style" not in svg
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg))
    assert colours <= {
        "none",
        "currentColor",
        *(f"var(--{role})" for role in ("muted", "rule", "cell-right", "cell-wrong")),
    }
    assert svg == figures.heat(HOSTILE, np.eye(8, dtype=int) + 1, np.full(8, 9), title="<t>", description="&d")


@given(st.text())
def test_printable_text_has_no_controls_and_survives_utf8(text):
    clean = printable(text)
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert not any(ord(c) < 32 for c in clean)
    assert len(short(text, 14)) <= 14


# --- gates ---

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)
RECORD = {
    "accuracy": {"top1": 0.9, "interval": [0.85, 0.94], "top5": None, "lowest": {"class": "x"}},
    "classes": {"a.b": {"answers": {"accuracy": 0.5}}, "a": {"b": {"n": 1}}, "x >= 1": {"answers": {"accuracy": 0.25}}},
    "passed": True,
}


@given(NUMBERS, NUMBERS, st.sampled_from(sorted(OPERATORS)))
def test_a_gate_compares_numbers(value, bound, operator):
    gate = Gate.parse(f" v.w{operator}{bound!r} ")
    assert gate == Gate("v.w", operator, bound)
    assert Gate.parse(str(gate)) == gate
    assert (
        check([gate], {"v": {"w": value}})[0].passed
        == {
            ">=": value >= bound,
            "<=": value <= bound,
            ">": value > bound,
            "<": value < bound,
            "==": value == bound,
        }[operator]
    )


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("accuracy.top1 >= 90%", 0.9, True),
        ("accuracy.top1 > 9e-1", 0.9, False),
        ("accuracy.interval.0 >= .9", 0.85, False),
        ("classes.a.b.answers.accuracy == 0.5", 0.5, True),
        ("classes.a.b.n <= +1", 1, True),
        ("classes.x >= 1.answers.accuracy < 0.3", 0.25, True),
    ],
)
def test_a_gate_finds_its_number(text, value, passed):
    (result,) = check([Gate.parse(text)], RECORD)
    assert (result.value, result.passed) == (value, passed)
    assert result.to_json()["gate"] == str(result.gate)


@pytest.mark.parametrize(
    "text",
    ["", "accuracy.top1", ">= 0.9", "accuracy.top1 => 0.9", "accuracy.top1 = 0.9", "accuracy.top1 != 0.9",
     "accuracy.top1 >= high", "accuracy.top1 >= nan", "accuracy.top1 >= 1e999", "a >= 1; import os", "a >= 1 %%"],
)  # fmt: skip
def test_a_malformed_gate_is_refused(text):
    with pytest.raises(InputError, match="is not understood"):
        Gate.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_gate_or_an_input_error(text):
    try:
        gate = Gate.parse(text)
    except InputError:
        return
    assert Gate.parse(str(gate)) == gate


@pytest.mark.parametrize(
    "path", ["accuracy.top2", "accuracy", "accuracy.top5", "accuracy.lowest.class", "passed", "accuracy.interval.2"]
)
def test_a_gate_needs_a_number(path):
    with pytest.raises(InputError, match=f"{path}"):
        check([Gate(path, ">", 0)], RECORD)


def test_gates_are_on_the_page_and_decide(report, hostile_report, capsys):
    assert report.passed
    assert report.audit["passed"] is True
    assert not hostile_report.passed
    (failed,) = hostile_report.audit["gates"]
    assert failed["passed"] is False
    assert failed["value"] == hostile_report.audit["accuracy"]["top1"]
    assert "The gate passes" in report.path.read_text(encoding="utf-8")
    assert "1 of 1 gates fails" in hostile_report.path.read_text(encoding="utf-8")
    show(report)
    show(hostile_report)
    assert str(report.path) in capsys.readouterr().out.replace("\n", "")


# --- in a browser ---

CONTRAST = """() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
  const linear = (v) => v <= 10.3 ? v / 3294 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = (c) => c.slice(0, 3).map(linear)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    let layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  let worst = [100, ""];
  const judge = (colour, under, text) => {
    const [a, b] = [light(over(parse(colour), under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, text];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || ["STYLE", "SCRIPT", "title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    judge(element.closest("svg") ? style.fill : style.color, ground(element), node.data);
  }
  // Counts stand on the cells of the confusion matrix.
  for (const cell of document.querySelectorAll('svg path[fill^="var(--cell"]')) {
    const style = getComputedStyle(cell), fill = parse(style.fill);
    fill[3] = Number(style.opacity) * Number(style.fillOpacity);
    judge(getComputedStyle(cell.closest("svg")).color, over(fill, ground(cell)), "cell");
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        assert "PELLUCID_REQUIRE_BROWSER" not in os.environ, "Chromium is not installed"
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    flags = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync"]
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in flags])
        yield running
        running.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(360, 740), (1280, 900)], ids=["phone", "desktop"])
@pytest.mark.parametrize("which", ["report", "hostile_report"])
def test_in_a_browser_offline(browser, request, which, size, scheme):
    url = request.getfixturevalue(which).path.resolve().as_uri()
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True, reduced_motion="reduce"
    )
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda sent: sent.url.startswith("data:") or sent.url == url or complaints.append(sent.url))
    tab.goto(url)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0], "with everything open"
    assert tab.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    ratio, text = tab.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    tab.fill("input[name=find]", tab.locator("article h3").nth(3).inner_text())
    assert tab.locator("article:visible").count() == 1
    tab.fill("input[name=find]", "")
    tab.select_option("select[name=order]", "accuracy")
    shown = tab.eval_on_selector_all("article", "all => all.map((one) => Number(one.dataset.accuracy))")
    assert shown == sorted(shown)
    assert not complaints
    context.close()


@pytest.mark.browser
def test_complete_without_script_and_on_paper(browser, report):
    context = browser.new_context(java_script_enabled=False, offline=True)
    tab = context.new_page()
    tab.goto(report.path.resolve().as_uri())
    assert tab.locator("article:visible").count() == 10
    assert not tab.locator("form.tools").is_visible()
    tab.keyboard.press("Tab")
    assert tab.locator(".skip").bounding_box()["x"] >= 0
    tab.emulate_media(media="print")
    assert not tab.locator(".jump").is_visible()
    assert tab.pdf()[:4] == b"%PDF"
    context.close()
