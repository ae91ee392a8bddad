"""What stands beside a plan in NAME.plan.json, and whether the plan can run here: all asked before TensorRT reads it.

A plan runs on the TensorRT and the GPU that it was built for. TensorRT's own messages do not say what does not fit, and
a damaged plan may bring the process down; so the manifest is checked first. Written by export/to_trt.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from gradseg.base.errors import GradsegError
from gradseg.commands import command
from gradseg.models.spec import MAX_SIDE, ModelSpec
from gradseg.runtime.cuda.gpu import Gpu, need_gpu
from gradseg.runtime.engines.trt_library import LIBRARIES, import_first, import_one

FORMAT = "gradseg.plan/1"
MAX_BYTES = 4 << 20  # of a manifest; what is larger is something else
OLDEST_COMPATIBLE = 80  # hardware-compatible plans, and TensorRT-RTX without a target: Ampere and newer
MAX_BATCH = 4096


class StalePlan(GradsegError):  # noqa: N818 it is a state of the plan, and --rebuild mends it
    """A plan that cannot run here as it is, and that building it again can mend. Exit code 2."""


def manifest_path(plan: Path) -> Path:
    """m.plan → m.plan.json."""
    return plan.with_name(plan.name + ".json")


def rebuild_command(plan: Path) -> str:
    """What to type to build the plan again on this machine, from the ONNX that travels with it."""
    return command("export/to_trt.py", "--rebuild", plan)


def check_present(plan: Path) -> None:
    """StalePlan for a plan that is missing or empty while its manifest is there: it can be built again."""
    if manifest_path(plan).is_file() and (not plan.exists() or (plan.is_file() and plan.stat().st_size == 0)):
        _stale(plan, f"is {'empty' if plan.exists() else 'missing'}, though {manifest_path(plan).name} is there")


def read_manifest(plan: Path) -> Dict[str, Any]:
    """The plan's manifest, every field that the runtime relies on checked for its type.

    Raises StalePlan, one line with the rebuild command: no manifest, not JSON, cut off, of another format, a field
    missing or ill-typed.
    """
    path = manifest_path(plan)
    if not path.is_file():
        _stale(
            plan,
            f"no {path.name} beside it (the TensorRT and GPU it was built for, its ModelSpec); copy it along, or, for "
            "a plan of trtexec or another tool, build it from its ONNX: " + command("export/to_trt.py", "MODEL.onnx"),
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            _stale(plan, f"{path.name} has {path.stat().st_size} bytes: not a manifest")
        found = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise GradsegError(f"{path}: cannot be read ({error.strerror}); needed to run {plan.name}") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        _stale(plan, f"{path.name} is not JSON ({reason}): half-written or damaged; copy it again")
    if not isinstance(found, dict):
        _stale(plan, f"{path.name} holds {type(found).__name__}, a JSON object is needed")
    form = found.get("format")
    if form is None:
        _stale(plan, f'{path.name} has no "format": written by an older GradSeg; {FORMAT!r} is needed')
    if form != FORMAT:
        _stale(plan, f"{path.name}: format is {form!r}, {FORMAT!r} is needed")
    problem = _problem(found)
    if problem:
        _stale(plan, f"{path.name}: {problem}")
    spec_of(plan, found)
    return found


def spec_of(plan: Path, manifest: Dict[str, Any]) -> ModelSpec:
    """The ModelSpec in a manifest; StalePlan for one that is ill-formed."""
    try:
        return ModelSpec.from_dict(manifest["spec"], f"{plan.name}.json: spec")
    except GradsegError as error:
        raise StalePlan(f"{plan}: {error}. Rebuild: {rebuild_command(plan)}") from error


@dataclass(frozen=True)
class Checked:
    """A plan that fits this machine, before TensorRT has seen it. data: its bytes. trt: the library's module."""

    manifest: Dict[str, Any]
    data: bytes
    trt: Any
    gpu: Gpu


