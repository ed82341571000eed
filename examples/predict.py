"""Name what is in photographs.

python -m examples.predict photo.jpg
python -m examples.predict --model alexnet --top 3 --json holiday/ cat.png
python -m examples.predict --weights run/model.pt photo.jpg
"""

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Iterator

import click
import torch
from torch import Tensor
from torch.fx.experimental.optimization import fuse
from torch.utils.data import DataLoader

from examples.images import ImageError, open_image
from examples.memory import reuse_memory
from examples.options import Command, device
from examples.weights import MODELS, OFFICIAL, Classifier, load_file, load_official


def open_images(paths: list[Path], preprocess: Any) -> list[Tensor | ImageError]:
    """Return each image (3, H, W), or what is wrong with it."""
    images: list[Tensor | ImageError] = []
    for path in paths:
        try:
            images.append(preprocess(open_image(str(path))))
        except ImageError as error:
            images.append(error)
    return images


@torch.inference_mode()
def predict(
    classifier: Classifier, files: list[Path], device: torch.device, batch_size: int, precision: str
) -> Iterator[Tensor | ImageError]:
    """Yield the probabilities (num_classes,) of each file's classes, or what is wrong with it."""
    model = fuse(classifier.model.eval()).to(memory_format=torch.channels_last).to(device)
    size, transforms = classifier.image_size, OFFICIAL[classifier.name].transforms
    preprocess = transforms(crop_size=size, resize_size=round(size * 256 / 224))
    workers = min((os.cpu_count() or 1) // 2, len(files) // 16)  # few files: not worth a process
    collate = partial(open_images, preprocess=preprocess)
    batches: Any = DataLoader(files, batch_size, num_workers=workers, collate_fn=collate)  # type: ignore
    for batch in batches:
        images = [image for image in batch if isinstance(image, Tensor)]
        if images:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(torch.stack(images).to(device))  # (N, num_classes)
            probabilities = iter(logits.float().softmax(1).cpu())
        yield from (next(probabilities) if isinstance(i, Tensor) else i for i in batch)


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(sorted(MODELS)), help="[default: resnet18]")
@click.option("--weights", type=click.Path(path_type=Path), help="[default: official ImageNet's]")
@click.option("--top", type=click.IntRange(1), default=5, help="Classes to print.")
@click.option("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--precision", type=click.Choice(["bf16", "float32"]), default="float32")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Images at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image.")
def main(paths: list[Path], model: str, weights: Any, top: int, as_json: bool, **how: Any) -> None:
    """Print the likeliest classes of each image, or of each image in a folder, at PATHS."""
    reuse_memory()
    warnings.filterwarnings("ignore", module="PIL")  # whatever matters is raised
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore  # names need not be text
    classifier = load_file(weights, model) if weights else load_official(model or "resnet18")
    names = classifier.classes
    folders = [sorted(file for file in path.rglob("[!.]*") if file.is_file()) for path in paths]
    files = [file for path, inside in zip(paths, folders) for file in inside or [path]]
    status = 0
    for path, result in zip(files, predict(classifier, files, **how)):
        if isinstance(result, ImageError):
            result.show()
            status = 1
            continue
        best = zip(*(part.tolist() for part in result.topk(min(top, len(result)))))
        rows = [{"class": names[i], "index": i, "probability": value} for value, i in best]
        lines = [f"{100 * row['probability']:7.2f} %  {row['class']}" for row in rows]
        answer = json.dumps({"file": str(path), "predictions": rows})
        click.echo(answer if as_json else "\n".join([str(path), *lines]))
    sys.exit(status)


if __name__ == "__main__":
    main()
