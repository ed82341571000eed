"""A folder of class folders is split by the content of its files, and by nothing else."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for package in ("tyro", "pandas", "matplotlib", "tqdm"):
    pytest.importorskip(package)

from examples import evaluate, train  # noqa: E402
from examples.lib.checkpoints import read_checkpoint  # noqa: E402
from examples.lib.command import ImageError  # noqa: E402
from examples.lib.split import load_images  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402

RED, BLUE = (200, 40, 40), (40, 40, 200)
SMALL = "--image-size", 32, "--batch-size", 8, "--epochs", 1, "--workers", 0


def write_noise(path: Path, color: tuple[int, int, int], seed: int) -> None:
    """Write a picture of this color with noise, another one for each seed."""
    noise = np.random.default_rng(seed).integers(-30, 30, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + color).astype("uint8")).save(path)


@pytest.fixture
def colors(tmp_path) -> Path:
    """A folder of two classes: 60 red pictures, 30 blue ones."""
    folder = tmp_path / "colors"
    for index in range(60):
        write_noise(folder / "red" / f"{index}.png", RED, index)
    for index in range(30):
        write_noise(folder / "blue" / f"{index}.png", BLUE, 1000 + index)
    return folder


def names_of(folder: Path, *parts: str, **options) -> list[set[str]]:
    """Return the names of the images of each part."""
    found, _ = load_images(str(folder), parts, resize_size=36, workers=0, **options)
    return [{images.name(index) for index in range(len(images))} for images in found]


def parts_of(folder: Path, val_fraction: float = 0.2) -> list[set[str]]:
    return names_of(folder, "train", "val", val_fraction=val_fraction)


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_each_image_is_on_one_side_and_the_fraction_is_about_right_in_each_class(colors, fraction):
    train, val = parts_of(colors, fraction)
    assert not train & val
    assert len(train | val) == 90
    for name, count in ("red", 60), ("blue", 30):
        share = len([path for path in val if path.startswith(name)]) / count
        assert abs(share - fraction) < 0.2


def test_neither_names_nor_other_images_move_an_image(colors):
    _, val = parts_of(colors)
    for index in range(60, 80):
        write_noise(colors / "red" / f"{index}.png", RED, index)
    _, more = parts_of(colors)
    assert val <= more
    for path in list(colors.rglob("*.png")):
        path.rename(path.with_name(f"renamed {path.name}"))
    _, renamed = parts_of(colors)
    assert {name.replace("renamed ", "") for name in renamed} == more


def test_copies_of_an_image_are_on_the_same_side(colors):
    files = sorted((colors / "red").iterdir())
    for file in files:
        shutil.copy(file, colors / "red" / f"copy of {file.name}")
    train, val = parts_of(colors)
    for file in files:
        both = {f"red/{file.name}", f"red/copy of {file.name}"}
        assert both <= train or both <= val


def test_the_same_picture_in_two_classes_is_said(colors, capsys):
    shutil.copy(colors / "red" / "0.png", colors / "blue" / "by mistake.png")
    parts_of(colors)
    note = capsys.readouterr().err
    assert "images with copies in folders of other classes: 1, such as" in note
    assert "blue/by mistake.png and red/0.png" in note


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_small_class_has_an_image_on_each_side(colors, fraction):
    train, val = parts_of(colors, fraction)
    for part in train, val:
        assert {Path(name).parts[0] for name in part} == {"red", "blue"}


def test_a_class_with_one_picture_is_named(colors):
    for file in sorted((colors / "blue").iterdir())[1:]:
        file.unlink()
    shutil.copy(colors / "blue" / "0.png", colors / "blue" / "copy.png")
    with pytest.raises(ImageError, match=f"{colors / 'blue'}: only one image, too few to split"):
        parts_of(colors)


def test_a_class_of_damaged_images_is_named(colors, tmp_path):
    for file in (colors / "blue").iterdir():
        file.write_text("no image")
    line = call(train.main, colors, "--out", tmp_path / "run", *SMALL, "--skip-damaged").stderr
    assert f"error: {colors}/blue: no image that can be used, too few to split" in line


def test_folders_that_are_parts_under_other_names_are_no_classes(colors):
    (colors / "red").rename(colors / "Training")
    (colors / "blue").rename(colors / "Test")
    with pytest.raises(ImageError, match="Test, Training are no classes: name the folders train"):
        parts_of(colors)


def test_resume_reads_no_image_to_split_and_keeps_what_was_left_out(colors, tmp_path):
    (colors / "red" / "damaged.png").write_text("no image")
    out = tmp_path / "run"
    more = "--skip-damaged", "--val-fraction", 0.3
    result = call(train.main, colors, "--out", out, *SMALL, *more)
    assert result.status == 0, result
    checkpoint = read_checkpoint(out / "last.ckpt")
    assert checkpoint["selection"]["damaged"] == ["red/damaged.png"]
    for file in colors.rglob("*.png"):
        file.write_text("")  # to read one would be an error
    resumed = call(train.main, colors, "--out", out, "--resume")
    assert "has ended after its 1 epochs" in resumed.stdout, resumed


def test_evaluate_judges_the_side_that_the_weights_were_not_trained_on(colors, tmp_path):
    out = tmp_path / "run"
    result = call(train.main, colors, "--out", out, *SMALL, "--val-fraction", 0.3)
    assert result.status == 0, result
    train_images, val_images = parts_of(colors, 0.3)
    given = colors, "--weights", out / "model.pt"
    for part, names in ((), val_images), (("--part", "train"), train_images):
        judged = call(evaluate.main, *given, *part)
        assert judged.status == 0, judged
        assert "split with 0.3 for validation (as to train these weights)" in judged.stdout
        rows = (out / "predictions.csv").read_text().splitlines()[1:]
        assert {row.split(",")[0] for row in rows} == names
    judged = call(evaluate.main, *given, "--part", "all")
    assert f"{colors}: all images\n" in judged.stdout
    assert "of 90 images" in judged.stdout


def test_weights_that_were_not_trained_on_a_split_are_judged_on_all_images(colors, tmp_path):
    random.seed(0)
    divided = tmp_path / "divided"
    for file in sorted(colors.rglob("*.png")):
        target = divided / random.choice(["train", "val"]) / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    out = tmp_path / "run"
    assert call(train.main, divided, "--out", out, *SMALL).status == 0
    judged = call(evaluate.main, colors, "--weights", out / "model.pt")
    assert f"{colors}: all images\n" in judged.stdout
    line = refusal(evaluate.main, divided, "--weights", out / "model.pt", "--part", "all")
    assert "--part all" in line
