"""Records what a real TensorRT's Python module has, as JSON for tests/toys/trt_surfaces.py.

    python tests/toys/record_trt_surface.py OUT.json                           # the TensorRT that this Python imports
    python tests/toys/record_trt_surface.py OUT.json --module tensorrt_rtx
    python tests/toys/record_trt_surface.py OUT.json --wheel tensorrt_cu12_bindings-10.3.0-cp311-….whl

A wheel of the bindings is enough: libraries of empty functions stand in for NVIDIA's, since only names and docstrings
are read (needs gcc and readelf). Runs on Python 3.8 and newer. No part of a recording is written by hand.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Dict, List

# What GradSeg touches, or might take for there in the wrong version
CLASSES = [
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "OnnxParser",
    "ParserError",
    "ITimingCache",
    "ILayer",
    "ITensor",
    "ILogger",
    "Logger",
    "IProgressMonitor",
    "IHostMemory",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "EngineInspector",
    "IRuntimeConfig",
    "IRuntimeCache",
    "ISerializationConfig",
]
ENUMS = [
    "BuilderFlag",
    "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",
    "MemoryPoolType",
    "TacticSource",
    "DeviceType",
    "DataType",
    "LayerType",
    "HardwareCompatibilityLevel",
    "ComputeCapability",
    "TensorIOMode",
    "TensorLocation",
    "EngineCapability",
    "ProfilingVerbosity",
    "PreviewFeature",
    "QuantizationFlag",
    "RuntimePlatform",
    "EngineValidity",
    "ExecutionContextAllocationStrategy",
    "CudaGraphStrategy",
    "LayerInformationFormat",
    "SerializationFlag",
]
PREFIX = re.compile(r"\btensorrt(?:_rtx)?(?:_bindings)?\.(?:tensorrt(?:_rtx)?\.)?")
LIBRARIES = re.compile(r"Shared library: \[(lib(?:nv|tensorrt)\w+\.so[.\d]*)\]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--module", default="tensorrt")
    parser.add_argument("--wheel", type=Path)
    args = parser.parse_args()
    if args.wheel:
        with tempfile.TemporaryDirectory() as folder:
            return from_wheel(args.wheel, Path(folder), args.out)
    if args.module == "tensorrt_rtx":
        from gradseg.runtime.engines.trt_library import import_one

        trt = import_one(args.module)
    else:
        trt = importlib.import_module(args.module)
    args.out.write_text(json.dumps(recording(trt, args.module), indent=1) + "\n", "utf-8")
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e3:.0f} kB, {args.module} {trt.__version__}")
    return 0


def from_wheel(wheel: Path, folder: Path, out: Path) -> int:
    """Unpacks the wheel, makes the libraries that its bindings name, and records in a new process that finds them."""
    with zipfile.ZipFile(str(wheel)) as archive:
        archive.extractall(str(folder))
    bindings = next(folder.glob("*/tensorrt*.so"))
    dynamic = subprocess.run(["readelf", "-dW", str(bindings)], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(["readelf", "--dyn-syms", "-W", str(bindings)], capture_output=True, text=True, check=True)
    missing = [
        line.split()[-1]
        for line in symbols.stdout.splitlines()
        if " UND " in line and re.search(r" (?:GLOBAL) .* (?:[a-z]\w+_INTERNAL|get\w+|initLib\w+|_ZN\d+nv\w+)$", line)
    ]
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in missing), "utf-8")
    for library in LIBRARIES.findall(dynamic):
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(folder / library), str(source)], check=True)
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, __file__, str(out.resolve()), "--module", bindings.parent.name]
    return subprocess.run(command, env={**os.environ, **paths}, check=False).returncode


def recording(trt: Any, module: str) -> Dict[str, Any]:
    """The surface of a module: names, classes with signatures, enums with values."""
    enums = {name: members(getattr(trt, name)) for name in ENUMS if hasattr(trt, name)}
    enums["ILogger.Severity"] = members(trt.ILogger.Severity)
    return {
        "module": re.sub("_bindings$", "", module),
        "version": str(trt.__version__),
        "names": sorted(name for name in dir(trt) if re.match("[A-Z]", name)),
        "functions": {
            name: signatures(getattr(trt, name))
            for name in ("init_libnvinfer_plugins", "get_nv_onnx_parser_version", "nptype", "volume")
            if hasattr(trt, name)
        },
        "classes": {name: surface_of(getattr(trt, name)) for name in CLASSES if hasattr(trt, name)},
        "enums": enums,
    }


def members(enum: Any) -> Dict[str, int]:
    """An enumeration's names and values."""
    return {name: int(value) for name, value in enum.__members__.items()}


def surface_of(kind: Any) -> Dict[str, Any]:
    """A class's public members: a method's signatures, "property", "read-only property", or a constant's name."""
    found: Dict[str, Any] = {"__init__": signatures(kind.__init__)}
    for name in dir(kind):
        value = getattr(kind, name)
        if name.startswith("_") or isinstance(value, type):
            continue
        if isinstance(value, property):
            found[name] = "read-only property" if value.fset is None else "property"
        elif hasattr(type(value), "__members__"):
            found[name] = f"= {type(value).__qualname__}.{value.name}"
        elif callable(value):
            # network definitions have many layers that GradSeg leaves to the ONNX parser
            found[name] = [] if name.startswith("add_") and kind.__name__ == "INetworkDefinition" else signatures(value)
    return found


def signatures(function: Any) -> List[str]:
    """From pybind11's docstring: one line for each overload, without module names and the function's own name."""
    name, lines = function.__name__, (function.__doc__ or "").strip().splitlines()
    pattern = re.compile(rf"^(?:\d+\. )?{re.escape(name)}(\(.*)$")
    found = [match.group(1) for match in map(pattern.match, lines) if match]
    return [PREFIX.sub("", text) for text in found if text != "(*args, **kwargs)"]


if __name__ == "__main__":
    sys.exit(main())
