"""`python -m examples.predict` gives torchvision's answer for whatever a user points it at."""

from __future__ import annotations

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


def probabilities(name: str, image: Image.Image) -> torch.Tensor:
    """Return what torchvision's model and preprocessing make of an image."""
    official = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    with torch.inference_mode():
        logits = oracle(name).eval()(official.transforms()(image).unsqueeze(0))
    return logits.softmax(1)[0]


@pytest.mark.parametrize("name", OFFICIAL_FILES)
@pytest.mark.parametrize("source", ["cache", "file"])
def test_the_classes_are_torchvisions(name, source, photo, photograph, cached):
    where = ["--weights", cached / OFFICIAL_FILES[name]] if source == "file" else []
    status, lines, errors = command(photo, "--model", name, "--json", *where)
    assert (status, errors) == (0, [])
    answer = json.loads(lines[0])
    expected = probabilities(name, photograph).topk(5)
    categories = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta["categories"]
    assert answer["file"] == str(photo)
    assert [row["index"] for row in answer["predictions"]] == expected.indices.tolist()
    assert [row["class"] for row in answer["predictions"]] == (
        [categories[index] for index in expected.indices]
    )
    assert [row["probability"] for row in answer["predictions"]] == (
        pytest.approx(expected.values.tolist(), rel=1e-4)
    )


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
    paths = [tmp_path / "b" / f"{index:02}.png" for index in range(33)] + (
        [tmp_path / "b" / "deep" / "last.png", tmp_path / "a.png"]
    )
    for index, path in enumerate(paths):
        photograph.rotate(10 * index).resize((64, 64)).save(path)
    status, lines, errors = command(tmp_path / "b", tmp_path / "a.png", "--json", "--batch-size", 4)
    assert (status, errors) == (0, [])
    answers = [json.loads(line) for line in lines]
    assert [answer["file"] for answer in answers] == [str(path) for path in paths]
    for answer, path in zip(answers[::11], paths[::11]):
        expected = probabilities("resnet18", Image.open(path)).max().item()
        assert answer["predictions"][0]["probability"] == pytest.approx(expected, rel=1e-4)


def with_orientation(image: Image.Image) -> tuple[Image.Image, dict[str, object]]:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    return image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}


def with_16_bits(image: Image.Image) -> tuple[Image.Image, dict[str, object]]:
    return Image.fromarray(np.asarray(image.convert("L")).astype("uint16") * 256), {}


def on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.convert("L"))
    return white


def transparent(image: Image.Image) -> tuple[Image.Image, dict[str, object]]:
    clear = image.copy()
    clear.putalpha(image.convert("L"))
    return clear, {}


@pytest.mark.parametrize(
    "file, make, seen",
    [
        ("gray.png", lambda i: (i.convert("L"), {}), lambda i: i.convert("L").convert("RGB")),
        ("16bit.png", with_16_bits, lambda i: i.convert("L").convert("RGB")),
        ("palette.png", lambda i: (i.convert("P"), {}), lambda i: i.convert("P").convert("RGB")),
        ("cmyk.tif", lambda i: (i.convert("CMYK"), {}), lambda i: i),
        ("transparent.png", transparent, on_white),
        ("rotated.png", with_orientation, lambda i: i),
    ],
)
def test_every_kind_of_picture_is_classified_as_a_person_sees_it(
    file, make, seen, photograph, tmp_path, cached
):
    image, options = make(photograph)
    image.save(tmp_path / file, **options)
    status, lines, errors = command(tmp_path / file, "--json", "--top", 1)
    assert (status, errors) == (0, [])
    expected = probabilities("resnet18", seen(photograph)).max(0)
    best = json.loads(lines[0])["predictions"][0]
    assert best["index"] == expected.indices.item()
    assert best["probability"] == pytest.approx(expected.values.item(), rel=1e-2)


def test_bad_files_are_named_and_the_good_ones_classified(photograph, tmp_path, cached):
    photograph.save(tmp_path / "good.jpg")
    truncated = (tmp_path / "good.jpg").read_bytes()[:20_000]
    (tmp_path / "truncated.jpg").write_bytes(truncated)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "nothing").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    (tmp_path.parent / f"{tmp_path.name}-empty").mkdir()
    empty = tmp_path.parent / f"{tmp_path.name}-empty"
    missing = tmp_path / "missing.jpg"
    status, lines, errors = command(tmp_path, empty, missing, "--json")
    assert status == 1
    assert [json.loads(line)["file"] for line in lines] == [str(tmp_path / "good.jpg")]
    reasons = {
        tmp_path / "bomb.png": "exceeds limit",
        tmp_path / "notes.txt": "not an image",
        tmp_path / "nothing": "not an image",
        tmp_path / "truncated.jpg": "truncated",
        empty: "Is a directory",
        missing: "No such file",
    }
    for error, (path, reason) in zip(errors, reasons.items()):
        assert error.startswith(f"Error: {path}: ")
        assert reason in error
    assert len(errors) == len(reasons)


