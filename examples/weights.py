"""Weights from torchvision's official checkpoints or from a file, read without running any code."""

from __future__ import annotations

import contextlib
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping
from urllib.error import URLError

import torch
import torchvision
from PIL.Image import Image
from torch import Tensor

from alexnet import AlexNet
from resnet18 import ResNet18

MODELS: dict[str, type[AlexNet] | type[ResNet18]] = {"alexnet": AlexNet, "resnet18": ResNet18}


class WeightsError(Exception):
    """Weights that cannot be had; the message is one line that says why and what to do."""


@dataclass
class Classifier:
    """A network with what is needed to use it."""

    model: AlexNet | ResNet18
    classes: list[str]
    image_size: int = 224

    def preprocessing(self) -> Callable[[Image], Tensor]:
        """Return torchvision's preprocessing: an image to a tensor (3, image_size, image_size)."""
        size = self.image_size
        preprocessing: Callable[[Image], Tensor] = official_weights("resnet18").transforms(
            crop_size=size,
            resize_size=round(size * 256 / 224),  # as 256 for 224, and for AlexNet the same
        )
        return preprocessing


def official_weights(name: str) -> torchvision.models.WeightsEnum:
    """Return torchvision's record of the ImageNet weights of the model called `name`."""
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


def load_official(name: str) -> Classifier:
    """Build the model called `name` with torchvision's ImageNet weights, fetched once.

    Raises:
        WeightsError: the weights are not in the cache and cannot be fetched, or are damaged.
    """
    weights = official_weights(name)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        if cached.exists():
            checkpoint = read(cached)
        else:
            with contextlib.redirect_stdout(sys.stderr):  # where the progress bar goes, too
                checkpoint = weights.get_state_dict(
                    progress=True, check_hash=True, weights_only=True, map_location="cpu"
                )
        model = MODELS[name].from_state_dict(checkpoint)
    except URLError as error:
        raise WeightsError(
            f"cannot fetch {weights.url} ({error.reason}): connect to a network, put that file "
            f"at {cached}, or name another with --weights"
        ) from error
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"cannot fetch {weights.url}: {error}") from error
    except (TypeError, ValueError, WeightsError) as error:
        raise WeightsError(f"{error}: delete {cached} to have it fetched again") from error
    return Classifier(model, list(weights.meta["categories"]))


def load_file(path: Path, name: str | None = None) -> Classifier:
    """Build the model whose weights `path` holds.

    The file is a state_dict in the names of this project, torchvision or timm, or what
    `examples.train` leaves: a dictionary of the state_dict, the model's name, the names of its
    classes and the size of its images.

    Args:
        path: a file that `torch.save` wrote.
        name: the model that is wanted, by default the one that the file names, else resnet18.

    Returns:
        The classifier. Where the file names no classes, they are those of ImageNet if there are
        1000, else their indices.

    Raises:
        WeightsError: the file cannot be read, or holds no weights of that model.
    """
    checkpoint = read(path)
    if not (isinstance(checkpoint, Mapping) and "state_dict" in checkpoint):
        checkpoint = {"state_dict": checkpoint}
    state_dict, classes = checkpoint["state_dict"], checkpoint.get("classes")
    holds, image_size = str(checkpoint.get("model")), checkpoint.get("image_size", 224)
    if holds in MODELS and name not in (None, holds):
        raise WeightsError(f"{path} holds {holds}, not {name}: use --model {holds}")
    name = name or (holds if holds in MODELS else "resnet18")
    try:
        model = MODELS[name].from_state_dict(state_dict)
    except (TypeError, ValueError) as error:
        for other in MODELS.keys() - {name}:
            if fits(MODELS[other], state_dict):
                raise WeightsError(
                    f"{path} holds {other}, not {name}: use --model {other}"
                ) from error
        raise WeightsError(f"{path}: {error}") from error

    num_classes = (model.fc if isinstance(model, ResNet18) else model.fc3).out_features
    if classes is None and num_classes == 1000:
        classes = official_weights(name).meta["categories"]
    elif classes is None:
        classes = [str(index) for index in range(num_classes)]
    if not isinstance(classes, list) or len(classes) != num_classes:
        raise WeightsError(f"{path} does not name each of its {num_classes} classes once")
    if model.conv1.in_channels != 3:
        raise WeightsError(f"{path} is for images of {model.conv1.in_channels} channels, not 3")
    if not isinstance(image_size, int) or image_size < 1:
        raise WeightsError(f"{path} is for images of size {image_size!r}, which is not a size")
    return Classifier(model.float(), [str(label) for label in classes], image_size)


def fits(model: type[AlexNet] | type[ResNet18], state_dict: Any) -> bool:
    """Tell whether `state_dict` holds the weights of this model."""
    try:
        model.from_state_dict(state_dict)
    except (TypeError, ValueError):
        return False
    return True


def read(path: Path) -> Any:
    """Return what `torch.save` wrote to `path`, tensors on the CPU; code in it is not run.

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds more than weights.
    """
    try:
        if zipfile.is_zipfile(path):  # torch.load does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise WeightsError(f"{path} is damaged, its part {damaged} has changed")
        with warnings.catch_warnings(record=True):  # of what is refused anyhow
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    except WeightsError:
        raise
    except Exception as error:  # a file of another kind may raise anything
        if "GLOBAL" in str(error):
            raise WeightsError(
                f"{path} holds code, which is not run: save a state_dict() instead"
            ) from error
        raise WeightsError(
            f"{path} is damaged or was not written by torch.save; nothing in it was run"
        ) from error
