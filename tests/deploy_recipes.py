"""Each recipe of docs/deploy.md gives PyTorch's logits, and what it says is refused is.

`tests/deploy.sh` installs the engines and runs this file. CI does not.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

from tests.deploy import (
    CHROMIUM,
    ONNX_RUNTIME_WEB,
    PAGE,
    ROOT,
    blocks,
    serve,
    set_up,
    start_browser,
    write_onnx,
)
from tests.oracle import deviation

PACKAGES = {
    "LiteRT": ["litert_torch", "ai_edge_litert"],
    "ExecuTorch": ["executorch"],
    "ncnn": ["ncnn", "pnnx"],
    "MNN": ["MNN"],
    "OpenCV": ["cv2"],
    "Core ML": ["coremltools"],
}
FROM_ONNX = ("MNN", "OpenCV")
ANY_BATCH = ("ExecuTorch", "ncnn", "MNN", "OpenCV")


@pytest.fixture(scope="module", params=["resnet18", "alexnet"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def variables(name, tmp_path_factory) -> dict:
    """The variables of the page's setup. The files of all recipes are in its folder."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp(name))
    yield set_up(name)
    os.chdir(before)


@pytest.fixture(scope="module")
def onnx_file(name, variables) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("tyro")
    write_onnx(name)
    return Path("runs", "export", f"{name}.onnx")


@pytest.fixture(scope="module")
def converted(request, name, variables):
    """A function that converts the network by a recipe, once, or skips the test."""
    done = set()

    def convert(heading: str) -> None:
        for package in PACKAGES[heading]:
            pytest.importorskip(package)
        if heading in FROM_ONNX:
            request.getfixturevalue("onnx_file")
        if heading not in done and heading != "OpenCV":
            exec(blocks(heading, name)[0], dict(variables))
            done.add(heading)

    return convert


@pytest.fixture
def run(name, variables, converted):
    """A function that runs a recipe for some images and returns its variables."""

    def run(heading: str, images: Tensor | None = None, change: tuple = ("", "")) -> dict:
        converted(heading)
        code = blocks(heading, name)[-1]
        assert change[0] in code
        names = dict(variables)
        if images is not None:
            names["images"] = images
        exec(code.replace(*change) if change[0] else code, names)
        return names

    return run


def torchvisions_logits(variables: dict, images: Tensor) -> Tensor:
    """Return the logits for pixels by torchvision's network and normalization."""
    mean, std = ResNet18_Weights.IMAGENET1K_V1.transforms().mean, [0.229, 0.224, 0.225]
    with torch.no_grad():
        return variables["theirs"](v2.functional.normalize(images / 255, mean, std))


def resized(images: Tensor, size: int) -> Tensor:
    return v2.functional.resize(images, [size, size])


def off(names: dict, expected: Tensor) -> float:
    return deviation(torch.as_tensor(np.array(names["logits"])), expected)


@pytest.mark.parametrize("heading", [heading for heading in PACKAGES if heading != "Core ML"])
def test_a_recipe_gives_pytorchs_logits(heading, run, variables, capsys):
    names = run(heading)
    assert off(names, torchvisions_logits(variables, variables["images"])) <= 1e-5
    capsys.readouterr()
    exec(blocks("Setup", "resnet18")[1], names)
    assert float(capsys.readouterr().out) <= 1e-5


