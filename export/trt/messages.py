"""TensorRT's messages in one line: the ONNX node, what is wrong, and what to change. Python 3.8; needs no onnx.

TensorRT names layers after ONNX nodes, with a suffix where one node becomes several; it joins the names of fused ones
with " + " and wraps them: "PWN(…)", "{ForeignNode[first...last]}". Which layer stands for which node, its parser logs.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Dict, Iterable, List, Optional

from gradseg.commands import command
from gradseg.export.trt.options import BuildOptions

LONGEST = 300  # characters of one message that are kept
NAMED = 3  # nodes that a message names at most
REGISTERED = re.compile(r"Registering layer: (.+) for ONNX node: (.+)")
# "10: [optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (the reason)", and 11's
# "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: run] the reason; In x at /_src/y.cpp:2"
PLACES = re.compile(r"^\d+: |\[\w+\.(?:cpp|h|cu)\b[^\]]*\]:? ?|,? ?\(?\bIn \w+ at /[\w./]+:\d+")
CODE = re.compile(r"(?:I[A-Z]\w+::\w+: )?Error Code \d+: [A-Z]\w*(?: [A-Z]\w*)* ?(?=\()")
NO_GPU = re.compile(
    r"cuda(?: ?error)?:? ?\(?(?:35|100)\b|initialization failure|no cuda-capable|driver version is insufficient|"
    r"no cuda device|cudageterror",
    re.IGNORECASE,
)
MEMORY = re.compile(r"out ?of ?memory|insufficient (?:memory|workspace)|workspace limit|could not be allocated", re.I)


class Messages:
    """Keeps what TensorRT logs from now on, for messages of our own. `logger` is what its classes take.

    nodes: the ONNX node of each layer, as the parser logs it.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: List[str] = []
        self.warnings: List[str] = []
        self.nodes: Dict[str, str] = {}
        self.logger = _logger(trt)
        self.logger.messages = self

    def add(self, severity: Any, level: Any, text: str) -> None:
        """One message. severity: the ILogger.Severity that `level` is one of."""
        if level in (severity.ERROR, severity.INTERNAL_ERROR):
            self.errors.append(text)
        elif level == severity.WARNING:
            self.warnings.append(text)
        elif level == severity.VERBOSE:
            found = REGISTERED.search(text)
            if found:
                self.nodes[found.group(1)] = found.group(2)

    def text(self) -> str:
        """The last errors in one line, without the places in NVIDIA's sources; "" if there were none."""
        return "; ".join(dict.fromkeys(plain(message) for message in self.errors[-3:]))


@functools.lru_cache(maxsize=None)
def _logger(trt: Any) -> Any:
    """One for each library and process: TensorRT keeps the first that it is given, and some messages go there only."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: Optional[Messages] = None

        def log(self, level: Any, text: str) -> None:
            if self.messages is not None:
                self.messages.add(trt.ILogger.Severity, level, str(text))

    return Logger()


def plain(text: str) -> str:
    """A message of TensorRT without its error codes and the places in NVIDIA's sources, at most LONGEST characters."""
    whole = " ".join(text.split())
    bare = CODE.sub("", PLACES.sub("", whole)).strip()
    while bare.startswith("(") and bare.endswith(")"):
        bare = bare[1:-1].strip()
    return (bare or whole)[:LONGEST].rstrip(". ")


def node_names(network: Any, logged: Dict[str, str]) -> Dict[str, str]:
    """The ONNX node of each layer of the network, by the layer's name; what the parser did not log keeps its name."""
    return {layer.name: logged.get(layer.name, layer.name) for layer in layers_of(network)}


def nodes_in(text: str, nodes: Dict[str, str]) -> List[str]:
    """The ONNX nodes whose layers a message names, in its order. nodes: from `node_names`."""
    if not nodes:
        return []
    longest_first = sorted(nodes, key=len, reverse=True)
    pattern = r"(?<![\w/])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w/])"
    return list(dict.fromkeys(nodes[name] for name in re.findall(pattern, text)))


def lacks_gpu(text: str) -> bool:
    """Whether a message says that there is no GPU or no driver for it."""
    return bool(NO_GPU.search(text)) and not MEMORY.search(text)


def build_error(messages: Messages, nodes: Dict[str, str], options: BuildOptions) -> str:
    """Why the builder gave up, in one line: node, reason, what to change."""
    reason = messages.text() or "no reason given"
    raw = " ".join(messages.errors[-3:])
    named = nodes_in(raw, nodes)
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    where = f"node {', '.join(named[:NAMED])}{more}: " if named else ""
    return f"{where}{reason}{build_advice(f'{raw} {reason}', options)}"


def build_advice(text: str, options: BuildOptions) -> str:
    """What to change after a builder's error; "" if that is not known."""
    lower, full = text.lower(), MEMORY.search(text)
    no_kernel = "could not find any implementation" in lower or "no tactics to implement" in lower
    if options.workspace_mib is not None and (full or no_kernel):
        return f". --workspace {options.workspace_mib} may be too small: give more, or leave it out"
    if full:
        return ". The GPU's memory is full: close other programs, build a smaller --batch, or limit --workspace"
    if options.dla is not None and "dla" in lower:
        return ". Leave --dla out to build for the GPU, or use --precision fp16 with it"
    if "int8 support" in lower:
        return ". This GPU has no INT8: use --precision fp16"
    if no_kernel:
        return f". Build with --precision {'fp16' if options.precision == 'fp32' else 'fp32'}, or remove that node"
    if "hardware compatib" in lower:
        return ". Leave --hardware-compatible out: Jetsons and GPUs before Ampere do not have it"
    if "nvinfer_lean" in lower:
        return ". --version-compatible needs TensorRT's lean runtime: install it (libnvinfer-lean), or leave it out"
    return _type_advice(lower)


def parser_errors(parser: Any) -> str:
    """The parser's errors in one line: node, operator, reason, and what to change where that is known."""
    parts = []
    for index in range(min(int(parser.num_errors), 3)):
        error = parser.get_error(index)
        node = _asked(error, "node_name") or f"number {_asked(error, 'node')}"
        operator, reason = _asked(error, "node_operator"), " ".join(str(_asked(error, "desc")).split())[:240]
        parts.append(f"node {node}{f' ({operator})' if operator else ''}: {reason}{_advice(str(operator), reason)}")
    return "; ".join(parts) or "no reason given; is it an ONNX model?"


def _asked(error: Any, name: str) -> Any:
    method = getattr(error, name, None)  # older versions know fewer of these
    return method() if callable(method) else ""


def _advice(operator: str, reason: str) -> str:
    lower = f"{operator} {reason}".lower()
    return _type_advice(f"{lower} uint8" if operator == "Cast" else lower) or (
        f". Replace this operator, or export again, at opset 17: {command('export/to_onnx.py', 'CKPT')}"
        if "plugin" in lower or "no importer" in lower or "unsupported" in lower
        else ""
    )


def _type_advice(lower: str) -> str:
    if "zero point" in lower or "zero_point" in lower or ("uint8" in lower and "quantize" in lower):
        again = command("export/to_trt.py", "CKPT", "--precision", "int8")
        return f". TensorRT takes symmetric int8 only: quantise again: {again}"
    if "uint8" in lower:
        again = command("export/to_onnx.py", "CKPT")
        return f". TensorRT takes uint8 only at a Cast on the border: export again: {again}"
    return ""


def layers_of(network: Any) -> Iterable[Any]:
    """The layers of a network definition."""
    return (network.get_layer(index) for index in range(network.num_layers))
