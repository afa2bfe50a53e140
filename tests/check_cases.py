"""Small models, images and budgets for the tests of the checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from networks import random_network
from typer import Typer
from typer.testing import CliRunner, Result

from apq_deploy.check.findings import CheckReport
from apq_deploy.check.run import run_check
from apq_deploy.commands.checking import check
from exporters import QConv, QDepthwise, QLinear, QuantizedNetwork, run_onnx, write_onnx

IMAGES = 20
WRONG = 3  # of the images, by their labels: 85 % are right

app = Typer()
app.command()(check)


@dataclass(frozen=True, eq=False)
class Case:
    """A folder with model.onnx, images.npz and a budget that is written for each test."""

    folder: Path
    net: QuantizedNetwork

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "images.npz"

    def budget(self, *sections: str) -> Path:
        path = self.folder / "deploy.toml"
        path.write_text("\n".join(["schema = 1", *sections]) + "\n", encoding="utf-8")
        return path

    def check(self, *sections: str, data: bool = False, **options: object) -> CheckReport:
        """The report on the model."""
        budget = self.budget(*sections)
        return run_check(self.model, budget, self.data if data else None, **options)  # type: ignore[arg-type]

    def command(self, *arguments: str) -> Result:
        """What the command prints, with the budget that lies in the folder."""
        return CliRunner().invoke(app, [str(self.model), "--budget", str(self.folder / "deploy.toml"), *arguments])


def make_case(folder: Path, net: QuantizedNetwork) -> Case:
    """The model's file, and images of which its own answer is the class of all but WRONG."""
    case = Case(folder, net)
    write_onnx(net, case.model)
    images = np.random.default_rng(1).random((IMAGES, *net.input.shape), dtype=np.float32)
    labels = run_onnx(case.model, images).argmax(1)
    labels[:WRONG] = (labels[:WRONG] + 1) % net.output.shape[0]
    np.savez(case.data, images=images, labels=labels)
    return case


def four_bit_network() -> QuantizedNetwork:
    return random_network(np.random.default_rng(5), [4], [4], size=10)


def at_eight_bits(net: QuantizedNetwork) -> QuantizedNetwork:
    """The network whose weights were exported at 8 bits in place of 4: same codes, wider storage."""
    layers = tuple(
        replace(layer, weight_bits=8) if isinstance(layer, QConv | QDepthwise | QLinear) else layer
        for layer in net.layers
    )
    return replace(net, layers=layers)


def with_other_weights(net: QuantizedNetwork) -> QuantizedNetwork:
    """The network with the signs of one layer's weights turned: a later training run, say."""
    layers = tuple(
        replace(layer, weight=-layer.weight) if isinstance(layer, QConv) and layer.name == "head" else layer
        for layer in net.layers
    )
    return replace(net, layers=layers)
