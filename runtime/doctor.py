"""What this machine has for running networks on video, what conflicts, and the one line that mends each conflict.

    python runtime/doctor.py [--engine dg2.plan] [--json doctor.json]

Changes nothing. Exit code 0 if run_video.py can run here with at least one kind of engine (with --engine: with that
file), 1 if not, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from gradseg.base.conditions import conditions
from gradseg.base.errors import run_main
from gradseg.base.files import check_output, require_file, write_json
from gradseg.base.options import COMMON, add, command_parser
from gradseg.commands import command
from gradseg.runtime.diagnosis import checks as doctor_checks
from gradseg.runtime.diagnosis import gpu_checks as doctor_gpu_checks
from gradseg.runtime.diagnosis.engines import can_run, kinds, verdict
from gradseg.runtime.diagnosis.facts import Facts, gather
from gradseg.runtime.diagnosis.fixes import OK, PROBLEM, Finding
from gradseg.runtime.diagnosis.system import System
from gradseg.runtime.engines.shipped import is_shipped

FORMAT = "gradseg.doctor/2"
WIDTH = 76  # of the plain table's second column at most, in characters

CHECKS: Tuple[Callable[[Facts], List[Finding]], ...] = (
    doctor_checks.check_board,
    doctor_checks.check_python,
    doctor_checks.check_numpy,
    doctor_checks.check_opencv,
    doctor_checks.check_onnxruntime,
    doctor_checks.check_openvino,
    doctor_checks.check_native,
    doctor_gpu_checks.check_driver,
    doctor_gpu_checks.check_tensorrt,
    doctor_gpu_checks.check_cuda,
    doctor_gpu_checks.check_cuda_python,
    doctor_checks.check_torch,
    doctor_checks.check_power,
    doctor_checks.check_resources,
    doctor_checks.check_cameras,
)

AGAIN = {  # of an engine file that is damaged: what goes with it, and what makes it
    ".onnx": ("", "export/to_onnx.py"),
    ".xml": (" with its .bin", "export/to_openvino.py"),
    ".gsn": ("", "export/to_native.py"),
}


def examine(facts: Facts) -> List[Finding]:
    """Every row of the table, in order."""
    return [finding for check in CHECKS for finding in check(facts)]


def check_engine(system: System, path: Path) -> Finding:
    """Whether this very file can be run here: opened as run_video.py opens it, in a process of its own."""
    what = f"engine {path.name}"
    answer = system.probe("engine", str(path))
    if "error" not in answer:
        height, width = answer["frame_hw"]
        return Finding(what, f"{answer['backend']}, {answer['device']}, {answer['precision']}, {width}x{height}")
    error = str(answer["error"])
    lacking = f"mend what is missing for {path.suffix}, see above" if answer.get("exit_code") == 3 else ""
    again, how = AGAIN.get(path.suffix, ("", ""))
    fix = lacking or f"copy it here again{again}" + (f", or export it again: {command(how, 'CKPT')}" if how else "")
    if "--rebuild" in error:  # the plan's manifest says what differs
        error, _, rebuild = error.partition(" Rebuild: ")
        fix = rebuild or command("export/to_trt.py", "--rebuild", path)
    return Finding(what, "cannot be run here", PROBLEM, error, fix)


def main(arguments: Optional[Sequence[str]] = None, system: Optional[System] = None) -> int:
    """Gathers, judges, prints; returns the exit code."""
    options = parse(arguments)
    if options.engine is not None and not is_shipped(options.engine):
        require_file(options.engine, "an engine file")
    check_output("--json", options.json, [options.engine])
    asked = system or System()
    facts = gather(asked)
    findings = examine(facts)
    runs, last = can_run(facts), verdict(facts)
    if options.engine is not None:
        findings.append(check_engine(asked, options.engine))
        runs = findings[-1].verdict != PROBLEM
    show(findings, last)
    if options.json is not None:
        write_json(options.json, as_json(facts, findings, runs))
    return 0 if runs else 1


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line; argparse ends the process with 2 on a mistake."""
    parser = command_parser("runtime/doctor.py", __doc__)
    add(parser, "--engine", type=Path, help=f"also check whether this engine runs here: {COMMON['--engine']['help']}")
    add(parser, "--json", help="JSON file to write everything found to")
    return parser.parse_args(arguments)


def as_json(facts: Facts, findings: Sequence[Finding], runs: bool) -> Dict[str, Any]:
    """The whole report as JSON types."""
    return {
        "format": FORMAT,
        "runs": runs,
        "engines": [{**dataclasses.asdict(kind), "runs": kind.runs} for kind in kinds(facts)],
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "facts": dataclasses.asdict(facts),
        "conditions": conditions(),
    }


def show(findings: Sequence[Finding], last: Sequence[str]) -> None:
    """The table, what mends each conflict, and the verdict. Coloured on a terminal that has rich, plain elsewhere."""
    if not (sys.stdout.isatty() and _rich_table(findings)):
        print("\n".join(plain_table(findings)))
    open_ones = [finding for finding in findings if finding.verdict != OK and (finding.fix or finding.why)]
    said: Dict[str, int] = {}
    for number, finding in enumerate(open_ones, 1):
        print(f"\n{number}. {finding.what} ({finding.verdict}): {finding.why}")
        if finding.fix:
            first = said.setdefault(finding.fix, number)
            print(f"   {finding.fix}" if first == number else f"   as {first}.")
    print("\n" + "\n".join(last))


def plain_table(findings: Sequence[Finding]) -> List[str]:
    """Lines of three columns: what, found, verdict. Long texts go on in the next line, nothing is cut."""
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    texts = [wrapper.wrap(_found(row)) or [""] for row in findings]
    left = max(len(row.what) for row in findings)
    middle = max(len(line) for text in texts for line in text if len(line) <= WIDTH)
    lines = []
    for row, text in zip(findings, texts):
        lines.append(f"{row.what:<{left}}  {text[0]:<{middle}}  {row.verdict}")
        lines += [" " * (left + 2) + more for more in text[1:]]
    return lines


def _found(row: Finding) -> str:
    """What was found; of a row that is fine, with its remark."""
    return f"{row.found}; {row.why}" if row.verdict == OK and row.why else row.found


def _rich_table(findings: Sequence[Finding]) -> bool:
    """Whether rich was there to print the table."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table("", "found", "verdict", box=None, pad_edge=False)
    for finding in findings:
        colour = {OK: "green", PROBLEM: "bold red"}.get(finding.verdict, "yellow")
        table.add_row(Text(finding.what), Text(_found(finding)), Text(finding.verdict, style=colour))
    Console().print(table)
    return True


if __name__ == "__main__":
    run_main(main)
