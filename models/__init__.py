"""Architectures, specs and checkpoints. Importing this package needs no torch; `network`, `grouping`, `checkpoint` do."""

from gradseg.models.errors import GradsegError
from gradseg.models.spec import ARCHS, ModelSpec, spec_for

__all__ = ["ARCHS", "GradsegError", "ModelSpec", "spec_for"]