def check_plan(plan: Path, where: str) -> Checked:
    """All that can be known of a plan before it is deserialised, in this order: manifest, the plan's bytes, library and
    version, a GPU, its compute capability.

    Raises StalePlan for what building again mends, saying which field differs, found and needed, and the command;
    GradsegError with exit code 3, naming `where`, for a GPU or library that is not there. The library's version is
    compared before the GPU is looked for, but a missing library is told after a missing GPU, which outweighs it.
    """
    manifest = read_manifest(plan)
    data = check_file(plan, manifest)
    kind = manifest["library"]
    trt = import_one(kind)
    if trt is not None:
        check_library(plan, manifest, kind, str(trt.__version__))
    gpu = need_gpu(where)
    if trt is None:
        other = import_first()
        if other is not None:
            check_library(plan, manifest, other[0], str(other[1].__version__))
        raise GradsegError(
            f"{where} needs {kind} {manifest['version']}, and it cannot be imported here; on a Jetson it comes with "
            "JetPack (make the virtual environment with --system-site-packages), elsewhere pip install "
            + ("tensorrt-rtx" if kind == "tensorrt_rtx" else f"tensorrt=={manifest['version']}"),
            3,
        )
    check_gpu(plan, manifest, gpu)
    return Checked(manifest, data, trt, gpu)


def check_file(plan: Path, manifest: Dict[str, Any]) -> bytes:
    """The plan's bytes; StalePlan if their number or SHA-256 is not the manifest's."""
    needed = manifest["plan"]
    data = plan.read_bytes()
    if len(data) != needed["bytes"]:
        how = "truncated" if len(data) < needed["bytes"] else "changed"
        _differs(plan, "plan.bytes", len(data), needed["bytes"], f"{how}, or another plan's manifest")
    digest = hashlib.sha256(data).hexdigest()
    if digest != needed["sha256"].lower():
        short = f"{digest[:12]}…", f"{needed['sha256'][:12]}…"
        _differs(plan, "plan.sha256", *short, why="damaged, changed, or another plan's manifest")
    return data


def check_library(plan: Path, manifest: Dict[str, Any], kind: str, version: str) -> None:
    """StalePlan unless the plan runs on library `kind` ("tensorrt", "tensorrt_rtx") of that version.

    TensorRT loads plans of exactly its own version; version-compatible ones, of its own major version if the library is
    not older than the plan. TensorRT-RTX: of its own major and minor version.
    """
    needed = str(manifest["version"])
    if kind != manifest["library"]:
        _differs(plan, "library", f"{kind} {version}", f"{manifest['library']} {needed}")
    have, want = numbers(version), numbers(needed)
    common = min(len(have), len(want))  # packages state three or four numbers, one release the same in all places
    if kind == "tensorrt_rtx":
        fits, rule = have[:2] == want[:2], "the same major and minor version"
    elif manifest["options"].get("version_compatible"):
        fits, rule = have[:1] == want[:1] and have[:common] >= want[:common], "this major version, no older"
    else:
        fits, rule = have[:common] == want[:common], "exactly this version"
    if not fits:
        _differs(plan, "version", f"{kind} {version}", f"{kind} {needed} ({rule})")


def check_gpu(plan: Path, manifest: Dict[str, Any], gpu: Gpu) -> None:
    """StalePlan unless the plan was built for this GPU's compute capability."""
    targets = built_for(manifest)
    have = gpu.compute_capability
    ampere = not targets or bool(manifest["options"].get("hardware_compatible"))
    if have in targets or (ampere and int(have[2:]) >= OLDEST_COMPATIBLE):
        return
    needed = f"sm{OLDEST_COMPATIBLE} or newer" if ampere else " or ".join(targets)
    _differs(plan, "compute_capability", f"{have} ({gpu.name})", needed)


def check_dla(plan: Path, manifest: Dict[str, Any], cores: int) -> Optional[int]:
    """The DLA core that the plan was built for, None for a plan of the GPU alone; StalePlan if it is not there."""
    core: Optional[int] = manifest["options"].get("dla")
    if core is not None and core >= cores:
        _differs(plan, "options.dla", f"{cores} DLA cores", f"DLA core {core}")
    return core


