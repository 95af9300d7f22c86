# ruff: noqa: E402 - what needs keras is imported once it is known to be there
"""The layers of pellucid.keras, on the backend of KERAS_BACKEND (torch unless it is set)."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

from keras import ops

import pellucid.keras as pk
import reference_keras
from keras_cases import CASES, Stepper, apart, last

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*")]
NUMPY = keras.backend.backend() == "numpy"
RNG = np.random.default_rng(0)


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layers_are_their_torch_twins(case):
    found = apart(case)
    assert found["output"] < 1e-5 and found["evaluation"] < 2e-5
    assert found["gradient"] < 1e-4 and found["statistics"] < 1e-4


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_statistics_are_exact_under_mixed_precision(policy):
    for case in (CASES[1], CASES[7], CASES[9], CASES[11]):
        found = apart(case, steps=3, rate=0.0)
        assert found["statistics"] < (2e-3 if "Conv" not in case.name else 1e-6)  # the input itself is rounded
        assert found["output"] < 0.1 and found["evaluation"] < 0.1


@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2}])
def test_a_whitening_convolution_is_its_slow_twin(options):
    x = [RNG.normal(size=(3, 9, 8, 4)) + 0.3 for _ in range(4)]
    kernel = RNG.normal(size=(2, 2, 4 // options.get("groups", 1), 4)) / 4
    twin = reference_keras.FastDeconv2D(kernel, np.arange(4.0), padding=1, block=3, refresh=2, **options)
    arguments = {"strides" if key == "stride" else key: value for key, value in options.items()}
    layer = pk.FastDeconv2D(4, 2, padding=1, block=3, refresh=2, **arguments)
    layer.build(x[0].shape)
    layer.kernel.assign(kernel)
    layer.bias.assign(np.arange(4.0))
    twin.steps = 49  # past the steps in which every one makes a root
    layer.steps.assign(49)
    layer.running_mean.assign(twin.mean)
    for batch in x:
        made = ops.convert_to_numpy(layer(batch.astype("float32"), training=True))
        np.testing.assert_allclose(made, twin(batch.astype("float32"), True), atol=2e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.running_cov), twin.cov, atol=1e-5)
    assert int(layer.updates) == twin.updates == 2
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x[0].astype("float32"))), twin(x[0], False), atol=2e-5)


def test_masks_are_exact_with_ties():
    for keep in (0.01, 0.3, 0.5, 1.0):
        scores = RNG.integers(-3, 4, size=(3, 3, 2, 4)).astype("float32")
        mask = ops.convert_to_numpy(pk.subnet.topk_mask(ops.convert_to_tensor(scores), keep))
        np.testing.assert_array_equal(mask, reference_keras.topk(scores, keep))


def test_layouts_and_paddings_agree():
    x = RNG.normal(size=(4, 9, 8, 6)).astype("float32")
    for options in ({"padding": "same", "strides": 2}, {"padding": (1, 2)}, {"padding": "valid", "dilation_rate": 2}):
        found = []
        for form in ("channels_last", "channels_first"):
            layer = pk.FastDeconv2D(4, 3, data_format=form, kernel_initializer="ones", block=4, **options)
            image = x if form == "channels_last" else np.moveaxis(x, -1, 1)
            layer(image, training=True)
            y = ops.convert_to_numpy(layer(image))
            assert y.shape == layer.compute_output_shape(image.shape)
            found.append(y if form == "channels_last" else np.moveaxis(y, 1, -1))
        np.testing.assert_allclose(*found, atol=1e-4)


def test_causal_windows_see_no_future():
    layer = pk.FastDeconv1D(3, 3, padding="causal", dilation_rate=2)
    x = RNG.normal(size=(4, 12, 2)).astype("float32")
    layer(x, training=True)
    changed = x.copy()
    changed[:, 7:] += 1
    before, after = (ops.convert_to_numpy(layer(v)) for v in (x, changed))
    np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-5)
    assert before.shape == (4, 12, 3) and np.abs(before[:, 7:] - after[:, 7:]).max() > 0.01


def test_a_frozen_layer_and_a_bad_batch_leave_no_trace():
    x = RNG.normal(size=(4, 7, 7, 3)).astype("float32")
    layer = pk.FastDeconv2D(4, 3)
    layer(x, training=True)
    before = [ops.convert_to_numpy(w) for w in (layer.running_mean, layer.running_cov, layer.root)]
    layer(np.full_like(x, np.nan), training=True)
    layer.trainable = False
    layer(x + 5, training=True)
    for weight, old in zip((layer.running_mean, layer.running_cov, layer.root), before, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(weight), old, atol=1e-5)
    assert int(layer.steps) == 2
    frozen = pk.FastDeconv2D(4, 3, freeze_after=2)
    frozen(x, training=True)
    frozen(x + 1, training=True)
    kept = ops.convert_to_numpy(frozen.running_cov).copy()
    frozen(x + 2, training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(frozen.running_cov), kept)


def test_configurations_go_round():
    layers = [
        pk.FastDeconv1D(4, 3, padding="causal", block=7, activation="relu", kernel_regularizer="l2"),
        pk.FastDeconv2D(4, (3, 2), padding=(1, 0), groups=2, method="newton", data_format="channels_first"),
        pk.FastDeconv3D.as_published(4, 2, use_bias=False, bias_initializer=pk.BiasHeUniform()),
        pk.ChannelDeconv(7, blocks="pooled", refresh=1, freeze_after=9),
        pk.CSC2D(4, 3, padding="same", lam=0.3, n_steps=4, schedule="long"),
        pk.SubnetConv2D(4, 3, keep=0.4, kernel_constraint="non_neg"),
    ]
    for layer in layers:
        config = keras.saving.serialize_keras_object(layer)
        again = keras.saving.deserialize_keras_object(config)
        assert type(again) is type(layer) and again.get_config() == layer.get_config()


def test_biases_start_by_the_kernels_fan_in():
    layer = pk.FastDeconv2D(512, 3, bias_initializer=pk.BiasHeUniform(seed=0))
    layer.build((None, 8, 8, 4))
    values = np.abs(ops.convert_to_numpy(layer.bias))
    assert 0.9 / 6 < values.max() <= 1 / 6  # 4 x 3 x 3 inputs
    with pytest.raises(ValueError, match="fan-in"):
        keras.layers.Dense(3, bias_initializer=pk.BiasHeUniform()).build((None, 4))


def test_weights_of_a_mask_stay_and_scores_move():
    if NUMPY:
        pytest.skip("numpy does not differentiate")
    layer = pk.SubnetConv2D(4, 3, keep=0.25)
    x = RNG.normal(size=(4, 7, 7, 3)).astype("float32")
    layer.build(x.shape)
    kernel, scores = (ops.convert_to_numpy(w).copy() for w in (layer.kernel, layer.scores))
    Stepper(layer)(x, np.ones((4, 5, 5, 4), "float32"))
    assert [v.name for v in layer.trainable_variables] == ["scores"]
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.kernel), kernel)
    assert np.abs(ops.convert_to_numpy(layer.scores) - scores).max() > 0
    folded = ops.convert_to_numpy(layer.folded()[0])
    assert (folded != 0).sum() == 27 and np.unique(np.abs(kernel)).size == 1


def test_a_code_is_decoded():
    layer = pk.CSC2D(32, 5, padding="same", lam=0.001, n_steps=30, schedule="long")
    x = RNG.normal(size=(2, 10, 9, 3)).astype("float32")
    for _ in range(20):
        code = layer(x, training=True)
    code = layer(x)
    image = ops.convert_to_numpy(layer.decode(code))
    assert image.shape == x.shape and np.abs(image - x).mean() < 0.05
    assert ops.convert_to_numpy(code).min() >= 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: pk.FastDeconv2D(4, 3, refresh=0), "refresh=0 must be at least 1"),
        (lambda: pk.FastDeconv2D(4, 3, method="qr"), "method='qr' must be auto"),
        (lambda: pk.FastDeconv2D(4, 3, grad="full"), "grad='full' needs"),
        (lambda: pk.FastDeconv2D(4, 3, padding=-1), "padding=-1"),
        (lambda: pk.FastDeconv2D(4, 3, padding=(1, 2, 3)), "2 axes"),
        (lambda: pk.ChannelDeconv(block=0), "block=0"),
        (lambda: pk.CSC2D(4, 3, lam=-1.0), "lam=-1.0"),
        (lambda: pk.SubnetConv2D(4, 3, keep=1.5), "keep=1.5"),
        (lambda: pk.BiasHeUniform(0), "fan_in=0"),
        (lambda: pk.models.VGG(12), "VGG of 12 layers"),
        (lambda: pk.models.ResNet20(layers="magic"), "layers 'magic'"),
        (lambda: pk.models.ResNet20(layers="deconv", blok=3), "no option 'blok'"),
        (lambda: pk.from_torch(3), "from_torch takes"),
        (lambda: pk.FastDeconv2D(4, 3).enable_lora(2), "no LoRA"),
    ],
)
def test_bad_input_is_told_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_cases_cover_channels_last():
    assert all(last(np.zeros(case.shape)).shape[-1] == case.shape[1] for case in CASES)
