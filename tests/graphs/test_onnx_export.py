"""Checkpoint → ONNX: every architecture's deployment form against PyTorch, and the to_onnx command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, List

import numpy as np
import onnx
import pytest
from export_toys import HW, SCENES, checkpoint, copied, exported, frames, logits_of, one_torch_thread  # noqa: F401
from onnx import TensorProto

import gradseg.export.to_onnx as to_onnx
import gradseg.export.to_ort as to_ort
import gradseg.graphs.from_torch as onnx_export
from gradseg.base.errors import GradsegError
from gradseg.graphs import verify
from gradseg.graphs.from_torch import onnx_from_checkpoint
from gradseg.graphs.load import model_from_onnx
from gradseg.graphs.sessions import OnnxRunner
from gradseg.models import metadata
from gradseg.models.checkpoint import Checkpoint, save_checkpoint
from gradseg.models.spec import ARCHS, ModelSpec
from gradseg.runtime.preprocess import normalised_chw

# one of each path through the passes; the others differ only in widths
QUICK = ("erfnet", "dg2s", "dg2-star-light")


def check_labels(ckpt: Checkpoint, model: onnx.ModelProto) -> None:
    runner = OnnxRunner(model.SerializeToString())
    agreement = verify.Agreement()
    for frame in frames():
        expected, counted = verify.labels_from_logits(logits_of(ckpt, frame))
        agreement.add(runner.run(frame)[0], expected, counted)
    assert agreement.fraction >= verify.NEEDED, str(agreement)
    assert agreement.ties < agreement.pixels / 100


def check_form(model: onnx.ModelProto) -> None:
    operators = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in operators
    assert (operators[0], operators[-1]) == ("Cast", "Cast")
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [17]
    (frame,), (labels,) = model.graph.input, model.graph.output
    assert (frame.name, labels.name) == ("frame", "labels")
    for value, shape in ((frame, [1, *HW, 3]), (labels, [1, *HW])):
        assert value.type.tensor_type.elem_type == TensorProto.UINT8
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == shape
    assert not any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)


def check_arch(arch: str) -> None:
    model = exported(arch)
    check_form(model)
    check_labels(checkpoint(arch), model)


@pytest.mark.parametrize("arch", QUICK)
def test_deployment_form_equals_pytorch(arch: str) -> None:
    check_arch(arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch not in QUICK])
def test_deployment_form_equals_pytorch_for_every_architecture(arch: str) -> None:
    check_arch(arch)


@pytest.mark.parametrize("arch", ["erfnet", "dg2-star-light"])
def test_normalisation_is_inside_the_graph(arch: str) -> None:
    ckpt = checkpoint(arch, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25), color_order="bgr")
    model = onnx_from_checkpoint(ckpt)
    check_form(model)
    check_labels(ckpt, model)


def test_no_operator_is_left_of_normalisation_and_batchnorm() -> None:
    operators = [node.op_type for node in exported().graph.node]
    counted = {name: operators.count(name) for name in set(operators)}
    assert counted == {
        "Cast": 3, "Transpose": 1, "Conv": 66, "Relu": 65, "Add": 15, "Resize": 2,
        "Reshape": 2, "ArgMax": 1, "DepthToSpace": 1,
    }  # fmt: skip


def test_logits_form_equals_pytorch() -> None:
    ckpt = checkpoint("dg2s-star", mean=(0.4, 0.5, 0.3))
    model = onnx_from_checkpoint(ckpt, logits=True)
    runner = OnnxRunner(model.SerializeToString())
    for frame in frames(2):
        expected = logits_of(ckpt, frame)
        found = runner.run(normalised_chw(frame, ckpt.spec))[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_another_size_travels_in_the_spec() -> None:
    model = onnx_from_checkpoint(checkpoint(), size_hw=(48, 64))
    values = metadata.metadata_of_bytes(model.SerializeToString())
    assert ModelSpec.from_json(values[metadata.SPEC]).input_hw == (48, 64)
    assert values[metadata.FORMAT] == metadata.DEPLOYMENT
    assert values[metadata.PRECISION] == "fp32"
    assert OnnxRunner(model.SerializeToString()).run(np.zeros((1, 48, 64, 3), np.uint8))[0].shape == (1, 48, 64)


def test_logits_onnx_becomes_the_deployment_form(tmp_path: Path) -> None:
    ckpt = checkpoint("erfnet", std=(0.5, 0.6, 0.7))
    path = tmp_path / "logits.onnx"
    model = onnx_from_checkpoint(ckpt, logits=True)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(path))
    loaded = model_from_onnx(str(path))
    check_form(loaded.model)
    check_labels(ckpt, loaded.model)


# ---- the command line


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ckpt") / "net.pth"
    save_checkpoint(path, checkpoint().network)
    return path


def call(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    return int(module.main())


def test_to_onnx_writes_and_says_what(
    pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "net.onnx"
    assert call(monkeypatch, to_onnx, pth, "-o", out, "--data", SCENES) == 0
    check_form(onnx.load(str(out)))
    said = capsys.readouterr().out
    assert f"wrote {out}: 1.18 MB, deployment form, 64x96, fp32" in said
    assert "labels equal to PyTorch's on 100.0000 % of" in said
    assert list(out.parent.iterdir()) == [out]


BAD: List[Any] = [
    (["{pth}", "--size", "100x100"], "input size 100x100 .* not divisible by 8; 96x96 and 104x104 fit"),
    (["{pth}", "--size", "64"], "write HEIGHTxWIDTH"),
    (["{dir}/none.pth"], "no such file; expected a PyTorch checkpoint"),
    (["{pth}", "-o", "{pth}"], "net.pth: would overwrite its own input"),
    (["{pth}", "-o", "{dir}/new/x.txt"], r"must end in \.onnx, such as -o x\.onnx"),
    (["{pth}", "-o", "{dir}/new/x.onnx", "--data", "random"], "'random' refused"),
    (["{pth}", "--arch", "erfnet"], "--arch erfnet, but the checkpoint is of dg2-star-light; leave --arch out"),
    (["{pth}", "-o", "{pth}/x.onnx"], "cannot write .*x.onnx"),
    (["{pth}", "-o", "{dir}"], "it is a directory"),
    (["{pth}", "--data", "random"], "'random' refused: ranges measured on random data"),
    (["{pth}", "--data", "{dir}/none.mp4"], "none.mp4: no such"),
    (["{pth}", "--precision", "int8"], r"to_ort.py \S+ --precision int8 --calib"),
    (["{dir}/x.onnx"], "is already ONNX"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_to_onnx_bad_input_is_one_line_and_leaves_nothing(
    pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: List[str], message: str
) -> None:
    filled = [argument.format(pth=pth, dir=tmp_path) for argument in arguments]
    if "-o" not in filled:
        filled += ["-o", str(tmp_path / "out.onnx")]
    with pytest.raises(GradsegError, match=message) as caught:
        call(monkeypatch, to_onnx, *filled)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_library_is_not_called_a_writing_error(
    pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(ckpt: Checkpoint, **options: Any) -> onnx.ModelProto:
        raise OSError("a library of its own accord")

    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", broken)
    with pytest.raises(OSError, match="of its own accord"):
        call(monkeypatch, to_onnx, pth, "-o", tmp_path / "new" / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_export_is_not_written(pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = onnx_export.onnx_from_checkpoint

    def wrong(ckpt: Checkpoint, **options: Any) -> onnx.ModelProto:
        damaged = copied(ckpt)
        damaged.network.decoder.output_conv.weight.data.neg_()
        return original(damaged, **options)

    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", wrong)
    with pytest.raises(GradsegError, match=r"agree with the PyTorch network on only .* 99.99 % are needed"):
        call(monkeypatch, to_onnx, pth, "-o", tmp_path / "out.onnx", "--data", SCENES)
    assert list(tmp_path.iterdir()) == []


def test_a_hardly_trained_network_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = copied(checkpoint())
    last = ckpt.network.decoder.output_conv
    assert last.bias is not None
    last.bias.data[3] += 100
    save_checkpoint(tmp_path / "constant.pth", ckpt.network)
    assert call(monkeypatch, to_onnx, tmp_path / "constant.pth", "-o", tmp_path / "out.onnx", "--data", SCENES) == 0
    assert "labels 4 different frames alike" in capsys.readouterr().out
    assert call(monkeypatch, to_ort, tmp_path / "out.onnx", "--precision", "int8", "--calib", SCENES) == 0
    assert "labels 4 different frames alike" in capsys.readouterr().out


def test_a_network_that_ignores_its_input_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt = copied(checkpoint())
    ckpt.network.decoder.output_conv.weight.data.zero_()
    save_checkpoint(tmp_path / "dead.pth", ckpt.network)
    with pytest.raises(GradsegError, match="same answer for 4 different frames, so it does not look at its input"):
        call(monkeypatch, to_onnx, tmp_path / "dead.pth", "-o", tmp_path / "out.onnx", "--data", SCENES)
    assert not (tmp_path / "out.onnx").exists()


def test_two_answers_for_one_frame_are_refused() -> None:
    answers = iter(range(100))
    with pytest.raises(GradsegError, match="two answers for one frame"):
        verify.check_alive(lambda batch: np.full((1, 2, 2), next(answers)), frames(2), "net", None)


def test_equal_labels_are_fatal_only_if_the_scores_are_known_to_be_equal() -> None:
    def constant(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros((1, 2, 2))

    assert "its scores were not looked at" in verify.check_alive(constant, frames(2), "net", None)[0]
    with pytest.raises(GradsegError, match="does not look at its input"):
        verify.check_alive(constant, frames(2), "net", constant)


def test_near_ties_are_left_out_and_counted() -> None:
    logits = np.zeros((1, 3, 1, 2), np.float32)
    logits[0, :, 0, 0] = [1.0, 1.00001, 0.0]  # closer than 1e-4 of the larger
    logits[0, :, 0, 1] = [1.0, 2.0, 0.0]
    labels, counted = verify.labels_from_logits(logits)
    assert labels.tolist() == [[[1, 1]]]
    assert counted.tolist() == [[[False, True]]]


def test_a_single_image_is_joined_by_its_mirror(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "one.png"), frames(1)[0][0])
    batches = verify.verification_batches(str(tmp_path / "one.png"), HW)
    assert len(batches) == 2
    np.testing.assert_array_equal(batches[1], batches[0][:, :, ::-1])


def test_public_erfnet_checkpoint_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    state = {f"module.{name}": value for name, value in checkpoint("erfnet").network.state_dict().items()}
    torch.save(state, tmp_path / "erfnet.pth")
    out = tmp_path / "erfnet.onnx"
    options = ["--arch", "erfnet", "--size", "64x96", "-o", out, "--data", SCENES]
    assert call(monkeypatch, to_onnx, tmp_path / "erfnet.pth", *options) == 0
    assert metadata.read_metadata(out)[metadata.FORMAT] == metadata.DEPLOYMENT


# ---- ONNX files that come in


def test_onnx_without_metadata_says_how_to_give_it(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported())
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(GradsegError, match="without GradSeg metadata; say what it is with --spec FILE"):
        model_from_onnx(str(tmp_path / "foreign.onnx"))
    spec_file = tmp_path / "spec.json"
    spec_file.write_text(checkpoint().spec.to_json())
    assert model_from_onnx(str(tmp_path / "foreign.onnx"), str(spec_file)).spec.input_hw == HW
    loaded = model_from_onnx(str(tmp_path / "foreign.onnx"), str(spec_file))
    assert {e.key for e in loaded.model.metadata_props} >= {"gradseg.spec", "gradseg.format"}, "the spec travels on"


def test_a_spec_of_other_classes_than_the_onnx_is_refused(tmp_path: Path) -> None:
    onnx.save(onnx_from_checkpoint(checkpoint(), logits=True), str(tmp_path / "logits.onnx"))
    model = onnx.load(str(tmp_path / "logits.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    spec = ModelSpec("mine", ("a", "b"), ((0, 0, 0), (1, 1, 1)), HW, blocks="")
    (tmp_path / "two.json").write_text(spec.to_json())
    with pytest.raises(GradsegError, match=r"its output is \[1, 11, 64, 96\], its spec needs logits \[1, 2, 64, 96\]"):
        model_from_onnx(str(tmp_path / "foreign.onnx"), str(tmp_path / "two.json"))


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "cut in the graph"])
def test_corrupt_onnx_is_one_line(tmp_path: Path, damage: str) -> None:
    data = exported().SerializeToString()
    damaged = {
        "empty": b"",
        "text": b"not an ONNX file at all, just text\n" * 10,
        "truncated": data[: len(data) // 2],
        "cut in the graph": data[:40],
    }[damage]
    path = tmp_path / "bad.onnx"
    path.write_bytes(damaged)
    with pytest.raises(GradsegError, match="is empty" if damage == "empty" else "truncated or not an ONNX model"):
        model_from_onnx(str(path))


def test_metadata_reader_agrees_with_onnx(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported())
    metadata.set_metadata(model, {"other": "ümläut → ✓", "empty": ""})
    expected = {entry.key: entry.value for entry in model.metadata_props}
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert metadata.read_metadata(tmp_path / "m.onnx") == expected
