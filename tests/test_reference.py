"""The NumPy reference: cases worked by hand, and brute force in exact arithmetic."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_image, random_network

from exporters.errors import ExportError
from exporters.qnet import (
    QAdd,
    QConv,
    QDepthwise,
    QLinear,
    QMaxPool,
    QPool,
    QTensor,
    QuantizedNetwork,
)
from exporters.reference import accumulate, add_table, dequantize, fma, quantize, reference_logits, run_reference

IMAGE = QTensor("image", (1, 2, 2), 0.5, 0, 8, 0, 255)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int8)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def run_one(layer, image: np.ndarray, source: QTensor = IMAGE) -> np.ndarray:
    codes = run_reference(QuantizedNetwork("one", source, (layer,)), image[None])
    return codes[layer.output.name][0]


def test_image_is_rounded_half_to_even_and_clamped() -> None:
    values = floats(0.25, 0.75, 1.25, 1.3, 200.0, -3.0)
    assert quantize(values, IMAGE).tolist() == [0, 2, 2, 3, 255, 0]
    signed = QTensor("t", (6,), 0.5, 8, 4, 1, 15)
    assert quantize(values - 1, signed).tolist() == [6, 8, 8, 9, 15, 1]
    assert dequantize(np.array([1, 8, 15], np.uint8), signed).tolist() == [-3.5, 0.0, 3.5]


def test_convolution_by_hand() -> None:
    # codes 2 4 / 6 8, kernel of ones over the zero-padded image: sums 20 everywhere, bias 1 -> 21
    # scale 0.5 * 0.25 / 0.25 = 0.5 -> 10.5, half to even 10, zero point 3 -> 13
    layer = QConv(
        "conv",
        "image",
        QTensor("out", (1, 2, 2), 0.25, 3, 8, 0, 255),
        ones(1, 1, 3, 3),
        floats(0.25),
        8,
        np.array([1], np.int32),
        padding=(1, 1, 1, 1),
    )
    image = floats(1, 2, 3, 4).reshape(1, 2, 2)
    assert run_one(layer, image).tolist() == [[[13, 13], [13, 13]]]
    # 22 -> 11 -> 14; a clamp at 12 cuts it off
    lower = replace(layer, bias=np.array([2], np.int32), output=replace(layer.output, hi=12))
    assert run_one(lower, image).tolist() == [[[12, 12], [12, 12]]]


def test_padding_holds_the_zero_point() -> None:
    # zero point 4: the code 4 is real 0, so a padded border adds nothing
    source = replace(IMAGE, zero_point=4)
    layer = QConv(
        "conv",
        "image",
        QTensor("out", (1, 4, 4), 0.5, 0, 8, 0, 255),
        ones(1, 1, 1, 1),
        floats(1.0),
        8,
        np.zeros(1, np.int32),
        padding=(1, 1, 1, 1),
    )
    result = run_one(layer, floats(1, 2, 3, 4).reshape(1, 2, 2), source)
    assert result.tolist() == [[[0, 0, 0, 0], [0, 2, 4, 0], [0, 6, 8, 0], [0, 0, 0, 0]]]


def test_weight_zero_point_by_hand() -> None:
    # (3 - 1) * (5 - 2) = 6
    source = QTensor("image", (1, 1, 1), 1.0, 1, 8, 0, 255)
    output = QTensor("out", (1, 1, 1), 1.0, 0, 8, 0, 255)
    weight = np.full((1, 1, 1, 1), 5, np.int8)
    layer = QConv("conv", "image", output, weight, floats(1), 8, np.zeros(1, np.int32), weight_zero_point=2)
    assert run_one(layer, floats(2).reshape(1, 1, 1), source).item() == 6


def test_addition_by_hand() -> None:
    # 0.5 * (10 - 2) + 0.25 * (9 - 1) = 6 -> / 0.5 = 12 -> + 5 = 17
    left = QTensor("a", (1,), 0.5, 2, 8, 0, 255)
    right = QTensor("b", (1,), 0.25, 1, 8, 0, 255)
    table = add_table(left, right, QTensor("c", (1,), 0.5, 5, 8, 0, 255))
    assert table[10, 9] == 17
    # 0.5 * (0 - 2) + 0.25 * (0 - 1) = -1.25 -> / 0.5 = -2.5 -> + 5 = 2.5, half to even 2
    assert table[0, 0] == 2


def test_pooling_by_hand() -> None:
    # codes 2 4 6 8, sum 20, mean 5 at scale 0.5 -> 2.5 real -> at scale 1, zero point 1: 2.5 + 1, half to even: 3
    layer = QPool("pool", "image", QTensor("out", (1,), 1.0, 1, 8, 0, 255))
    assert run_one(layer, floats(1, 2, 3, 4).reshape(1, 2, 2)).tolist() == [3]
    assert run_one(replace(layer, method="float"), floats(1, 2, 3, 4).reshape(1, 2, 2)).tolist() == [3]


def test_max_pooling_by_hand() -> None:
    layer = QMaxPool("pool", "image", replace(IMAGE, name="out", shape=(1, 1, 1)), 2)
    assert run_one(layer, floats(1, 2, 3, 4).reshape(1, 2, 2)).item() == 8
    # every code is negative: a border of zeros would win, padding must not
    source = QTensor("image", (1, 2, 2), 0.5, 0, 8, -128, 127, "int8")
    padded = replace(
        layer, kernel_size=3, stride=2, padding=(1, 1, 1, 1), output=replace(source, name="out", shape=(1, 1, 1))
    )
    assert run_one(padded, floats(-1, -2, -3, -4).reshape(1, 2, 2), source).item() == -2


def brute_force_sums(layer: QConv | QDepthwise, source: QTensor, codes: np.ndarray) -> np.ndarray:
    """Accumulators by the definition, in Python's whole numbers."""
    count, _, height, width = codes.shape
    top, left, bottom, right = layer.padding
    k_h, k_w = layer.weight.shape[2:]
    out_height = (height + top + bottom - k_h) // layer.stride + 1
    out_width = (width + left + right - k_w) // layer.stride + 1
    sums = np.zeros((count, len(layer.weight), out_height, out_width), object)
    for image, out, y, x in np.ndindex(sums.shape):
        total = int(layer.bias[out])
        for inner, i, j in np.ndindex(layer.weight.shape[1:]):
            row, column = y * layer.stride + i - top, x * layer.stride + j - left
            if 0 <= row < height and 0 <= column < width:
                channel = out if isinstance(layer, QDepthwise) else inner
                weight = int(layer.weight[out, inner, i, j]) - layer.weight_zero_point
                total += weight * (int(codes[image, channel, row, column]) - source.zero_point)
        sums[image, out, y, x] = total
    return sums


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_accumulators_equal_brute_force(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    channels, out = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    kernel, stride = data.draw(st.sampled_from([1, 2, 3, 5])), data.draw(st.integers(1, 3))
    pads = tuple(data.draw(st.integers(0, 2)) for _ in range(4))
    height, width = data.draw(st.integers(kernel, 6)), data.draw(st.integers(kernel, 6))
    is_depthwise = data.draw(st.booleans())
    zero_point = data.draw(st.integers(0, 255))
    source = QTensor("in", (channels, height, width), 1.0, zero_point, 8, 0, 255)
    rows, columns = (
        (height + pads[0] + pads[2] - kernel) // stride + 1,
        (width + pads[1] + pads[3] - kernel) // stride + 1,
    )
    if is_depthwise:
        out = channels
    output = QTensor("out", (out, rows, columns), 1.0, 0, 8, 0, 255)
    shape = (out, 1 if is_depthwise else channels, kernel, kernel)
    # the larger biases send the sums past what float32 holds
    limit = data.draw(st.sampled_from([10**3, 2**24, 2**30]))
    layer = (QDepthwise if is_depthwise else QConv)(
        "conv",
        "in",
        output,
        rng.integers(-128, 128, shape).astype(np.int8),
        np.ones(out, np.float32),
        8,
        rng.integers(-limit, limit, out).astype(np.int32),
        stride,
        pads,
        data.draw(st.integers(-128, 127)),
    )
    codes = rng.integers(0, 256, (2, channels, height, width)).astype(np.uint8)
    sums = accumulate(layer, source, codes)
    assert (sums.astype(np.int64) == brute_force_sums(layer, source, codes).astype(np.int64)).all()


def test_sums_past_float32_stay_exact() -> None:
    # 255 * 127 * 1000 + 1 = 32385001 > 2**24, and odd
    source = QTensor("in", (1000,), 1.0, 0, 8, 0, 255)
    weight = np.full((1, 1000), 127, np.int8)
    layer = QLinear("fc", "in", QTensor("out", (1,), 1.0, 0, 8, 0, 255), weight, floats(1), 8, np.ones(1, np.int32))
    assert accumulate(layer, source, np.full((1, 1000), 255, np.uint8)).item() == 32385001


def test_sums_past_int32_are_an_error() -> None:
    source = QTensor("in", (1000,), 1.0, 0, 8, 0, 255)
    bias = np.full(1, 2**31 - 1, np.int32)
    layer = QLinear(
        "fc", "in", QTensor("out", (1,), 1.0, 0, 8, 0, 255), np.full((1, 1000), 127, np.int8), floats(1), 8, bias
    )
    with pytest.raises(ExportError, match="layer fc: an accumulator leaves int32"):
        accumulate(layer, source, np.full((1, 1000), 255, np.uint8))
    assert accumulate(layer, source, np.zeros((1, 1000), np.uint8)).item() == 2**31 - 1


normal = st.floats(-(2.0**20), 2.0**20, width=32).filter(lambda value: value == 0 or abs(value) > 1e-30)


@given(normal, normal, normal)
def test_fma_rounds_once(factor: float, other: float, addend: float) -> None:
    exact = Fraction(factor) * Fraction(other) + Fraction(addend)
    got = fma(np.float32(factor), np.float32(other), np.float32(addend)).item()
    # the nearest float32: no neighbour is closer, and a tie goes to the even one
    below, above = (float(np.nextafter(np.float32(got), np.float32(side))) for side in (-np.inf, np.inf))
    distance = abs(exact - Fraction(got))
    assert distance <= abs(exact - Fraction(below))
    assert distance <= abs(exact - Fraction(above))
    if exact != Fraction(got) and distance in (abs(exact - Fraction(below)), abs(exact - Fraction(above))):
        assert np.float32(got).view(np.int32) & 1 == 0


def test_fma_where_two_roundings_differ_from_one() -> None:
    # the square is 1 + 2**-11 + 2**-24, a tie between two float32; what is added decides, but float64 loses it
    factor, below = np.float32(1 + 2.0**-12), np.float32(1 + 2.0**-11)
    above = np.nextafter(below, np.float32(2))
    tiny = np.float32(2.0**-60)
    assert np.float32(np.float64(factor) ** 2 + np.float64(tiny)) == below
    assert fma(factor, factor, tiny) == above
    assert fma(factor, factor, -tiny) == below
    assert fma(factor, factor, np.float32(0)) == below


def test_add_table_equals_exact_sums_to_one_code() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        scales = rng.uniform(0.01, 0.1, 3).astype(np.float32)
        points = rng.integers(0, 256, 3)
        left, right, output = (
            QTensor(name, (1,), float(scale), int(point), 8, 0, 255)
            for name, scale, point in zip("abc", scales, points, strict=True)
        )
        codes = np.arange(256.0)
        exact = ((codes[:, None] - points[0]) * float(scales[0]) + (codes - points[1]) * float(scales[1])) / float(
            scales[2]
        ) + points[2]
        table = add_table(left, right, output).astype(np.float64)
        assert np.abs(table - np.clip(exact, 0, 255)).max() <= 0.5001


def test_network_gives_every_tensor_within_its_clamp() -> None:
    rng = np.random.default_rng(5)
    net = random_network(rng)
    codes = run_reference(net, random_image(net, 3, rng))
    assert list(codes) == list(net.tensors)
    for name, tensor in net.tensors.items():
        assert codes[name].shape == (3, *tensor.shape)
        assert codes[name].dtype == tensor.dtype
        assert codes[name].min() >= tensor.lo
        assert codes[name].max() <= tensor.hi
    logits = reference_logits(net, codes)
    assert logits.dtype == np.float32
    assert logits.shape == (3, *net.output.shape)


def test_images_do_not_depend_on_each_other() -> None:
    rng = np.random.default_rng(6)
    net = random_network(rng)
    images = random_image(net, 3, rng)
    together, alone = run_reference(net, images), run_reference(net, images[1:2])
    assert all((together[name][1:2] == alone[name]).all() for name in alone)


def test_wrong_images_are_refused() -> None:
    net = random_network(np.random.default_rng(0))
    with pytest.raises(ExportError, match=r"images should be \(n, 3, 14, 14\), got \(2, 3, 9, 9\)"):
        run_reference(net, np.zeros((2, 3, 9, 9), np.float32))
    with pytest.raises(ExportError, match="not finite"):
        run_reference(net, np.full((1, 3, 14, 14), np.nan, np.float32))


def first_layers() -> tuple[QConv, QTensor]:
    output = QTensor("out", (2, 2, 2), 0.5, 0, 8, 0, 255)
    return QConv("conv", "image", output, ones(2, 1, 1, 1), floats(1, 1), 4, np.zeros(2, np.int32)), output


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"input": "nothing"}, "reads tensor 'nothing'"),
        ({"weight": ones(2, 3, 1, 1)}, "does not fit 1 input channels"),
        ({"weight": 100 * ones(2, 1, 1, 1)}, "weight codes from 100 to 100 do not fit 4 bits"),
        ({"weight": np.ones((2, 1, 1, 1))}, "weight must be int8"),
        ({"weight_scale": floats(1)}, "weight_scale must be float32"),
        ({"weight_scale": floats(1, 0)}, "weight scales must be positive"),
        ({"bias": np.zeros(2)}, "bias must be int32"),
        ({"weight_bits": 9}, "weight_bits must be from 1 to 8"),
        ({"stride": 2}, r"gives a tensor of shape \(2, 1, 1\)"),
        ({"weight": ones(2, 1, 3, 3)}, "does not fit a padded input"),
        ({"name": "conv\nbreak", "input": "x"}, "layer conv break reads"),
    ],
)
def test_layers_that_do_not_fit_are_named(change: dict[str, object], match: str) -> None:
    layer, _ = first_layers()
    with pytest.raises(ExportError, match=match):
        QuantizedNetwork("bad", IMAGE, (replace(layer, **change),))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hi": 256}, "must lie within uint8"),
        ({"lo": 9, "hi": 3}, "must lie within uint8"),
        ({"bits": 4}, "256 codes do not fit 4 bits"),
        ({"bits": 9}, "bits must be from 1 to 8"),
        ({"zero_point": -1}, "zero point -1"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"scale": 1e-60}, "scale must be positive"),
    ],
)
def test_tensors_that_cannot_be_are_named(change: dict[str, object], match: str) -> None:
    with pytest.raises(ExportError, match=match):
        replace(IMAGE, **change)


def test_adding_shapes_that_differ_is_refused() -> None:
    layer, output = first_layers()
    with pytest.raises(ExportError, match="layer add adds tensors of shapes"):
        QuantizedNetwork("bad", IMAGE, (layer, QAdd("add", "out", "image", replace(output, name="sum"))))


def test_scale_is_kept_as_float32() -> None:
    assert QTensor("t", (1,), 0.1, 0, 8, 0, 255).scale == float(np.float32(0.1))
