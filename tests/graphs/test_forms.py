"""Every float form of every architecture gives its labels."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, List, Tuple

import numpy as np
import onnx
import pytest
from export_toys import exported, frames, one_torch_thread  # noqa: F401

from gradseg.graphs.forms import FORMS, Form, float_forms
from gradseg.graphs.passes.channel_tiles import channel_tiles
from gradseg.graphs.passes.even_head import even_head
from gradseg.graphs.sessions import OnnxRunner
from gradseg.graphs.ties import Decided
from gradseg.models.metadata import SPEC
from gradseg.models.spec import ARCHS

# passes that look at sizes, as they work on larger frames
LARGE = (
    Form("halves", "", (partial(channel_tiles, least_bytes=1),)),
    Form("quarters", "", (partial(channel_tiles, parts=4, least_bytes=1, block=4),)),
    Form("stripes", "", (partial(even_head, most_bytes=20_000),)),
)


@functools.cache
def expected(arch: str) -> List[Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Per frame: labels of the exported network, and which pixels have a defined one."""
    data = exported(arch).SerializeToString()
    runner, decided = OnnxRunner(data, threads=1), Decided(data, arch)
    labels = [runner.first(frame).copy() for frame in frames()]
    return [(found, decided(frame, found)) for found, frame in zip(labels, frames(), strict=True)]


@functools.cache
def forms_of(arch: str) -> dict[str, onnx.ModelProto]:
    return float_forms(exported(arch))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_form_gives_the_labels_of_the_network(arch: str) -> None:
    made = forms_of(arch)
    assert next(iter(made)) == "plain"
    metadata = {entry.key: entry.value for entry in exported(arch).metadata_props}
    large = {form.name: form(exported(arch)) for form in LARGE}
    for name, model in {**made, **large}.items():
        onnx.checker.check_model(model, full_check=True)
        assert {entry.key: entry.value for entry in model.metadata_props}[SPEC] == metadata[SPEC]
        runner = OnnxRunner(model.SerializeToString(), f"{arch} {name}", threads=1)
        for frame, (labels, counted) in zip(frames(), expected(arch), strict=True):
            result = runner.first(frame)
            assert result.dtype == np.uint8
            wrong = int(((result != labels) & counted).sum())
            assert wrong <= 1e-5 * labels.size, f"{name}: {wrong} of {labels.size} pixels differ"
            assert counted.mean() > 0.99


@pytest.mark.parametrize(
    ("arch", "present", "absent"),
    [
        ("d-star-light", ["rows-head", "space-to-batch"], ["dense-groups", "fold-shuffle", "deconv-as-conv"]),
        ("dg2-star-light", ["chains", "dense-groups", "split-groups"], ["fold-shuffle", "true-groups", "blocked"]),
        ("dg4s", ["fold-shuffle", "blocked", "deconv-apart"], ["true-groups", "conv-before-resize"]),
        ("erfnet", ["deconv-as-conv", "chains"], ["dense-groups", "space-to-batch", "blocked"]),
    ],
)
def test_forms_that_change_nothing_are_left_out(arch: str, present: List[str], absent: List[str]) -> None:
    made = forms_of(arch)
    assert set(present) <= set(made)
    assert not set(absent) & set(made)


def cuts(model: onnx.ModelProto) -> int:
    """Reshapes to five dimensions: one per channel shuffle, and the label head's as exported."""
    ranks = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 1}
    return sum(node.op_type == "Reshape" and ranks.get(node.input[1]) == 5 for node in model.graph.node)


@pytest.mark.parametrize("arch", [name for name, arch in ARCHS.items() if arch.shuffle])
def test_every_shuffle_of_the_family_is_folded(arch: str) -> None:
    shuffles = 26 if ARCHS[arch].blocks == "all" else 12
    assert (cuts(exported(arch)), cuts(forms_of(arch)["fold-shuffle"])) == (1 + shuffles, 0)


def test_names_and_words_of_forms() -> None:
    names = [form.name for form in FORMS]
    assert len(set(names)) == len(names)
    assert all(form.words and "\n" not in form.words for form in FORMS)


def test_the_model_is_not_touched() -> None:
    before = exported("dg2-star-light").SerializeToString()
    float_forms(exported("dg2-star-light"))
    assert exported("dg2-star-light").SerializeToString() == before
