"""Counts every architecture on the built network and compares with the published figures.

`python benchmarks/models.py [--json FILE]`. 20 classes, input 1024x512; weights are convolution weights only and
GMAC follows the rule behind the paper's tables (see `gradseg.models.counts`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Optional, Sequence

from gradseg.base.conditions import conditions
from gradseg.base.errors import run_main
from gradseg.base.files import write_json
from gradseg.models.counts import count
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import ARCHS, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, spec_for

SIZE_HW = (512, 1024)

# Vallurupalli et al., CVPR-W 2018, Tables 3 to 5: (weights, GMAC to three decimals).
PUBLISHED: dict[str, tuple[int, float]] = {
    "erfnet-paper": (2_038_448, 27.705),
    "d-star": (547_120, 10.597),
    "dg2-star": (395_568, 8.852),
    "dg2s-star": (395_568, 8.852),
    "dg4-star": (319_792, 7.980),
    "dg4s-star": (319_792, 7.980),
    "dg8-star": (281_904, 7.543),
    "dg8s-star": (281_904, 7.543),
    "d-star-light": (431_312, 5.773),
    "dg2-star-light": (279_760, 4.029),
    "dg4-star-light": (203_984, 3.156),
    "d": (1_291_648, 19.025),
    "dg2": (1_238_960, 18.998),
    "dg2s": (1_238_960, 18.998),
    "dg4": (1_202_096, 18.595),
    "dg4s": (1_202_096, 18.595),
    "dg8": (1_183_664, 18.394),
    "dg8s": (1_183_664, 18.394),
}
# All trainable parameters of the public ERFNet at 20 classes, without the encoder's predictor (Romera et al.).
PUBLISHED_PARAMETERS: dict[str, int] = {"erfnet": 2_064_256}
NOTES = {
    "d": "printed row disagrees with its own siblings DG2, DG4, DG8, which follow the rule exactly",
    "erfnet": "public macro architecture; published as a total of parameters, which is what is compared",
}


def row_for(arch: str) -> dict[str, Any]:
    """One architecture's row; `agrees` compares every published figure there is, to the unit."""
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
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    notes = [f"{row['id']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*text, *notes])


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args(argv)
    rows = [row_for(arch) for arch in ARCHS]
    print(table(rows))
    if arguments.json:
        write_json(arguments.json, {"rows": rows, "conditions": conditions(input_hw=list(SIZE_HW), classes=20)})
    return 0


if __name__ == "__main__":
    run_main(main)
