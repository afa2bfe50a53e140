"""File sizes of MobileNetV2 at 224: float, and quantized at 8, 6 and 4 bits; `python -m benchmarks.file_sizes`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from benchmarks.mobilenet_v2 import mobilenet_v2
from exporters import read_onnx, write_onnx
from exporters.audit import audit
from exporters.qnet import QConv, QDepthwise, QLinear, QuantizedNetwork


class _RandomImages(CalibrationDataReader):
    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(1)
        self.batches = iter([rng.random((1, 3, 224, 224), dtype=np.float32) for _ in range(count)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def with_weight_bits(net: QuantizedNetwork, bits: int) -> QuantizedNetwork:
    """The 8-bit network with its weights rounded to `bits`; for sizes only, the results are not calibrated."""
    shift = (2**7 - 1) / (2 ** (bits - 1) - 1)
    layers = [
        replace(
            layer,
            weight=np.rint(layer.weight / shift).astype(np.int8),
            weight_scale=layer.weight_scale * np.float32(shift),
            bias=np.rint(layer.bias / shift).astype(np.int32),
            weight_bits=bits,
        )
        if isinstance(layer, QConv | QDepthwise | QLinear)
        else layer
        for layer in net.layers
    ]
    return replace(net, layers=tuple(layers))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, quantized, target = (Path(folder) / f"{name}.onnx" for name in ("float", "int8", "written"))
        mobilenet_v2(source, np.random.default_rng(0))
        quantize_static(
            source,
            quantized,
            _RandomImages(2),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        net = read_onnx(quantized)
        whole = source.stat().st_size
        print(f"{'float':18} {whole / 1e6:6.2f} MB")
        print(
            f"{'quantize_static':18} {quantized.stat().st_size / 1e6:6.2f} MB  {whole / quantized.stat().st_size:.2f} x"
        )
        for bits, pack in ((8, False), (6, False), (6, True), (4, False)):
            write_onnx(with_weight_bits(net, bits), target, pack_6bit=pack)
            report = audit(target)
            label = f"w{bits}" + (" packed" if pack else "")
            print(
                f"{label:18} {report.size_bytes / 1e6:6.2f} MB  {whole / report.size_bytes:.2f} x smaller; "
                f"{8 * report.size_bytes / report.weights:.2f} bits a weight, {len(report.false_claims)} false claims"
            )


if __name__ == "__main__":
    main()
