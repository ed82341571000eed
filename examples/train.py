"""Train, fine-tune or evaluate AlexNet or ResNet-18 on a folder of images.

python -m examples.train DATA --model resnet18 --epochs 30
python -m examples.train DATA --weights run/model.pt --evaluate
torchrun --nproc-per-node 4 -m examples.train DATA
"""

import math
import os
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from examples.images import open_image
from examples.memory import reuse_memory
from examples.options import Command
from examples.weights import MODELS, load_file, load_official, read

LEARNING_RATES = {"alexnet": 0.02, "resnet18": 0.1}  # for 256 images
WEIGHT_DECAYS = {"alexnet": 5e-4, "resnet18": 1e-4}
SMALLEST_CROP = 0.5  # of an image; the usual 0.08 wants many epochs
NORMALIZE = v2.Normalize([0.485 * 255, 0.456 * 255, 0.406 * 255], [58.395, 57.12, 57.375])


def load_images(data: Path, size: int) -> tuple[ImageFolder, ImageFolder]:
    """Return the images to train on and those to validate on, all of size x size."""
    augment = [v2.RandomResizedCrop(size, scale=(SMALLEST_CROP, 1)), v2.RandomHorizontalFlip()]
    train = ImageFolder(data / "train", v2.Compose([*augment, v2.PILToTensor()]), loader=open_image)
    crop = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
    val = ImageFolder(data / "val", v2.Compose([*crop, v2.PILToTensor()]), loader=open_image)
    if train.classes != val.classes:
        lone = ", ".join(sorted(set(train.classes) ^ set(val.classes))[:3])
        raise click.ClickException(f"of train/ and val/ in {data} only one has the class {lone}")
    return train, val


def load_network(options: dict[str, Any], classes: list[str], new_head: bool) -> Any:
    """Return the network to start from, with a new head where the classes differ."""
    name, weights = options["model"], options["weights"]
    if not (weights or options["pretrained"]):
        return MODELS[name](len(classes))
    start = load_file(Path(weights), name) if weights else load_official(name)
    options["model"] = start.name
    if len(start.classes) != len(classes) or (start.named and start.classes != classes):
        if not new_head:
            theirs = f"{len(start.classes)}: {', '.join(start.classes[:3])}, …"
            raise click.ClickException(f"the weights have other classes than val/, {theirs}")
        head = {"alexnet": "fc3", "resnet18": "fc"}[start.name]
        setattr(start.model, head, getattr(MODELS[start.name](len(classes)), head))
    return start.model


