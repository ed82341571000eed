"""`python -m examples.predict` classifies whatever a user points it at, as torchvision does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

pytest.importorskip("tyro")
pytest.importorskip("safetensors")
cbook = pytest.importorskip("matplotlib.cbook")

from examples.predict import main  # noqa: E402
from tests.examples.command import call, ordinary_user, refusal  # noqa: E402
from tests.oracle import MODELS, oracle  # noqa: E402

ROOT = Path(__file__).parents[2]
PHOTO = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
TIMEOUT = 120  # seconds after which a process that does not end has failed
CLASSES = ["cat", "dog", "crème brûlée"]


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """The photograph of Grace Hopper, 512 x 600."""
    return Image.open(PHOTO).convert("RGB")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of a ResNet-18 for 32 x 32 images of three classes, as examples.train writes them."""
    network = MODELS["resnet18"].from_state_dict(oracle("resnet18", num_classes=3).state_dict())
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save({"state_dict": network.state_dict(), "classes": CLASSES, "image_size": 32}, path)
    return path


def answers(*arguments: object) -> list[dict]:
    """Return what the command prints as JSON."""
    result = call(main, *arguments, "--json")
    assert result.status == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()]


def expected(name: str, image: Image.Image, top: int) -> list[tuple[int, str, float]]:
    """Return the index, class and probability that torchvision's model and transforms give."""
    official = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    with torch.inference_mode():
        logits = oracle(name).eval()(official.transforms()(image).unsqueeze(0))
    values, indices = logits.softmax(1)[0].topk(top)
    classes = official.meta["categories"]
    return [(i, classes[i], value) for i, value in zip(indices.tolist(), values.tolist())]


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_torchvisions(name, photograph, official_weights):
    (answer,) = answers(PHOTO, "--model", name)
    rows = expected(name, photograph, top=5)
    found = answer["predictions"]
    assert answer["file"] == str(PHOTO)
    assert [(row["index"], row["class"]) for row in found] == [row[:2] for row in rows]
    assert [row["probability"] for row in found] == pytest.approx(
        [row[2] for row in rows], rel=1e-4
    )


def test_the_file_and_its_most_likely_classes_are_printed(photograph, official_weights):
    result = call(main, PHOTO, "--top", 3)
    file, *rows = result.stdout.splitlines()
    assert (result.status, file) == (0, str(PHOTO))
    for row, (_, name, probability) in zip(
        rows, expected("resnet18", photograph, top=3), strict=True
    ):
        percentage, found = row.split("%")
        assert found.strip() == name
        assert float(percentage) == pytest.approx(100 * probability, abs=0.01)


def test_classes_and_image_size_are_those_of_the_weights(photograph, weights, tmp_path):
    photograph.save(tmp_path / "photo.png")
    (answer,) = answers(tmp_path / "photo.png", "--weights", weights)
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms(
        crop_size=32, resize_size=37
    )
    with torch.inference_mode():
        logits = oracle("resnet18", num_classes=3).eval()(preset(photograph)[None])
    probabilities = dict(zip(CLASSES, logits.softmax(1)[0].tolist()))
    found = {row["class"]: row["probability"] for row in answer["predictions"]}
    assert found == pytest.approx(probabilities, rel=1e-3)


def test_predictions_are_in_order_of_the_files_and_do_not_depend_on_the_batch(
    photograph, weights, tmp_path
):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "deep").mkdir()
    paths = [folder / f"{index}.png" for index in range(7)]
    paths += [folder / "deep" / "last.png", tmp_path / "single.jpg"]
    for index, path in enumerate(paths):
        photograph.rotate(40 * index).resize((64, 64)).save(path)
    alone, batched = (
        answers(folder, tmp_path / "single.jpg", "--weights", weights, "--batch-size", batch_size)
        for batch_size in (1, 4)
    )
    assert [answer["file"] for answer in alone] == [str(path) for path in paths]
    assert [answer["file"] for answer in batched] == [str(path) for path in paths]
    for one, other in zip(alone, batched, strict=True):
        assert [row["class"] for row in one["predictions"]] == [
            row["class"] for row in other["predictions"]
        ]
        assert [row["probability"] for row in one["predictions"]] == pytest.approx(
            [row["probability"] for row in other["predictions"]], rel=1e-4
        )
    assert len({answer["predictions"][0]["probability"] for answer in alone}) == len(paths)


