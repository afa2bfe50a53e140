"""Labelled images for training, for held-out labels and for the final test, through torchvision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from apq_deploy.errors import UserError
from apq_deploy.space import SearchSpace
from apq_deploy.supernet.vision import import_torchvision

SPLIT_SEED = 20_200_615
HELD_OUT = 10_000
FINGERPRINT_IMAGES = 64


class ImageSet(Protocol):
    """Labelled images that are fetched by index."""

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> Tensor:
        """Images as uint8, (n, c, h, w)."""
        ...

    def labels(self, indices: np.ndarray) -> Tensor:
        """Labels as int64, (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class ImagesInMemory:
    """Images and labels as whole tensors."""

    pixels: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def images(self, indices: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(indices)]

    def labels(self, indices: np.ndarray) -> Tensor:
        return self.classes[torch.from_numpy(indices)]


@dataclass(frozen=True, eq=False)
class ImagesInFolders:
    """An ImageFolder: files decoded when asked for, resized and cropped to a square."""

    files: list[tuple[str, int]]
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: np.ndarray) -> Tensor:
        vision = import_torchvision()
        from torchvision import transforms  # after the schemas are declared
        from torchvision.transforms import InterpolationMode

        shape = transforms.Compose(
            [
                transforms.Resize(round(self.size * 8 / 7), InterpolationMode.BILINEAR),
                transforms.CenterCrop(self.size),
                transforms.PILToTensor(),
            ]
        )
        load = vision.datasets.folder.default_loader
        return torch.stack([shape(load(self.files[i][0])) for i in indices])

    def labels(self, indices: np.ndarray) -> Tensor:
        return torch.tensor([self.files[i][1] for i in indices])


@dataclass(frozen=True, eq=False)
class Subset:
    """A part of an ImageSet."""

    whole: ImageSet
    members: np.ndarray

    def __len__(self) -> int:
        return len(self.members)

    def images(self, indices: np.ndarray) -> Tensor:
        return self.whole.images(self.members[indices])

    def labels(self, indices: np.ndarray) -> Tensor:
        return self.whole.labels(self.members[indices])


@dataclass(frozen=True, eq=False)
class DataSplits:
    """train: for weights and calibration; held_out: for the predictor's labels; test: for final figures only."""

    name: str
    train: ImageSet
    held_out: ImageSet
    test: ImageSet


