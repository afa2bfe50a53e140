"""The folder of a trained space: supernet, predictors, points, sample images, and where all of it came from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.files import atomic, load_arrays, read_json, write_json
from apq_deploy.space import SearchSpace
from apq_deploy.versions import versions

PROVENANCE_SCHEMA = "apq-deploy/provenance/1"
DEFAULT_FOLDER = "apq-models"


@dataclass(frozen=True, eq=False)
class Samples:
    """Images that travel with a model: training images to calibrate on, test images to measure on.

    calibration, held_out: uint8, (n, c, h, w); calibration_labels, held_out_labels: int64, (n,).
    """

    calibration: NDArray[np.uint8]
    calibration_labels: NDArray[np.int64]
    held_out: NDArray[np.uint8]
    held_out_labels: NDArray[np.int64]

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                calibration=self.calibration,
                calibration_labels=self.calibration_labels,
                held_out=self.held_out,
                held_out_labels=self.held_out_labels,
            )

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> Samples:
        """The sample images of a model folder.

        Raises: UserError for a file that is missing, damaged, or whose images do not fit the space.
        """
        if not path.is_file():
            raise UserError(f"there are no sample images at {path}; `apq-deploy train` writes them")
        try:
            samples = cls(*load_arrays(path, tuple(cls.__dataclass_fields__)))
        except Exception as error:  # zipfile, zlib and NumPy each have their own errors for a damaged file
            raise UserError(f"{path} is not a complete file of sample images ({error})") from None
        shape = (space.input_channels, space.input_size, space.input_size)
        for images in (samples.calibration, samples.held_out):
            if images.dtype != np.uint8 or images.shape[1:] != shape:
                raise UserError(
                    f"{path}: expected uint8 images of shape {shape}, got {images.dtype} {images.shape[1:]}"
                )
        return samples


@dataclass(frozen=True)
class ModelFolder:
    """Paths of what a trained space consists of."""

    path: Path

    @property
    def supernet(self) -> Path:
        return self.path / "supernet.safetensors"

    @property
    def points(self) -> Path:
        return self.path / "points.sqlite"

    @property
    def float_predictor(self) -> Path:
        return self.path / "predictor-float.safetensors"

    @property
    def predictor(self) -> Path:
        return self.path / "predictor.safetensors"

    @property
    def samples(self) -> Path:
        return self.path / "samples.npz"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    def record(self, space: SearchSpace, step: str, facts: dict[str, Any], cpu_seconds: float) -> None:
        """Note in the provenance file how `step` was done; what it says of other steps stays.

        cpu_seconds: processor time of the step, in all processes and over all calls of it that went on with another.
        """
        data: dict[str, Any] = {"schema": PROVENANCE_SCHEMA, "space": space.name, "steps": {}}
        if self.provenance.exists():
            data = read_json(self.provenance, PROVENANCE_SCHEMA)
        data["steps"][step] = {
            **facts,
            "cpu_seconds": round(cpu_seconds, 2),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": versions("numpy", "torch", "torchvision"),
        }
        write_json(self.provenance, data)

    def recorded(self, step: str) -> dict[str, Any]:
        """What `record` noted of a step last; nothing if it was not done."""
        if not self.provenance.exists():
            return {}
        return read_json(self.provenance, PROVENANCE_SCHEMA)["steps"].get(step, {})


def samples_for(space_name: str | None, shape: tuple[int, ...]) -> Samples | None:
    """The sample images of the model that a network comes from: None if it does not say, or none fit its `shape`.

    Raises: UserError for sample images that are damaged.
    """
    if space_name not in SearchSpace.presets():
        return None
    space = SearchSpace.load(space_name)
    try:
        path = find_model(space, None).samples
    except UserError:
        return None  # a preset without a trained model
    samples = Samples.load(path, space) if path.is_file() else None
    return samples if samples is not None and samples.held_out.shape[1:] == shape else None


def embedded(space: SearchSpace) -> ModelFolder | None:
    """The model that comes with the package, if the space has one."""
    folder = Path(str(resources.files("apq_deploy") / "assets" / space.name))
    return ModelFolder(folder) if folder.is_dir() else None


def find_model(space: SearchSpace, folder: Path | None) -> ModelFolder:
    """The model to use: `folder` if given, else apq-models/<space> here, else the embedded one.

    Raises: UserError if there is none, with the commands that make one.
    """
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"the model folder {folder} does not exist")
        return ModelFolder(folder)
    here = Path(DEFAULT_FOLDER) / space.name
    found = ModelFolder(here) if here.is_dir() else embedded(space)
    if found is None:
        named = space.name if space.name in SearchSpace.presets() else "FILE.toml"
        raise UserError(
            f"the space {space.name!r} has no trained model yet; make one with `apq-deploy train`, then "
            f"`apq-deploy collect` (both with `--space {named} --data DIR`), then `apq-deploy fit --space {named}`"
        )
    return found
