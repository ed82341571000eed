"""Name what is in photographs.

python -m examples.predict photo.jpg
python -m examples.predict --model alexnet --top 3 --json holiday/ cat.png
python -m examples.predict --weights model.pt photo.jpg
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Iterable, Iterator, Tuple, Union

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.command_line import (
    ArgumentParser,
    default_device,
    device,
    positive_int,
    reuse_memory,
)
from examples.images import ImageError, open_image
from examples.weights import MODELS, Classifier, WeightsError, load_file, load_official
from resnet18 import ResNet18

Sample = Tuple[Path, Union[Tensor, ImageError]]


class Photographs(Dataset[Sample]):
    """Files as the classifier wants them: (path, image (3, H, W)), or (path, what is wrong)."""

    def __init__(self, files: list[Path], classifier: Classifier) -> None:
        self.files = files
        self.preprocess = classifier.preprocessing()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files[index]
        try:
            return path, self.preprocess(open_image(path))
        except ImageError as error:
            return path, error


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files among `paths` and, in order of name, those in the folders among them."""
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("[!.]*") if file.is_file())
            yield from files or [path]
        else:
            yield path


def give_way(worker: int) -> None:
    """Let the network have the processor whenever it has images to look at."""
    if hasattr(os, "nice"):
        os.nice(10)


@torch.inference_mode()
def predict(
    classifier: Classifier, files: list[Path], device: torch.device, batch_size: int
) -> Iterator[tuple[Path, Tensor | ImageError]]:
    """Yield each file with the probabilities (num_classes,) of its classes, or what is wrong."""
    model = classifier.model.eval()
    if isinstance(model, ResNet18):
        model = model.fuse()
    model = model.to(device).to(memory_format=torch.channels_last)
    batches = DataLoader(
        Photographs(files, classifier),
        batch_size=batch_size,
        num_workers=min(os.cpu_count() or 1, len(files) // 16),  # few files: not worth a process
        worker_init_fn=give_way,
        collate_fn=list,
    )
    for batch in batches:
        images = [image for _, image in batch if isinstance(image, Tensor)]
        if images:
            logits = model(torch.stack(images).to(device))  # (N, num_classes)
            probabilities = iter(logits.softmax(1).cpu())
        for path, image in batch:
            yield path, next(probabilities) if isinstance(image, Tensor) else image


def main(arguments: list[str] | None = None) -> int:
    """Print the likeliest classes of each image; return the exit status, 1 if any was bad."""
    parser = ArgumentParser(prog="examples.predict", description="Name what is in photographs.")
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="an image or a folder of images")
    add("--model", choices=sorted(MODELS), help="the network (default: resnet18)")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="default: official ImageNet weights, fetched once",
    )
    add("--top", type=positive_int, default=5, metavar="K", help="classes to print (default: 5)")
    add(
        "--device",
        type=device,
        default=default_device(),
        help="cpu or cuda (default: cuda if there is one)",
    )
    add(
        "--batch-size",
        type=positive_int,
        default=32,
        metavar="N",
        help="images at a time (default: 32)",
    )
    add("--json", action="store_true", help="print one JSON object per image")
    args = parser.parse_args(arguments)
    try:
        if args.weights:
            classifier = load_file(args.weights, args.model)
        else:
            classifier = load_official(args.model or "resnet18")
    except WeightsError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")

    status = 0
    files = list(find_files(args.paths))
    for path, result in predict(classifier, files, args.device, args.batch_size):
        if isinstance(result, ImageError):
            print(f"{parser.prog}: {path}: {result}", file=sys.stderr)
            status = 1
            continue
        top = result.topk(min(args.top, len(result)))
        ranking = [
            {"class": classifier.classes[index], "index": index, "probability": probability}
            for probability, index in zip(top.values.tolist(), top.indices.tolist())
        ]
        if args.json:
            print(json.dumps({"file": str(path), "predictions": ranking}), flush=True)
        else:
            lines = [f"{100 * row['probability']:7.2f} %  {row['class']}" for row in ranking]
            print("\n".join([str(path), *lines]), flush=True)
    return status


if __name__ == "__main__":
    reuse_memory()
    warnings.filterwarnings("ignore", module="PIL")  # whatever matters is raised
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be valid text
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