def load_data(space: SearchSpace, folder: Path) -> DataSplits:
    """The data set found in `folder`, split by a fixed seed.

    The held-out images are 10,000 of the training images, or a sixth of them where that is fewer.

    Raises: UserError if there is no data set of a known kind, or its images do not fit the space.
    """
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist")
    train: ImageSet
    test: ImageSet
    if (folder / "FashionMNIST" / "raw").is_dir():
        name, (train, test) = "FashionMNIST", _fashion_mnist(folder)
    elif (folder / "cifar-10-batches-py").is_dir():
        name, (train, test) = "CIFAR10", _cifar10(folder)
    elif (folder / "train").is_dir() and (folder / "val").is_dir():
        name, (train, test) = "ImageFolder", _image_folder(folder, space.input_size)
    else:
        raise UserError(
            f"no data set in {folder}: expected FashionMNIST/raw/, cifar-10-batches-py/, or train/ and val/ with a "
            "folder of images per class"
        )
    for part in (train, test):
        if len(part) == 0:
            raise UserError(f"the data set in {folder} has no images")
    shape = tuple(train.images(np.array([0])).shape[1:])
    wanted = (space.input_channels, space.input_size, space.input_size)
    if shape != wanted:
        raise UserError(f"the space {space.name!r} takes images of shape {wanted}, {name} in {folder} has {shape}")
    highest = max(int(p.labels(np.arange(len(p))).max()) for p in (train, test))
    if highest >= space.num_classes:
        raise UserError(f"the space {space.name!r} has {space.num_classes} classes, {name} has label {highest}")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    cut = min(HELD_OUT, len(train) // 6)
    return DataSplits(name, Subset(train, np.sort(order[cut:])), Subset(train, np.sort(order[:cut])), test)


def whole(part: ImageSet, limit: int | None = None) -> ImagesInMemory:
    """A part, or its first `limit` images, as whole tensors."""
    if limit is not None and limit > len(part):
        raise UserError(f"asked for {limit} images, the data set part has {len(part)}")
    indices = np.arange(len(part) if limit is None else limit)
    return ImagesInMemory(part.images(indices), part.labels(indices))


def spread(part: ImageSet, n: int, seed: int) -> ImagesInMemory:
    """`n` images of a part drawn at random without replacement, as whole tensors."""
    if n > len(part):
        raise UserError(f"asked for {n} images, the data set part has {len(part)}")
    indices = np.sort(np.random.default_rng(seed).choice(len(part), n, replace=False))
    return ImagesInMemory(part.images(indices), part.labels(indices))


def fingerprint(part: ImageSet) -> str:
    """The number of images, and a hash of some of them and of their labels: other data have another one."""
    indices = np.unique(np.linspace(0, len(part) - 1, FINGERPRINT_IMAGES).astype(int))
    found = part.images(indices).numpy().tobytes() + part.labels(indices).numpy().tobytes()
    return f"{len(part)} images, {hashlib.sha256(found).hexdigest()}"


def to_unit(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 images as float32 in [0, 1], channels last: the input of every network here."""
    return (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)


def _fashion_mnist(folder: Path) -> tuple[ImageSet, ImageSet]:
    datasets = import_torchvision().datasets
    try:
        parts = [datasets.FashionMNIST(folder, train=train, download=False) for train in (True, False)]
    except (RuntimeError, ValueError, OSError, AssertionError, IndexError) as error:
        raise UserError(f"cannot read FashionMNIST in {folder}: {str(error).splitlines()[0]}") from None
    train, test = (ImagesInMemory(part.data[:, None].contiguous(), part.targets.long()) for part in parts)
    return train, test


def _cifar10(folder: Path) -> tuple[ImageSet, ImageSet]:
    # torchvision checks the files against their published MD5 sums before it reads them.
    datasets = import_torchvision().datasets
    try:
        parts = [datasets.CIFAR10(folder, train=train, download=False) for train in (True, False)]
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"cannot read CIFAR10 in {folder}: {str(error).splitlines()[0]}") from None
    train, test = (
        ImagesInMemory(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets))
        for p in parts
    )
    return train, test


def _image_folder(folder: Path, size: int) -> tuple[ImageSet, ImageSet]:
    datasets = import_torchvision().datasets
    try:
        parts = [datasets.ImageFolder(str(folder / part)) for part in ("train", "val")]
    except (FileNotFoundError, OSError) as error:
        raise UserError(f"cannot read images in {folder}: {str(error).splitlines()[0]}") from None
    if parts[0].classes != parts[1].classes:
        raise UserError(f"train/ and val/ in {folder} must have the same class folders")
    train, test = (ImagesInFolders(part.samples, size) for part in parts)
    return train, test


def augment(
    images: Tensor, rng: np.random.Generator, batch_size: int | None = None, share: slice = slice(None)
) -> Tensor:
    """uint8 images, each mirrored with probability 1/2, all shifted by up to a fourteenth of their size.

    Images that are the `share` of a batch of `batch_size` get what they would get in it.
    """
    mirrored = torch.from_numpy(rng.random(batch_size or len(images)) < 0.5)[share, None, None, None]
    images = torch.where(mirrored, images.flip(3), images)
    edge = images.shape[2] // 14
    dy, dx = (int(v) for v in rng.integers(0, 2 * edge + 1, 2))
    padded = torch.nn.functional.pad(images, (edge,) * 4)
    return padded[:, :, dy : dy + images.shape[2], dx : dx + images.shape[3]]
