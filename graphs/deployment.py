"""Float networks → the deployment form: uint8 BGR frame in, uint8 labels out. Needs onnx and onnxsim; no torch."""

from __future__ import annotations

import onnx
import onnxsim

from gradseg.graphs.graph import Graph, shapes_of
from gradseg.graphs.passes.fold_batchnorm import fold_batchnorm
from gradseg.graphs.passes.fold_input import fold_input
from gradseg.graphs.passes.label_head import label_head
from gradseg.graphs.passes.relu_before_concat import relu_before_concat
from gradseg.models import metadata
from gradseg.models.spec import ModelSpec


def deployment_from_logits(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """float32 (1, 3, H, W), normalised as the spec says → logits becomes uint8 frame → uint8 labels."""
    graph = Graph(model)
    fold_batchnorm(graph)
    relu_before_concat(graph)
    fold_input(graph, spec)
    label_head(graph, shapes_of(model)[model.graph.output[0].name])
    return finished(simplified(graph.to_model()), spec, metadata.DEPLOYMENT)


def finished(model: onnx.ModelProto, spec: ModelSpec, form: str) -> onnx.ModelProto:
    """The model, checked, with its spec and form (deployment | logits) in the metadata."""
    metadata.set_metadata(model, {metadata.SPEC: spec.to_json(), metadata.FORMAT: form, metadata.PRECISION: "fp32"})
    onnx.checker.check_model(model, full_check=True)
    return model


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxsim's simplification, checked by it; tidied again, so that the weights hold only what is used."""
    result, ok = onnxsim.simplify(model)
    if not ok:
        raise RuntimeError("onnxsim changed the outputs; please report this network")
    return Graph(result).to_model()
