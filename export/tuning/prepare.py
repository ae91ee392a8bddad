"""The models that tune.py builds its candidates from: float forms, and INT8 for each engine, calibrated once."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.calibration.qdq.int8 import Calibrated, Settings, calibrated, int8_from_calibrated
from gradseg.calibration.qdq.int8_from_arguments import cpu_form, int8_from_stored, settings_from
from gradseg.calibration.qdq.native_form import native_form
from gradseg.calibration.qdq.targets import NATIVE, OPENVINO
from gradseg.export.tuning.state import Store
from gradseg.graphs.forms import FORMS, float_forms
from gradseg.graphs.frames import default_source
from gradseg.graphs.graph import is_quantised, rewritten
from gradseg.graphs.load import Loaded, load_any, load_checkpoint_for, size_of, write_out
from gradseg.graphs.passes.rows_head import rows_head

Say = Callable[[str], None]
PLAIN = "plain"


@dataclasses.dataclass
class Sources:
    """Names of models in the work folder, as JSON keeps them.

    spec: the ModelSpec's JSON. floats: form → file. words: form → what it does. checkpoint: file or None. int8: kind →
    file; where one could not be made, `missing` says why. lines: for the user. digests: file → SHA-256.
    """

    spec: str
    floats: Dict[str, str] = dataclasses.field(default_factory=dict)
    words: Dict[str, str] = dataclasses.field(default_factory=dict)
    checkpoint: Optional[str] = None
    int8: Dict[str, str] = dataclasses.field(default_factory=dict)
    missing: Dict[str, str] = dataclasses.field(default_factory=dict)
    lines: List[str] = dataclasses.field(default_factory=list)
    digests: Dict[str, str] = dataclasses.field(default_factory=dict)


def prepared(store: Store, args: argparse.Namespace, say: Say) -> Sources:
    """From the store, or made. GradsegError for a model or a source of frames that cannot be used."""
    found = _kept(store)
    if found is not None:
        return found
    say("reading the model")
    loaded = load_any(args)
    if is_quantised(loaded.model):
        raise GradsegError(
            f"{args.model}: is INT8 already; give its FP32 form or its checkpoint, of which INT8 is made"
        )
    found = Sources(loaded.spec.to_json())
    words = {form.name: form.words for form in FORMS}
    for name, model in float_forms(loaded.model).items():
        found.floats[name] = _written(store, f"fp32-{name}.onnx", model)
        found.words[name] = words.get(name, name)
    if Path(args.model).suffix.lower() != ".onnx":
        found.checkpoint = _checkpoint(store, args)
    found.lines += loaded.warnings
    if loaded.agreement is not None:
        found.lines.append(f"ONNX: labels equal to PyTorch's on {loaded.agreement}")
    _int8(store, found, loaded, args, say)
    files = {*found.floats.values(), *found.int8.values(), found.checkpoint}
    found.digests = {file: sha256_of(store.folder / file) for file in files if file is not None}
    store.write("sources", dataclasses.asdict(found))
    return found


def _kept(store: Store) -> Optional[Sources]:
    with contextlib.suppress(TypeError, OSError):  # nothing is known, or of another shape, or a file is gone
        found = Sources(**(store.read("sources") or {}))
        if all(sha256_of(store.folder / file) == known for file, known in found.digests.items()):
            return found
    return None


def _written(store: Store, name: str, model: Any) -> str:
    write_out(store.folder / "sources" / name, model.SerializeToString())
    return f"sources/{name}"


def _checkpoint(store: Store, args: argparse.Namespace) -> str:
    """A copy at the wanted size, so that bare state dicts and --size need no words later."""
    from gradseg.models.checkpoint import save_checkpoint

    ckpt = load_checkpoint_for(args.model, args.arch, size_of(args))
    ckpt.network.spec = ckpt.spec
    save_checkpoint(store.folder / "sources" / "checkpoint.pth", ckpt.network)
    return "sources/checkpoint.pth"


def _int8(store: Store, found: Sources, loaded: Loaded, args: argparse.Namespace, say: Say) -> None:
    """The INT8 models of all engines, from one look at the frames."""
    stored = loaded.info.get("quantisation")
    if stored and stored.get("target") == "cpu":
        found.int8["cpu"] = _written(store, "int8-cpu.onnx", int8_from_stored(loaded.model, stored))
        found.int8["openvino"] = found.int8["cpu"]  # the same scales
        found.lines.append("INT8 for ONNX Runtime and OpenVINO: scales from quantisation-aware fine-tuning")
    source = args.calib or default_source(loaded.spec.input_hw)
    if args.calib is None:
        found.lines.append(
            f"note: no --calib given, so INT8 is calibrated on procedural scenes ({source}); give frames of your own "
            "camera"
        )
    say(f"calibrating INT8 on {source}")
    settings = settings_from(args, "cpu", args.calib_method)
    seen = calibrated(loaded.model, source, settings.frames, settings.equalise, args.threads, skip_bad=args.skip_bad)
    for name, make in RECIPES.items():
        if name in found.int8:
            continue
        say(f"rounding to INT8: {name}")
        try:
            found.int8[name] = _written(store, f"int8-{name}.onnx", make(seen, settings))
        except ImportError as error:
            found.missing[name] = f"{error.name or error} is not installed here"
        except GradsegError as error:
            found.missing[name] = str(error)


RECIPES: Dict[str, Callable[[Calibrated, Settings], Any]] = {
    "cpu": lambda seen, settings: int8_from_calibrated(seen, settings, cpu_form),
    "groups": lambda seen, settings: int8_from_calibrated(seen, settings, lambda model: rewritten(model, rows_head)),
    "openvino": lambda seen, settings: int8_from_calibrated(seen, dataclasses.replace(settings, target=OPENVINO.name)),
    "native": lambda seen, settings: int8_from_calibrated(
        seen, dataclasses.replace(settings, target=NATIVE.name, reduce_range=False), native_form
    ),
}
