"""`python -m examples.predict` gives torchvision's answer for whatever a user points it at."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.oracle import oracle

pytest.importorskip("click")
cbook = pytest.importorskip("matplotlib.cbook")

from examples.predict import main  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402

ROOT = Path(__file__).parents[2]
OFFICIAL_FILES = {"alexnet": "alexnet-owt-7be5be79.pth", "resnet18": "resnet18-f37072fd.pth"}
PHOTO = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)


@pytest.fixture
def photograph() -> Image.Image:
    """The photograph of Grace Hopper, 512 x 600."""
    return Image.open(PHOTO).convert("RGB")


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


def answers(*arguments: object) -> list[dict]:
    """Return what the command prints as JSON."""
    status, stdout, stderr = call(main, *arguments, "--json")
    assert (status, stderr) == (0, "")
    return [json.loads(line) for line in stdout.splitlines()]


def expected(name: str, image: Image.Image, top: int) -> list[tuple[int, str, float]]:
    """Return the index, class and probability that torchvision's model and transforms give."""
    official = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    with torch.inference_mode():
        logits = oracle(name).eval()(official.transforms()(image).unsqueeze(0))
    values, indices = logits.softmax(1)[0].topk(top)
    classes = official.meta["categories"]
    return [(i, classes[i], value) for i, value in zip(indices.tolist(), values.tolist())]


def check(answer: dict, rows: list[tuple[int, str, float]], rel: float = 1e-4) -> None:
    """Compare an answer with what was expected."""
    found = answer["predictions"]
    assert [(row["index"], row["class"]) for row in found] == [row[:2] for row in rows]
    assert [row["probability"] for row in found] == pytest.approx([row[2] for row in rows], rel=rel)


@pytest.mark.parametrize("name", OFFICIAL_FILES)
def test_the_classes_are_torchvisions_from_the_cache_or_a_file(name, photograph, cached):
    for given in ["--model", name], ["--weights", cached / OFFICIAL_FILES[name]]:
        (answer,) = answers(PHOTO, *given)
        assert answer["file"] == str(PHOTO)
        check(answer, expected(name, photograph, 5))


def test_the_command_prints_the_file_the_classes_and_percentages(photograph, cached):
    status, stdout, stderr = call(main, PHOTO, "--top", 3)
    file, *rows = stdout.splitlines()
    assert (status, file, stderr) == (0, str(PHOTO), "")
    for row, (_, name, probability) in zip(rows, expected("resnet18", photograph, 3), strict=True):
        percentage, found = row.split(" %  ")
        assert (found, float(percentage)) == (name, pytest.approx(100 * probability, abs=0.01))


def test_folders_are_searched_and_batches_keep_the_order(photograph, tmp_path, cached):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    paths = [tmp_path / "b" / f"{index:02}.png" for index in range(33)]
    paths += [tmp_path / "b" / "deep" / "last.png", tmp_path / "a.png"]
    for index, path in enumerate(paths):
        photograph.rotate(10 * index).resize((64, 64)).save(path)
    found = answers(tmp_path / "b", tmp_path / "a.png", "--batch-size", 4, "--top", 1)
    assert [answer["file"] for answer in found] == [str(path) for path in paths]
    for answer, path in list(zip(found, paths))[::11]:
        check(answer, expected("resnet18", Image.open(path), 1))


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
    opaque, white = image.convert("L"), Image.new("RGB", image.size, "white")
    Image.merge("RGBA", (*image.split(), opaque)).save(path)
    return Image.composite(image, white, opaque)


@pytest.mark.parametrize("kind", ["L", "P", "CMYK", with_16_bits, transparent, rotated])
def test_every_picture_is_classified_as_a_person_sees_it(kind, photograph, tmp_path, cached):
    path = tmp_path / ("picture.tif" if kind == "CMYK" else "picture.png")
    if isinstance(kind, str):
        photograph.convert(kind).save(path)
        seen = photograph.convert(kind).convert("RGB")
    else:
        seen = kind(photograph, path)
    check(answers(path, "--top", 1)[0], expected("resnet18", seen, 1), rel=1e-2)


