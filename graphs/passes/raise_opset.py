"""Pass: a model comes to a newer opset.

Needs: a valid model of the default operator set alone. Promises: the same function, names of nodes and tensors as they
were, metadata kept, the IR version that the opset goes with. A model at that opset or a newer one comes back as it is.
Exact: ONNX's own converter rewrites what changed between the opsets. Its one known fault, attributes of Resize before
opset 11, does not concern networks of ours, which begin at 13. Proof: tests/test_trt_onnx.py, outputs bit for bit.
"""

from __future__ import annotations

import onnx
from onnx import helper

from gradseg.base.errors import GradsegError


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A new model at `opset` or the same one; GradsegError if the converter does not know one of its operators."""
    version = opset_of(model)
    if version >= opset:
        return model
    try:
        result = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises many classes
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise GradsegError(
            f"cannot be brought from opset {version} to {opset} ({reason}); export it at {opset}"
        ) from error
    del result.graph.value_info[:]  # types that the next pass may change
    result.ir_version = max(result.ir_version, helper.find_min_ir_version_for(list(result.opset_import)))
    return result


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
