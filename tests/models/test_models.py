"""The family: counts, shapes, spec round trip, and one base test for every architecture."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradseg.base.errors import GradsegError
from gradseg.benchmarks.models import PUBLISHED, row_for
from gradseg.models.checkpoint import gradual_network
from gradseg.models.grouping import gradual_convs
from gradseg.models.networks.erfnet import SegNetwork, encoder_pointwise
from gradseg.models.spec import ARCHS, ModelSpec, distinct_palette, parse_size, size_problem, spec_for


@pytest.mark.parametrize("arch", list(ARCHS))
def test_counts_agree_with_the_published_ones(arch: str) -> None:
    row = row_for(arch)
    assert row["agrees"] == (arch != "d")
    if arch == "d":
        assert (row["weights"], row["gmac"]) == (1_312_688, 19.803)
        assert row["published_weights"] - row["weights"] == -21_040


def test_every_published_row_is_an_architecture() -> None:
    assert set(PUBLISHED) | {"erfnet"} == set(ARCHS)
    assert row_for("erfnet")["parameters"] == 2_064_256


@pytest.mark.parametrize("arch", list(ARCHS))
def test_shapes_and_determinism(arch: str) -> None:
    torch.manual_seed(0)
    spec = spec_for(arch, input_hw=(32, 48))
    network = SegNetwork(spec, predictor=True).eval()
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (2, 11, 32, 48)
        assert network.encoder.predict(x).shape == (2, 11, 4, 6)
        assert torch.equal(logits, network(x))
        assert not torch.equal(logits, network(x + 1))


@pytest.mark.parametrize(
    ("arch", "grouped"), [("dg2", 12), ("dg4s", 12), ("dg2-star", 26), ("dg8s-star", 26), ("d-star", 0)]
)
def test_groups_and_shuffle_reach_the_encoder_only(arch: str, grouped: int) -> None:
    spec = spec_for(arch)
    network = SegNetwork(spec)
    pointwise = encoder_pointwise(network)
    assert all(conv.groups == spec.groups for conv in pointwise.values())
    assert len(pointwise) == grouped or spec.groups == 1
    shuffles = [m for m in network.modules() if isinstance(m, torch.nn.ChannelShuffle)]
    assert len(shuffles) == (len(pointwise) // 2 if spec.shuffle else 0)
    assert len(gradual_convs(gradual_network(spec))) == (grouped if spec.groups > 1 else 0)


def test_light_upsampling_order_is_the_same_function() -> None:
    torch.manual_seed(1)
    up = SegNetwork(spec_for("dg2-star-light")).decoder.layers[0].double().eval()
    up.bn.running_mean.normal_()
    up.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 128, 5, 7, dtype=torch.float64)
    big = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    other_order = torch.relu(up.bn(up.conv(big)))
    assert torch.allclose(up(x), other_order, atol=1e-12, rtol=0)


channel = st.integers(0, 255)
names = st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(names, st.sampled_from(list(ARCHS)), st.tuples(st.integers(1, 90), st.integers(1, 90)), st.data())
def test_spec_json_round_trip(classes: list[str], arch: str, cells: tuple[int, int], data: st.DataObject) -> None:
    palette = data.draw(st.lists(st.tuples(channel, channel, channel), min_size=len(classes), max_size=len(classes)))
    numbers = st.floats(0.01, 10, allow_nan=False)
    std = data.draw(st.tuples(numbers, numbers, numbers))
    spec = spec_for(arch, classes, palette, (cells[0] * 8, cells[1] * 8), std=std, color_order="bgr")
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec_for("dg2").groups = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_hw": [361, 480]}, "361x480 .*not divisible by 8; 360x480 and 368x480 fit"),
        ({"palette": [[0, 0, 0]]}, "1 palette colours for 11 classes"),
        ({"groups": 3, "arch": "mine"}, "groups 3"),
        ({"shuffle": True}, "shuffle disagree with architecture 'dg2-star'"),
        ({"arch": "erfnet"}, "blocks, groups, downsampler, decoder_blocks disagree with architecture 'erfnet'"),
        ({"input_hw": [800000, 800000]}, "each at most 16384"),
        ({"downsampler": "pool", "arch": "mine"}, "downsampler 'pool'"),
        ({"color_order": "gbr"}, "color_order 'gbr'"),
        ({"std": [0, 1, 1]}, "std above 0"),
        ({"decoder_blocks": 3, "arch": "mine"}, "decoder_blocks 3"),
        ({"classes": ["only"]}, "1 classes"),
        ({"input_hw": "wide"}, "ill-typed"),
        ({"groups": "2"}, "groups is '2', expected int"),
        ({"groups": 2.0}, "groups is 2.0, expected int"),
        ({"shuffle": "no"}, "shuffle is 'no', expected bool"),
        ({"blocks": []}, r"blocks is \[\], expected str"),
        ({"arch": 5}, "arch is 5, expected str"),
        ({"mean": [float("nan"), 0, 0]}, "mean holds NaN"),
        ({"input_hw": [360.5, 480]}, "expected a list of int"),
        ({"palette": [["red"]]}, "expected whole numbers"),
        ({"colour": "rgb"}, "unknown fields \\['colour'\\]"),
    ],
)
def test_bad_specs_are_named(change: dict[str, object], message: str) -> None:
    raw = {**spec_for("dg2-star").to_dict(), **change}
    with pytest.raises(GradsegError, match=message):
        ModelSpec.from_dict(raw)


def test_missing_fields_are_named() -> None:
    with pytest.raises(GradsegError, match="missing fields \\['palette'\\]"):
        raw = spec_for("dg2").to_dict()
        del raw["palette"]
        ModelSpec.from_dict(raw)
    with pytest.raises(GradsegError, match="not JSON"):
        ModelSpec.from_json("{")
    with pytest.raises(GradsegError, match="unknown architecture 'resnet'; known: erfnet"):
        spec_for("resnet")


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_size_problem_suggests_sizes_that_fit(height: int, width: int) -> None:
    problem = size_problem((height, width))
    assert (problem == "") == (height % 8 == 0 and width % 8 == 0)
    for word in problem.split():
        if "x" in word and word[0].isdigit() and word != f"{height}x{width}":
            assert size_problem(parse_size(word)) == ""


@pytest.mark.parametrize("text", ["", "480", "0x8", "axb", "-8x8", "8x8x8", "8.5x8", "²x8"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(GradsegError, match="HEIGHTxWIDTH"):
        parse_size(text)


def test_generated_palette_is_distinct() -> None:
    assert len(set(distinct_palette(255))) == 255
