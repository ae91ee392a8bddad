"""Where the time of one frame goes, layer by layer: ONNX Runtime's profile, OpenVINO's counters, the native engine's.

Each engine is opened twice, once profiled and once plain, and the two take turns: the plain one says what a frame
takes, the profiled one how that divides. Medians over the frames.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import onnx

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.ceilings.ceilings import Layer
from gradseg.benchmarks.ceilings.nodes import Node, attributed, nodes_of_onnx, nodes_of_openvino
from gradseg.data.scenes.frames import SceneVideo
from gradseg.runtime.engines.ort import session_options
from gradseg.runtime.native.files import load_program

TURN, SETTLE = 5, 2  # counted frames of a turn, and those before them
WIDTHS = {"double": 8, "int64": 8, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "bool": 1}  # bytes; else 4
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")  # nothing moves
INT8 = re.compile(r"^(QLinear|QGemm|ConvInteger|MatMulInteger)")
NATIVE_OPS = ("Conv", "Depthwise", "Upsample", "Pool", "Head", "Add")  # by gs_kind
HEAD = NATIVE_OPS.index("Head")
NativeStep = Tuple[str, int, int, float]  # name, multiply-accumulates, bytes moved, ms
KINDS = {"bf16": "bf16", "u8": "int8", "i8": "int8", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Profile:
    """frame_ms: median of a frame without profiling. unmapped: nodes that multiply and that no layer stands for."""

    engine: str
    layers: Tuple[Layer, ...]
    frame_ms: float
    frames: int
    unmapped: Tuple[str, ...]


def profile_onnxruntime(path: Path, threads: int, frames: int) -> Profile:
    """An .onnx file in ONNX Runtime."""
    import onnxruntime

    model = onnx.load(str(path))
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(onnxruntime, threads)
        plain = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        options = session_options(onnxruntime, threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        timed = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = plain.get_inputs()[0].name
        feed = {name: sample_for(plain.get_inputs()[0].shape, "uint8" in plain.get_inputs()[0].type)}
        kept, frame_ms = in_turns(lambda: timed.run(None, feed), lambda: plain.run(None, feed), frames)
        events = json.loads(Path(timed.end_profiling()).read_text("utf-8"))
    nodes = nodes_of_onnx(model)
    layers = layers_of_onnxruntime(events, nodes, kept)
    return Profile(f"onnxruntime {onnxruntime.__version__}", layers, frame_ms, frames, unmapped(nodes, layers))


def layers_of_onnxruntime(
    events: Sequence[Mapping[str, Any]], nodes: Sequence[Node], kept: Sequence[int]
) -> Tuple[Layer, ...]:
    """Layers of a parsed profile. kept: the indices of the runs that count."""
    steps: Dict[str, List[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            steps.setdefault(event["name"][: -len("_kernel_time")], []).append(event)
    owned = attributed(nodes, [[name] for name in steps])
    layers = []
    for (name, found), mine in zip(steps.items(), owned, strict=True):
        arguments = found[0]["args"]
        op = arguments["op_name"]
        tensors = [*arguments["input_type_shape"], *arguments["output_type_shape"]]
        moved = 0 if op in VIEWS else sum(_bytes(each) for each in tensors)
        ms = float(np.median([found[index]["dur"] for index in kept])) / 1000
        layers.append(_layer(name, op, op, "int8" if INT8.match(op) else "fp32", moved, ms, mine))
    return tuple(layers)


def _layer(name: str, op: str, kernel: str, kind: str, moved: int, ms: float, mine: Sequence[Node]) -> Layer:
    macs = sum(node.macs for node in mine)
    return Layer(name, op, kernel, kind, macs, moved, ms, tuple(node.name for node in mine))


def _bytes(tensor: Mapping[str, Sequence[int]]) -> int:
    return sum(WIDTHS.get(kind, 4) * int(np.prod(shape, dtype=np.int64)) for kind, shape in tensor.items())


def profile_openvino(path: Path, threads: int, frames: int, hint: str) -> Profile:
    """An .onnx or .xml file in OpenVINO. hint: its precision, "f32" or "bf16"."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    plain = core.compile_model(model, "CPU", settings).create_infer_request()
    compiled = core.compile_model(model, "CPU", {**settings, "PERF_COUNT": True})
    timed = compiled.create_infer_request()
    source = model.inputs[0]
    frame = sample_for(list(source.get_shape()), source.get_element_type() == openvino.Type.u8)
    times: List[Dict[str, float]] = []

    def run_timed() -> None:
        timed.infer({0: frame}, share_inputs=True, share_outputs=True)
        times.append({each.node_name: each.real_time.total_seconds() * 1000 for each in timed.profiling_info})

    def run_plain() -> None:
        plain.infer({0: frame}, share_inputs=True, share_outputs=True)

    kept, frame_ms = in_turns(run_timed, run_plain, frames)
    nodes = nodes_of_openvino(model)
    layers = layers_of_openvino(openvino_steps(compiled.get_runtime_model()), [times[index] for index in kept], nodes)
    version = openvino.__version__.partition("-")[0]
    return Profile(f"openvino {version} {hint}", layers, frame_ms, frames, unmapped(nodes, layers))