def load_checkpoint(out: Path, options: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Return what a run with the same options left in `out` to go on from, if there is one."""
    if not (out / "last.ckpt").exists():  # nor has a run one that was killed in its first epoch
        return {"rows": []}
    if not resume:
        raise click.ClickException(f"{out} holds a run: add --resume, or name another with --out")
    saved: dict[str, Any] = read(out / "last.ckpt")
    for name, was in saved["options"].items():  # each of them changes the result
        if options[name] != was:
            raise click.ClickException(f"{out} holds a run with {name} {was}, not {options[name]}")
    return saved


def train_epoch(
    fabric: Fabric, model: Any, optimizer: Any, schedule: Any, batches: Any, label_smoothing: float
) -> dict[str, float]:
    """Train for an epoch; return the mean loss, top-1 in percent and images per second."""
    model.train()
    start, results = time.perf_counter(), []
    for step, (images, labels) in enumerate(batches, 1):
        images, labels = fabric.to_device((images, labels))
        logits = model(NORMALIZE(images.contiguous(memory_format=torch.channels_last).float()))
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        schedule.step()
        hits = 100.0 * (logits.argmax(1) == labels)
        results.append(torch.stack([loss.detach(), hits.mean()]))
        if step % 50 == 0 or step == len(batches):  # seldom, as a GPU has to be waited for
            means: Any = fabric.all_reduce(torch.stack(results), reduce_op="mean")  # (step, 2)
            for index in (~means[:, 0].isfinite()).nonzero()[:1].flatten().tolist():
                bad_step = schedule.last_epoch - step + index + 1
                raise click.ClickException(f"the loss became {means[index, 0]} at step {bad_step}")
    speed = step * len(labels) * fabric.world_size / (time.perf_counter() - start)
    loss, top1 = means.mean(0).tolist()
    return {"train_loss": loss, "train_top1": top1, "images/s": speed}


@torch.no_grad()
def validate(fabric: Fabric, network: Any, batches: Any) -> dict[str, float]:
    """Return the mean loss and top-1 and top-5 in percent, each image counted once."""
    network.eval()
    for buffer in filter(torch.is_floating_point, network.buffers()):
        buffer.copy_(fabric.all_reduce(buffer, reduce_op="mean"))  # each process saw other images
    total: Any = torch.zeros(4, dtype=torch.float64, device=fabric.device)
    for images, labels in batches:
        images, labels = fabric.to_device((images, labels))
        images = NORMALIZE(images.contiguous(memory_format=torch.channels_last).float())
        with fabric.autocast():
            logits = network(images).float()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (N, 5)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        total += torch.stack([loss, hits[:, 0].sum(), hits.sum(), torch.ones_like(labels).sum()])
    total = fabric.all_reduce(total, reduce_op="sum")
    loss, top1, top5 = (total[:3] / total[3]).tolist()
    return {"val_loss": loss, "val_top1": 100 * top1, "val_top5": 100 * top5}


def save(out: Path, rows: list[dict[str, float]], best: Any, checkpoint: Any) -> None:
    """Leave an epoch's results in `out`, each moved there whole, and the checkpoint last."""
    table = pd.DataFrame(rows).set_index("epoch")
    curves = Figure(figsize=(6, 7))
    for axes, name in zip(curves.subplots(2), ("loss", "top1")):
        table[[f"train_{name}", f"val_{name}"]].plot(ax=axes, style=".-", ylabel=name)
    draw = partial(curves.savefig, format="png")
    files: dict[str, Any] = {"metrics.csv": table.to_csv, "curves.png": draw}
    files |= {"model.pt": partial(torch.save, best), "last.ckpt": partial(torch.save, checkpoint)}
    if table["val_top1"].idxmax() != len(rows):  # the first of the best stays
        del files["model.pt"]
    for name, write in files.items():
        temporary = out / f"{name}.tmp"
        try:
            write(temporary)
            os.replace(temporary, out / name)
        finally:
            temporary.unlink(missing_ok=True)


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(sorted(MODELS)), help="[default: resnet18]")
@click.option("--pretrained", is_flag=True, help="Start from the official ImageNet weights.")
@click.option("--weights", type=click.Path(), help="Start from the weights in a file.")
@click.option("--evaluate", is_flag=True, help="Only print the accuracy on val/.")
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch in --out.")
@click.option("--out", type=click.Path(path_type=Path), default="run", help="Folder for results.")
@click.option("--epochs", type=click.IntRange(1), default=90)
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Of all processes together.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="For 256 images.")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: that of the paper]")
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option("--image-size", type=click.IntRange(1), default=224)
@click.option("--precision", type=click.Choice(["32", "bf16-mixed", "16-mixed"]), default="32")
@click.option("--workers", type=click.IntRange(0), default=1, help="Processes that read images.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--devices", type=click.IntRange(1), help="Processes.  [default: 1 or torchrun's]")
@click.option("--compile", is_flag=True, help="Compile the network.")
def main(data: Path, out: Path, evaluate: bool, resume: bool, workers: int, **options: Any) -> None:
    """Train, fine-tune or evaluate a network on DATA/train/<class>/ and DATA/val/<class>/."""
    reuse_memory()
    given = [name for name in ("pretrained", "weights") if options[name]]
    if len(given) > 1 or (evaluate and (resume or not given)):
        line = "give --pretrained or --weights; --evaluate needs one of them, and no --resume"
        raise click.ClickException(line)
    options["devices"] = processes = int(os.environ.get("WORLD_SIZE", options["devices"] or 1))
    options["model"] = options["model"] or (None if options["weights"] else "resnet18")
    batch_size, size = options["batch_size"], options["image_size"]
    torch.manual_seed(options["seed"])
    train, val = load_images(data, size)
    network = load_network(options, train.classes, new_head=not evaluate)
    options["lr"] = options["lr"] or LEARNING_RATES[options["model"]]
    if options["weight_decay"] is None:
        options["weight_decay"] = WEIGHT_DECAYS[options["model"]]
    names = repr([os.path.relpath(path, data) for path, _ in train.samples + val.samples])
    options["data"] = f"{len(train)} + {len(val)} images (names {zlib.crc32(names.encode()):08x})"
    if not math.isfinite(options["lr"] + options["weight_decay"] + options["label_smoothing"]):
        raise click.ClickException("--lr, --weight-decay and --label-smoothing are finite numbers")
    if batch_size % processes or (batch_size > len(train) and not evaluate):
        what = f"{batch_size} is no multiple of {processes}, or more than {len(train)} images"
        raise click.ClickException(f"--batch-size {what}")
    try:
        with torch.device("meta"):
            shapes_alone = MODELS[options["model"]]().train(not evaluate)
            shapes_alone(torch.empty(batch_size // processes, 3, size, size))
    except (RuntimeError, ValueError) as error:
        raise click.ClickException(f"--image-size {size} is too small: {error}") from error
    checkpoint = {} if evaluate else load_checkpoint(out, options, resume)

    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))  # torchrun's
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    where: Any = {"accelerator": accelerator, "devices": processes // nodes, "num_nodes": nodes}
    fabric = Fabric(precision=options["precision"], **where)
    click.get_current_context().obj = fabric.strategy.launcher  # for `Command`
    fabric.launch()
    rank = fabric.global_rank
    loading: Any = {"batch_size": batch_size // processes, "pin_memory": accelerator == "cuda"}
    loading |= {"num_workers": workers}
    val_batches: Any = DataLoader(Subset(val, range(rank, len(val), processes)), **loading)
    network = network.to(memory_format=torch.channels_last).to(fabric.device)
    if evaluate:
        loss, top1, top5 = validate(fabric, network, val_batches).values()
        accuracy = f"top-1 {top1:.3f} %, top-5 {top5:.3f} %"
        fabric.print(f"{accuracy}, loss {loss:.3f}: {len(val):,} images")
        return

    shuffle: Any = DistributedSampler(train, processes, rank, seed=options["seed"], drop_last=True)
    train_batches: Any = DataLoader(train, sampler=shuffle, drop_last=True, **loading)
    lr, decay = options["lr"] * batch_size / 256, options["weight_decay"]
    optimizer: Any = torch.optim.SGD(network.parameters(), lr, 0.9, weight_decay=decay, fused=True)
    steps = max(21, len(train) // batch_size * options["epochs"])  # OneCycleLR fails at 20
    schedule = OneCycleLR(optimizer, lr, steps, pct_start=0.05, cycle_momentum=False)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    for name in parts.keys() & checkpoint.keys():
        parts[name].load_state_dict(checkpoint[name])
    if options["compile"]:
        network.compile()  # in place: the weights keep their names
    model, optimizer = fabric.setup(network, optimizer)
    out.mkdir(parents=True, exist_ok=True)
    rows = checkpoint["rows"]
    for epoch in range(len(rows) + 1, options["epochs"] + 1):
        shuffle.set_epoch(epoch)
        torch.manual_seed(hash((options["seed"], epoch, rank)))  # as a resumed run does
        title = f"epoch {epoch}/{options['epochs']}"
        scale: Any = {"unit": " images", "unit_scale": batch_size, "disable": rank > 0 or None}
        bar: Any = tqdm(train_batches, title, leave=False, **scale)  # None: on terminals alone
        row = train_epoch(fabric, model, optimizer, schedule, bar, options["label_smoothing"])
        row = {"epoch": epoch, **row, **validate(fabric, network, val_batches)}
        if not math.isfinite(row["val_loss"]):  # the last step has no other loss to show for it
            raise click.ClickException(f"loss {row['val_loss']} after step {schedule.last_epoch}")
        rows.append(row)
        if rank == 0:
            values = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
            best = {"state_dict": values, "classes": train.classes, "image_size": size}
            state = {name: part.state_dict() for name, part in parts.items()}
            save(out, rows, best, {**state, "options": options, "rows": rows})
            click.echo(f"{title}: " + ", ".join(f"{key} {row[key]:.2f}" for key in list(row)[1:]))


if __name__ == "__main__":
    main()
