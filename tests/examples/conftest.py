from __future__ import annotations

import pytest

from tests.examples.official import let_be_official, publish
from tests.oracle import MODELS


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Random weights of both networks, published in files of this machine; a cache for them."""
    folder = tmp_path_factory.mktemp("published")
    return {name: publish(name, folder) for name in MODELS}, tmp_path_factory.mktemp("torch_home")


@pytest.fixture
def official_weights(published, monkeypatch):
    """Let random weights, those of `tests.oracle`, be the official ones."""
    files, torch_home = published
    for name, file in files.items():
        let_be_official(file, name, monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
