"""Architectures, specs and checkpoints. All but `spec`, `metadata` and `published` need torch."""

from gradseg.base.errors import GradsegError
from gradseg.models.spec import ARCHS, ModelSpec, spec_for

__all__ = ["ARCHS", "GradsegError", "ModelSpec", "spec_for"]
