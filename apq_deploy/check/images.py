"""The images that accuracy and parity are measured on: given ones, else the model's own samples."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.files import load_arrays
from apq_deploy.model import samples_for
from apq_deploy.space import SearchSpace

RANDOM_IMAGES = 4096
ANY_CLASSES = 1_000_000


@dataclass(frozen=True, eq=False)
class CheckImages:
    """Images that are fetched as they are needed.

    labels: int64, (count,), or None for images without classes. fetch: from the first index to before the second,
    float32 from 0 to 1, (n, channels, height, width).
    """

    source: str
    count: int
    labels: NDArray[np.int64] | None
    fetch: Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """What a model takes and gives. shape: channels, height, width. classes: None where the file does not say.

    space: name of the search space that the model comes from, where it says so.
    """

    shape: tuple[int, int, int]
    classes: int | None
    space: str | None


def given_images(data: Path, wanted: ImageFormat) -> CheckImages:
    """The test images of a data set's folder, or those of an .npz file with `images` and `labels`.

    Raises: UserError if there are none, or they do not fit the model.
    """
    return _from_npz(data, wanted) if data.suffix == ".npz" else _from_folder(data, wanted)


def own_images(wanted: ImageFormat) -> CheckImages | None:
    """The test images that travel with the search space of the model, if it says which and they are there.

    Raises: UserError for sample images that are damaged.
    """
    samples = samples_for(wanted.space, wanted.shape)
    if samples is None:
        return None
    return _from_arrays("test images of the model", samples.held_out, samples.held_out_labels)


def random_images(wanted: ImageFormat) -> CheckImages:
    """Random images without classes: enough to compare codes."""

    def fetch(first: int, last: int) -> NDArray[np.float32]:
        return np.random.default_rng(0).random((last, *wanted.shape), np.float32)[first:]

    return CheckImages("random images", RANDOM_IMAGES, None, fetch)


def _from_arrays(source: str, images: NDArray, labels: NDArray) -> CheckImages:
    def fetch(first: int, last: int) -> NDArray[np.float32]:
        part = images[first:last].astype(np.float32)
        return part / np.float32(255) if images.dtype == np.uint8 else part

    return CheckImages(source, len(images), labels.astype(np.int64), fetch)


def _from_npz(path: Path, wanted: ImageFormat) -> CheckImages:
    try:
        images, labels = load_arrays(path, ("images", "labels"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path}: expected an .npz file with the arrays images and labels ({error})") from None
    if images.dtype not in (np.uint8, np.float32) or images.shape[1:] != wanted.shape or not len(images):
        raise UserError(
            f"{path}: expected images (n, {', '.join(map(str, wanted.shape))}) of uint8, or of float32 as the model "
            f"takes them; got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: expected {len(images)} whole-number labels, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= (wanted.classes or ANY_CLASSES):
        raise UserError(
            f"{path}: expected labels from 0 to {(wanted.classes or ANY_CLASSES) - 1}, as the model has classes; "
            f"got {labels.min()} to {labels.max()}"
        )
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise UserError(f"{path}: images hold values that are not finite; check how they were made")
    return _from_arrays(path.name, images, labels)


def _from_folder(folder: Path, wanted: ImageFormat) -> CheckImages:
    if not folder.is_dir():
        raise UserError(f"--data: there is no folder {folder}; give a data set's folder or an .npz file")
    if wanted.shape[1] != wanted.shape[2]:
        raise UserError(f"data sets have square images, the model takes {wanted.shape}; give an .npz file")
    from apq_deploy.supernet.data import load_data  # torch and torchvision

    # of a space, reading a data set needs only the images' shape and the classes; the model may come from any
    space = replace(
        SearchSpace.load("fashion"),
        name=wanted.space or "of the model",
        input_channels=wanted.shape[0],
        input_size=wanted.shape[1],
        num_classes=wanted.classes or ANY_CLASSES,
    )
    splits = load_data(space, folder)
    test = splits.test

    def fetch(first: int, last: int) -> NDArray[np.float32]:
        return test.images(np.arange(first, last)).numpy().astype(np.float32) / np.float32(255)

    labels = test.labels(np.arange(len(test))).numpy().astype(np.int64)
    return CheckImages(f"test images of {splits.name}", len(test), labels, fetch)
