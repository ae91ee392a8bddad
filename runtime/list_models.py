"""Lists the architectures, and the weights that are here: those inside the package, in a clone also its checkpoints.

python runtime/list_models.py
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence

from gradseg.base.errors import run_main
from gradseg.base.options import command_parser
from gradseg.commands import ROOT
from gradseg.models.metadata import read_metadata, spec_from_metadata
from gradseg.models.published import PUBLISHED
from gradseg.models.spec import ARCHS, Arch, ModelSpec
from gradseg.runtime.engines.shipped import shipped
from gradseg.runtime.native.files import load_program

BLOCKS = {
    "dense": "Non-bottleneck-1D blocks",
    "selective": "Conv-modules late in the encoder",
    "all": "Conv-modules in the whole encoder",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    command_parser("runtime/list_models.py", __doc__).parse_args(argv)
    print("architectures, with weights and GMAC as published for 20 classes at 512x1024:")
    for name, arch in ARCHS.items():
        weights, gmac = PUBLISHED.get(name, (None, None))
        figures = "" if weights is None else f"{weights:>9,} {gmac:>7.3f}"
        print(f"  {name:<16}{figures:<19}{words(arch)}")
    print("\nready to run, by name or file:" if shipped() else "\nready to run: none in this copy")
    for path in shipped():
        print("\n".join(described(path)))
    checkpoints = sorted((ROOT / "assets").glob("*.pth"))
    if checkpoints:
        print("\ncheckpoints, to export or to fine-tune:")
    for path in checkpoints:
        print(f"  {path.stem:<22}{path.stat().st_size / 1e6:6.2f} MB  {path}")
    return 0


def words(arch: Arch) -> str:
    """An architecture in a line."""
    parts = [BLOCKS[arch.blocks]]
    parts += [f"{arch.groups} groups"] if arch.groups > 1 else []
    parts += ["channel shuffle"] if arch.shuffle else []
    return ", ".join([*parts, *(["light decoder"] if arch.light_decoder else [])])


def described(path: Path) -> List[str]:
    """A shipped engine: its size, what it takes and gives, where it lies."""
    spec: ModelSpec = (
        load_program(path).spec if path.suffix == ".gsn" else spec_from_metadata(read_metadata(path), path)
    )
    height, width = spec.input_hw
    return [
        f"  {path.name:<22}{path.stat().st_size / 1e6:6.2f} MB  {height}x{width}  {path}",
        f"    {spec.num_classes} classes: {', '.join(spec.classes)}",
    ]


if __name__ == "__main__":
    run_main(main)
