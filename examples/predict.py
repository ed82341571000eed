"""Name what is in photographs.

python -m examples.predict photo.jpg
python -m examples.predict --model alexnet --top 3 --json holiday/ cat.png
python -m examples.predict --weights run/model.pt photo.jpg
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Iterable, Iterator

import click
import torch
from torch import Tensor
from torch.fx.experimental.optimization import fuse
from torch.utils.data import DataLoader, Dataset

from examples.images import ImageError, open_image
from examples.memory import reuse_memory
from examples.options import Command, Device
from examples.weights import MODELS, Classifier, load_file, load_official

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Photographs(Dataset[tuple[Path, "Tensor | ImageError"]]):
    """Files as the classifier wants them: (path, image (3, H, W)), or (path, what is wrong)."""

    def __init__(self, files: list[Path], classifier: Classifier) -> None:
        self.files, self.preprocess = files, classifier.preprocessing()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Path, Tensor | ImageError]:
        try:
            return self.files[index], self.preprocess(open_image(self.files[index]))
        except ImageError as error:
            return self.files[index], error


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files among `paths` and, in order of name, those in the folders among them."""
    for path in paths:
        files = sorted(file for file in path.rglob("[!.]*") if file.is_file())
        yield from files or [path]


def give_way(worker: int) -> None:
    """Let the network have the processor whenever it has images to look at."""
    if hasattr(os, "nice"):
        os.nice(10)


@torch.inference_mode()
def predict(
    classifier: Classifier, files: list[Path], device: torch.device, batch_size: int, precision: str
) -> Iterator[tuple[Path, Tensor | ImageError]]:
    """Yield each file with the probabilities (num_classes,) of its classes, or what is wrong."""
    model = fuse(classifier.model.eval()).to(memory_format=torch.channels_last).to(device)
    batches: Iterable[list[tuple[Path, Tensor | ImageError]]] = DataLoader(
        Photographs(files, classifier),
        batch_size=batch_size,
        num_workers=min(os.cpu_count() or 1, len(files) // 16),  # few files: not worth a process
        worker_init_fn=give_way,
        collate_fn=list,
    )
    for batch in batches:
        images = [image for _, image in batch if isinstance(image, Tensor)]
        if images:
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
                logits = model(torch.stack(images).to(device))  # (N, num_classes)
            probabilities = iter(logits.float().softmax(1).cpu())
        for path, image in batch:
            yield path, next(probabilities) if isinstance(image, Tensor) else image


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(sorted(MODELS)), help="[default: resnet18]")
@click.option("--weights", type=click.Path(path_type=Path), help="[default: official ImageNet's]")
@click.option("--top", type=click.IntRange(1), default=5, help="Classes to print.")
@click.option("--device", type=Device(), default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--precision", type=click.Choice(sorted(DTYPES)), default="float32")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Images at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image.")
def main(
    paths: list[Path], model: str, weights: Path | None, top: int, as_json: bool, **how: object
) -> None:
    """Print the likeliest classes of each image, or of each image in a folder, at PATHS."""
    reuse_memory()
    warnings.filterwarnings("ignore", module="PIL")  # whatever matters is raised
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore  # names need not be text
    classifier = load_file(weights, model) if weights else load_official(model or "resnet18")
    bad = False
    for path, result in predict(classifier, list(find_files(paths)), **how):  # type: ignore
        if isinstance(result, ImageError):
            result.show()
            bad = True
            continue
        best = result.topk(min(top, len(result)))
        ranking = [
            {"class": classifier.classes[index], "index": index, "probability": probability}
            for probability, index in zip(best.values.tolist(), best.indices.tolist())
        ]
        if as_json:
            click.echo(json.dumps({"file": str(path), "predictions": ranking}))
        else:
            lines = [f"{100 * row['probability']:7.2f} %  {row['class']}" for row in ranking]
            click.echo("\n".join([str(path), *lines]))
    sys.exit(bad)


if __name__ == "__main__":
    main()
