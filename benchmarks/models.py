"""Counts every architecture on the built network and compares with the published figures.

`python benchmarks/models.py [--json FILE]`. 20 classes, input 1024x512; weights are convolution weights only and
GMAC follows the rule behind the paper's tables (see `gradseg.models.counts`).
"""

from __future__ import annotations

from typing import Any, Optional, Sequence

from gradseg.base.conditions import conditions
from gradseg.base.errors import run_main
from gradseg.base.files import write_json
from gradseg.base.options import add_common, command_parser
from gradseg.base.packages import need
from gradseg.benchmarks.common.tables import aligned
from gradseg.models.published import PUBLISHED, PUBLISHED_PARAMETERS
from gradseg.models.spec import ARCHS, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, spec_for

SIZE_HW = (512, 1024)

NOTES = {
    "d": "printed row disagrees with its own siblings DG2, DG4, DG8, which follow the rule exactly",
    "erfnet": "public macro architecture; published as a total of parameters, which is what is compared",
}


def row_for(arch: str) -> dict[str, Any]:
    """One architecture's row; `agrees` compares every published figure there is, to the unit."""
    from gradseg.models.counts import count
    from gradseg.models.networks.erfnet import SegNetwork

    counts = count(SegNetwork(spec_for(arch, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, SIZE_HW)), SIZE_HW)
    gmac = round(counts.published_macs / 1e9, 3)
    published = PUBLISHED.get(arch)
    parameters = PUBLISHED_PARAMETERS.get(arch)
    agrees = published in (None, (counts.weights, gmac)) and parameters in (None, counts.parameters)
    return {
        "id": arch,
        "weights": counts.weights,
        "gmac": gmac,
        "published_weights": published[0] if published else None,
        "published_gmac": published[1] if published else None,
        "agrees": agrees,
        "parameters": counts.parameters,
        "published_parameters": parameters,
        "gmac_as_built": round(counts.macs / 1e9, 3),
        "note": NOTES.get(arch, ""),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    head = ("id", "weights", "published", "GMAC", "published", "agrees", "parameters", "GMAC as built")
    lines = [head]
    for row in rows:
        published = row["published_weights"]
        lines.append(
            (
                row["id"],
                f"{row['weights']:,}",
                f"{published:,}" if published else "-",
                f"{row['gmac']:.3f}",
                f"{row['published_gmac']:.3f}" if published else "-",
                "yes" if row["agrees"] else "NO",
                f"{row['parameters']:,}",
                f"{row['gmac_as_built']:.3f}",
            )
        )
    notes = [f"{row['id']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*aligned(lines), *notes])


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = command_parser("benchmarks/models.py", __doc__)
    add_common(parser, "--json")
    arguments = parser.parse_args(argv)
    need("counting", "export", "torch")
    rows = [row_for(arch) for arch in ARCHS]
    print(table(rows))
    if arguments.json:
        write_json(arguments.json, {"rows": rows, "conditions": conditions(input_hw=list(SIZE_HW), classes=20)})
    return 0


if __name__ == "__main__":
    run_main(main)