def built_for(manifest: Dict[str, Any]) -> List[str]:
    """The compute capabilities that the plan was built for; [] for TensorRT-RTX's default, Ampere and newer."""
    if manifest["compute_capability"]:
        return list(manifest["compute_capability"])
    gpu = manifest.get("gpu")
    return [gpu["compute_capability"]] if gpu and manifest["library"] == "tensorrt" else []


def gpu_note(plan: Path, manifest: Dict[str, Any], gpu: Gpu) -> str:
    """What to say if the plan was built on another model of GPU that it fits all the same; "" if there is nothing."""
    built = manifest.get("gpu")
    if not built or manifest["library"] != "tensorrt" or built["name"] == gpu.name:
        return ""
    return (
        f"{plan} was built on {built['name']}, this is {gpu.name}: it runs, with kernels chosen for the other. "
        f"For the fastest: {rebuild_command(plan)}"
    )


def numbers(version: str) -> Tuple[int, ...]:
    """ "8.5.3.1" → (8, 5, 3, 1); "10.3.0+cuda12.5" → (10, 3, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def _stale(plan: Path, what: str) -> NoReturn:
    raise StalePlan(f"{plan}: {what}. Rebuild: {rebuild_command(plan)}")


def _differs(plan: Path, field: str, found: Any, needed: Any, why: str = "") -> NoReturn:
    _stale(plan, f"{field} differs: found {found}, needed {needed}{f' ({why})' if why else ''}")


def _problem(found: Dict[str, Any]) -> str:
    """The first field that is missing or ill-typed, or ""."""
    needed = ("plan", "spec", "frame_hw", "batch", "precision", "library", "version", "compute_capability", "options")
    missing = [name for name in needed if name not in found]
    if missing:
        return f"{', '.join(missing)} missing"
    plan, size, gpu, options = found["plan"], found["frame_hw"], found.get("gpu"), found["options"]
    sized = isinstance(size, list) and len(size) == 2 and all(_whole(v, 1, MAX_SIDE) for v in size)
    made_for = found["compute_capability"]
    core = options.get("dla") if isinstance(options, dict) else None
    rules = (
        ("plan", isinstance(plan, dict) and _whole(plan.get("bytes"), 1), 'an object with "bytes" above 0'),
        ("plan", isinstance(plan, dict) and _like(plan.get("sha256"), r"[0-9a-fA-F]{64}"), 'a "sha256" of 64 digits'),
        ("spec", isinstance(found["spec"], dict), "a ModelSpec"),
        ("frame_hw", sized, f"[height, width], each 1 to {MAX_SIDE}"),
        ("batch", _whole(found["batch"], 1, MAX_BATCH), f"a whole number from 1 to {MAX_BATCH}"),
        ("precision", _like(found["precision"], r"\S+"), "a word"),
        ("library", found["library"] in LIBRARIES, f"one of {', '.join(LIBRARIES)}"),
        ("version", _like(found["version"], r"\d+\.\d+\.\d+.*"), 'a version such as "10.3.0"'),
        ("compute_capability", made_for is None or _capabilities(made_for), 'a list such as ["sm87"], or null'),
        ("gpu", gpu is None or _gpu(gpu), 'an object with "name" and "compute_capability", or null'),
        ("options", isinstance(options, dict), "an object"),
        ("options.dla", core is None or _whole(core, 0), "the number of a core, or null"),
    )
    for name, fits, wanted in rules:
        if not fits:
            value = json.dumps(found.get(name.split(".")[0]))
            return f"{name} is {value[:60]}{'…' if len(value) > 60 else ''}, needed {wanted}"
    if found["library"] == "tensorrt" and not built_for(found):
        return "compute_capability and gpu are both null, needed one for a plan of tensorrt"
    return ""


def _whole(value: Any, low: int, high: Optional[int] = None) -> bool:
    return type(value) is int and value >= low and (high is None or value <= high)


def _like(value: Any, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _capabilities(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_like(item, r"sm\d{2,3}") for item in value)


def _gpu(value: Any) -> bool:
    named = isinstance(value, dict) and isinstance(value.get("name"), str)
    return named and _capabilities([value.get("compute_capability")])
