"""Weights as the commands load them."""

from pathlib import Path
from types import SimpleNamespace

from examples.lib.checkpoints import load_weights


def load(weights: str | Path | None, model: str | None = None, head_optional: bool = False):
    """Return the network in a file and what is known of it. None: the official weights."""
    path = None if weights is None else Path(weights)
    network, metadata = load_weights(path, model, head_optional=head_optional)
    return SimpleNamespace(network=network, **vars(metadata))
