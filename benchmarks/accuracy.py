"""mIoU, IoU per class and pixel accuracy of an engine on labelled frames, at each frame's full resolution.

`python benchmarks/accuracy.py --engine E --data SPEC [--against E2] [--json F]`. All figures are fractions.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, Optional, Sequence

import numpy as np

from gradseg.base.conditions import conditions
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, write_json
from gradseg.base.options import add, add_common, command_parser
from gradseg.data.base import Dataset
from gradseg.data.specs import GRAMMAR, open_data
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine, read_spec
from gradseg.runtime.metrics import Confusion
from gradseg.runtime.preprocess import Preprocessor, resize_labels


def measure(engine: Engine, data: Dataset, against: Optional[Engine] = None, shown: bool = False) -> Dict[str, Any]:
    """The result of one engine on `data`: miou, per_class, pixel_accuracy, frames, and with `against` agreement (the
    share of all pixels, ignored ones too, on which both engines give the same label) and its own miou.

    Raises GradsegError if the classes of engine and data differ.
    """
    check_classes(engine, data)
    if against is not None:
        check_classes(against, data)
    for each in filter(None, (engine, against)):
        if each.batch != 1:
            raise GradsegError(f"{each.name}: takes {each.batch} frames at a time; measure one built with --batch 1")
    preprocess = Preprocessor(engine.frame_hw)
    second = Preprocessor(against.frame_hw) if against else None
    confusion, other = Confusion(engine.spec.num_classes), Confusion(engine.spec.num_classes)
    same = pixels = 0
    for index in tracked(range(len(data)), shown):
        sample = data[index]
        labels = resize_labels(engine.infer(preprocess(sample.image))[0], sample.label.shape[:2])
        confusion.update(labels, sample.label)
        if against is not None and second is not None:
            theirs = resize_labels(against.infer(second(sample.image))[0], sample.label.shape[:2])
            other.update(theirs, sample.label)
            same += int(np.count_nonzero(labels == theirs))
            pixels += labels.size
    if math.isnan(confusion.miou()):
        raise GradsegError(f"no labelled pixel in the {len(data)} frames: there is nothing to measure")
    result: Dict[str, Any] = {
        "miou": confusion.miou(),
        "per_class": confusion.per_class(engine.spec.classes),
        "pixel_accuracy": confusion.pixel_accuracy(),
        "frames": len(data),
    }
    if against is not None:
        result["against"] = {"engine": against.name, "miou": other.miou(), "agreement": same / pixels}
    return result


def check_classes(engine: Engine, data: Dataset) -> None:
    """Raises GradsegError unless the engine's classes are the data's, in order."""
    if tuple(engine.spec.classes) != tuple(data.classes):
        raise GradsegError(
            f"{engine.name}: its classes {list(engine.spec.classes)} are not the data's {list(data.classes)}; "
            "measure it on data with the classes it was trained on"
        )


def tracked(items: Iterable[int], shown: bool) -> Iterable[int]:
    """`items` behind a progress bar on stderr."""
    if not shown:
        return items
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:  # a device without the extras
        return items
    return track(list(items), description="frames", console=Console(stderr=True), transient=True)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = command_parser("benchmarks/accuracy.py", __doc__)
    add(parser, "--engine", required=True)
    add(parser, "--data", required=True, help=f"labelled frames: {GRAMMAR}")
    add(parser, "--against", metavar="ENGINE", help="a second engine to compare labels with")
    add_common(parser, "--json", "--limit", "--threads", "--spec", "--provider")
    arguments = parser.parse_args(argv)
    check_output("--json", arguments.json, (arguments.engine, arguments.against, arguments.spec))
    data = open_data(arguments.data, arguments.limit)
    spec = read_spec(arguments.spec) if arguments.spec else None
    engine = open_engine(arguments.engine, arguments.threads, spec, arguments.provider)
    against = open_engine(arguments.against, arguments.threads) if arguments.against else None
    result = measure(engine, data, against, shown=True)
    for name, value in result["per_class"].items():
        print(f"{name:<16}{'absent' if value is None else f'{value:.4f}'}")
    print(f"{'mIoU':<16}{result['miou']:.4f}\n{'pixel accuracy':<16}{result['pixel_accuracy']:.4f}")
    if against is not None:
        other = result["against"]
        print(f"against {against.name}: mIoU {other['miou']:.4f}, agreement {other['agreement']:.6f}")
    if arguments.json:
        if against is not None:
            result["against"].update(backend=against.backend, precision=against.precision, device=against.device)
        known = conditions(
            threads=engine.threads,
            engine_device=engine.device,
            backend=engine.backend,
            precision=engine.precision,
            provider=getattr(engine, "provider", None),
            frame_hw=list(engine.frame_hw),
            data=arguments.data,
            limit=arguments.limit,
        )
        write_json(arguments.json, {"engine": engine.name, **result, "conditions": known})
    return 0


if __name__ == "__main__":
    run_main(main)
