"""The summed table of measured layers against the measured latency of whole networks, on this machine.

    apq-deploy lut build host --space fashion -o host.csv
    python -m benchmarks.host_table host.csv

Prints a line per network and the error statistics of the sum, taken as a prediction of the network's latency.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import tvm

from apq_deploy import SearchSpace
from apq_deploy.model import Samples, find_model
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.convert import to_integers
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.supernet.data import to_unit
from apq_deploy.supernet.network import load_supernet
from apq_deploy.supernet.subnet import reestimate_batch_norm
from apq_deploy.text import table
from apq_deploy.workload import arch_layers
from exporters import CompiledModel, compile_tvm
from hwmodels import CostTable
from hwmodels.compare import error_statistics

NETWORKS, RUNS, WARM_UP = 20, 2000, 200


def median_ms(model: CompiledModel) -> float:
    """Median latency of one image, quantizing the input and dequantizing the logits included."""
    run = model.function("main")
    image = tvm.runtime.tensor(np.random.default_rng(0).random((1, *model.metadata.image_shape), np.float32))
    samples = []
    for _ in range(WARM_UP + RUNS):
        started = time.perf_counter()
        run(image)
        samples.append(time.perf_counter() - started)
    return 1e3 * float(np.median(samples[WARM_UP:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--space", default="fashion")
    options = parser.parse_args()
    space, costs = SearchSpace.load(options.space), CostTable.load(options.table)
    model = find_model(space, None)
    supernet = load_supernet(space, model.supernet)
    images = to_unit(torch.from_numpy(Samples.load(model.samples, space).calibration[:256]))
    rows, sums, measured = [], [], []
    for number, genome in enumerate(space.sample(NETWORKS, np.random.default_rng(7)), 1):
        arch = space.decode(genome)
        network = QuantizedSubnet(supernet.extract(arch)).eval()
        calibrate(network, [images])
        reestimate_batch_norm(network, [images])
        layers = arch_layers(space, arch)
        sums.append(sum(costs[each.layer, each.precision].latency_ms for each in layers))
        measured.append(median_ms(compile_tvm(to_integers(network))))
        rows.append((number, len(layers), f"{1e3 * sums[-1]:.2f}", f"{1e3 * measured[-1]:.2f}"))
    print(table(rows, ("network", "layers", "sum of the table, us", "measured, us")))
    predicted, actual = np.array(sums), np.array(measured)
    slope, constant = np.polyfit(predicted, actual, 1)
    for words, values in (("sum", predicted), ("sum, fitted to a line", slope * predicted + constant)):
        found = error_statistics(values, actual)
        errors = f"{found.mean_absolute_percent:.1f} %, mean error {found.mean_percent:+.1f} %"
        shares = f"within 5 %: {found.within_5_percent:.0f} %, within 10 %: {found.within_10_percent:.0f} %"
        print(f"{words}: mean absolute error {errors}, {shares}")
    print(f"correlation {np.corrcoef(predicted, actual)[0, 1]:.3f}; line: {slope:.2f} x + {1e3 * constant:.2f} us")


if __name__ == "__main__":
    main()
