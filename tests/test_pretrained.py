"""`from_pretrained` loads the official weights with torch alone.

The tests publish random weights at a file: address, so that they need no network.
"""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from tests.official import let_be_official, publish, with_hash
from tests.oracle import MODELS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def published(name, tmp_path, monkeypatch):
    """The weights of `oracle` in a file whose name carries its hash, and an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return publish(name, tmp_path)


def test_address_is_that_of_torchvisions_official_weights(name):
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    assert weights.url == sys.modules[MODELS[name].__module__].WEIGHTS_URL


def test_network_has_the_published_weights(name, published, monkeypatch, expected_model):
    let_be_official(published, name, monkeypatch)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = MODELS[name].from_pretrained().eval()(images)
        assert torch.allclose(logits, expected_model(images), rtol=1e-4, atol=1e-4)


def test_weights_are_downloaded_once(name, published, monkeypatch):
    let_be_official(published, name, monkeypatch)
    MODELS[name].from_pretrained()
    published.unlink()
    MODELS[name].from_pretrained()


def test_file_with_a_wrong_hash_is_refused_and_not_kept(name, published, monkeypatch, tmp_path):
    damaged = bytearray(published.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    published.write_bytes(damaged)
    let_be_official(published, name, monkeypatch)
    with pytest.raises(RuntimeError, match="hash"):
        MODELS[name].from_pretrained()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_file_copied_into_an_empty_folder_loads_the_weights_with_torch_alone(
    name, published, tmp_path
):
    folder = tmp_path / "empty"
    folder.mkdir()
    shutil.copy(ROOT / f"{name}.py", folder)
    code = f"""
import sys
import {name}
{name}.WEIGHTS_URL = {published.as_uri()!r}
model = {name}.{MODELS[name].__name__}.from_pretrained()
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_file_that_holds_more_than_tensors_is_refused(name, published, monkeypatch):
    torch.save(MODELS[name](num_classes=1), published)
    let_be_official(with_hash(published), name, monkeypatch)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        MODELS[name].from_pretrained()
