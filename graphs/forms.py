"""Float forms of a deployment-form network: the same function in other operators, for an engine to be measured with.

Which form is fastest depends on the engine, its version and the CPU, so nothing here decides: `float_forms` builds
those that differ for this graph. Each is exact as its passes say. Needs onnx; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, Tuple

import onnx

from gradseg.graphs.graph import Graph, rewritten
from gradseg.graphs.passes.blocked_sums import blocked_sums
from gradseg.graphs.passes.bytes_first import bytes_first
from gradseg.graphs.passes.chains import chains
from gradseg.graphs.passes.channel_tiles import channel_tiles
from gradseg.graphs.passes.concat_as_sum import concat_as_sum
from gradseg.graphs.passes.conv_before_resize import conv_before_resize
from gradseg.graphs.passes.deconv_as_conv import deconv_as_conv
from gradseg.graphs.passes.dense_groups import dense_groups
from gradseg.graphs.passes.even_head import even_head
from gradseg.graphs.passes.flat_frame import flat_frame
from gradseg.graphs.passes.fold_shuffle import fold_shuffle
from gradseg.graphs.passes.rows_head import rows_head
from gradseg.graphs.passes.space_to_batch import space_to_batch
from gradseg.graphs.passes.split_groups import split_groups
from gradseg.graphs.passes.true_groups import true_groups
from gradseg.graphs.passes.wide_groups import wide_groups
from gradseg.models import metadata

Change = Callable[[Graph], Any]


@dataclass(frozen=True)
class Form:
    """A named way to write a network: what it does in words, and the passes, in order."""

    name: str
    words: str
    passes: Tuple[Change, ...]

    def __call__(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A new model of the same function, spec and other metadata kept; `model` is not touched."""
        return rewritten(model, *self.passes)


BORDERS: Tuple[Change, ...] = (even_head, flat_frame, bytes_first)
DECONV: Change = partial(deconv_as_conv, apart=True, rows=True)
BEFORE: Tuple[Change, ...] = (true_groups, conv_before_resize, fold_shuffle, wide_groups)
AFTER: Tuple[Change, ...] = (concat_as_sum, DECONV, blocked_sums, *BORDERS)

# first those that are the fastest most often
FORMS: Tuple[Form, ...] = (
    Form("plain", "as exported", ()),
    Form("rows-head", "the label head as a matrix product, argmax over contiguous rows", (rows_head,)),
    Form("even-head", "head and frame without reordering, the argmax on all threads, in stripes", BORDERS),
    Form("chains", "all in blocked layouts, groups that never mix one after another", (*BEFORE, chains, *AFTER)),
    Form("tiles", "chains, and other wide tensors in halves", (*BEFORE, chains, channel_tiles, *AFTER)),
    Form("blocked", "no shuffle, deconvolution or concat that leaves the blocked layout", (*BEFORE, *AFTER)),
    Form("true-groups", "block-diagonal convolutions as grouped ones", (true_groups, *BORDERS)),
    Form("dense-groups", "grouped convolutions as dense ones with zeros", (dense_groups, *BORDERS)),
    Form("split-groups", "grouped convolutions as one dense one per group", (split_groups, *BORDERS)),
    Form("fold-shuffle", "channel shuffles in the order of the weights", (fold_shuffle, *BORDERS)),
    Form("space-to-batch", "dilated depthwise convolutions on subsampled images", (space_to_batch, *BORDERS)),
    Form("conv-before-resize", "1x1 convolutions before interpolation", (conv_before_resize, *BORDERS)),
    Form("deconv-as-conv", "deconvolutions as one convolution, then depth to space", (deconv_as_conv, *BORDERS)),
    Form("deconv-apart", "deconvolutions as four convolutions, interleaved", (DECONV, blocked_sums, *BORDERS)),
)


def float_forms(model: onnx.ModelProto) -> Dict[str, onnx.ModelProto]:
    """Form's name → model, in the order of FORMS, without those that come out as one before them does.

    Args:
        model: float deployment form, uint8 BGR frame (1, H, W, 3) → uint8 labels (1, H, W). Not changed.
    """
    found: Dict[str, onnx.ModelProto] = {}
    seen = set()
    for form in FORMS:
        made = form(model)
        data = bytes(made.graph.SerializeToString(deterministic=True))
        if data not in seen:
            seen.add(data)
            found[form.name] = made
    return found


def float_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """FP32 as ONNX Runtime runs it fastest, labels unchanged."""
    result: onnx.ModelProto = rewritten(model, rows_head)
    metadata.set_metadata(result, {metadata.TARGET: "cpu"})
    return result
