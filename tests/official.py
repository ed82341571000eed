"""Weights in the place of the official ones, which cannot be downloaded everywhere."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from tests.oracle import MODELS, oracle


def publish(name: str, folder: Path) -> Path:
    """Write the weights of `oracle` to a file whose name carries its hash, and return it."""
    file = folder / f"{name}.pth"
    torch.save(oracle(name).state_dict(), file)
    return with_hash(file)


def with_hash(file: Path) -> Path:
    """Give a file the name that PyTorch expects: weights-01234567.pth, by its SHA-256."""
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    stem = file.stem.split("-")[0]
    return file.rename(file.with_name(f"{stem}-{checksum[:8]}.pth"))


def let_be_official(file: Path, name: str, monkeypatch) -> None:
    """Let `from_pretrained` download a file of this machine."""
    monkeypatch.setattr(sys.modules[MODELS[name].__module__], "WEIGHTS_URL", file.as_uri())
