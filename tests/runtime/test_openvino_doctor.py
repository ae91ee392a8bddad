"""What the doctor says of OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doctor_machines import MISSING, PC, SITE
from test_doctor import PYTHON, facts_of, row

from gradseg.runtime import doctor
from gradseg.runtime.diagnosis.engines import kinds
from gradseg.runtime.diagnosis.fixes import NOTE, OK
from gradseg.runtime.diagnosis.probes import ask
from gradseg.runtime.diagnosis.system import System


def probed(version: str) -> dict[str, Any]:
    types = ["BF16", "WINOGRAD", "FP32", "INT8", "BIN", "EXPORT_IMPORT"]
    return {"version": version, "file": SITE.format("3.10") + "openvino/__init__.py", "types": types}


@pytest.mark.parametrize(
    ("probe", "found", "verdict", "why", "fix"),
    [
        (MISSING, "none", OK, "only .xml files need it", ""),
        (probed("2026.4.1"), "2026.4.1 (BF16, FP32, INT8)", OK, "", ""),
        (
            probed("2023.3.0"),
            "2023.3.0 (BF16, FP32, INT8)",
            NOTE,
            "tried with 2024.0 and newer only",
            f"{PYTHON} -m pip install -U openvino",
        ),
        (
            {"error": "ImportError: libopenvino.so: cannot open shared object file"},
            "",
            NOTE,
            "it cannot be imported",
            f"{PYTHON} -m pip install --force-reinstall openvino",
        ),
    ],
)
def test_openvino(probe: dict[str, Any], found: str, verdict: str, why: str, fix: str, tmp_path: Path) -> None:
    facts = facts_of(PC.but(probes={"openvino": probe}), tmp_path)
    finding = row(doctor.examine(facts), "OpenVINO")
    assert finding.found.startswith(found) and finding.verdict == verdict and finding.fix == fix
    assert why in finding.why and bool(why) == bool(finding.why)
    kind = next(kind for kind in kinds(facts) if kind.suffix == ".xml")
    runs = "version" in probe
    assert kind.runs == runs and (runs or kind.missing == ("OpenVINO (openvino)",))


def test_the_probe_itself() -> None:
    openvino = pytest.importorskip("openvino")
    found = ask("openvino")
    assert found["version"] == openvino.__version__.partition("-")[0] and "FP32" in found["types"]


def test_an_ir_that_is_not_whole(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    broken = tmp_path / "m.xml"
    broken.write_text("<net><layers>", "utf-8")
    found = doctor.check_engine(System(), broken)
    assert "truncated or not an OpenVINO IR" in found.why
    assert found.fix.startswith("copy it here again with its .bin") and "to_openvino.py" in found.fix
