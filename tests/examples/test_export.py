"""`python -m examples.export` writes a network to a file, and refuses a file that is wrong."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

for package in ("tyro", "safetensors", "openvino"):
    pytest.importorskip(package)
cbook = pytest.importorskip("matplotlib.cbook")

from examples import evaluate, export, predict, train  # noqa: E402
from examples.lib.classifier import Metadata, load_classifier  # noqa: E402
from examples.lib.command import WeightsError  # noqa: E402
from examples.lib.networks import MEAN, STD, PixelNetwork  # noqa: E402
from examples.lib.split import content_hash, is_val  # noqa: E402
from examples.lib.unlabeled import choose_images, shuffled_files  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402
from tests.oracle import MODELS, deviation, oracle  # noqa: E402

PHOTOS = {
    "Grace Hopper": Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)),
    'crème "brûlée" <&>': Path(__file__).parents[2] / "docs" / "cat.jpg",
}
SIZE = 64
ROOT = Path(__file__).parents[2]
METADATA = Metadata(
    name="resnet18",
    classes=list(PHOTOS),
    classes_known=True,
    image_size=SIZE,
    resize_size=73,
)
onnx_runtime = pytest.param(
    "onnx",
    marks=pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
        reason="ONNX Runtime is not installed",
    ),
)
formats = pytest.mark.parametrize("format", ["openvino", onnx_runtime])
needs_nncf = pytest.mark.skipif(not importlib.util.find_spec("nncf"), reason="no NNCF")


def crops(path: Path, count: int) -> list[Image.Image]:
    """Return random crops of a photograph."""
    crop = v2.RandomResizedCrop(SIZE, scale=(0.2, 1))
    return [crop(Image.open(path).convert("RGB")) for _ in range(count)]


def save(image: Tensor, path: Path) -> None:
    """Write a picture whose center crop, as it is read, is the image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    padded = v2.functional.pad(image, [4, 4, 5, 5], padding_mode="reflect")  # 73 x 73
    v2.functional.to_pil_image(padded).save(path)


def pixels(images: list[Image.Image]) -> Tensor:
    return torch.stack([v2.functional.pil_to_tensor(image) for image in images])


