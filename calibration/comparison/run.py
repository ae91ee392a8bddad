"""The comparison from a script's arguments: networks loaded, every variant measured, JSON and page written."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

from gradseg.base.conditions import conditions, usable_cores
from gradseg.base.errors import GradsegError
from gradseg.base.files import write_json, write_text
from gradseg.calibration.comparison import figures as int8_figures
from gradseg.calibration.comparison import page as int8_html
from gradseg.calibration.comparison.models import Subject, check_classes, subjects_from
from gradseg.calibration.comparison.recipes import Options
from gradseg.calibration.comparison.variants import EMULATED, measured, steps_of
from gradseg.calibration.cost.accuracy import Frames
from gradseg.calibration.qdq.int8_from_arguments import reduces_range
from gradseg.commands import command
from gradseg.data.base import Dataset
from gradseg.data.specs import open_data
from gradseg.graphs.frames import default_source, open_frames

SHOWN = 5  # frames side by side
Tick = Callable[[str], None]


def compare(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measures what `report.py`'s arguments, given as `words`, ask for, and writes it; 1 if a variant failed."""
    data = open_data(args.data, args.limit)
    if args.calib:
        open_frames(args.calib, args.calib_frames)
    subjects = subjects_from(args.models, args, pick_up=not args.no_qat)
    check_classes(subjects, data)
    if args.calib is None:
        print("note: no --calib given, so INT8 is calibrated on procedural scenes; give frames of your own camera")
    sections = _sections(subjects, data, args)
    known = conditions(
        threads=args.threads or usable_cores(),
        data=args.data,
        frames=len(data),
        limit=args.limit,
        calib=args.calib or "procedural scenes",
        calib_frames=args.calib_frames,
        reduce_range=reduces_range(args.reduce_range),
        emulation={"trt": EMULATED, "tidl": EMULATED},
        command=command("calibration/report.py", *words),
    )
    models = [section.row for section in sections]
    text = int8_html.page(sections, known)
    write_json(args.json, {"models": models, "conditions": known})
    write_text(args.html, text)
    return _tell(models, args)


def _sections(subjects: Sequence[Subject], data: Dataset, args: argparse.Namespace) -> List[int8_html.Section]:
    sections: List[int8_html.Section] = []
    frames: Optional[Frames] = None
    steps = sum(steps_of(each) + 1 for each in subjects)
    with tempfile.TemporaryDirectory(prefix="gradseg-int8-") as folder, _progress(steps) as tick:
        for index, subject in enumerate(subjects):
            spec = subject.loaded.spec
            if frames is None or frames.spec.input_hw != spec.input_hw:
                frames = Frames(data, spec)
            place = Path(folder) / str(index)
            place.mkdir()
            try:
                sections.append(_section(subject, frames, args, place, tick))
            except GradsegError as error:  # what comes from deep inside does not know which network it was
                raise GradsegError(f"{subject.path}: {error}", error.exit_code) from error
    return sections


def _section(subject: Subject, frames: Frames, args: argparse.Namespace, folder: Path, tick: Tick) -> int8_html.Section:
    """Measures one network and draws it; what is kept of it is small."""
    spec = subject.loaded.spec
    calib = args.calib or default_source(spec.input_hw)
    options = Options(calib, args.calib_frames, args.threads, reduces_range(args.reduce_range), args.samples)
    found = measured(subject, frames, args.data, options, folder, tick)
    best: Dict[str, Any] = found.row["best"]
    shown = [name for name in dict.fromkeys((best["cpu"], best["tidl"])) if name is not None]
    tick("pictures")
    return int8_html.Section(
        found.row,
        int8_figures.drops_picture(found.row),
        [picture for target in ("cpu", "tidl") for picture in int8_figures.worst_tensors(found, target)],
        int8_figures.frame_pictures(found, frames, shown, SHOWN, args.threads),
        tuple(zip(spec.classes, spec.palette, strict=True)),
    )


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Tick]:
    """A bar on stderr, if that is a terminal; gives what to call with a few words before each step."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:  # the report does without it
        yield lambda text: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=steps, completed=-1)
        yield lambda text: bars.update(task, description=text, advance=1)


def _tell(models: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> int:
    """Prints the verdicts and where the files are; 1 if a variant failed."""
    failed = 0
    for row in models:
        print(f"{row['model']}: float {100 * row['float']['miou']:.2f} % mIoU")
        for line in [*int8_html.verdicts(row), *(f"warning: {text}" for text in row["calibration"]["warnings"])]:
            print(f"  {line}")
        failed += sum("error" in each for each in row["variants"])
    print(f"wrote {args.json} and {args.html}")
    if failed:
        print(f"error: {failed} variants failed; they are named above and in {args.json}", file=sys.stderr)
    return 1 if failed else 0
