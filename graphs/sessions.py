"""ONNX models in memory, run by ONNX Runtime on the CPU. onnxruntime is imported when a session is opened."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.options import check_threads
from gradseg.base.packages import need
from gradseg.runtime.engines.ort import session_options


class OnnxRunner:
    """A session over serialised ONNX bytes.

    Args:
        data: the serialised ModelProto.
        where: for messages.
        threads: intra-operator threads; None lets ONNX Runtime choose.
        optimise: False keeps the graph as written, so that every exposed tensor is the one that the network computes.
        integers: False computes Q/DQ pairs as they are written, the convolutions between them in float32, instead of
            with the INT8 kernels of this CPU. Faster than without `optimise`.
    """

    def __init__(
        self,
        data: bytes,
        where: str = "model",
        threads: Optional[int] = None,
        optimise: bool = True,
        integers: bool = True,
    ) -> None:
        need(where, "ort", "onnxruntime")
        import onnxruntime as ort

        check_threads(threads)
        options = session_options(ort, threads)
        kept_out: List[str] = []
        if not integers:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not optimise:
            kept_out = ["WeightBiasQuantization"]  # would round float biases that the graph leaves alone
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            # readers come as soon as they can, so that what is only looked at in between is freed at once
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        try:
            self._session = ort.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=kept_out
            )
        except Exception as error:  # onnxruntime raises classes of its own for every kind of bad file
            raise GradsegError(f"{where}: ONNX Runtime cannot load it ({str(error).splitlines()[0][:200]})") from error
        self.input = self._session.get_inputs()[0].name
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, batch: np.ndarray[Any, Any], names: Optional[Sequence[str]] = None) -> List[np.ndarray[Any, Any]]:
        """The outputs called `names` (all by default) for one input batch."""
        return list(self._session.run(names, {self.input: batch}))

    def first(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The first output for one input batch: the labels of a deployment-form model."""
        return self.run(batch)[0]


def exposed(model: Any, tensors: Sequence[str]) -> bytes:
    """The model (onnx.ModelProto), serialised, with the named float tensors as further outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    for name in tensors:
        if name not in present:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return bytes(copy.SerializeToString())


def scores_of(model: Any, batch: np.ndarray[Any, Any], where: str = "model") -> Optional[np.ndarray[Any, Any]]:
    """The float scores that a deployment-form model takes its argmax over, for one batch; None if it has no ArgMax."""
    node = argmax_of(model)
    if node is None:
        return None
    name = node.input[0]
    return OnnxRunner(exposed(model, [name]), where, optimise=False).run(batch, [name])[0]


def argmax_of(model: Any) -> Optional[Any]:
    """The node (onnx.NodeProto) that makes classes of scores; None in a model without ArgMax."""
    return next((node for node in model.graph.node if node.op_type == "ArgMax"), None)