def test_bad_files_are_reported_and_the_others_classified(photograph, weights, tmp_path):
    folder, empty, missing = tmp_path / "folder", tmp_path / "empty", tmp_path / "missing.jpg"
    folder.mkdir()
    empty.mkdir()
    photograph.save(folder / "good.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:20_000])
    (folder / "text.png").write_text("no image")
    Image.new("1", (1, 60_000)).save(folder / "strip.png")
    result = call(main, folder, missing, empty, "--weights", weights, "--json")
    assert result.status == 1
    assert [json.loads(line)["file"] for line in result.stdout.splitlines()] == [
        str(folder / "good.jpg")
    ]
    lines = sorted(result.stderr.splitlines())
    bad = sorted([folder / "strip.png", folder / "text.png", folder / "truncated.jpg"])
    for line, path in zip(lines, [empty, *bad, missing], strict=True):
        assert line.startswith(f"error: {path}: ")


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of folders")
def test_a_folder_that_cannot_be_read_costs_no_picture_its_answer(weights):
    with tempfile.TemporaryDirectory() as name:  # the folders above `tmp_path` are private
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(weights, folder / "model.pt")
        (folder / "lost+found").mkdir(mode=0)
        (folder / "names only").mkdir()
        for path in folder / "a.png", folder / "names only" / "b.png":
            Image.new("L", (16, 16)).save(path)
        (folder / "names only").chmod(0o444)
        with ordinary_user():
            arguments = folder, folder / "names only" / "b.png", "--weights", folder / "model.pt"
            result = call(main, *arguments, "--top", 1)
        (folder / "names only").chmod(0o755)
        assert result.status == 1
        assert result.stdout.splitlines()[0::2] == [str(folder / "a.png")]
        denied = folder / "lost+found", *[folder / "names only" / "b.png"] * 2
        assert sorted(result.stderr.splitlines()) == [
            *(f"error: {path}: Permission denied" for path in denied),
            "ignored 1 files that are not images",
        ]


@pytest.mark.parametrize("name", ["two\n  99.99%  lines", "esc\x1b[31mape", "cr\rback"])
def test_a_name_cannot_add_a_line_or_drive_a_terminal(name, photograph, weights, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({**torch.load(weights), "classes": [name, "dog", "cat"]}, path)
    folder = tmp_path / name
    folder.mkdir()
    photograph.save(folder / "good.png")
    (folder / "bad.png").write_text("no image")
    result = call(main, folder, "--weights", path)
    escaped = name.encode("unicode_escape").decode()
    first, *rows = result.stdout.splitlines()
    assert first == f"{tmp_path}/{escaped}/good.png"
    assert sorted(row.split("%  ", 1)[1] for row in rows) == sorted([escaped, "dog", "cat"])
    assert result.stderr.startswith(f"error: {tmp_path}/{escaped}/bad.png: not an image")
    assert all(line.isprintable() for line in (result.stdout + result.stderr).splitlines())


def test_only_bad_files_leave_no_answer(weights, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    assert str(tmp_path / "text.png") in refusal(main, tmp_path, "--weights", weights)


def test_other_files_in_a_folder_are_counted(photograph, weights, tmp_path):
    photograph.save(tmp_path / "photo.jpg")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._photo.jpg").touch()
    result = call(main, tmp_path, "--weights", weights)
    assert result.status == 0
    assert result.stdout.startswith(str(tmp_path / "photo.jpg"))
    assert result.stderr == "ignored 2 files that are not images\n"


def test_a_file_given_by_name_may_have_any_name(photograph, weights, tmp_path):
    photograph.save(tmp_path / ".photo", format="JPEG")
    assert answers(tmp_path / ".photo", "--weights", weights)[0]["file"] == str(tmp_path / ".photo")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_gives_about_the_same_probabilities(precision, weights):
    exact, rough = (
        {
            row["class"]: row["probability"]
            for row in answers(PHOTO, "--weights", weights, "--precision", name)[0]["predictions"]
        }
        for name in ("float32", precision)
    )
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("", "at least one image or folder"),
        ("x.jpg --top 0", "--top"),
        ("x.jpg --batch-size 0", "--batch-size"),
        ("x.jpg --device tpu", "--device tpu"),
        ("x.jpg --device cuda:99", "--device cuda:99"),
        ("x.jpg --weights nowhere.pt", "nowhere.pt"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, reason):
    assert reason in refusal(main, *arguments.split())


def start(command: str) -> subprocess.Popen:
    """Start the command in a shell of its own."""
    return subprocess.Popen(
        command.replace("PREDICT", f"{sys.executable} -m examples.predict"),
        shell=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    )


@pytest.mark.skipif(os.name != "posix", reason="the program is a shell script")
def test_no_program_is_started_for_a_file(photograph, weights, tmp_path):
    """Pillow starts Ghostscript, called gs, to read EPS."""
    programs, pictures = tmp_path / "bin", tmp_path / "pictures"
    for folder in programs, pictures:
        folder.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (programs / "gs").chmod(0o755)
    photograph.save(pictures / "a.png")
    for name in "drawing.eps", "drawing.png", "drawing.ps":
        photograph.resize((16, 16)).save(pictures / name, "EPS")
    process = start(
        f"PATH={programs}:$PATH; exec PREDICT {pictures} {pictures}/drawing.* --weights {weights}"
    )
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert stdout.startswith(f"{pictures}/a.png\n")
    assert stderr.count("not an image that is read (JPEG, PNG, ") == 4
    assert not (tmp_path / "started").exists()


MEMORY = """
import os, sys
os.cpu_count = lambda: 4
from examples.lib.command import reuse_memory
from examples.predict import main
reuse_memory()
main(sys.argv[1:])
print(*[line for line in open("/proc/self/status") if line.startswith("VmHWM")], file=sys.stderr)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures memory as Linux does")
def test_large_pictures_are_not_all_decoded_at_once(weights, tmp_path):
    """One of 49 megapixels takes 0.5 GB while it is read."""
    Image.new("RGBA", (7000, 7000), (200, 100, 50, 128)).save(tmp_path / "0.png")
    for index in range(1, 8):
        (tmp_path / f"{index}.png").hardlink_to(tmp_path / "0.png")
    arguments = [tmp_path, "--weights", weights, "--top", "1"]
    command = [sys.executable, "-c", MEMORY, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.stdout.count("%") == 8, done
    assert int(done.stderr.split()[1]) < 2 * 2**20  # KiB


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A folder of 200 small images, and a large one."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(200):
        Image.new("L", (16, 16), index).save(folder / f"{index:03}.png")
    Image.new("1", (9500, 9500)).save(folder / "large.png")  # Pillow warns of a bomb
    Image.new("L", (16, 16)).save(os.fsencode(folder) + b"/caf\xe9.png")  # not UTF-8
    return folder


def test_batches_may_be_larger_than_the_number_of_files_that_may_be_open(many, weights):
    process = start(f"ulimit -n 100; PREDICT {many} --weights {weights} --batch-size 150 --json")
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    files = [json.loads(line)["file"] for line in stdout.splitlines()]
    assert (process.returncode, stderr) == (0, "")
    assert files == sorted(str(path) for path in many.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="this is a property of pipes")
def test_a_closed_pipe_and_a_name_that_is_not_utf8(many, weights):
    process = start(f"PREDICT {many}/caf* {many}/0* --weights {weights} --batch-size 1 | head -n 1")
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert (stdout, stderr) == (f"{many}/caf\\udce9.png\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full belongs to Linux")
@pytest.mark.parametrize(
    "output, reason", [(">/dev/full", "No space left on device"), (">&-", "closed")]
)
def test_results_that_cannot_be_written_are_one_line(output, reason, many, weights):
    process = start(f"exec PREDICT {many}/000.png --weights {weights} {output}")
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert stderr.startswith("error: cannot write the results: ")
    assert reason in stderr
    assert stderr.count("\n") == 1


def test_ctrl_c_is_one_line_and_ends_a_loop_of_the_shell_too(many, weights):
    process = start(f"exec PREDICT {many} --weights {weights} --batch-size 1")
    process.stdout.readline()  # it has begun
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, stderr) == (-signal.SIGINT, "interrupted\n")
