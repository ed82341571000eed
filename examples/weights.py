"""Build a network from torchvision's official weights or from a file.

The file may be a state_dict or the checkpoint of a training run. The parameter names may be those
of this project, torchvision or timm. Code in the file is never run.
"""

import contextlib
import hashlib
import http.client
import pickle
import pickletools
import re
import sys
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from alexnet import AlexNet
from examples.errors import WeightsError
from resnet18 import ResNet18

MODELS: dict[str, type[AlexNet] | type[ResNet18]] = {"alexnet": AlexNet, "resnet18": ResNet18}
OFFICIAL = {name: torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] for name in MODELS}

# A network is recognized by the weights of its first and last layer. For AlexNet, their names in
# this project and in torchvision differ.
FIRST_AND_LAST_WEIGHTS = [
    ("resnet18", "conv1.weight", "fc.weight"),
    ("alexnet", "conv1.weight", "fc3.weight"),
    ("alexnet", "features.0.weight", "classifier.6.weight"),
]

# The keys under which training scripts save the weights, the most likely first. None: no key, the
# checkpoint itself is the state_dict.
USUAL_KEYS = [None, "state_dict", "model_state_dict", "model", "network", "net"]


@dataclass(frozen=True)
class Classifier:
    """A network with trained weights, and what is needed to use it.

    Attributes:
        name: "alexnet" or "resnet18".
        network: the network, on the CPU and in training mode.
        classes: the class names. If the file has none, ImageNet's names or "0", "1", and so on.
        classes_known: whether the file names its classes, so that they can be compared with those
            of a data set.
        image_size: height and width, in pixels, of the images to use the network on. 224 if the
            file has no image size.
    """

    name: str
    network: AlexNet | ResNet18
    classes: list[str]
    classes_known: bool
    image_size: int


@dataclass(frozen=True)
class Weights:
    """The weights of one network in a checkpoint.

    Attributes:
        name: "alexnet" or "resnet18".
        key: the key of the state_dict. None: the checkpoint itself is the state_dict.
        prefix: what the parameter names in the checkpoint begin with, such as "module.".
        state_dict: the weights, by their names without the prefix.
    """

    name: str
    key: str | None
    prefix: str
    state_dict: dict[str, Tensor]

    @property
    def location(self) -> str:
        """The prefix and the key, for messages."""
        parts = [f'"{part}"' for part in (self.prefix, self.key) if part]
        return " in ".join(parts) or "the top level"


def load_official(name: str) -> Classifier:
    """Build a network with torchvision's official ImageNet weights, which are downloaded once.

    Raises:
        WeightsError: the weights cannot be downloaded, or their file is damaged.
    """
    url = OFFICIAL[name].url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        # PyTorch checks the hash of a new download only, not that of a file from an earlier one.
        if file.exists() and not hash_matches_name(file):
            raise WeightsError(f"{file} is damaged: delete it to download it again")
        with contextlib.redirect_stdout(sys.stderr):  # "Downloading: …" is not part of the results
            state_dict = OFFICIAL[name].get_state_dict(
                model_dir=str(file.parent),
                check_hash=True,
                weights_only=True,
                map_location="cpu",
            )
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: wrong hash
        raise WeightsError(
            f"cannot get the official weights ({error}): save {url} as {file}, set TORCH_HOME to "
            "a folder for downloads, or use --weights"
        ) from error
    return Classifier(
        name=name,
        network=MODELS[name].from_state_dict(state_dict),
        classes=OFFICIAL[name].meta["categories"],
        classes_known=False,  # ImageNet's folders have other names: WordNet IDs
        image_size=224,
    )


def hash_matches_name(file: Path) -> bool:
    """Return whether the SHA-256 hash of a file begins with the hash in its name, name-<hash>.pth.

    Official weights are named this way.
    """
    hash_in_name = file.stem.split("-")[-1]
    return hashlib.sha256(file.read_bytes()).hexdigest().startswith(hash_in_name)


def load_file(path: str | Path, name: str | None = None) -> Classifier:
    """Build the network whose weights are in a file.

    The state_dict may be under a key (`state_dict`, `model`, …), and its parameter names may have a
    prefix (`module.`, `_orig_mod.`, `model.`, …).

    If there are several networks, averaged weights (EMA) are preferred, as in timm, then the key
    that training scripts use most. A note on standard error says which weights are used. If two
    networks rank equally, the file is rejected.

    Tensors whose names do not have the prefix, such as those of a loss, are ignored, with a note.
    Those whose names have it must be exactly the tensors of the network. Otherwise a ResNet-34,
    which has all tensors of a ResNet-18 and more, would be taken for one.

    Args:
        path: a file written by torch.save, or a file of safetensors with that extension.
        name: the network that the file must contain, "alexnet" or "resnet18". None: either.

    Raises:
        WeightsError: the file cannot be read, or does not contain such a network.
    """
    saved = read_checkpoint(path)
    try:
        candidates = find_weights(saved)
        if not candidates:
            raise WeightsError(describe_contents(saved))
        if name is not None:
            candidates = select_network(name, candidates)
        weights = choose_weights(candidates)
        network = build_network(weights)

        num_classes = (network.fc3 if isinstance(network, AlexNet) else network.fc).out_features
        names = class_names(saved, num_classes)
        image_size = saved.get("image_size", 224)
        if not isinstance(image_size, int) or image_size < 1:
            raise WeightsError(
                f"holds the image size {image_size!r}, which is not a positive integer"
            )
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error

    for note in describe_unused(weights, candidates, saved):
        print(f"note: {path} {note}", file=sys.stderr)
    return Classifier(
        name=weights.name,
        network=network,
        classes=names or default_class_names(num_classes),
        classes_known=names is not None,
        image_size=image_size,
    )


