"""Weights from torchvision's official checkpoints or from a file, read without running any code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Mapping
from urllib.error import URLError

import torch
import torchvision

from alexnet import AlexNet
from resnet18 import ResNet18

MODELS: dict[str, type[AlexNet] | type[ResNet18]] = {"alexnet": AlexNet, "resnet18": ResNet18}


class WeightsError(Exception):
    """Weights that cannot be had; the message is one line that says why and what to do."""


def official_weights(name: str) -> torchvision.models.WeightsEnum:
    """Return torchvision's record of the ImageNet weights of the model called `name`."""
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


def load_official(name: str) -> tuple[AlexNet | ResNet18, list[str]]:
    """Build the model called `name` with torchvision's ImageNet weights, fetched once.

    Returns:
        The model, and the names of its 1000 classes.

    Raises:
        WeightsError: the weights are not in the cache and cannot be fetched, or are damaged.
    """
    weights = official_weights(name)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        if cached.exists():
            checkpoint = read(cached)
        else:
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
    return model, list(weights.meta["categories"])


def load_file(path: Path, name: str | None = None) -> tuple[AlexNet | ResNet18, list[str]]:
    """Build the model whose weights `path` holds.

    The file is a state_dict in the names of this project, torchvision or timm, or what
    `examples.train` leaves: a dictionary with the state_dict, the model's name and its classes.

    Args:
        path: a file that `torch.save` wrote.
        name: the model that is wanted, by default the one that the file names, else resnet18.

    Returns:
        The model, and the names of its classes: those in the file, for 1000 unnamed classes those
        of ImageNet, for any other number their indices.

    Raises:
        WeightsError: the file cannot be read, or holds no weights of that model.
    """
    checkpoint = read(path)
    state_dict, classes, holds = checkpoint, None, None
    if isinstance(checkpoint, Mapping) and "state_dict" in checkpoint:
        state_dict = checkpoint["state_dict"]
        classes, holds = checkpoint.get("classes"), checkpoint.get("model")
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

    num_classes = model.state_dict()["fc.bias" if name == "resnet18" else "fc3.bias"].numel()
    if classes is None and num_classes == 1000:
        classes = official_weights(name).meta["categories"]
    elif classes is None:
        classes = [str(index) for index in range(num_classes)]
    if not isinstance(classes, list) or len(classes) != num_classes:
        raise WeightsError(f"{path} does not name each of its {num_classes} classes once")
    return model, [str(label) for label in classes]


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
        raise WeightsError(f"{path} is damaged or was not written by torch.save") from error
