"""Which INT8 variants of a network are compared, what their rows say of them, and how their tensors fare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np

from gradseg.base.options import METHODS
from gradseg.calibration.comparison.models import Tuned
from gradseg.calibration.qdq.int8 import Calibrated, Settings
from gradseg.calibration.qdq.plan import pixel_tensors, plan_for
from gradseg.calibration.qdq.targets import TARGETS, Quantisation
from gradseg.calibration.ranges.observers import Observer
from gradseg.graphs.graph import Graph


@dataclass(frozen=True)
class Recipe:
    """A variant made by calibration alone. naive: what an INT8 converter without any care does."""

    name: str
    settings: Settings
    naive: bool = False


@dataclass(frozen=True)
class Options:
    """calib: a source as `open_frames` takes it. samples: timed frames per engine, 0 for no latency."""

    calib: str
    calib_frames: int = 32
    threads: Optional[int] = None
    reduce_range: bool = False
    samples: int = 50


@dataclass(frozen=True)
class TensorError:
    """How a tensor fares in INT8 on the calibration frames. low, high: what the integers reach. clipped: the share
    outside. sqnr_db: signal to quantisation noise, mean squares; None for a tensor that is always zero."""

    name: str
    low: float
    high: float
    clipped: float
    sqnr_db: Optional[float]


def recipes(target: str, options: Options) -> list[Recipe]:
    """The naive variant, each method with full repair, and `mse` with each repair alone and with none."""
    reduced = options.reduce_range and target == "cpu"
    full = Settings(target, "mse", options.calib_frames, reduce_range=reduced)
    bare = replace(full, equalise=False, bias_correction=False)
    found = [Recipe(f"{target} naive", replace(bare, method="minmax", per_channel=False), naive=True)]
    found += [Recipe(f"{target} {method}", replace(full, method=method)) for method in METHODS]
    return [
        *found,
        Recipe(f"{target} mse, no repair", bare),
        Recipe(f"{target} mse, equalised only", replace(bare, equalise=True)),
        Recipe(f"{target} mse, bias corrected only", replace(bare, bias_correction=True)),
    ]


def described(recipe: Recipe) -> dict[str, Any]:
    known = recipe.settings
    return {
        "target": known.target,
        "method": known.method,
        "qat": False,
        "naive": recipe.naive,
        "repair": {"equalise": known.equalise, "bias_correction": known.bias_correction},
    }


def described_tuned(tuned: Tuned) -> dict[str, Any]:
    known = {"target": str(tuned.quantisation.get("target")), "method": "qat", "qat": True, "naive": False}
    sparsity = tuned.loaded.info.get("sparsity")
    repair = {"repair": {"equalise": False, "bias_correction": False}, "file": str(tuned.path)}
    return {**known, **repair, **({} if sparsity is None else {"sparsity": sparsity})}


def tuned_names(tuned: Sequence[Tuned]) -> list[str]:
    plain = [f"{each.quantisation.get('target')} QAT" for each in tuned]
    return [
        name if plain.count(name) == 1 else f"{name} ({each.path.name})"
        for name, each in zip(plain, tuned, strict=True)
    ]


def tensor_errors(known: Calibrated, settings: Settings, scales: Mapping[str, Quantisation]) -> list[TensorError]:
    """Every activation that is quantised for the target, the one with the least signal to noise first."""
    exact = pixel_tensors(Graph(known.model))
    found = []
    for name in plan_for(known.model, settings.target).observed():
        if name not in exact:
            found.append(_tensor_error(name, known.statistics.observers[name], scales[name]))
    return sorted(found, key=lambda each: np.inf if each.sqnr_db is None else each.sqnr_db)


def _tensor_error(name: str, seen: Observer, scale: Quantisation) -> TensorError:
    low, high = ((limit - scale.zero_point) * scale.scale for limit in scale.limits)
    noise = seen.square_error(scale.scale, scale.zero_point, *scale.limits)
    signal = float((seen.weights() * seen.centres() ** 2).sum()) / max(1, int(seen.counts.sum()))
    ratio = 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None
    return TensorError(name, low, high, seen.clipped(low, high), ratio)


def best_of(variants: Sequence[Mapping[str, Any]]) -> dict[str, Optional[str]]:
    """The variant with the highest mIoU for each target, and for tidl without fine-tuning; None if all failed.

    Naive ones are there for comparison alone.
    """
    whole = [row for row in variants if row.get("miou") is not None and not row.get("naive")]
    groups = {target: [row for row in whole if row["target"] == target] for target in TARGETS}
    groups["tidl_ptq"] = [row for row in groups["tidl"] if not row["qat"]]
    return {
        name: str(max(rows, key=lambda row: (row["miou"], row["agreement"]))["name"]) if rows else None
        for name, rows in groups.items()
    }