class Exploit:
    """Runs a command when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_with_code_is_refused_and_not_run(photo, tmp_path):
    target = tmp_path / "exploited"
    torch.save({"conv1.weight": Exploit(target)}, tmp_path / "saved.pt")
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps(Exploit(target)))
    for file, reason in [("saved.pt", "holds code, which is not run"), ("pickled.pt", "not run")]:
        status, lines, errors = command(photo, "--weights", tmp_path / file)
        assert (status, lines, len(errors)) == (1, [], 1)
        assert file in errors[0]
        assert reason in errors[0] or "nothing in it was run" in errors[0]
    assert not target.exists()


def damaged(checkpoint: bytes) -> bytes:
    middle = len(checkpoint) // 2
    return checkpoint[:middle] + bytes(8) + checkpoint[middle + 8 :]


@pytest.mark.parametrize(
    "make, reason",
    [
        (damaged, "is damaged"),
        (lambda checkpoint: checkpoint[:1_000_000], "is damaged"),
        (lambda checkpoint: b"", "is damaged"),
        (lambda checkpoint: b"these are no weights", "is damaged"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("source", ["cache", "file"])
def test_a_file_that_holds_no_weights_is_one_line(
    make, reason, source, photo, tmp_path, cached, monkeypatch
):
    home = tmp_path / "home" / "hub" / "checkpoints"
    home.mkdir(parents=True)
    path = home / OFFICIAL_FILES["resnet18"]
    if make:
        path.write_bytes(make((cached / path.name).read_bytes()))
    elif source == "cache":
        pytest.skip("what is not in the cache is fetched")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    where = ["--weights", path] if source == "file" else []
    status, lines, errors = command(photo, *where)
    assert (status, lines, len(errors)) == (1, [], 1)
    assert reason in errors[0]
    assert str(path) in errors[0]
    assert source == "file" or f"delete {path}" in errors[0]


@pytest.mark.parametrize("name, other", [("alexnet", "resnet18"), ("resnet18", "alexnet")])
def test_weights_of_the_other_model_are_one_line(name, other, photo, cached):
    path = cached / OFFICIAL_FILES[other]
    status, lines, errors = command(photo, "--model", name, "--weights", path)
    assert (status, lines) == (1, [])
    assert errors == [f"Error: {path} holds {other}, not {name}: use --model {other}"]


def test_other_classes_are_named_by_their_index_or_by_the_file(photo, tmp_path):
    state_dict = oracle("resnet18", num_classes=3).state_dict()
    torch.save(state_dict, tmp_path / "unnamed.pt")
    named = {"model": "resnet18", "classes": ["cat", "dog", "newt"], "state_dict": state_dict}
    torch.save(named, tmp_path / "named.pt")
    for file, names in [("unnamed.pt", ["0", "1", "2"]), ("named.pt", named["classes"])]:
        status, lines, errors = command(photo, "--weights", tmp_path / file, "--json")
        assert (status, errors) == (0, [])
        rows = json.loads(lines[0])["predictions"]
        assert sorted(row["class"] for row in rows) == names
        assert all(row["class"] == names[row["index"]] for row in rows)


@pytest.mark.parametrize("named", [True, False])
def test_a_file_of_alexnet_needs_no_option(named, photo, tmp_path):
    state_dict = oracle("alexnet", num_classes=2).state_dict()
    content = {"model": "alexnet", "state_dict": state_dict} if named else state_dict
    torch.save(content, tmp_path / "model.pt")
    status, lines, _ = command(photo, "--weights", tmp_path / "model.pt", "--json")
    assert (status, len(json.loads(lines[0])["predictions"])) == (0, 2)


@pytest.mark.parametrize(
    "content", [None, [], 3, "weights", {}, {"state_dict": None}, {"state_dict": {"fc.bias": [1]}}]
)
def test_a_file_without_weights_is_one_line(content, photo, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    status, lines, errors = command(photo, "--weights", tmp_path / "weights.pth")
    assert (status, lines, len(errors)) == (1, [], 1)
    assert "holds no weights of AlexNet or ResNet-18" in errors[0]


def test_no_network_and_nothing_cached_is_one_line_that_says_what_to_do(photo, tmp_path):
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "home"), "https_proxy": "127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-m", "examples.predict", str(photo)],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False},
    )
    error = result.stderr.splitlines()[-1]
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
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
    ],
)
def test_wrong_arguments_are_one_line(arguments, reason):
    status, lines, errors = command(*arguments.split())
    assert (status, lines, len(errors)) == (1, [], 1)
    assert reason in errors[0]


def test_bfloat16_gives_about_the_same_probabilities(photo, cached):
    answers = []
    for precision in ("float32", "bf16"):
        status, lines, _ = command(photo, "--json", "--top", 1000, "--precision", precision)
        rows = json.loads(lines[0])["predictions"]
        answers.append(
            torch.tensor([r["probability"] for r in sorted(rows, key=lambda r: r["index"])])
        )
    assert status == 0
    assert 0 < (answers[0] - answers[1]).abs().max() < 0.05


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this is a property of pipes")
def test_a_closed_pipe_is_no_traceback(photo, cached):
    script = f"{sys.executable} -m examples.predict {photo} {photo} --batch-size 1 | head -n 1"
    result = subprocess.run(
        script, shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == (f"{photo}\n", "")
