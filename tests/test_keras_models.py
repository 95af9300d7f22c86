# ruff: noqa: E402 - what needs keras is imported once it is known to be there
"""Models of pellucid.keras: training, folding, files that go from one backend to another, and the way from torch."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

import torch
from keras import ops

import pellucid
import pellucid.core.train.frameworks
import pellucid.keras as pk
import processes
from processes import ENVIRONMENT

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*")]
BACKEND = keras.backend.backend()
fits = pytest.mark.skipif(BACKEND == "numpy", reason="numpy does not train")
ROOT = Path(__file__).parents[1]


def small():
    """A whitening network for images (N, H, W, 2) of any size."""
    return keras.Sequential(
        [
            keras.Input((None, None, 2)),
            pk.FastDeconv2D(6, 3, padding="same", activation="relu", block=4, bias_initializer=pk.BiasHeUniform()),
            pk.FastDeconv2D(8, 3, strides=2, padding=1, groups=2, block=4, use_bias=False),
            keras.layers.ReLU(),
            pk.ChannelDeconv(5),
            pk.SubnetConv2D(8, 1),
            keras.layers.GlobalAveragePooling2D(),
            pk.ChannelDeconv(128, **pk.HEAD),
            keras.layers.Dense(3),
        ]
    )


def batch(n=32, size=(9, 8), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    return (rng.normal(size=(n, *size, 2)) + labels[:, None, None, None]).astype("float32"), labels


def seen(model):
    """The model after a few batches, without an optimizer."""
    for seed in range(2):
        model(batch(seed=seed)[0], training=True)
    return model


def answers(model, x):
    return ops.convert_to_numpy(ops.cast(model(x, training=False), "float32"))


@fits
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_it_fits_compiles_saves_and_loads(policy, tmp_path):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = small()
        model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x, labels = batch(64)
        losses = model.fit(x, labels, batch_size=16, epochs=4, verbose=0, shuffle=False).history["loss"]
        assert losses[-1] < 0.7 * losses[0]
        model.fit(*batch(16, (26, 31)), batch_size=16, verbose=0)  # another size
        assert int(model.layers[0].steps) == 17
        for layer in model.layers:
            for weight in layer.non_trainable_weights:
                assert keras.backend.standardize_dtype(weight.dtype) in ("float32", "int32")
                assert np.isfinite(ops.convert_to_numpy(weight)).all()
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(answers(loaded, x), answers(model, x))
        loaded.fit(x, labels, batch_size=16, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")


@fits
@pytest.mark.skipif(BACKEND == "torch", reason="torch.compile takes long")
def test_it_fits_under_xla():
    model = small()
    model.compile(
        keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True
    )
    x, labels = batch(32)
    losses = model.fit(x, labels, batch_size=16, epochs=4, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < losses[0] and int(model.layers[0].updates) == 8


def test_folding_keeps_the_function():
    keras.utils.set_random_seed(0)
    model = seen(small())
    x, _ = batch(seed=5)
    folded = pk.fold(model, x)
    np.testing.assert_allclose(answers(folded, x), answers(model, x), atol=1e-5)
    kinds = {type(layer) for layer in folded.layers}
    assert not kinds & {pk.FastDeconv2D, pk.ChannelDeconv, pk.SubnetConv2D}
    assert "pellucid" not in folded.to_json()
    first = keras.Sequential([keras.Input((2, 9, 8)), pk.ChannelDeconv(2, data_format="channels_first")])
    first(np.moveaxis(x, -1, 1), training=True)
    assert isinstance(pk.fold(first).layers[0], keras.layers.Conv2D)


def random_states():
    return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]  # noqa: NPY002


def test_converting_and_folding_leave_random_state_training_modes_and_policy_alone():
    keras.utils.set_random_seed(0)
    model, layer = seen(small()), pellucid.build("resnet20", 10, 1, 8, "deconv")
    layer.layer2.eval()  # a part that a user has frozen
    modes = [module.training for module in layer.modules()]
    model.layers[0].trainable = False
    before, weights = random_states(), [ops.convert_to_numpy(w).copy() for w in model.weights]
    folded = pk.fold(model, batch(seed=5)[0])
    assert not folded.layers[0].trainable and folded.layers[2].trainable and not model.layers[0].trainable
    twin = pk.from_torch(layer)
    pk.to_torch(twin, layer)
    assert random_states() == before
    for single in (torch.nn.Linear(6, 3), pellucid.subnet(torch.nn.Conv2d(4, 6, 3), 0.3, seed=0)):
        before = random_states()
        pk.from_torch(single)
        assert random_states() == before
    assert [module.training for module in layer.modules()] == modes
    assert keras.config.dtype_policy().name == "float32"
    for weight, old in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), old)


@fits
def test_training_depends_on_its_seed_alone_and_leaves_random_state_and_policy_alone(tmp_path):
    os.environ["KERAS_BACKEND"] = BACKEND
    settings = {"framework": "keras", "model": "resnet20", "layers": "plain", "epochs": 1, "limit_batches": 2}
    found = []
    for number, seed in enumerate((1, 1, 2)):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002
        before = random_states()
        run = pellucid.core.train.frameworks.train(
            pellucid.TrainSettings(**settings, seed=seed, precision="bf16-mixed"), tmp_path / str(number), quiet=True
        )
        after = random_states()
        assert after[:2] == before[:2]
        assert keras.config.dtype_policy().name == "float32"
        found.append(run.model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert not torch.equal(found[0]["conv1.weight"], found[2]["conv1.weight"])


def test_a_file_goes_from_one_backend_to_another(tmp_path):
    keras.utils.set_random_seed(0)
    model = seen(small())
    x, _ = batch(4, seed=9)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, keras, pellucid.keras\n"
        "folder = sys.argv[1]\n"
        "model = keras.saving.load_model(folder + '/model.keras')\n"
        "np.save(folder + '/y.npy', keras.ops.convert_to_numpy(model(np.load(folder + '/x.npy'), training=False)))\n"
        "model.save(folder + '/back.keras')\n"
    )
    packages = {"torch": "torch", "jax": "jax", "tensorflow": "tensorflow", "numpy": "jax"}
    others = [name for name, package in packages.items() if name != BACKEND and importlib.util.find_spec(package)]
    if not others:
        pytest.skip("there is no other backend here")
    for other in others[:2]:
        environment = {**ENVIRONMENT, "KERAS_BACKEND": other}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), answers(model, x), atol=1e-5)
        back = keras.saving.load_model(tmp_path / "back.keras")
        for ours, theirs in zip(model.weights, back.weights, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))


@pytest.mark.parametrize(("name", "layers"), [("resnet20", "deconv"), ("vgg11", "plain"), ("vgg11", "deconv")])
def test_networks_come_from_torch_and_go_back(name, layers):
    torch.manual_seed(0)
    model = pellucid.build(name, 10, 1, 8, layers)
    x = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        model.train()(x)
        expected = model.eval()(x).numpy()
    twin = pk.from_torch(model)
    np.testing.assert_allclose(answers(twin, x.numpy().transpose(0, 2, 3, 1)), expected, atol=1e-4)
    again = pk.to_torch(twin, pellucid.build(name, 10, 1, 8, layers)).state_dict()
    for key, value in model.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, again[key]), key
    with pytest.raises(ValueError, match="twin"):
        pk.from_torch(pellucid.build(name, 10, 1, 8, "deconv" if layers == "plain" else "plain").state_dict(), twin)
    with pytest.raises(ValueError, match="does not fit"):
        pk.from_torch(pellucid.build(name, 7, 1, 8, layers).state_dict(), twin)


def test_single_layers_come_from_torch():
    torch.manual_seed(0)
    x = torch.randn(32, 6, 7, 7)
    layers = [
        torch.nn.Conv2d(6, 4, 3, 2, 1),
        torch.nn.Conv2d(6, 4, 3, padding="same", bias=False),
        pellucid.FastDeconv2d(6, 4, 3, 2, 1),
    ]
    for layer in layers:
        layer.train()(x)
        expected = layer.eval()(x).detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(answers(pk.from_torch(layer), x.numpy().transpose(0, 2, 3, 1)), expected, atol=1e-5)
    for layer in (torch.nn.Linear(6, 3), pellucid.FastDeconvLinear(6, 3, block=4)):
        rows = x[:, :, 0, 0]
        layer.train()(rows)
        expected = layer.eval()(rows).detach().numpy()
        np.testing.assert_allclose(answers(pk.from_torch(layer), rows.numpy()), expected, atol=1e-5)
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        pk.from_torch(torch.nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))


@fits
def test_the_snippet_of_the_docs_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "keras.md").read_text(), re.DOTALL)
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    names = {"images": images, "labels": np.arange(64) % 10}
    exec(compile(blocks[0], "docs/keras.md", "exec"), names)  # noqa: S102
    assert names["plain"](images[:2]).shape == (2, 10)


def test_precisions_have_two_spellings():
    settings = pellucid.TrainSettings(framework="keras", precision="mixed_bfloat16")
    assert settings.precision == "bf16-mixed" and settings == pellucid.TrainSettings(
        framework="keras", precision="bf16-mixed"
    )


@fits
@pytest.mark.slow
def test_training_from_the_command_line_goes_on_where_it_stopped(tmp_path):
    words = ["train", "--framework", "keras", "--backend", BACKEND, "--arch", "resnet20", "--data", "digits"]
    words += ["--layers", "deconv", "--limit-batches", "2", "--epochs", "2"]
    done = processes.run(*words, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout and "Next: pellucid open run" in done.stdout
    run = pellucid.load(tmp_path / "run")
    twin = keras.saving.load_model(tmp_path / "run" / "best.keras")
    x = torch.randn(64, 1, 8, 8)
    expected = run.eval()(x).detach().numpy()
    np.testing.assert_allclose(answers(twin, x.numpy().transpose(0, 2, 3, 1)), expected, atol=1e-3)
    (tmp_path / "run" / "result.json").unlink()  # as if it had been stopped after its last epoch
    again = processes.run("train", "--resume", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_what_keras_does_not_have_is_told(tmp_path):
    words = ["train", "--framework", "keras", "--backend", BACKEND if BACKEND != "numpy" else "torch", "--epochs", "1"]
    for more, sentence in (
        (["--model", "densenet121"], "no densenet121 of this form in Keras"),
        (["--ema", "0.9"], "--ema is not for --framework keras"),
        (["--layers", "csc"], "no layers 'csc'"),
        (["--layers", "csc+deconv"], "Keras has no combinations of layers such as 'csc+deconv'"),
    ):
        done = processes.run(*words, *more, "--out", more[1], cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert sentence in done.stderr.strip().splitlines()[-1]  # TensorFlow has said other things before
    done = processes.run("train", "--framework", "caffe", cwd=tmp_path)
    assert done.returncode == 2 and "no framework 'caffe'" in processes.sentence(done)
