"""ONNX bytes → TensorRT plan, with whichever TensorRT there is. Python 3.8; needs neither torch nor onnx.

`tensorrt` (8.5 and newer) builds for the GPU in this machine. TensorRT-RTX needs no GPU: it builds for those that are
named, by default for Ampere and newer ones (https://docs.nvidia.com/deeplearning/tensorrt-rtx, "CPU-Only AOT").
Networks of TensorRT 11 and RTX are strongly typed: precision comes from the ONNX alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Tuple

from gradseg.base.errors import GradsegError
from gradseg.commands import command
from gradseg.export.trt.cache import TimingCache
from gradseg.export.trt.config import configure
from gradseg.export.trt.messages import Messages, build_error, lacks_gpu, node_names, parser_errors, plain
from gradseg.export.trt.options import RTX_INSTALL, BuildOptions, Library, check_options, strongly_typed
from gradseg.export.trt.progress import Progress
from gradseg.runtime.engines.trt_library import LIBRARIES, import_first

__all__ = ["Built", "build_plan", "import_tensorrt", "strongly_typed"]

INSTALL = (
    "on a Jetson it comes with JetPack (make the virtual environment with --system-site-packages); with an NVIDIA GPU: "
    f"pip install tensorrt; to build for another machine's GPU: {RTX_INSTALL}, then --compute-capability sm89"
)


@dataclass(frozen=True)
class Built:
    """A serialised plan and what it was built with.

    compute_capability: names such as sm89, empty for the default. flags: builder flags that were set. seconds: parsing
    and building. notes: lines for the user about how it went.
    """

    plan: bytes
    library: str
    version: str
    compute_capability: Tuple[str, ...]
    flags: Tuple[str, ...]
    seconds: float
    notes: Tuple[str, ...] = ()


def import_tensorrt(cross: bool) -> Library:
    """("tensorrt" | "tensorrt_rtx", module); `cross`: a target GPU is named, which only RTX can build for.

    Raises GradsegError with exit code 3 and what to install if there is none that can.
    """
    found = import_first(tuple(reversed(LIBRARIES)) if cross else LIBRARIES)
    if found is None:
        raise GradsegError(f"no TensorRT is importable here, so no plan was built: {INSTALL}", exit_code=3)
    return found


def build_plan(
    onnx_bytes: bytes,
    options: BuildOptions,
    name: str,
    library: Library,
    frame_hw: Tuple[int, int],
    batch: int = 1,
    show_progress: bool = False,
) -> Built:
    """Parses and builds.

    Args:
        onnx_bytes: a deployment-form model: uint8 (batch, h, w, 3) → uint8 (batch, h, w).
        options: checked here once more, by `check_options`.
        name: the ONNX file's, for messages.
        library: from `import_tensorrt`.
        frame_hw: (h, w) in pixels.
        batch: frames at once.
        show_progress: a bar on stderr, if that is a terminal.

    Raises GradsegError: exit code 2 for a model that does not parse or build (with the node and what to change), 3
    where TensorRT finds no GPU. KeyboardInterrupt if Ctrl-C ended the build.
    """
    check_options(options, library)
    kind, trt = library
    here = f"{kind} {trt.__version__}"
    begin = time.perf_counter_ns()
    messages = Messages(trt)
    builder = _builder(library, messages)
    creation = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if creation is None else 1 << int(creation))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(onnx_bytes):
        raise GradsegError(f"{name}: {here} cannot parse it: {parser_errors(parser)}")
    _check_borders(network, trt, (batch, *frame_hw), name)
    nodes = node_names(network, messages.nodes)
    config = builder.create_builder_config()
    flags, notes = configure(library, builder, network, config, options, nodes)
    cache = TimingCache(options.timing_cache, config)
    with Progress(trt, config, name, show_progress) as progress:
        plan = builder.build_serialized_network(network, config)
    progress.raise_if_cancelled()
    if plan is None:
        if not options.targets and lacks_gpu(" ".join(messages.errors)):
            reason = f"{messages.text()}: it finds no NVIDIA GPU; {_elsewhere(kind)}"
            raise GradsegError(f"{name}: {here} cannot build it: {reason}", exit_code=3)
        raise GradsegError(f"{name}: {here} cannot build it: {build_error(messages, nodes, options)}")
    notes += cache.save()
    seconds = (time.perf_counter_ns() - begin) / 1e9
    return Built(bytes(plan), kind, str(trt.__version__), options.targets, flags, seconds, tuple(notes))


def _builder(library: Library, messages: Messages) -> Any:
    kind, trt = library
    try:
        return trt.Builder(messages.logger)
    except (TypeError, RuntimeError) as error:
        reason = messages.text() or plain((messages.warnings or [str(error)])[-1])  # 8.5 only warns
        raise GradsegError(
            f"{kind} {trt.__version__} cannot start ({reason}): it needs an NVIDIA "
            f"GPU and driver, and finds none; {_elsewhere(kind)}",
            exit_code=3,
        ) from error


def _elsewhere(kind: str) -> str:
    if kind == "tensorrt_rtx":
        return "name the GPU to build for with --compute-capability sm89"
    return f"build on the machine that is to run it, or here for another GPU: {RTX_INSTALL}, --compute-capability sm89"


def _check_borders(network: Any, trt: Any, labels: Tuple[int, ...], name: str) -> None:
    """labels: the output's shape (batch, h, w)."""
    borders = (
        ("input", network.num_inputs, network.get_input, (*labels, 3)),
        ("output", network.num_outputs, network.get_output, labels),
    )
    for what, count, get, shape in borders:
        found = [(get(index).dtype, tuple(get(index).shape)) for index in range(count)]
        if found != [(trt.DataType.UINT8, shape)]:
            there = ", ".join(f"{dtype} {has}" for dtype, has in found) or "missing"
            raise GradsegError(
                f"{name}: {what} is {there}; expected uint8 {shape}, the deployment form: "
                f"export it without --logits: {command('export/to_onnx.py', 'CKPT')}"
            )