@pytest.mark.parametrize("heading", ANY_BATCH)
def test_a_recipe_takes_any_batch(heading, run, variables):
    images = torch.cat([variables["images"], variables["images"].flip(3), variables["images"] // 2])
    assert off(run(heading, images), torchvisions_logits(variables, images)) <= 1e-5


@pytest.mark.parametrize("size", [192, 256])
@pytest.mark.parametrize("heading", ["ExecuTorch", "ncnn", "MNN", "OpenCV"])
def test_a_recipe_takes_another_size(heading, name, run, variables, size):
    if name == "alexnet" and heading in ("MNN", "OpenCV"):
        pytest.skip("tests of their own show what happens")
    images = resized(variables["images"], size)
    assert off(run(heading, images), torchvisions_logits(variables, images)) <= 1e-5


def test_opencv_refuses_another_size_for_alexnet(name, run, variables):
    if name == "resnet18":
        pytest.skip("gives the logits")
    cv2 = pytest.importorskip("cv2")
    with pytest.raises(cv2.error, match=quoted("autoSize*outTotal == inpTotal")):
        run("OpenCV", resized(variables["images"], 256))


def test_opencv_swaps_red_and_blue_unless_it_is_told_not_to(run, variables):
    cv2 = pytest.importorskip("cv2")
    bgr = np.ascontiguousarray(variables["images"][0].permute(1, 2, 0).numpy()[..., ::-1])
    arguments = {"swapRB": True, "ddepth": cv2.CV_8U}
    blob = torch.from_numpy(cv2.dnn.blobFromImage(bgr, **arguments))
    assert "blobFromImage(bgr, swapRB=True, ddepth=cv2.CV_8U)" in PAGE
    assert torch.equal(blob, variables["images"])
    swapped = torch.from_numpy(cv2.dnn.blobFromImage(bgr, ddepth=cv2.CV_8U))
    assert off(run("OpenCV", swapped), variables["expected"]) > 1e-2


# What is refused, by the messages that the page quotes


def quoted(message: str) -> str:
    """Return a pattern for a message of the page, with any text in the place of its `...`."""
    assert message in " ".join(PAGE.split())
    return ".*".join(map(re.escape, message.split("...")))


def test_litert_refuses_another_shape(run, variables):
    with pytest.raises(ValueError, match=quoted("Cannot set tensor: Dimension mismatch")):
        run("LiteRT", variables["images"].repeat(8, 1, 1, 1))


def test_litert_takes_eight_images_in_resnet18_after_it_is_told_so(name, run, variables):
    allocate = "interpreter.allocate_tensors()\n"
    resize = 'interpreter.resize_tensor_input(input_details["index"], [8, 3, 224, 224])'
    assert resize in PAGE
    images = torch.cat([variables["images"].roll(8 * i, 3) for i in range(8)])
    first = 'interpreter.set_tensor(input_details["index"]'
    change = (first, f"{resize}\n{allocate}{first}")
    if name == "resnet18":
        names = run("LiteRT", images, change)
        assert off(names, torchvisions_logits(variables, images)) <= 1e-5
    else:
        with pytest.raises(RuntimeError, match=quoted("XNNPack delegate failed to reshape")):
            run("LiteRT", images, change)


def test_litert_converts_no_dynamic_batch(variables):
    litert_torch = pytest.importorskip("litert_torch")
    images = variables["images"].repeat(2, 1, 1, 1)
    batch = ({0: torch.export.Dim("batch")},)
    with pytest.raises(AssertionError, match=quoted("float32[-9223372036854775808,3,224,224]")):
        litert_torch.convert(variables["network"], (images,), dynamic_shapes=batch)

    message = quoted("Shapes must be 1D sequences of concrete values of integer type")
    with pytest.raises(TypeError, match=message):
        litert_torch.convert(variables["network"].network, (images.float(),), dynamic_shapes=batch)


def test_executorch_refuses_more_images_than_the_maximum(run, variables):
    message = quoted("method->set_inputs() for method 'forward' failed with error 0x10")
    with pytest.raises(RuntimeError, match=message):
        run("ExecuTorch", variables["images"].repeat(33, 1, 1, 1))


def test_opencv_refuses_float_pixels(run, variables):
    cv2 = pytest.importorskip("cv2")
    message = quoted(
        "incompatible type of input tensor #0 'images': CV_32FC1 given, CV_8UC1 expected"
    )
    with pytest.raises(cv2.error, match=message):
        run("OpenCV", variables["images"].float())


# Core ML, which predicts on a Mac only


@pytest.fixture
def core_ml(name, variables, converted):
    converted("Core ML")
    return pytest.importorskip("coremltools").models.MLModel(
        f"{name}.mlpackage", skip_model_load=True
    )


def test_the_core_ml_file_takes_a_photo_and_returns_logits(core_ml):
    description = core_ml.get_spec().description
    (image,), (logits,) = description.input, description.output
    assert (image.name, logits.name) == ("image", "logits")
    assert (image.type.imageType.width, image.type.imageType.height) == (224, 224)
    assert image.type.imageType.ColorSpace.Name(image.type.imageType.colorSpace) == "RGB"
    assert list(logits.type.multiArrayType.shape) == [1, 1000]


@pytest.mark.parametrize("flexible", ["batch", "size"])
def test_core_ml_takes_flexible_shapes_for_resnet18_only(name, variables, flexible):
    ct = pytest.importorskip("coremltools")
    traced = torch.jit.trace(variables["network"], variables["images"].float())
    shape = (ct.RangeDim(1, 8), 3, 224, 224)
    if flexible == "size":
        shape = (1, 3, ct.RangeDim(64, 512), ct.RangeDim(64, 512))
    inputs = [ct.TensorType(name="image", shape=shape)]
    if name == "resnet18":
        ct.convert(traced, inputs=inputs)
    else:
        message = "Adaptive pooling is only supported when input tensor size is known or output "
        with pytest.raises(ValueError, match=quoted(message + "size == (1,1)")):
            ct.convert(traced, inputs=inputs)


def test_core_ml_takes_an_exported_program_after_decomposition(variables):
    ct = pytest.importorskip("coremltools")
    program = torch.export.export(variables["network"], (variables["images"].float(),))
    with pytest.raises(NotImplementedError, match=quoted("Provided Dialect: TRAINING")):
        ct.convert(program)
    ct.convert(program.run_decompositions({}))


# The browser


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright")
    if not (CHROMIUM and ONNX_RUNTIME_WEB.exists()):
        pytest.skip("needs Chromium, and onnxruntime-web in NODE_PATH")
    with start_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, onnx_file):
    """A page of the browser, which has opened nothing yet, and finds the file on its server."""
    with serve(browser, onnx_file.parent) as page:
        yield page


def open_page(page, name: str) -> None:
    page.goto("browser.html" if name == "resnet18" else f"browser.html?model={name}.onnx")


def logits_in_console(page, photo: Path) -> Tensor:
    """Give the page a photo, and return the logits that it prints to the console."""
    with page.expect_console_message(lambda message: message.text.startswith("logits")) as printed:
        page.set_input_files("input", photo)
    return torch.tensor(printed.value.args[1].json_value())[None]


def pixels_on_canvas(page) -> Tensor:
    """Return what the page shows of the photo, uint8 (1, 3, H, W)."""
    values = page.evaluate(
        """() => {
            const {width, height} = document.querySelector("canvas");
            const context = document.querySelector("canvas").getContext("2d");
            return [height, width, Array.from(context.getImageData(0, 0, width, height).data)];
        }"""
    )
    height, width, colors = values
    image = torch.tensor(colors, dtype=torch.uint8).view(height, width, 4)
    return image[..., :3].permute(2, 0, 1)[None]


def test_the_page_gives_pytorchs_logits_for_the_pixels_it_shows(page, name, variables):
    open_page(page, name)
    logits = logits_in_console(page, ROOT / "docs" / "cat.jpg")
    pixels = pixels_on_canvas(page)
    assert pixels.shape == (1, 3, 224, 224)
    assert deviation(logits, torchvisions_logits(variables, pixels)) <= 1e-5


def test_the_pages_crop_is_nearly_torchvisions(page, name, variables):
    open_page(page, name)
    logits = logits_in_console(page, ROOT / "docs" / "cat.jpg")
    pixels = pixels_on_canvas(page)
    difference = (pixels.float() - variables["images"]).abs()
    print(difference.mean(), difference.max(), deviation(logits, variables["expected"]))
    assert difference.mean() <= 1.5
    assert deviation(logits, variables["expected"]) <= 0.03


def test_the_page_shows_the_five_most_likely_classes(page, name, onnx_file):
    onnx = pytest.importorskip("onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props}
    classes = json.loads(metadata["classes"])
    open_page(page, name)
    logits = logits_in_console(page, ROOT / "docs" / "cat.jpg")
    values, indices = logits.softmax(1)[0].topk(5)
    page.wait_for_selector("tr >> nth=4")
    rows = [row.split("\t") for row in page.inner_text("table").splitlines()]
    assert [label for label, _ in rows] == [classes[index] for index in indices.tolist()]
    assert [share for _, share in rows] == [f"{100 * value:.1f}%" for value in values.tolist()]


def test_the_page_turns_a_photo_upright(page, name, tmp_path):
    open_page(page, name)
    photo = Image.open(ROOT / "docs" / "cat.jpg")
    rotated, exif = photo.rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show"
    rotated.save(tmp_path / "rotated.png", exif=exif)
    photo.save(tmp_path / "upright.png")
    upright = logits_in_console(page, tmp_path / "upright.png")
    assert deviation(logits_in_console(page, tmp_path / "rotated.png"), upright) <= 1e-3


def test_the_page_takes_a_dropped_photo(page, name):
    open_page(page, name)
    chosen = logits_in_console(page, ROOT / "docs" / "cat.jpg")
    data = page.evaluate_handle(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "cat.jpg", {type: "image/jpeg"}));
            return data;
        }""",
        list((ROOT / "docs" / "cat.jpg").read_bytes()),
    )
    with page.expect_console_message(lambda message: message.text.startswith("logits")) as printed:
        page.dispatch_event("label", "drop", {"dataTransfer": data})
    assert torch.equal(torch.tensor(printed.value.args[1].json_value())[None], chosen)


def test_the_page_says_that_the_network_is_missing(page):
    page.goto("browser.html?model=missing.onnx")
    page.wait_for_selector("text=missing.onnx: 404")


def test_the_page_says_that_a_file_is_no_photo(page, name, tmp_path):
    open_page(page, name)
    (tmp_path / "notes.txt").write_text("not a photo")
    page.set_input_files("input", tmp_path / "notes.txt")
    page.wait_for_selector("text=notes.txt is not a photo")
