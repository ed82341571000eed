"""Read what torch.save or safetensors wrote to a file. Code in the file is never run."""

import pickle
import pickletools
import textwrap
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch

from examples.command import WeightsError

GIT_LFS_POINTER = b"version https://git-lfs"


def read_checkpoint(path: str | Path) -> Any:
    """Return what a file holds, with all tensors on the CPU.

    An object of a class that torch.load does not allow is replaced by a `Placeholder`.

    Args:
        path: a file written by torch.save, or a file of safetensors with that extension.

    Raises:
        WeightsError: the file cannot be read, is damaged, or contains an object that cannot be
            replaced. Changed tensor values go unnoticed in files without checksums: those of
            safetensors, those of PyTorch before 1.6, and those that were saved without.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS_POINTER))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error

    if start == GIT_LFS_POINTER:
        raise WeightsError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path} is damaged or not a safetensors file ({error})") from error
    if start.startswith(b"PK") or zipfile.is_zipfile(path):
        check_archive(path)
        return load(path, unknown_classes(path))
    if start.startswith(pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)):
        return load(path, unknown_classes_before_1_6(path))
    raise WeightsError(f"{path} was not written by torch.save: it begins with {start[:16]!r}")


def check_archive(path: Path) -> None:
    """Check the zip file that torch.save writes: torch.load does not verify its checksums.

    Raises:
        WeightsError: the file is damaged, or was not written by torch.save.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.serialization.set_crc32_options(False) saves 0 in the place of each checksum.
            has_checksums = any(entry.CRC for entry in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
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


def load(path: Path, unknown: list[str]) -> Any:
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
