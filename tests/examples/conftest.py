from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Random weights of both networks, published in files of this machine; a cache for them."""
    pytest.importorskip("safetensors")
    from tests.examples.official import publish
    from tests.oracle import MODELS

    folder = tmp_path_factory.mktemp("published")
    return {name: publish(name, folder) for name in MODELS}, tmp_path_factory.mktemp("torch_home")


@pytest.fixture
def official_weights(published, monkeypatch):
    """Let random weights, those of `tests.oracle`, be the official ones."""
    from examples.weights import OFFICIAL

    weights, torch_home = published
    for name in weights:
        monkeypatch.setitem(OFFICIAL, name, weights[name])
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
