"""`python -m examples.predict` gives torchvision's answer for whatever a user points it at."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.oracle import oracle

pytest.importorskip("click")
cbook = pytest.importorskip("matplotlib.cbook")

from click.testing import CliRunner  # noqa: E402

from examples import predict, weights  # noqa: E402

ROOT = Path(__file__).parents[2]
OFFICIAL_FILES = {"alexnet": "alexnet-owt-7be5be79.pth", "resnet18": "resnet18-f37072fd.pth"}


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A photograph of Grace Hopper, 512 x 600, from matplotlib's sample data."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB")


@pytest.fixture
def photo(photograph, tmp_path) -> Path:
    """The photograph as a file."""
    path = tmp_path / "photo.png"
    photograph.save(path)
    return path


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory):
    """A cache that holds a checkpoint of torchvision's own models under each official name."""
    home = tmp_path_factory.mktemp("torch_home")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    for name, file in OFFICIAL_FILES.items():
        torch.save(oracle(name).state_dict(), home / "hub" / "checkpoints" / file)
    return home


@pytest.fixture
def cached(torch_home, monkeypatch):
    """Let the official weights be found in the cache."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    return torch_home / "hub" / "checkpoints"


def command(*arguments: object) -> tuple[int, list[str], list[str]]:
    """Run the command in this process; return its status, the lines it printed, and its errors."""
    result = CliRunner().invoke(predict.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout.splitlines(), result.stderr.splitlines()


def answers(*arguments: object) -> list[dict]:
    """Return what the command prints as JSON."""
    status, lines, errors = command(*arguments, "--json")
    assert (status, errors) == (0, [])
    return [json.loads(line) for line in lines]


def refusal(*arguments: object) -> str:
    """Return the one line with which the command refuses the arguments."""
    status, lines, errors = command(*arguments)
    assert (status, lines, len(errors)) == (1, [], 1)
    return errors[0]


def probabilities(name: str, image: Image.Image) -> torch.Tensor:
    """Return what torchvision's model and preprocessing make of an image."""
    official = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    with torch.inference_mode():
        logits = oracle(name).eval()(official.transforms()(image).unsqueeze(0))
    return logits.softmax(1)[0]