def test_bad_files_are_named_and_the_good_ones_classified(photograph, tmp_path, cached):
    folder, empty, missing = tmp_path / "folder", tmp_path / "empty", tmp_path / "missing.jpg"
    folder.mkdir()
    empty.mkdir()
    photograph.save(folder / "good.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:20_000])
    (folder / "notes.txt").write_text("no image")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    status, stdout, stderr = call(main, folder, empty, missing, "--json")
    assert (status, json.loads(stdout)["file"]) == (1, str(folder / "good.jpg"))
    reasons = {
        folder / "bomb.png": "exceeds limit",
        folder / "notes.txt": "cannot identify image file",
        folder / "truncated.jpg": "truncated",
        empty: "Is a directory",
        missing: "No such file",
    }
    for error, (path, reason) in zip(stderr.splitlines(), reasons.items(), strict=True):
        assert error.startswith(f"Error: {path}: ")
        assert reason in error


def test_damaged_weights_are_one_line(tmp_path, cached, monkeypatch):
    path = tmp_path / "hub" / "checkpoints" / OFFICIAL_FILES["resnet18"]
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    whole = (cached / path.name).read_bytes()
    start, end = whole[: len(whole) // 2], whole[len(whole) // 2 + 8 :]
    for damaged in start + bytes(8) + end, start, b"", b"no":
        path.write_bytes(damaged)
        for given in [], ["--weights", path]:
            assert refusal(main, PHOTO, *given).startswith(f"Error: {path} is damaged")


class Exploit:
    """Makes a folder when unpickled."""

    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Exploit()}, "weights.pt")
    Path("plain.pt").write_bytes(pickle.dumps({"conv1.weight": Exploit()}))
    for file, what in ("weights.pt", "holds code"), ("plain.pt", "not written by torch.save"):
        assert f"{what}; nothing in it was run" in refusal(main, PHOTO, "--weights", file)
    assert not Path("exploited").exists()


def test_a_file_without_weights_is_one_line(tmp_path):
    for content in None, [], 3, "no", {}, {"state_dict": None}, {"state_dict": {"fc.bias": [1]}}:
        torch.save(content, tmp_path / "weights.pt")
        line = refusal(main, PHOTO, "--weights", tmp_path / "weights.pt")
        assert "holds no weights of AlexNet or ResNet-18" in line


def test_what_the_network_is_for_comes_from_the_file(tmp_path):
    file, state_dict = tmp_path / "weights.pt", oracle("alexnet", num_classes=2).state_dict()
    for content, names in [
        (state_dict, ["0", "1"]),
        ({"classes": ["cat", "newt"], "state_dict": state_dict}, ["cat", "newt"]),
    ]:
        torch.save(content, file)
        rows = answers(PHOTO, "--weights", file)[0]["predictions"]
        assert sorted((row["index"], row["class"]) for row in rows) == list(enumerate(names))
    gray = {**state_dict, "features.0.weight": torch.zeros(64, 1, 11, 11)}
    for wrong, words in [
        ({"classes": ["cat"], "state_dict": state_dict}, "1 names, 2"),
        ({"image_size": 0, "state_dict": state_dict}, "size 0"),
        (gray, "1 channels"),
    ]:
        torch.save(wrong, file)
        assert words in refusal(main, PHOTO, "--weights", file)


@pytest.mark.parametrize("holds, name", [("alexnet", "resnet18"), ("resnet18", "alexnet")])
def test_weights_of_one_network_are_none_of_the_other(holds, name, cached):
    file = cached / OFFICIAL_FILES[holds]
    line = refusal(main, PHOTO, "--model", name, "--weights", file)
    assert line == f"Error: {file} holds {holds}, not {name}: use --model {holds}\n"


def test_without_network_or_cache_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    line = refusal(main, PHOTO)
    assert line.startswith("Error: cannot download https://") and "--weights" in line
    assert str(tmp_path / "home" / "hub" / "checkpoints" / OFFICIAL_FILES["resnet18"]) in line


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("", "Missing argument 'PATHS...'"),
        ("x.jpg --top 0", "Invalid value for '--top': 0 is not in the range x>=1."),
        ("x.jpg --device tpu", "Invalid value for '--device': Expected one of cpu, cuda"),
        ("x.jpg --device cuda:99", "Invalid value for '--device': "),
        ("x.jpg --weights nowhere.pt", "cannot read nowhere.pt: No such file"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, reason):
    assert reason in refusal(main, *arguments.split())


def test_bfloat16_gives_about_the_same_probabilities(cached):
    exact, rough = (
        [row["probability"] for row in answers(PHOTO, "--precision", precision)[0]["predictions"]]
        for precision in ("float32", "bf16")
    )
    assert exact != rough == pytest.approx(exact, abs=0.05)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this is a property of pipes")
def test_a_closed_pipe_is_no_traceback(cached):
    line = f"{sys.executable} -m examples.predict {PHOTO} {PHOTO} --batch-size 1 | head -n 1"
    result = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == (f"{PHOTO}\n", "")
