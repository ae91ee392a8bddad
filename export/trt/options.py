"""What a TensorRT build may be told: the options, their arguments, and which TensorRT has which. Python 3.8; no onnx.

Sources: NVIDIA's Python API reference and migration guides of 8.5, 8.6, 10.x, 11.x and TensorRT-RTX; what each version
really has is recorded in tests/toys/trt_surface/.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, List, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.files import check_writable

PRECISIONS = ("fp32", "fp16", "int8")
OPT_LEVELS = (0, 5)
MOST_MIB = 1 << 24  # 16 TiB, more than any GPU has
Library = Tuple[str, Any]


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built; travels in NAME.plan.json, so that a rebuild does the same.

    precision: fp32, fp16 or int8; INT8 is the Q/DQ in the ONNX. targets: compute capabilities such as "sm89", for
    TensorRT-RTX; empty: this machine's GPU, or the library's default. workspace_mib: scratch memory that kernels may
    use while the plan runs, in MiB; None: the library's default, all of the GPU's. timing_cache: a file. dla: core
    number. opt_level: 0 to 5, how long the builder searches. tf32: FP32 may round its inputs to TF32's 11 significant
    bits. keep_fp32: ONNX nodes that compute in FP32, whatever the precision, on weakly typed builders.
    """

    precision: str
    targets: Tuple[str, ...] = ()
    workspace_mib: Optional[int] = None
    timing_cache: Optional[str] = None
    dla: Optional[int] = None
    sparse: bool = False
    opt_level: Optional[int] = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    tf32: bool = False
    keep_fp32: Tuple[str, ...] = ()

    def to_dict(self) -> Dict[str, Any]:
        """As JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(values: Any, where: str) -> BuildOptions:
        """The options in a file named `where`; GradsegError for a missing, unknown or ill-typed one."""
        if not isinstance(values, dict) or "precision" not in values:
            raise GradsegError(f"{where}: build options are {str(values)[:60]}; expected an object with a precision")
        unknown = sorted(set(values) - {field.name for field in fields(BuildOptions)})
        if unknown:
            raise GradsegError(f"{where}: unknown build options {', '.join(unknown)}; written by a newer GradSeg?")
        kept: Dict[str, Any] = {}
        for key, value in values.items():
            if not _has_type(key, value):
                raise GradsegError(f"{where}: build option {key} is {str(value)[:60]!r}, which is not of its type")
            kept[key] = tuple(value) if isinstance(value, list) else value
        options = BuildOptions(**kept)
        _check_values(options, f"{where}: ")
        return options


def _has_type(key: str, value: Any) -> bool:
    if key in ("targets", "keep_fp32"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if key in ("workspace_mib", "dla", "opt_level"):
        return value is None or type(value) is int  # no bool
    kinds: Dict[str, Any] = {"precision": str, "timing_cache": (str, type(None))}
    return isinstance(value, kinds.get(key, bool))


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `BuildOptions`, but for precision and keep_fp32."""
    add = parser.add_argument_group("how TensorRT builds").add_argument
    add(
        "--compute-capability",
        action="append",
        default=[],
        metavar="SM",
        help="GPU to build for, with TensorRT-RTX: sm75, sm86, sm89…; may be repeated. Default: this machine's GPU",
    )
    add("--workspace", type=int, metavar="MIB", help="scratch memory for kernels; default: the GPU's")
    add("--timing-cache", metavar="FILE", help="kernel timings kept between builds, shared by processes")
    add("--dla", type=int, metavar="N", help="DLA core of a Jetson; layers it cannot run go to the GPU")
    add("--sparse", action="store_true", help="may use 2:4 sparse kernels where weights are sparse")
    add("--opt-level", type=int, metavar="0-5", help="how long the builder searches; TensorRT's default: 3")
    add("--version-compatible", action="store_true", help="plan loads in later TensorRT versions too")
    add("--hardware-compatible", action="store_true", help="plan loads on every GPU from Ampere on")
    add("--tf32", action="store_true", help="FP32 may use TF32: faster, and no longer quite FP32")


def options_from(args: argparse.Namespace, precision: str) -> BuildOptions:
    """The options that `add_build_arguments` parsed, values checked. GradsegError for one that cannot be."""
    targets = tuple(dict.fromkeys(target.lower().replace("sm_", "sm") for target in args.compute_capability))
    given = {**vars(args), "precision": precision, "targets": targets, "workspace_mib": args.workspace}
    options = BuildOptions(**{field.name: given[field.name] for field in fields(BuildOptions) if field.name in given})
    _check_values(options)
    return options


def _check_values(options: BuildOptions, where: str = "") -> None:
    low, high = OPT_LEVELS
    if options.precision not in PRECISIONS:
        raise GradsegError(f"{where}precision {options.precision!r}: expected {', '.join(PRECISIONS)}")
    for target in options.targets:
        if not re.fullmatch(r"sm\d{2,3}", target):
            raise GradsegError(
                f"{where}--compute-capability {target}: expected smNN, such as sm75, sm86, sm89 or sm120"
            )
    if options.workspace_mib is not None and not 0 < options.workspace_mib <= MOST_MIB:
        raise GradsegError(f"{where}--workspace {options.workspace_mib}: expected MiB above 0, at most {MOST_MIB}")
    if options.opt_level is not None and not low <= options.opt_level <= high:
        raise GradsegError(f"{where}--opt-level {options.opt_level}: expected {low} (quick) to {high} (thorough)")
    if options.dla is not None and options.dla < 0:
        raise GradsegError(f"{where}--dla {options.dla}: expected a core number, 0 or 1")
    if options.dla is not None and options.precision == "fp32":
        raise GradsegError(f"{where}--dla {options.dla}: a DLA computes in FP16 or INT8 only; add --precision fp16")
    if options.timing_cache == "":
        raise GradsegError(f"{where}--timing-cache: expected a file name")