@pytest.mark.parametrize("name", OFFICIAL_FILES)
@pytest.mark.parametrize("source", ["cache", "file"])
def test_the_classes_are_torchvisions(name, source, photo, photograph, cached):
    given = ["--weights", cached / OFFICIAL_FILES[name]] if source == "file" else ["--model", name]
    (answer,) = answers(photo, *given)
    expected = probabilities(name, photograph).topk(5)
    categories = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta["categories"]
    assert answer["file"] == str(photo)
    rows = answer["predictions"]
    assert [row["index"] for row in rows] == expected.indices.tolist()
    assert [row["class"] for row in rows] == [categories[index] for index in expected.indices]
    found = [row["probability"] for row in rows]
    assert found == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_the_table_names_file_classes_and_percentages(photo, photograph, cached):
    """The command as a user starts it."""
    command = [sys.executable, "-m", "examples.predict", str(photo), "--top", "3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    expected = probabilities("resnet18", photograph).topk(3)
    names = weights.official_weights("resnet18").meta["categories"]
    file, *rows = result.stdout.splitlines()
    assert file == str(photo)
    assert [row.split("%  ")[1] for row in rows] == [names[index] for index in expected.indices]
    percentages = [float(row.split("%")[0]) for row in rows]
    assert percentages == pytest.approx([100 * p for p in expected.values.tolist()], abs=0.01)


def test_folders_are_searched_and_batches_keep_the_order(photograph, tmp_path, cached):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    paths = [tmp_path / "b" / f"{index:02}.png" for index in range(33)]
    paths += [tmp_path / "b" / "deep" / "last.png", tmp_path / "a.png"]
    for index, path in enumerate(paths):
        photograph.rotate(10 * index).resize((64, 64)).save(path)
    found = answers(tmp_path / "b", tmp_path / "a.png", "--batch-size", 4)
    assert [answer["file"] for answer in found] == [str(path) for path in paths]
    for answer, path in zip(found[::11], paths[::11]):
        expected = probabilities("resnet18", Image.open(path)).max().item()
        assert answer["predictions"][0]["probability"] == pytest.approx(expected, rel=1e-4)


def rotated(image: Image.Image, path: Path) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return image


def with_16_bits(image: Image.Image, path: Path) -> Image.Image:
    gray = image.convert("L")
    Image.fromarray(np.asarray(gray).astype("uint16") * 256).save(path)
    return gray.convert("RGB")


def transparent(image: Image.Image, path: Path) -> Image.Image:
    clear, white = image.copy(), Image.new("RGB", image.size, "white")
    clear.putalpha(image.convert("L"))
    clear.save(path)
    white.paste(image, mask=image.convert("L"))
    return white


def in_mode(mode: str) -> Callable[[Image.Image, Path], Image.Image]:
    def save(image: Image.Image, path: Path) -> Image.Image:
        image.convert(mode).save(path)
        return image.convert(mode).convert("RGB")

    return save


@pytest.mark.parametrize(
    "file, save",
    [
        ("gray.png", in_mode("L")),
        ("palette.png", in_mode("P")),
        ("cmyk.tif", in_mode("CMYK")),
        ("16bit.png", with_16_bits),
        ("transparent.png", transparent),
        ("rotated.png", rotated),
    ],
)
def test_every_kind_of_picture_is_classified_as_a_person_sees_it(
    file, save, photograph, tmp_path, cached
):
    expected = probabilities("resnet18", save(photograph, tmp_path / file)).max(0)
    (best,) = answers(tmp_path / file, "--top", 1)[0]["predictions"]
    assert best["index"] == expected.indices.item()
    assert best["probability"] == pytest.approx(expected.values.item(), rel=1e-2)


def test_bad_files_are_named_and_the_good_ones_classified(photograph, tmp_path, cached):
    folder, empty, missing = tmp_path / "folder", tmp_path / "empty", tmp_path / "missing.jpg"
    folder.mkdir()
    empty.mkdir()
    photograph.save(folder / "good.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:20_000])
    (folder / "notes.txt").write_text("no image")
    (folder / "nothing").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    status, lines, errors = command(folder, empty, missing, "--json")
    assert status == 1
    assert [json.loads(line)["file"] for line in lines] == [str(folder / "good.jpg")]
    reasons = {
        folder / "bomb.png": "exceeds limit",
        folder / "notes.txt": "cannot identify image file",
        folder / "nothing": "cannot identify image file",
        folder / "truncated.jpg": "truncated",
        empty: "Is a directory",
        missing: "No such file",
    }
    assert len(errors) == len(reasons)
    for error, (path, reason) in zip(errors, reasons.items()):
        assert error.startswith(f"Error: {path}: ")
        assert reason in error


def damaged(checkpoint: bytes) -> bytes:
    middle = len(checkpoint) // 2
    return checkpoint[:middle] + bytes(8) + checkpoint[middle + 8 :]


@pytest.mark.parametrize("make", [damaged, lambda c: c[:1_000_000], lambda c: b"", lambda c: b"no"])
def test_damaged_weights_are_one_line_in_the_cache_or_elsewhere(
    make, photo, tmp_path, cached, monkeypatch
):
    path = tmp_path / "hub" / "checkpoints" / OFFICIAL_FILES["resnet18"]
    path.parent.mkdir(parents=True)
    path.write_bytes(make((cached / path.name).read_bytes()))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for given in ([], ["--weights", path]):
        assert refusal(photo, *given).startswith(f"Error: {path} is damaged")


class Exploit:
    """Makes a folder when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "save, what",
    [
        (torch.save, "holds code"),
        (
            lambda content, file: file.write_bytes(pickle.dumps(content)),
            "not written by torch.save",
        ),
    ],
)
def test_a_pickle_with_code_is_refused_and_not_run(save, what, photo, tmp_path):
    file = tmp_path / "weights.pt"
    save({"conv1.weight": Exploit(tmp_path / "exploited")}, file)
    assert f"{what}; nothing in it was run" in refusal(photo, "--weights", file)
    assert not (tmp_path / "exploited").exists()


NO_WEIGHTS = [None, [], 3, "weights", {}, {"state_dict": None}, {"state_dict": {"fc.bias": [1]}}]


@pytest.mark.parametrize("content", NO_WEIGHTS)
def test_a_file_without_weights_is_one_line(content, photo, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    line = refusal(photo, "--weights", tmp_path / "weights.pt")
    assert "holds no weights of AlexNet or ResNet-18" in line


def test_what_the_network_is_for_comes_from_the_file(photo, tmp_path):
    file, state_dict = tmp_path / "weights.pt", oracle("alexnet", num_classes=2).state_dict()
    for content, names in [
        (state_dict, ["0", "1"]),
        ({"classes": ["cat", "newt"], "state_dict": state_dict}, ["cat", "newt"]),
    ]:
        torch.save(content, file)
        rows = answers(photo, "--weights", file)[0]["predictions"]
        assert [row["class"] for row in rows] == [names[row["index"]] for row in rows]
        assert sorted(row["class"] for row in rows) == names
    line = refusal(photo, "--model", "resnet18", "--weights", file)
    assert line == f"Error: {file} holds alexnet, not resnet18: use --model alexnet"
    for wrong, words in [({"classes": ["cat"]}, "1 names, 2"), ({"image_size": 0}, "size 0")]:
        torch.save({**wrong, "state_dict": state_dict}, file)
        assert words in refusal(photo, "--weights", file)
    gray = torch.zeros(64, 1, 11, 11)
    torch.save({**state_dict, "features.0.weight": gray}, file)
    assert "1 channels" in refusal(photo, "--weights", file)


def test_weights_of_resnet18_are_none_of_alexnet(photo, cached):
    file = cached / OFFICIAL_FILES["resnet18"]
    line = refusal(photo, "--model", "alexnet", "--weights", file)
    assert line == f"Error: {file} holds resnet18, not alexnet: use --model resnet18"


def test_no_network_and_nothing_cached_is_one_line_that_says_what_to_do(photo, tmp_path):
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "home"), "https_proxy": "127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-m", "examples.predict", str(photo)],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False},
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: cannot download https://")
    assert "--weights" in error
    assert str(tmp_path / "home" / "hub" / "checkpoints" / OFFICIAL_FILES["resnet18"]) in error


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("", "Missing argument 'PATHS...'"),
        ("x.jpg --top 0", "Invalid value for '--top': 0 is not in the range x>=1."),
        ("x.jpg --batch-size many", "'many' is not a valid integer range"),
        ("x.jpg --model vgg", "'vgg' is not one of 'alexnet', 'resnet18'"),
        ("x.jpg --precision int3", "'int3' is not one of"),
        ("x.jpg --device tpu", "Invalid value for '--device': Expected one of cpu, cuda"),
        ("x.jpg --device cuda:99", "Invalid value for '--device': "),
        ("x.jpg --speed 3", "No such option"),
        ("x.jpg --weights nowhere.pt", "cannot read nowhere.pt: No such file"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, reason):
    assert reason in refusal(*arguments.split())


def test_bfloat16_gives_about_the_same_probabilities(photo, cached):
    found = []
    for precision in ("float32", "bf16"):
        rows = answers(photo, "--top", 1000, "--precision", precision)[0]["predictions"]
        found.append({row["index"]: row["probability"] for row in rows})
    assert 0 < max(abs(found[0][index] - found[1][index]) for index in range(1000)) < 0.05


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this is a property of pipes")
def test_a_closed_pipe_is_no_traceback(photo, cached):
    script = f"{sys.executable} -m examples.predict {photo} {photo} --batch-size 1 | head -n 1"
    result = subprocess.run(
        script, shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == (f"{photo}\n", "")