def class_names(saved: Mapping[str, Any], num_classes: int) -> list[str] | None:
    """Return the class names in a checkpoint, or None if it has none.

    Raises:
        WeightsError: their number differs from the number of classes.
    """
    names = saved.get("classes")
    if not isinstance(names, list):  # other training scripts may use this key for something else
        return None
    if len(names) != num_classes:
        raise WeightsError(f"holds {len(names)} class names for {num_classes} classes")
    return [str(name) for name in names]


def default_class_names(num_classes: int) -> list[str]:
    """Return ImageNet's class names if there are 1,000 classes, otherwise "0", "1", and so on."""
    if num_classes == 1000:
        return list(OFFICIAL["resnet18"].meta["categories"])
    return [str(index) for index in range(num_classes)]


def find_weights(saved: Any) -> list[Weights]:
    """Find every AlexNet and ResNet-18 in a checkpoint by its parameter names."""
    found = []
    for key, tensors in find_state_dicts(saved):
        for name, first, last in FIRST_AND_LAST_WEIGHTS:
            for tensor_name in tensors:
                prefix = tensor_name.removesuffix(last)
                is_last = tensor_name == last or tensor_name.endswith(f".{last}")
                if is_last and prefix + first in tensors:
                    found.append(Weights(name, key, prefix, remove_prefix(prefix, tensors)))
    return found


def find_state_dicts(saved: Any) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """Yield the key and the named tensors of each mapping in a checkpoint.

    The checkpoint itself comes first, with the key None.
    """
    if not isinstance(saved, Mapping):
        return
    for key, value in [(None, saved), *saved.items()]:
        if isinstance(value, Mapping):
            tensors = {
                # PyTorch's ImageNet example wraps only the features of AlexNet in DataParallel.
                name.replace("features.module.", "features."): tensor
                for name, tensor in value.items()
                if isinstance(name, str) and isinstance(tensor, Tensor)
            }
            if tensors:
                yield key, tensors


def remove_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by their names without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def select_network(name: str, candidates: list[Weights]) -> list[Weights]:
    """Return the candidates that are the weights of the network `name`.

    Raises:
        WeightsError: there are none.
    """
    others = [weights.name for weights in candidates if weights.name != name]
    if len(others) == len(candidates):
        raise WeightsError(f"holds {others[0]}, not {name}: use --model {others[0]}")
    return [weights for weights in candidates if weights.name == name]


def choose_weights(candidates: list[Weights]) -> Weights:
    """Return the averaged weights if there are any, otherwise those under the most usual key.

    Raises:
        WeightsError: two candidates rank equally.
    """

    def rank(weights: Weights) -> tuple[bool, int]:
        is_usual = weights.key in USUAL_KEYS
        position = USUAL_KEYS.index(weights.key) if is_usual else len(USUAL_KEYS)
        return not is_averaged(weights), position

    best, *others = sorted(candidates, key=rank)
    if others and rank(others[0]) == rank(best):
        raise WeightsError(
            f"holds weights under {best.location} and under {others[0].location}, and it is "
            "unclear which to use: save the state_dict of one network only"
        )
    return best


def is_averaged(weights: Weights) -> bool:
    """Return whether the key or prefix marks averaged weights: state_dict_ema, ema_model."""
    return "ema" in re.split(r"[._]", f"{weights.key}.{weights.prefix}")


def build_network(weights: Weights) -> AlexNet | ResNet18:
    """Build the network with these weights.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape, a value is not finite, or
            the network is not for images with three channels.
    """
    model = MODELS[weights.name]
    try:
        network = model.from_state_dict(weights.state_dict)
    except (IndexError, RuntimeError) as error:  # IndexError: too few dimensions
        reason = textwrap.shorten(str(error), 300)
        raise WeightsError(f"does not fit {model.__name__}: {reason}") from error

    if network.conv1.in_channels != 3:
        raise WeightsError(f"is for images with {network.conv1.in_channels} channels, not 3")
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"holds values that are infinite or NaN, in {name}")
    return network