RTX_INSTALL = "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
# NVIDIA, "Working with DLA" of 11.4.1: 10.7 was the last 10.x with DLA; 11.0 to 11.4.0 have none on Jetson
DLA_UNTIL, DLA_AGAIN = (10, 8), (11, 4, 1)
NOT_OF_RTX = {
    "timing_cache": "it times no kernels while it builds; leave it out",
    "opt_level": "it builds the same plan at every level; leave it out",
    "version_compatible": "tensorrt from 8.6 on has it; rebuild with each new version",
    "hardware_compatible": "name each GPU: --compute-capability sm86",
    "dla": "it knows no DLA; build with JetPack's tensorrt on the Jetson",
}


def check_options(options: BuildOptions, library: Optional[Library]) -> None:
    """Before any work: an option that this TensorRT does not have.

    library: from `trt.build.import_tensorrt`; None checks the values alone. Raises GradsegError in one line: the
    option, the library and version, and what has it. Exit code 3 where another library is needed.
    """
    _check_values(options)
    if options.timing_cache is not None:
        check_writable(options.timing_cache)
    if library is None:
        return
    kind, trt = library
    here = f"{kind} {trt.__version__}"
    if kind == "tensorrt_rtx":
        _check_for_rtx(options, trt, here)
    else:
        _check_for_classic(options, trt, here)


def _check_for_rtx(options: BuildOptions, trt: Any, here: str) -> None:
    """TensorRT-RTX picks its kernels when a plan is first run, so what steers that choice is not its to take.

    Sources: its release notes 1.1 to 1.4 (timing caches are no-ops), and 1.7 itself: it knows no DLA, has no runtime to
    put into a version-compatible plan, warns of hardware compatibility, builds the same plan at every level.
    """
    known_targets(trt, options.targets)
    for name, instead in NOT_OF_RTX.items():
        if getattr(options, name) != getattr(BuildOptions, name):
            raise GradsegError(f"--{name.replace('_', '-')}: {here} does not have it: {instead}")


def _check_for_classic(options: BuildOptions, trt: Any, here: str) -> None:
    if options.targets:
        raise GradsegError(
            f"{here} builds for this machine's GPU only; leave --compute-capability out, or {RTX_INSTALL} to build for "
            "another GPU",
            exit_code=3,
        )
    later = "TensorRT 8.6 and later have it"
    lacking = (
        ("--opt-level", options.opt_level is not None, hasattr(trt.IBuilderConfig, "builder_optimization_level")),
        ("--version-compatible", options.version_compatible, hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE")),
        ("--hardware-compatible", options.hardware_compatible, hasattr(trt, "HardwareCompatibilityLevel")),
    )
    for name, given, there in lacking:
        if given and not there:
            raise GradsegError(f"{name}: {here} does not have it; {later}")
    if options.dla is not None:
        _check_dla(options, trt, here)


def _check_dla(options: BuildOptions, trt: Any, here: str) -> None:
    version = version_of(trt)
    if DLA_UNTIL <= version < DLA_AGAIN:
        raise GradsegError(
            f"--dla {options.dla}: {here} has no DLA; TensorRT 8.5 to 10.7 (JetPack 5 and 6) and 11.4.1 or newer "
            "(JetPack 7.2.2, AGX Orin) have it; leave it out to build for the GPU"
        )
    if options.precision == "int8" and version < DLA_AGAIN:
        raise GradsegError(
            f"--dla {options.dla}: the DLA of {here} takes no Q/DQ, so an INT8 network would run on the GPU; "
            "use --precision fp16 with --dla, or INT8 without it"
        )
    if options.hardware_compatible:
        raise GradsegError(f"--dla {options.dla}: a DLA plan fits one chip; leave --hardware-compatible out")


def strongly_typed(kind: str, trt: Any) -> bool:
    """Whether precision comes from the ONNX alone: TensorRT-RTX, and TensorRT from 11 on."""
    return kind == "tensorrt_rtx" or not hasattr(trt.BuilderFlag, "FP16")


def version_of(trt: Any) -> Tuple[int, ...]:
    """(8, 5, 3, 1) of "8.5.3.1"; what follows the leading numbers is left out."""
    found = re.match(r"\d+(?:\.\d+)*", str(trt.__version__))
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def known_targets(trt: Any, targets: Sequence[str]) -> List[Any]:
    """TensorRT-RTX's values for compute capabilities such as "sm89"; GradsegError for one that it does not know."""
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    for target in targets:
        if target not in known:
            raise GradsegError(f"--compute-capability {target}: TensorRT-RTX builds for {', '.join(sorted(known))}")
    return [known[target] for target in targets]
