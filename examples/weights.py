"""Weights from torchvision's official checkpoints or from a file, read without running any code."""

import textwrap
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torchvision

from alexnet import AlexNet
from resnet18 import ResNet18

MODELS: dict[str, type[AlexNet] | type[ResNet18]] = {"alexnet": AlexNet, "resnet18": ResNet18}
OFFICIAL = {name: torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] for name in MODELS}


@dataclass
class Classifier:
    """A network with what is needed to use it."""

    name: str
    model: AlexNet | ResNet18
    classes: list[str]  # ImageNet's or indices, where the weights do not name them
    named: bool
    image_size: int


def load_official(name: str) -> Classifier:
    """Build the model called `name` with torchvision's ImageNet weights, downloaded once.

    Raises:
        click.ClickException: they are not in the cache and cannot be downloaded, or are damaged.
    """
    url = OFFICIAL[name].url
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached), cached.stem.split("-")[-1])
    except (OSError, RuntimeError) as error:
        line = f"cannot download {url} ({error}): put that file at {cached}, or give --weights"
        raise click.ClickException(line) from error
    return load_file(cached, name)


def load_file(path: Path, name: str | None = None) -> Classifier:
    """Build the model whose weights `path` holds: the one called `name`, by default any.

    The file is a state_dict in the names of this project, torchvision or timm, or what
    `examples.train` leaves: a dictionary of the state_dict, the names of its classes and the size
    of its images.

    Raises:
        click.ClickException: the file cannot be read, or holds no weights of that model.
    """
    saved = read(path)
    try:
        saved = saved if "state_dict" in saved else {"state_dict": saved}
        is_alexnet = {"fc3.weight", "classifier.6.weight"} & saved["state_dict"].keys()
        holds = "alexnet" if is_alexnet else "resnet18"
        model = MODELS[holds].from_state_dict(saved["state_dict"])
        *_, bias = model.parameters()
        imagenet = OFFICIAL[holds].meta["categories"]
        names = saved.get("classes", imagenet if len(bias) == 1000 else range(len(bias)))
        classes, image_size = [str(name) for name in names], int(saved.get("image_size", 224))
        channels = model.conv1.in_channels
        if (len(classes), channels) != (len(bias), 3) or image_size < 1:
            what = f"{len(classes)} names, {len(bias)} classes"
            raise ValueError(f"{what}, {channels} channels, image size {image_size}")
    except Exception as error:  # a file of another kind may raise anything
        reason = textwrap.shorten(str(error), 200)
        line = f"{path} holds no weights of AlexNet or ResNet-18 that can be used: {reason}"
        raise click.ClickException(line) from error
    if name not in (None, holds):
        raise click.ClickException(f"{path} holds {holds}, not {name}: use --model {holds}")
    return Classifier(holds, model, classes, "classes" in saved, image_size)


def read(path: Path) -> Any:
    """Return what `torch.save` wrote to `path`, tensors on the CPU; code in it is not run.

    Raises:
        click.ClickException: there is no such file, it is damaged, or it holds more than weights.
    """
    try:
        if zipfile.is_zipfile(path):  # torch.load does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise zipfile.BadZipFile
        with warnings.catch_warnings(record=True):  # of what is refused anyhow
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a file of another kind may raise anything
        code = "GLOBAL" in str(error)  # as torch.load says it
        what = "holds code" if code else "is damaged or was not written by torch.save"
        raise click.ClickException(f"{path} {what}; nothing in it was run") from error