def describe_unused(weights: Weights, candidates: list[Weights], saved: Any) -> Iterator[str]:
    """Yield a note for other networks, and one for other tensors, that are not used."""
    others = [other.location for other in candidates if other is not weights]
    if others:
        yield f"holds several networks: using {weights.location}, not {' or '.join(others)}"

    prefixes = tuple(other.prefix for other in candidates if other.key == weights.key)
    tensors = dict(find_state_dicts(saved))[weights.key]
    ignored = [name for name in tensors if not name.startswith(prefixes)]
    if ignored:
        yield f"ignored: {summarize_names(ignored)}"


def describe_contents(saved: Any) -> str:
    """Return what is in a checkpoint in which no network was found."""
    values = list(saved.values()) if isinstance(saved, Mapping) else [saved]
    objects = [type(value).__name__ for value in values if isinstance(value, Placeholder)]
    names = [name for _, tensors in find_state_dicts(saved) for name in tensors]
    if names:
        wanted = [f"{first} and {last} ({name})" for name, first, last in FIRST_AND_LAST_WEIGHTS]
        return f"holds {summarize_names(names)}, but not both {', nor both '.join(wanted)}"
    if objects:
        return (
            f"holds an object of class {', '.join(objects)}, which cannot be read without running "
            "code: save the model's state_dict(), not the model"
        )
    if isinstance(saved, Mapping):
        keys = textwrap.shorten(", ".join(map(str, saved)), 200)
        return f"holds no named tensors (its keys: {keys or 'none'})"
    return f"holds no named tensors, but an object of type {type(saved).__name__}"


def summarize_names(names: list[str]) -> str:
    """Return the number of tensors, with the names of the first and the last."""
    if len(names) == 1:
        return f"the tensor {names[0]}"
    return f"{len(names)} tensors ({names[0]} … {names[-1]})"


def read_checkpoint(path: str | Path) -> Any:
    """Return what torch.save or safetensors wrote to a file, with all tensors on the CPU.

    Code in the file is never run. An object of a class that torch.load does not allow is replaced
    by a `Placeholder`.

    Raises:
        WeightsError: the file cannot be read, is damaged, or contains an object that cannot be
            replaced. Changed tensor values go unnoticed in files of safetensors and of PyTorch
            before 1.6, which have no checksums.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error

    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path} is damaged or not a safetensors file ({error})") from error
    if start.startswith(b"PK") or zipfile.is_zipfile(path):
        check_archive(path)
        return load_data(path, unknown_classes(path))
    if start.startswith(pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)):
        return load_data(path, unknown_classes_before_1_6(path))
    raise WeightsError(f"{path} was not written by torch.save: it begins with {start!r}")


def check_archive(path: Path) -> None:
    """Check the zip file that torch.save writes: torch.load does not verify its checksums.

    Raises:
        WeightsError: the file is damaged, or was not written by torch.save.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = {PurePosixPath(name).name for name in archive.namelist()}
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise WeightsError(f"{path} is damaged or incomplete ({error})") from error
    if damaged:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged!r} is wrong")
    if "data.pkl" not in names or "constants.pkl" in names:
        raise WeightsError(f"{path} was not written by torch.save, but may be a TorchScript file")


def unknown_classes(path: Path) -> list[str]:
    """Return the names of the classes in a file that torch.load does not allow.

    Raises:
        WeightsError: the file is damaged, or was saved with an unusual pickle protocol.
    """
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} cannot be read without running code: save it again, without the argument "
            "pickle_protocol of torch.save"
        ) from error


def unknown_classes_before_1_6(path: Path) -> list[str]:
    """Return the same for a file of PyTorch before 1.6, which is not a zip file.

    Raises:
        WeightsError: the file is damaged.
    """
    names = set()
    try:
        with path.open("rb") as file:
            for _ in range(4):  # four pickles: two numbers, the system, the object
                for opcode, argument, _ in pickletools.genops(file):
                    if opcode.name == "GLOBAL":  # the argument is "module name"
                        names.add(str(argument).replace(" ", "."))
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise WeightsError(f"{path} is damaged") from error
    known = ("torch.", "collections.OrderedDict")
    return [name for name in names if not name.startswith(known)]


def load_data(path: Path, unknown: list[str]) -> Any:
    """Return what torch.save wrote, with a `Placeholder` for each object of an unknown class.

    Raises:
        WeightsError: the file is damaged, or contains an object that cannot be replaced.
    """
    try:
        placeholders: list[Any] = [(type(name, (Placeholder,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds of exceptions
        if not unknown:
            raise WeightsError(f"{path} is damaged") from error
        names = textwrap.shorten(", ".join(sorted(unknown)), 200)
        raise WeightsError(
            f"{path} is damaged or cannot be read without running code: it refers to {names}. If "
            "you trust the file, load it with weights_only=False and save only its state_dict"
        ) from error


class Placeholder:
    """Replaces an object in a checkpoint whose class torch.load does not allow. It has no data."""

    def __new__(cls, *arguments: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass
