"""The fastest ways to run a network, as docs/speed.md has them, and the engines beside them."""

import contextlib
import copy
import functools
import os
from pathlib import Path
from typing import Any, Callable

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

Network = Callable[[Tensor], Tensor]


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


def to_onnx(model: nn.Module, images: Tensor, file: Path) -> Path:
    """Write the network for the other engines, with any batch size; return the file."""
    batch = {0: torch.export.Dim("batch")}
    settings: Any = {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        torch.onnx.export(model, (images,), file, dynamic_shapes=(batch,), **settings)
    return file


def to_int8(file: Path, images: Tensor) -> Path:
    """Quantize an ONNX file statically and per channel; return the new file."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(images.numpy())

        def get_next(self) -> object:
            return next(({"images": image[None]} for image in self.left), None)

    quantized, settings = file.with_suffix(".int8.onnx"), {"per_channel": True}
    settings["activation_type"] = quantization.QuantType.QUInt8  # twice as fast as signed
    quant_pre_process(file, file.with_suffix(".fused.onnx"), skip_symbolic_shape=True)
    quantization.quantize_static(file.with_suffix(".fused.onnx"), quantized, Batches(), **settings)
    return quantized


def in_onnx_runtime(file: Path) -> Network:
    """Return the network as ONNX Runtime runs it, with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def in_openvino(file: Path, precision: str) -> Network:
    """Return the network as OpenVINO runs it, with as many threads as PyTorch."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings["INFERENCE_PRECISION_HINT"] = precision
    network = openvino.Core().compile_model(file, "CPU", settings)
    return lambda images: torch.from_numpy(network(images.numpy())[0])


def channels_last(model: nn.Module) -> nn.Module:
    """Return a copy in PyTorch's layout idiom."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def implementations(
    theirs: nn.Module, ours: nn.Module, images: Tensor, folder: Path
) -> dict[str, Callable[[], Network]]:
    """Return what builds each row, whose name ends in its precision where that is not float32.

    Int8 is calibrated on the images; the other engines read the network from a file in `folder`.
    """
    onnx = functools.cache(lambda: to_onnx(ours, images, folder / "network.onnx"))
    int8 = functools.cache(lambda: to_int8(onnx(), images))
    bfloat16 = torch.autocast(images.device.type, torch.bfloat16)
    float16 = torch.autocast(images.device.type, torch.float16)
    rows: dict[str, Callable[[], Network]] = {
        "torchvision": lambda: theirs,
        "torchvision, channels-last": lambda: channels_last(theirs),
        "ours": lambda: ours,
        "ours, channels-last": lambda: channels_last(ours),
        "ours, fused, channels-last": lambda: channels_last(fuse(ours)),
        "ours, compiled": lambda: compiled(channels_last(ours)),
        "torchvision, channels-last, bfloat16": lambda: bfloat16(channels_last(theirs)),
        "ours, channels-last, bfloat16": lambda: bfloat16(channels_last(ours)),
        "ours, compiled, bfloat16": lambda: bfloat16(compiled(channels_last(ours))),
        "torchvision, channels-last, float16": lambda: float16(channels_last(theirs)),
        "ours, compiled, float16": lambda: float16(compiled(channels_last(ours))),
    }
    if images.device.type == "cpu":
        rows |= {
            "ours, compiled, int8": lambda: in_int8(ours, images),
            "ONNX Runtime": lambda: in_onnx_runtime(onnx()),
            "ONNX Runtime, int8": lambda: in_onnx_runtime(int8()),
            "OpenVINO": lambda: in_openvino(onnx(), "f32"),
            "OpenVINO, bfloat16": lambda: in_openvino(onnx(), "bf16"),
            "OpenVINO, int8": lambda: in_openvino(int8(), "f32"),
        }
    return rows
