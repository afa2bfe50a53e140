"""Clips of a whole network from calibration images."""

from __future__ import annotations

import torch
from torch import Tensor

from apq_deploy.quantize.histogram import Histogram
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.quantize.thresholds import ClipMethod, choose_clip, default_method, weight_clip


@torch.no_grad()
def calibrate(
    network: QuantizedSubnet,
    batches: list[Tensor],
    *,
    weight_method: ClipMethod | None = None,
    act_method: ClipMethod | None = None,
) -> None:
    """Set every clip of `network`: weights from their own values, activations from the full-precision network's.

    batches: images (n, c, h, w) in [0, 1]. A method that is None is the default for the tensor's kind and bits.
    Source: APQ (CVPR 2020), section 4.
    """
    for _, quantizer, weight in network.weights():
        method = weight_method or default_method("weight", quantizer.bits)
        quantizer.set_clip(weight_clip(weight.detach().cpu().numpy(), quantizer.bits, method))
        quantizer.enabled = False
    quantizers = [quantizer for _, quantizer in network.activations()]
    for quantizer in quantizers:
        quantizer.histogram = Histogram(signed=quantizer.signed)
    network.eval()
    try:
        for batch in batches:
            network(batch)
        for quantizer in quantizers:
            assert quantizer.histogram is not None
            method = act_method or default_method("activation", quantizer.bits)
            if quantizer is network.logits:
                method = "max"  # a clip below the largest logit would make classes equal
            drop_zeros = not quantizer.signed
            quantizer.set_clip(choose_clip(quantizer.histogram, quantizer.bits, method, drop_zeros=drop_zeros))
    finally:
        for quantizer in quantizers:
            quantizer.histogram = None
        for _, quantizer, _ in network.weights():
            quantizer.enabled = True
