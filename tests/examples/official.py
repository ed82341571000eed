"""Weights in the place of torchvision's official ones, which cannot be downloaded everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from torchvision.models import WeightsEnum

from examples.weights import OFFICIAL
from tests.oracle import oracle


def publish(name: str, folder: Path) -> WeightsEnum:
    """Write random weights with a checksum in their name, and return them as torchvision would."""
    file = folder / f"{name}.pth"
    torch.save(oracle(name).state_dict(), file)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(folder / f"{name}-{checksum[:8]}.pth")
    weights = dataclasses.replace(OFFICIAL[name].value, url=file.as_uri())
    return WeightsEnum("Published", {"IMAGENET1K_V1": weights})["IMAGENET1K_V1"]
