from __future__ import annotations

import hashlib
import pickle
import shutil

import pytest
import torch
from torchvision.datasets import CIFAR10

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


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> None:
    """CIFAR-10 as torchvision leaves it in data/, cut to 40 training and 20 validation images."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def store(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(count: int) -> dict:
        pixels = torch.randint(256, (count, 3 * 32 * 32), dtype=torch.uint8)
        return {"data": pixels.numpy(), "labels": [index % 10 for index in range(count)]}

    names = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
    _, checksum = store("batches.meta", {"label_names": names})
    meta = {"filename": "batches.meta", "key": "label_names", "md5": checksum}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(CIFAR10, "train_list", [store("data_batch_1", batch(40))])
    monkeypatch.setattr(CIFAR10, "test_list", [store("test_batch", batch(20))])
