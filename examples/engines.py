"""Ways to run a network faster, one function each. docs/speed.md has the speedup of each.

In all functions, `network` is in evaluation mode, and `images` (N, 3, H, W) are what it takes:
normalized float32, or uint8 pixels if it normalizes them itself. To calibrate int8, pass a few
hundred images like those that the network will see.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from examples.lib.classifier import onnx_session, run_onnx, run_openvino

if TYPE_CHECKING:
    import openvino

Network = Callable[[Tensor], Tensor]


# Instructions of the processor


def capabilities() -> dict[str, Any]:
    """Return the processor's instruction sets by name, as far as this version of PyTorch knows."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before PyTorch 2.11
        return {}
    return dict(torch.cpu.get_capabilities())


def has_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions.

    Without them, bfloat16 is slower than float32.
    """
    found = capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def has_vnni() -> bool:
    """Return whether the processor has VNNI or Arm's dot product: int8 products summed in 32 bits.

    Other processors sum pairs of int8 products in 16 bits. The sum can overflow, unless the weights
    or the activations are limited to 7 bits.
    """
    found = capabilities()
    return any(found.get(name) for name in ("avx512_vnni", "avx_vnni", "dot"))


# PyTorch


def channels_last(network: nn.Module) -> Network:
    """Convert the weights, in place, to the memory format in which convolutions are fastest.

    The logits stay the same.
    """
    return network.to(memory_format=torch.channels_last)


def compiled(network: nn.Module, autotune: bool = False) -> Network:
    """Convert the network to channels-last, in place, and compile it for inference.

    The first call with a new batch size compiles.

    Args:
        network: the network to compile.
        autotune: whether to time several kernels for each matrix product and keep the fastest.
            AlexNet becomes up to 1.3 times faster, but takes four times as long to compile. On a
            CPU, ResNet-18 gains nothing.
    """
    freeze_weights()
    torch._inductor.config.autotune_num_choices_displayed = 0  # no tables
    network = network.to(memory_format=torch.channels_last)
    # The mode "max-autotune" uses CUDA graphs on a GPU: a call overwrites the logits of the last.
    mode = "max-autotune-no-cudagraphs" if autotune else "default"
    fast: Network = torch.compile(network, mode=mode, dynamic=False)
    return fast


def freeze_weights() -> None:
    """Let torch.compile treat weights as constants, and fold batch norm into the convolutions."""
    import torch._inductor.config  # it takes a second

    torch._inductor.config.freezing = True


def in_bfloat16(network: Network, device: str = "cpu") -> Network:
    """Run the network under autocast: its convolutions and matrix products are in bfloat16."""
    fast: Network = torch.autocast(device, torch.bfloat16)(network)
    return fast


def to_int8(network: nn.Module, images: Tensor) -> nn.Module:
    """Quantize the network to int8 with torchao, calibrated on the images.

    The result is not compiled: it rounds to int8 but computes in float32, slower than the network.
    To run it in int8, compile it: see `compiled_int8` and `compile_to_file`.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    config = get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    quantizer = X86InductorQuantizer().set_global(config)
    any_batch_size = {0: torch.export.Dim("batch")}
    two = images[[0, -1]]  # a batch of one would become a constant
    with torch.no_grad():
        program = torch.export.export(network, (two,), dynamic_shapes=(any_batch_size,))
        prepared = prepare_pt2e(program.module(), quantizer)
        prepared(images)  # records the ranges of the activations
        quantized: nn.Module = convert_pt2e(prepared)
    return quantized


def compiled_int8(network: nn.Module, images: Tensor) -> Network:
    """Quantize the network to int8 with torchao, calibrated on the images, and compile it.

    The first call with a new batch size compiles.
    """
    freeze_weights()  # without it, int8 may be slower than float32
    fast: Network = torch.compile(to_int8(network, images), dynamic=False)
    return fast


def compile_to_file(network: nn.Module, images: Tensor, file: Path) -> None:
    """Compile the network for images of this shape, batch size included, and write it to a file.

    The file contains the weights. Another process loads it with
    `torch._inductor.aoti_load_package(file)` and does not compile.
    """
    freeze_weights()
    with torch.no_grad():
        program = torch.export.export(network, (images,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))


# OpenVINO


def to_openvino(network: nn.Module, images: Tensor) -> openvino.Model:
    """Convert the network to an OpenVINO model for any batch and image size."""
    import openvino

    shape = openvino.PartialShape([-1, 3, -1, -1])
    return openvino.convert_model(network, example_input=images[:2], input=[shape])


def to_openvino_int8(network: nn.Module, images: Tensor) -> openvino.Model:
    """Convert the network to an OpenVINO model, and quantize it to int8 with NNCF.

    The images calibrate it.
    """
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.quantize(
        to_openvino(network, images),
        nncf.Dataset(torch.split(images, 1), lambda image: image.numpy()),
        subset_size=len(images),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # NNCF's defaults are less accurate for these networks. They average the ranges of the
            # calibration images and clip larger activations, and they correct biases.
            disable_bias_correction=True,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            overflow_fix=OverflowFix.DISABLE if has_vnni() else OverflowFix.ENABLE,
        ),
    )


def in_openvino(model: openvino.Model | Path, precision: str = "f32") -> Network:
    """Compile an OpenVINO model, or the file of one, for the CPU.

    Args:
        model: the model, or the path of its .xml file.
        precision: "f32" or "bf16". Layers that are quantized to int8 stay in int8.
    """
    run = run_openvino(model, torch.get_num_threads(), precision)
    return lambda images: torch.from_numpy(run(images.numpy()))


# ONNX Runtime


def to_onnx(network: nn.Module, images: Tensor, file: Path) -> Path:
    """Write the network to an ONNX file for any batch size. Return the path of the file."""
    import onnxscript  # noqa: F401  torch.onnx needs it

    torch.onnx.export(
        network,
        (images[[0, -1]],),  # two images: a batch of one would become a constant
        file,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        dynamo=True,
    )
    return file


def to_onnx_int8(file: Path, images: Tensor) -> Path:
    """Quantize the network in an ONNX file to int8, calibrated on the images.

    Returns:
        The path of the new file, beside the old one.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    batches = ({"images": image.numpy()} for image in torch.split(images, 1))
    quantized = file.with_suffix(".int8.onnx")
    quantize_static(
        file,
        quantized,
        SimpleNamespace(get_next=lambda: next(batches, None)),
        per_channel=True,
        activation_type=QuantType.QUInt8,  # unsigned: twice as fast as signed
        reduce_range=not has_vnni(),
    )
    return quantized


def in_onnx_runtime(file: Path) -> Network:
    """Return the network in an ONNX file, run by ONNX Runtime on as many threads as PyTorch."""
    run = run_onnx(onnx_session(file, torch.get_num_threads()))
    return lambda images: torch.from_numpy(run(images.numpy()))
