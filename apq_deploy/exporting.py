"""From a searched subnet to an ONNX file: extract, calibrate, fine-tune, export, measure."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apq_deploy.deployment import EXPORT_SCHEMA
from apq_deploy.errors import UserError
from apq_deploy.files import sha256, write_json
from apq_deploy.model import ModelFolder, Samples
from apq_deploy.predictor.collect import CLIP_IMAGES
from apq_deploy.progress import cpu_seconds, progress
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.convert import to_integers
from apq_deploy.quantize.finetune import BestState, FinetuneSettings, finetune
from apq_deploy.quantize.integer import run_integers
from apq_deploy.quantize.network import QuantizedSubnet, accuracy
from apq_deploy.quantize.thresholds import METHODS, ClipMethod
from apq_deploy.search.result import SearchResult
from apq_deploy.space import SearchSpace
from apq_deploy.supernet.data import ImageSet, ImagesInMemory, fingerprint, load_data, to_unit, whole
from apq_deploy.supernet.network import load_supernet
from apq_deploy.supernet.subnet import Subnet, reestimate_batch_norm
from apq_deploy.supernet.train import calibration_batches
from apq_deploy.versions import versions
from exporters.audit import audit
from exporters.onnx_writer import write_onnx
from exporters.parity import parity
from exporters.runtime import run_onnx

PARITY_IMAGES = 16
TIMED_RUNS = 50
LONG_FINETUNING = 100
"""Steps beyond which the best state is kept and a stopped run goes on."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a subnet is quantized: fine-tuning steps, clip methods where not the defaults, scales of powers of two."""

    finetune_steps: int = 20
    weight_method: ClipMethod | None = None
    act_method: ClipMethod | None = None
    power_of_two: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for method in (self.weight_method, self.act_method):
            if method is not None and method not in METHODS:
                raise UserError(f"expected a clip method out of {', '.join(METHODS)}, got {method!r}")


@dataclass(frozen=True, eq=False)
class Images:
    """What a deployment is calibrated, fine-tuned and measured on; `validation` picks the best state of a long run."""

    source: str
    train: ImageSet
    validation: ImagesInMemory
    test: ImagesInMemory


def deployment_images(space: SearchSpace, model: ModelFolder, data: Path | None) -> Images:
    """The user's data set, or else the sample images of the model: test images are in neither case trained on."""
    if data is not None:
        splits = load_data(space, data)
        return Images(f"{splits.name}, whole", splits.train, whole(splits.held_out), whole(splits.test))
    samples = Samples.load(model.samples, space)

    def part(pixels: np.ndarray, labels: np.ndarray) -> ImagesInMemory:
        return ImagesInMemory(torch.from_numpy(pixels), torch.from_numpy(labels))

    cut = len(samples.calibration) * 4 // 5
    train = part(samples.calibration[:cut], samples.calibration_labels[:cut])
    validation = part(samples.calibration[cut:], samples.calibration_labels[cut:])
    test = part(samples.held_out, samples.held_out_labels)
    return Images("sample images of the model", train, validation, test)


def export_network(
    result: SearchResult,
    model: ModelFolder,
    output: Path,
    record: Path,
    settings: ExportSettings,
    data: Path | None = None,
) -> dict[str, Any]:
    """What was exported and measured, also written to `record`; the network itself is in `output`.

    Raises: UserError for files or data that cannot be used.
    """
    if output.suffix != ".onnx":
        raise UserError(f"expected the name of an .onnx file to write, got {output}")
    torch.manual_seed(settings.seed)
    space = result.search_space()
    images = deployment_images(space, model, data)
    calibration = calibration_batches(images.train, settings.seed)
    subnet = extract_subnet(space, result, model, calibration)
    pixels, labels = images.test.pixels, images.test.classes
    figures = {"float": 100 * accuracy(subnet, pixels, labels)}
    network = QuantizedSubnet(copy.deepcopy(subnet))
    if settings.power_of_two:
        network.use_power_of_two_scales()
    few = [calibration[0][:CLIP_IMAGES]]
    calibrate(network, few, weight_method=settings.weight_method, act_method=settings.act_method)
    reestimate_batch_norm(network, calibration)
    figures["calibrated"] = 100 * accuracy(network, pixels, labels)
    if settings.finetune_steps:
        with progress("fine-tune", settings.finetune_steps) as advance:
            steps = FinetuneSettings(settings.finetune_steps, seed=settings.seed)
            keep = None
            if settings.finetune_steps > LONG_FINETUNING:
                belongs_to = {
                    **space.identity,
                    "genome": list(result.genome),
                    "supernet_sha256": sha256(model.supernet),
                    "export": asdict(settings),
                    "images": [images.source, fingerprint(images.train)],
                }
                keep = BestState(record.with_name("finetuning.safetensors"), images.validation, calibration, belongs_to)
            finetune(network, images.train, steps, subnet, advance, keep)
        reestimate_batch_norm(network, calibration)
        figures["finetuned"] = 100 * accuracy(network, pixels, labels)
    integers = to_integers(network)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_onnx(integers, output)
    unit = to_unit(pixels).contiguous().numpy()
    logits = run_onnx(output, unit)
    figures["onnxruntime"] = 100 * float((logits.argmax(1) == labels.numpy()).mean())
    few = to_unit(pixels[:PARITY_IMAGES])
    agreement = parity(integers, output, few.contiguous().numpy(), {"torch": run_integers(integers, few)})
    checked = audit(output)
    report = {
        "schema": EXPORT_SCHEMA,
        "model": output.name,
        "model_sha256": sha256(output),
        "space": space.name,
        "genome": list(result.genome),
        "settings": asdict(settings),
        "images": {"source": images.source, "train": len(images.train), "test": len(images.test)},
        "predicted_accuracy_percent": 100 * result.predicted_accuracy,
        "accuracy_percent": figures,
        "parity": agreement.as_dict(),
        "file_bytes": checked.size_bytes,
        "layers": [asdict(layer) for layer in checked.layers],
        "false_claims": list(checked.false_claims),
        "torch_float_ms": latency_ms(subnet, few[:1]),
        "versions": versions("numpy", "torch", "onnx", "onnxruntime"),
        "cpu_seconds": cpu_seconds(),
    }
    write_json(record, report)
    return report


def extract_subnet(space: SearchSpace, result: SearchResult, model: ModelFolder, calibration: list[Tensor]) -> Subnet:
    """The searched subnet with its own batch-norm statistics."""
    network = load_supernet(space, model.supernet)
    subnet = network.extract(result.arch).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    reestimate_batch_norm(subnet, calibration)
    return subnet


@torch.no_grad()
def latency_ms(network: nn.Module, image: Tensor) -> dict[str, float]:
    """Median and quartiles of one image through torch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(TIMED_RUNS + 5):
        started = time.perf_counter()
        network(image)
        times.append(1e3 * (time.perf_counter() - started))
    torch.set_num_threads(threads)
    low, median, high = statistics.quantiles(times[5:], n=4)
    return {"median": median, "low": low, "high": high}
