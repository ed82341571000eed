"""The fastest ways to run a network, as docs/speed.md has them, and the engines beside them."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
import torch._inductor.config
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

Network = Callable[[Tensor], Tensor]
Row = tuple[str, str, Callable[[], Any]]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def compiled(model: nn.Module) -> Network:
    """Return the network compiled, its weights frozen into the code, for inference alone."""
    torch._inductor.config.freezing = True
    model = model.to(memory_format=torch.channels_last)
    fast = torch.compile(model, mode="max-autotune", dynamic=False)
    return fast


def in_int8(model: nn.Module, images: Tensor) -> Network:
    """Return the network in int8, its ranges calibrated on the images, compiled and frozen."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (images,), dynamic_shapes=(batch,))
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(images)
    quantized = convert_pt2e(prepared)
    torch._inductor.config.freezing = True
    fast = torch.compile(quantized, dynamic=False)
    return fast


def in_autocast(network: Network, precision: str) -> Network:
    """Return the network in bfloat16 or float16."""

    def call(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, DTYPES[precision]):
            return network(images)

    return call


def to_onnx(model: nn.Module, images: Tensor, file: Path) -> Path:
    """Write the network for the other engines, with any batch size; return the file."""
    batch = {0: torch.export.Dim("batch")}
    settings: Any = {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        torch.onnx.export(model, (images,), file, dynamic_shapes=(batch,), **settings)
    return file


def in_onnx_runtime(file: Path) -> Network:
    """Return the network as ONNX Runtime runs it, with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def in_onnx_runtime_int8(file: Path, images: Tensor) -> Network:
    """Return the network as ONNX Runtime quantizes it: statically, per channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(images.numpy())

        def get_next(self) -> object:
            return next(({"images": image[None]} for image in self.left), None)

    fused, quantized = file.with_suffix(".fused.onnx"), file.with_suffix(".int8.onnx")
    quant_pre_process(file, fused, skip_symbolic_shape=True)
    unsigned = {
        "activation_type": quantization.QuantType.QUInt8
    }  # at least twice as fast as signed
    quantization.quantize_static(fused, quantized, Batches(), per_channel=True, **unsigned)
    return in_onnx_runtime(quantized)


def in_openvino(file: Path, images: Tensor, precision: str) -> Network:
    """Return the network as OpenVINO runs it, with as many threads as PyTorch."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if precision == "int8":
        import nncf

        model = nncf.quantize(model, nncf.Dataset([image[None].numpy() for image in images]))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bfloat16" else "f32"
    network = core.compile_model(model, "CPU", settings)
    return lambda images: torch.from_numpy(network(images.numpy())[0])


def channels_last(model: nn.Module) -> nn.Module:
    """Return a copy in PyTorch's layout idiom."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def twin(name: str, ours: nn.Module) -> nn.Module:
    """Return torchvision's network with the weights of ours, which it has in the same order."""
    *_, bias = ours.parameters()
    theirs: nn.Module = torchvision.models.get_model(name, num_classes=len(bias)).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
    return theirs.to(bias.device)


def implementations(
    theirs: nn.Module, ours: nn.Module, images: Tensor, file: Path
) -> Iterator[Row]:
    """Yield the precision, the name and what builds each; int8 is calibrated on the images."""
    yield "float32", "torchvision", lambda: theirs
    yield "float32", "torchvision, channels-last", lambda: channels_last(theirs)
    yield "float32", "ours", lambda: ours
    yield "float32", "ours, channels-last", lambda: channels_last(ours)
    yield "float32", "ours, fused, channels-last", lambda: channels_last(fuse(ours))
    yield "float32", "ours, compiled", lambda: compiled(channels_last(ours))
    for half in DTYPES:
        yield from in_half(theirs, ours, half)
    if images.device.type == "cpu":
        onnx = functools.cache(lambda: to_onnx(ours, images, file))
        yield "float32", "ONNX Runtime", lambda: in_onnx_runtime(onnx())
        yield "float32", "OpenVINO", lambda: in_openvino(onnx(), images, "float32")
        yield "bfloat16", "OpenVINO, bfloat16", lambda: in_openvino(onnx(), images, "bfloat16")
        yield "int8", "ours, compiled, int8", lambda: in_int8(ours, images)
        yield "int8", "ONNX Runtime, int8", lambda: in_onnx_runtime_int8(onnx(), images)
        yield "int8", "OpenVINO, int8", lambda: in_openvino(onnx(), images, "int8")


def in_half(theirs: nn.Module, ours: nn.Module, half: str) -> Iterator[Row]:
    """Yield the rows of a precision of 16 bits."""
    tiled = f"torchvision, channels-last, {half}"
    yield half, tiled, lambda: in_autocast(channels_last(theirs), half)
    yield half, f"ours, compiled, {half}", lambda: in_autocast(compiled(channels_last(ours)), half)