def openvino_steps(runtime_model: Any) -> List[Dict[str, Any]]:
    """What a compiled model runs, in order: {"name", "op", "kernel", "kind", "nodes", "bytes"} of each step."""
    steps = []
    for op in runtime_model.get_ordered_ops():
        facts = {key: str(value.astype(str)) for key, value in op.get_rt_info().items()}
        tensors = [op.input_value(index) for index in range(op.get_input_size())] + list(op.outputs())
        moved = [each.get_element_type().size * int(np.prod(list(each.get_shape()))) for each in tensors]
        steps.append(
            {
                "name": op.get_friendly_name(),
                "op": facts["layerType"],
                "kernel": facts["primitiveType"],
                "kind": KINDS.get(facts["runtimePrecision"], "fp32"),
                "nodes": facts["originalLayersNames"].split(","),
                "bytes": sum(moved),
            }
        )
    return steps


def layers_of_openvino(
    steps: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, float]], nodes: Sequence[Node]
) -> Tuple[Layer, ...]:
    """Layers of `openvino_steps` with the times, ms by step, of every counted run; without steps that never ran."""
    medians = {step["name"]: float(np.median([run.get(step["name"], 0.0) for run in times])) for step in steps}
    multiply = {node.name for node in nodes if node.macs}
    ran = [step for step in steps if medians[step["name"]] > 0 or multiply.intersection(step["nodes"])]
    layers = []
    for step, mine in zip(ran, attributed(nodes, [step["nodes"] for step in ran]), strict=True):
        ms = medians[step["name"]]
        moved = 0 if step["op"] in VIEWS or not ms else step["bytes"]
        layers.append(_layer(step["name"], step["op"], step["kernel"], step["kind"], moved, ms, mine))
    return tuple(layer for layer in layers if layer.ms > 0 or layer.macs)


def profile_native(path: Path, threads: int, frames: int) -> Profile:
    """A .gsn file in the native engine, which counts its own operators."""
    from gradseg.runtime.engines.native import NativeEngine

    with contextlib.closing(NativeEngine(path, threads)) as engine:
        frame = sample_for([1, *engine.frame_hw, 3], True)
        runs: List[Sequence[NativeStep]] = []
        kept, frame_ms = in_turns(lambda: runs.append(engine.profile(frame)), lambda: engine.infer(frame), frames)
        layers = layers_of_native([runs[index] for index in kept], load_program(path))
        return Profile(engine.backend, layers, frame_ms, frames, ())


def layers_of_native(runs: Sequence[Sequence[NativeStep]], program: Any) -> Tuple[Layer, ...]:
    """Layers of counted runs, of a NativeProgram. What took no time was computed with the operator behind it: the two
    are one layer, and the tensor between them was neither written nor read."""
    found: List[Layer] = []
    with_next: Optional[Layer] = None
    for index, (op, (name, macs, moved, _)) in enumerate(zip(program.ops, runs[0], strict=True)):
        ms = float(np.median([run[index][3] for run in runs]))
        kind = "fp32" if program.precision != "int8" else "int16" if op.kind == HEAD else "int8"
        layer = Layer(name, NATIVE_OPS[op.kind], "native", kind, macs, moved, ms, (name,))
        layer = layer if with_next is None else _joined(with_next, layer, program)
        with_next = None if ms else layer
        if ms:
            found.append(layer)
    return tuple(found)


def _joined(first: Layer, second: Layer, program: Any) -> Layer:
    between = next(op for op in program.ops if op.name == first.nodes[-1])
    tensor = program.tensors[between.output]
    unmoved = 2 * tensor.height * tensor.width * between.cout * (1 + tensor.dtype)
    kind = first.kind if first.macs >= second.macs else second.kind
    macs, moved = first.macs + second.macs, max(0, first.bytes_moved + second.bytes_moved - unmoved)
    op, nodes = f"{first.op}+{second.op}", (*first.nodes, *second.nodes)
    return Layer(first.name, op, first.kernel, kind, macs, moved, first.ms + second.ms, nodes)


def unmapped(nodes: Sequence[Node], layers: Sequence[Layer]) -> Tuple[str, ...]:
    """Nodes that multiply and that no layer stands for."""
    found = {name for layer in layers for name in layer.nodes}
    return tuple(node.name for node in nodes if node.macs and node.name not in found)


def in_turns(timed: Callable[[], Any], plain: Callable[[], Any], frames: int) -> Tuple[List[int], float]:
    """Runs both in turns; the indices of `timed`'s runs that count, and the median of `plain`'s in ms."""
    counts: List[bool] = []  # whether a run does
    times: List[float] = []
    for start in range(0, frames, TURN):
        turn = [index >= 0 for index in range(-SETTLE, min(TURN, frames - start))]
        counts += turn
        for _ in turn:
            timed()
        for _ in turn:
            begin = time.perf_counter_ns()
            plain()
            times.append((time.perf_counter_ns() - begin) / 1e6)
    return [index for index, each in enumerate(counts) if each], float(np.median(np.array(times)[counts]))


def sample_for(shape: Sequence[Any], takes_frame: bool) -> np.ndarray[Any, Any]:
    """A scene as uint8 BGR (1, h, w, 3), or noise as normalised float32 (1, 3, h, w)."""
    if any(not isinstance(size, int) or size < 1 for size in shape) or len(shape) != 4 or shape[0] != 1:
        raise GradsegError(f"an input of shape {list(shape)}: expected a static size and one frame; export it so")
    if takes_frame:
        return SceneVideo((shape[1], shape[2]), 1).frame(0).image[None]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
