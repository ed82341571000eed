from __future__ import annotations

import shutil

import pytest

from tests.official import let_be_official, publish
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


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Images of three classes: 84 to train on, 33 to validate on."""
    pytest.importorskip("sklearn")
    from tests.examples.training import write_digits

    return write_digits(tmp_path_factory.mktemp("digits"), "013")


@pytest.fixture
def data(digits, tmp_path):
    """A copy of the images, to be changed."""
    return shutil.copytree(digits, tmp_path / "data")


@pytest.fixture(scope="session")
def finished(digits, tmp_path_factory):
    """The folder that a whole run has left, and beside it what the run printed."""
    from tests.examples.training import arguments, run

    out = tmp_path_factory.mktemp("finished") / "run"
    status, stdout, stderr = run(*arguments(digits, out))
    assert (status, stderr) == (0, "")
    (out.parent / "stdout").write_text(stdout)
    return out