def normalized(pixels: Tensor) -> Tensor:
    return v2.functional.normalize(pixels / 255, MEAN, STD)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Crops of the two photographs in turns, uint8 (40, 3, 64, 64)."""
    torch.manual_seed(1)
    one, other = (crops(path, count=20) for path in PHOTOS.values())
    return pixels([image for pair in zip(one, other) for image in pair])


@pytest.fixture(scope="module")
def network(images) -> nn.Module:
    """ResNet-18 of torchvision, whose random features a fitted last layer can tell apart.

    A photograph with swapped channels is the other photograph to it.
    """
    network = oracle("resnet18", num_classes=2).eval()
    head, network.fc = network.fc, nn.Identity()
    with torch.no_grad():
        features = torch.cat([network(normalized(images)), network(normalized(images.flip(1)))])
        labels = torch.tensor([0, 1] * 20 + [1, 0] * 20)
        mean = features.mean(0)
        centered = features - mean
        targets = nn.functional.one_hot(labels).float() - 0.5
        products = centered @ centered.T  # of each two images; the identity keeps weights small
        coefficients = torch.linalg.solve(
            products + products.trace() / 512 * torch.eye(80), targets
        )
        head.weight.copy_(coefficients.T @ centered)
        head.bias.copy_(-head.weight @ mean)
    network.fc = head
    return network


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory) -> Path:
    """The network in a file as examples.train writes it."""
    ours = MODELS["resnet18"].from_state_dict(network.state_dict())
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    saved = {"state_dict": ours.state_dict(), "classes": list(PHOTOS), "image_size": SIZE}
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def photos(images, tmp_path_factory) -> Path:
    """A data set of the images, in PNG files."""
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(images):
        save(image, folder / "train" / f"class {index % 2}" / f"{index}.png")
    return folder


def file_name(format: str) -> str:
    return {"openvino": "resnet18.xml", "onnx": "resnet18.onnx"}[format]


@formats
def test_float32_logits_class_names_and_image_size_are_those_of_the_weights(
    format, network, images, fast
):
    exported = load_classifier(fast / file_name(format))
    assert exported.name == "resnet18"
    assert exported.classes == list(PHOTOS)
    assert exported.classes_known
    assert exported.image_size == SIZE
    for some in (images[:1], images[:5]):
        with torch.no_grad():
            logits = torch.from_numpy(exported.logits(some.numpy()))
            assert deviation(logits, network(normalized(some))) < 1e-4


@formats
def test_any_batch_size_is_taken_but_only_the_image_size_of_the_file(format, fast):
    logits = load_classifier(fast / file_name(format)).logits
    for batch_size in (1, 7, 2):
        images = np.zeros((batch_size, 3, SIZE, SIZE), dtype="uint8")
        assert logits(images).shape == (batch_size, 2)
    with pytest.raises(Exception, match=str(SIZE)):
        logits(np.zeros((1, 3, SIZE + 32, SIZE + 32), dtype="uint8"))


@needs_nncf
@formats
def test_int8_is_calibrated_on_a_data_set_and_chooses_the_same_classes(
    format, network, images, weights, photos, tmp_path
):
    result = call(
        export.main, *("--weights", weights, "--format", format), "--calibrate", photos,
        "--out", tmp_path,
    )  # fmt: skip
    assert (result.status, result.stderr) == (0, "")
    exported = load_classifier(tmp_path / file_name(format)).logits
    with torch.no_grad():
        expected = network(normalized(images))
    batches = images[:1].numpy(), images[1:].numpy()
    logits = torch.cat([torch.from_numpy(exported(batch)) for batch in batches])
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.9
    assert 1e-3 < deviation(logits, expected) < 0.3  # rounded, but not wrong


def test_the_last_lines_are_size_agreement_error_and_times(weights, tmp_path):
    result = call(export.main, "--weights", weights, "--out", tmp_path / "fast")
    numbers = {}
    for line in result.stdout.splitlines():
        text, _, number = line.rpartition(": ")
        numbers[text] = number
    size = (tmp_path / "fast" / "resnet18.bin").stat().st_size / 1e6
    assert numbers[f"{tmp_path}/fast/resnet18.bin"] == f"{size:.1f} MB"
    assert numbers["agreement of the most likely class with PyTorch"] == "100.0% of 32 images"
    assert 0 < float(numbers["largest relative error of the logits"]) < 1e-3  # what the page says
    for batch_size in (1, 32):
        time = numbers[f"milliseconds per image at batch {batch_size}"]
        assert re.fullmatch(r"[\d.]+, in PyTorch [\d.]+ \([\d.]+ times as long\)", time)


class SwappedChannels(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.flip(1))


def without_normalization(network):
    network = copy.deepcopy(network)
    network.mean.zero_()
    network.std.fill_(1)
    return network


def another_network(network):
    return PixelNetwork(MODELS["resnet18"](num_classes=2)).eval()


@needs_nncf
@pytest.mark.parametrize(
    "format, int8, fault",
    [
        ("openvino", False, SwappedChannels),
        ("openvino", False, without_normalization),
        ("openvino", False, another_network),
        ("openvino", True, SwappedChannels),
        ("onnx", True, SwappedChannels),
    ],
)
def test_a_wrong_file_is_refused_and_does_not_stay(
    format, int8, fault, weights, photos, tmp_path, monkeypatch
):
    (tmp_path / file_name(format)).write_text("an earlier export")
    write = getattr(export, f"write_{format}")
    monkeypatch.setattr(
        export, f"write_{format}", lambda network, *rest: write(fault(network), *rest)
    )
    options = ["--weights", weights, "--format", format, "--out", tmp_path]
    if int8:
        options += ["--calibrate", photos]
    assert "the exported network is wrong" in refusal(export.main, *options)
    assert [path.name for path in tmp_path.iterdir()] == [file_name(format)]
    assert (tmp_path / file_name(format)).read_text() == "an earlier export"


def test_ctrl_c_leaves_nothing_half_written(weights, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "load_exported", interrupt)  # the file is written, not checked
    with pytest.raises(KeyboardInterrupt):
        export.main(["--weights", str(weights), "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_images_to_calibrate_with_are_chosen_by_the_seed(photos):
    (first, _), (again, _), (other, _) = (
        choose_images(str(photos / "train"), METADATA, 8, seed) for seed in (0, 0, 1)
    )
    assert first.shape == (8, 3, SIZE, SIZE)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_images_that_calibrated_are_not_compared_on(photos):
    training, validation = choose_images(str(photos / "train"), METADATA, 256, seed=0)
    assert len(training) + len(validation) == 40
    assert not {image.tobytes() for image in training} & {image.tobytes() for image in validation}


def test_images_are_divided_as_they_were_for_training(photos):
    for file, for_validation in shuffled_files(str(photos / "train"), 0.3, seed=0):
        assert for_validation == is_val(content_hash(file), 0.3)
    for file, for_validation in shuffled_files(str(photos), 0.3, seed=0):
        assert for_validation == ("val" in file.parts)


def test_training_images_of_cifar10_calibrate_and_test_images_are_compared_on(cifar10):
    training, validation = choose_images("cifar10", METADATA, count=256, seed=0)
    assert (len(training), len(validation)) == (40, 20)


@needs_nncf
def test_nobody_is_told_that_a_network_was_exported(weights, photos, tmp_path):
    script = (
        "import sys; from examples.export import main; main(sys.argv[1:]); "
        "assert sys.modules['openvino_telemetry'] is None; "
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]"
    )
    given = "--weights", weights, "--calibrate", photos / "train", "--out", tmp_path / "fast"
    environment = {name: os.environ[name] for name in os.environ if name != "CI"}
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, given)], cwd=ROOT, env=environment
    )
    assert process.returncode == 0


@needs_nncf
def test_an_image_that_cannot_be_read_is_left_out_of_the_calibration(weights, photos, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "photos")
    damaged = tmp_path / "photos" / "text.png"
    damaged.write_text("no image")
    options = ["--weights", weights, "--calibrate", tmp_path / "photos", "--out", tmp_path / "fast"]
    result = call(export.main, *options)
    assert result.status == 0
    assert result.stderr.startswith(f"note: left out {damaged}: ")
    assert re.search(r"100.0% of \d images", result.stdout)  # a fifth of 40, more or less


@pytest.mark.parametrize(
    "package, options",
    [
        ("openvino", []),
        ("nncf", ["--calibrate", "photos"]),
        ("onnxruntime", ["--format", "onnx"]),
        ("onnxscript", ["--format", "onnx"]),
    ],
)
def test_a_package_that_is_missing_is_named(
    package, options, weights, photos, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)  # `import` says that there is none
    options = [{"photos": photos}.get(option, option) for option in options]
    options += ["--weights", weights, "--out", tmp_path]
    assert refusal(export.main, *options).endswith(f"pip install {package}\n")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(weights, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for option, value, reason in [
        ("--weights", "nowhere.pt", "nowhere.pt"),
        ("--calibrate", tmp_path / "empty", "no images in this folder"),
        ("--calibrate", tmp_path / "nowhere", "nowhere"),
        ("--out", tmp_path / "file", "cannot create a folder in"),
    ]:
        options = {"--weights": weights, "--out": tmp_path / "fast", option: value}
        assert reason in refusal(export.main, *itertools.chain(*options.items()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


@pytest.mark.parametrize("name, format", [("alexnet", "openvino"), ("resnet18", "onnx")])
def test_official_weights_are_the_default(name, format, official_weights, tmp_path):
    result = call(export.main, "--model", name, "--format", format, "--out", tmp_path)
    assert result.status == 0, result
    extension = {"openvino": "xml", "onnx": "onnx"}[format]
    exported = load_classifier(tmp_path / f"{name}.{extension}")
    assert exported.name == name
    assert exported.classes[281] == "tabby"
    assert not exported.classes_known  # a data set names its folders otherwise
    assert exported.image_size == 224


# Reading exported files


@pytest.fixture(scope="module")
def fast(weights, tmp_path_factory) -> Path:
    """A folder with the exported network in both formats."""
    folder = tmp_path_factory.mktemp("fast")
    for format in ("openvino", "onnx"):
        result = call(export.main, "--weights", weights, "--format", format, "--out", folder)
        assert (result.status, result.stderr) == (0, "")
    return folder


def reason(path: Path) -> str:
    """Return the one line with which a file is refused."""
    with pytest.raises(WeightsError) as caught:
        load_classifier(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.with_suffix("")) in message
    return message


@pytest.mark.parametrize("name", ["resnet18.xml", "resnet18.bin", "resnet18.onnx"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_damaged_file_is_refused(name, kept, fast, tmp_path):
    for path in fast.iterdir():
        shutil.copy(path, tmp_path)
    data = (fast / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(kept * len(data))])
    path = tmp_path / name
    assert "damaged" in reason(path.with_suffix(".xml") if path.suffix == ".bin" else path)


def test_a_missing_file_is_named(fast, tmp_path):
    shutil.copy(fast / "resnet18.xml", tmp_path)
    assert "resnet18.bin: No such file" in reason(tmp_path / "resnet18.xml")
    assert "resnet50.xml: No such file" in reason(tmp_path / "resnet50.xml")
    assert "resnet50.onnx: No such file" in reason(tmp_path / "resnet50.onnx")


def test_the_weights_of_another_export_are_refused(fast, tmp_path):
    shutil.copy(fast / "resnet18.xml", tmp_path)
    data = bytearray((fast / "resnet18.bin").read_bytes())
    data[:4000] = bytes(4000)
    (tmp_path / "resnet18.bin").write_bytes(data)
    assert "resnet18.bin is not the file that was written with it" in reason(
        tmp_path / "resnet18.xml"
    )


def test_an_onnx_file_without_its_external_data_is_refused(fast, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(fast / "resnet18.onnx")
    onnx.save(model, tmp_path / "resnet18.onnx", save_as_external_data=True, location="weights")
    (tmp_path / "weights").unlink()
    assert "weights" in reason(tmp_path / "resnet18.onnx")


def test_a_file_of_another_network_is_refused_with_its_inputs(tmp_path):
    import openvino

    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model = openvino.convert_model(network, example_input=torch.zeros(1, 3, 2, 2))
    openvino.save_model(model, tmp_path / "other.xml")
    message = reason(tmp_path / "other.xml")
    assert "not written by examples.export: its inputs are" in message
    assert "f32" in message

    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        "main (float[n, 3, 640, 640] pictures) => (float[n, 3, 640, 640] y) {y = Relu(pictures)}"
    )
    onnx.save(model, tmp_path / "other.onnx")
    message = reason(tmp_path / "other.onnx")
    assert "its inputs are pictures tensor(float) ['n', 3, 640, 640]" in message


# Exported files in the place of weights


def probabilities(*arguments: object) -> list[dict[str, float]]:
    """Return the probability of each class, for each picture that predict classifies."""
    result = call(predict.main, *arguments, "--json")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    return [
        {row["class"]: row["probability"] for row in answer["predictions"]} for answer in answers
    ]


@pytest.mark.parametrize("name", ["resnet18.xml", "resnet18.onnx"])
def test_predict_answers_as_with_weights(name, fast, weights):
    pictures = [*PHOTOS.values(), "nowhere.jpg"]
    with_weights = probabilities(*pictures, "--weights", weights)
    exported = probabilities(*pictures, "--weights", fast / name)
    assert len(exported) == 2
    for answer, expected in zip(exported, with_weights, strict=True):
        assert answer == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def data(images, tmp_path_factory) -> Path:
    """A data set with a folder of images for each of the network's classes, named as they are."""
    folder = tmp_path_factory.mktemp("data")
    for index, image in enumerate(images):
        save(image, folder / "val" / list(PHOTOS)[index % 2] / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", ["resnet18.xml", "resnet18.onnx"])
def test_evaluate_counts_as_with_weights(name, fast, weights, data, tmp_path):
    options = ["--workers", 0, "--out", tmp_path]
    expected = call(evaluate.main, data, "--weights", weights, *options)
    result = call(evaluate.main, data, "--weights", fast / name, *options)
    assert "top-1 100.00% of 40 images" in expected.stdout, expected
    assert result == expected


@pytest.mark.parametrize(
    "options, reason",
    [
        ("--device cuda:7", "runs on the CPU only"),
        ("--precision bfloat16", "was chosen when it was exported"),
        ("--model alexnet", "holds resnet18, not alexnet: use --model resnet18"),
    ],
)
def test_options_of_pytorch_are_refused(options, reason, fast, data):
    file = fast / "resnet18.xml"
    assert reason in refusal(predict.main, data, "--weights", file, *options.split())
    given = [data, "--weights", file, "--workers", 0]
    if "cuda" not in options or torch.cuda.is_available():
        assert reason in refusal(evaluate.main, *given, *options.split())


def test_an_exported_network_is_not_trained_nor_used_at_another_size(fast, data, tmp_path):
    options = [data, "--weights", fast / "resnet18.xml"]
    assert "cannot be trained" in refusal(train.main, *options, "--out", tmp_path / "run")
    reason = refusal(evaluate.main, *options, "--image-size", 96)
    assert "is for images of 64 x 64" in reason
    assert not (tmp_path / "run").exists()


def test_other_classes_are_refused(fast, photos, tmp_path):
    (tmp_path / "val").symlink_to(photos / "train")
    reason = refusal(evaluate.main, tmp_path, "--weights", fast / "resnet18.xml")
    assert "the classes of the weights differ" in reason
