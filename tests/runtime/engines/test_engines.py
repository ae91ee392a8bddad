"""Engines: ONNX Runtime in every form, PyTorch against the network itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from plan_toys import GPU, NO_GPU
from runtime_toys import HW, SPEC, deployment_onnx, expected_labels, framed_onnx, logits_onnx

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.models.spec import spec_for
from gradseg.runtime import Segmenter
from gradseg.runtime.engines import ort as ort_engine
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import read_spec
from gradseg.runtime.preprocess import normalised_chw


def random_batch(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (1, *HW, 3), np.uint8)


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


def test_deployment_form(tmp_path: Path) -> None:
    engine = open_engine(deployment_onnx(tmp_path / "m.onnx"), threads=1)
    assert engine.spec == SPEC and engine.device == "CPU" and engine.precision == "int8"
    assert engine.backend.startswith("onnxruntime 1.")
    assert engine.threads == 1 and (engine.batch, engine.frame_hw) == (1, HW)
    assert engine.calibration == {"frames": 3}  # type: ignore[attr-defined]
    for seed in range(3):
        batch = random_batch(seed)
        labels = engine.infer(batch)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected_labels(batch))
    engine.close()
    engine.close()


def test_threads_are_what_the_session_really_uses(tmp_path: Path) -> None:
    path = deployment_onnx(tmp_path / "m.onnx")
    for threads, wanted in ((None, usable_cores()), (3, 3)):
        engine: Any = open_engine(path, threads=threads)
        assert engine.threads == wanted == engine._session.get_session_options().intra_op_num_threads


def test_output_is_one_buffer_and_input_may_move(tmp_path: Path) -> None:
    engine = open_engine(deployment_onnx(tmp_path / "m.onnx"))
    one, two = random_batch(1), random_batch(2)
    address = engine.infer(one).ctypes.data
    assert engine.infer(two).ctypes.data == address
    one[:] = 255  # same address, other content
    assert (engine.infer(one) == 10).all()


@pytest.mark.parametrize("metadata", [True, False])
def test_logits_form(tmp_path: Path, metadata: bool) -> None:
    weights = np.random.default_rng(1).normal(size=(11, 3))
    spec = spec_for("d", input_hw=HW)
    path = logits_onnx(tmp_path / "m.onnx", weights, metadata=metadata)
    if not metadata:
        (tmp_path / "m.onnx.json").write_text(json.dumps({"spec": spec.to_dict()}))
    batch = random_batch()
    wanted = np.einsum("ck,nkhw->nchw", weights, normalised_chw(batch, spec)).argmax(1)
    assert (open_engine(path).infer(batch) == wanted).mean() > 0.999


def test_foreign_onnx_says_how_to_give_the_spec_and_takes_it(tmp_path: Path) -> None:
    path = deployment_onnx(tmp_path / "m.onnx", metadata=False)
    with pytest.raises(GradsegError, match=r"without GradSeg's metadata.*m\.onnx\.json.*--spec") as caught:
        open_engine(path)
    assert caught.value.exit_code == 2
    (tmp_path / "s.json").write_text(SPEC.to_json())
    engine = open_engine(path, spec=read_spec(tmp_path / "s.json"))
    np.testing.assert_array_equal(engine.infer(random_batch()), expected_labels(random_batch()))


def test_spec_that_disagrees_with_the_graph_is_refused(tmp_path: Path) -> None:
    wrong_size = deployment_onnx(tmp_path / "a.onnx", spec=SPEC.with_size((48, 64)))
    with pytest.raises(GradsegError, match=r"input 'frame'.*expected uint8 \(1, 48, 64, 3\)"):
        open_engine(wrong_size)
    with pytest.raises(GradsegError, match=r"output 'logits'.*11 classes"):
        open_engine(logits_onnx(tmp_path / "b.onnx", np.zeros((5, 3))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.onnx", None, "no such file; expected an engine"),
        ("empty.onnx", b"", "is empty"),
        ("text.onnx", b"hello, world", "cannot load it"),
        ("m.zip", b"x", "unknown kind of engine '.zip'; expected .onnx"),
        ("text.pth", b"hello", "not a PyTorch checkpoint"),
    ],
)
def test_bad_engine_files_are_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GradsegError, match=message) as caught:
        open_engine(path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_truncated_onnx(tmp_path: Path) -> None:
    path = deployment_onnx(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(GradsegError, match="truncated, not an ONNX model"):
        open_engine(path)


def test_wrong_batches_and_threads_are_refused(tmp_path: Path) -> None:
    path = deployment_onnx(tmp_path / "m.onnx")
    with pytest.raises(GradsegError, match="--threads 0"):
        open_engine(path, threads=0)
    engine = open_engine(path)
    for bad in (np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, *HW, 3), np.float32), random_batch()[:, :, ::-1]):
        with pytest.raises(GradsegError, match="engine input: expected contiguous uint8"):
            engine.infer(bad)


def test_missing_backend_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deployment_onnx(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        GradsegError, match=r"needs ONNX Runtime, and this machine has none: pip install -e \S*\[ort\]"
    ) as caught:
        open_engine(path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("batch", [1, 3])
def test_frames_of_another_size_and_several_at_a_time(tmp_path: Path, batch: int) -> None:
    engine = open_engine(framed_onnx(tmp_path / "m.onnx", (40, 56), batch))
    assert (engine.batch, engine.frame_hw, engine.spec.input_hw) == (batch, (40, 56), HW)
    frames = np.random.default_rng(0).integers(0, 256, (batch, 40, 56, 3), np.uint8)
    np.testing.assert_array_equal(engine.infer(frames), expected_labels(frames))
    with pytest.raises(GradsegError, match=rf"expected contiguous uint8 BGR \({batch}, 40, 56, 3\)"):
        engine.infer(random_batch())


def test_sizes_that_disagree_with_the_metadata_are_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(framed_onnx(tmp_path / "m.onnx", (40, 56))))
    for value, message in (("40x64", r"expected uint8 \(1, 40, 64, 3\)"), ("big", "frame_size: size 'big'")):
        model.metadata_props[-1].value = value
        onnx.save(model, str(tmp_path / "m.onnx"))
        with pytest.raises(GradsegError, match=message):
            open_engine(tmp_path / "m.onnx")


# -- ONNX Runtime's GPU providers, which this machine need not have ---------------------------------------------------


def with_providers(monkeypatch: pytest.MonkeyPatch, available: List[str], running: List[str], gpu: bool = True) -> Any:
    """An onnxruntime that says it has and runs these; what it computes, the CPU does. Lists what was asked for."""
    import onnxruntime

    asked: List[Any] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: Any, providers: Any, **others: Any) -> Any:
        assert others == {"enable_fallback": 0}
        asked.append(providers)
        opened = real(path, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(opened, "get_providers", lambda: running)
        return opened

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)

    def need(where: str) -> Any:
        if not gpu:
            raise GradsegError(f"{where} {NO_GPU}", 3)
        return GPU

    monkeypatch.setattr(ort_engine, "need_gpu", need)
    return asked


CUDA, TRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


def test_provider_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_providers(monkeypatch, [TRT, CUDA, CPU], [CUDA, CPU])
    engine: Any = open_engine(deployment_onnx(tmp_path / "m.onnx"), provider="cuda")
    assert (engine.provider, engine.device, engine.threads) == ("cuda", "Toy GPU", None)
    assert engine.backend.startswith("onnxruntime 1.") and engine.backend.endswith(" CUDA")
    assert asked == [[(CUDA, {"device_id": "0", "use_tf32": "0"}), CPU]]
    np.testing.assert_array_equal(engine.infer(random_batch()), expected_labels(random_batch()))


@pytest.mark.parametrize(("precision", "fp16", "int8"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "1", "1")])
def test_provider_tensorrt(
    precision: str, fp16: str, int8: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    asked = with_providers(monkeypatch, [TRT, CUDA, CPU], [TRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    path = deployment_onnx(tmp_path / "m.onnx", precision=precision)
    with Segmenter(path, provider="tensorrt") as segmenter:
        assert segmenter.engine.backend == "onnxruntime 1.16.3 TensorRT"
        segmenter(np.zeros((9, 9, 3), np.uint8))
    cache = tmp_path / "m.onnx.tensorrt"
    options = {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_fp16_enable": fp16,
        "trt_int8_enable": int8,
    }
    assert asked == [[(TRT, options), (CUDA, {"device_id": "0"}), CPU]] and cache.is_dir()


@pytest.mark.parametrize(
    ("available", "running", "gpu", "message"),
    [
        (
            [CPU],
            [CPU],
            True,
            rf"--provider cuda needs {CUDA}; this ONNX Runtime 1\S+ has {CPU}\. pip uninstall.*Jetson",
        ),
        (
            [CUDA, CPU],
            [CPU],
            True,
            rf"{CUDA} did not start, ONNX Runtime would go on with {CPU}\. Its libraries \(CUDA, c",
        ),
        ([CUDA, CPU], [CUDA, CPU], False, "--provider cuda needs an NVIDIA GPU with its driver; this machine has none"),
    ],
)
def test_a_provider_that_is_not_there_is_exit_code_3(
    available: List[str], running: List[str], gpu: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_providers(monkeypatch, available, running, gpu)
    with pytest.raises(GradsegError, match=message) as caught:
        open_engine(deployment_onnx(tmp_path / "m.onnx"), provider="cuda")
    assert caught.value.exit_code == 3


def test_this_onnxruntime_says_what_it_has(tmp_path: Path) -> None:
    """With nothing pretended."""
    import onnxruntime

    if TRT in onnxruntime.get_available_providers():
        pytest.skip("needs an ONNX Runtime without TensorRT")
    with pytest.raises(GradsegError, match=f"needs {TRT}; this ONNX Runtime") as caught:
        open_engine(deployment_onnx(tmp_path / "m.onnx"), provider="tensorrt")
    assert caught.value.exit_code == 3 and [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_providers_are_for_onnx_files(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"x")
    with pytest.raises(GradsegError, match=r"--provider cuda: is for \.onnx files.*leave it out for \S+m\.plan"):
        open_engine(tmp_path / "m.plan", provider="cuda")
    with pytest.raises(GradsegError, match="--provider gpu: expected cpu, cuda, tensorrt"):
        open_engine(deployment_onnx(tmp_path / "m.onnx"), provider="gpu")


# -- Segmenter ---------------------------------------------------------------------------------------------------------


def test_segmenter_gives_labels_at_frame_size_that_stay(tmp_path: Path) -> None:
    with Segmenter(deployment_onnx(tmp_path / "m.onnx")) as segmenter:
        black, white = np.zeros((50, 70, 3), np.uint8), np.full((50, 70, 3), 255, np.uint8)
        first, second = segmenter(black), segmenter(white)
        assert first.shape == (50, 70) and (first == 0).all() and (second == 10).all()
        out = np.empty((50, 70), np.uint8)
        assert segmenter(white, out=out) is out
        picture = segmenter.overlay(black, second, alpha=1.0)
        assert picture.shape == (50, 70, 3)
        assert tuple(picture[0, 0, ::-1]) == segmenter.spec.palette[10] and segmenter.classes[10] == "bicyclist"
        large, seen = np.zeros((240, 320, 3), np.uint8), np.full((240, 320), 10, np.uint8)
        named = segmenter.overlay(large, seen, legend=True) != segmenter.overlay(large, seen)
        assert named[:60, :120].any() and not named[60:].any()


def test_segmenter_of_several_frames(tmp_path: Path) -> None:
    with Segmenter(framed_onnx(tmp_path / "m.onnx", (40, 56), 2)) as segmenter:
        black, white = np.zeros((50, 70, 3), np.uint8), np.full((30, 30, 3), 255, np.uint8)
        first, second = segmenter.many([black, white])
        assert first.shape == (50, 70) and (first == 0).all() and second.shape == (30, 30) and (second == 10).all()
        segmenter.many([white, white])
        assert (first == 0).all(), "the labels are the caller's"
        with pytest.raises(GradsegError, match="takes 2 frames at a time, got 1"):
            segmenter.many([black])
        with pytest.raises(GradsegError, match=r"takes 2 frames at a time; give them to Segmenter\.many\(\)"):
            segmenter(black)
    with Segmenter(deployment_onnx(tmp_path / "m.onnx")) as segmenter:
        assert (segmenter.many([white])[0] == 10).all()


# -- PyTorch -----------------------------------------------------------------------------------------------------------


def test_torch_engine_equals_the_network(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'gradseg[train]'")
    from gradseg.models.checkpoint import load_checkpoint, save_checkpoint
    from gradseg.models.networks.erfnet import SegNetwork

    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.pth", SegNetwork(SPEC))
    engine, network = open_engine(tmp_path / "m.pth"), load_checkpoint(tmp_path / "m.pth").network
    assert engine.threads == torch.get_num_threads()
    for seed in range(2):
        batch = random_batch(seed)
        with torch.inference_mode():
            wanted = network(torch.from_numpy(normalised_chw(batch, SPEC))).argmax(1).numpy()
        got = engine.infer(batch)
        assert got.dtype == np.uint8 and got.shape == (1, *HW)
        assert (got == wanted).mean() > 0.999, "channels_last may turn ties over, no more"
    engine.close()


def test_bare_state_dict_says_to_convert_it_first(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'gradseg[train]'")
    path = tmp_path / "erfnet.pth"
    torch.save({"module.encoder.initial_block.conv.weight": torch.zeros(13, 3, 3, 3)}, path)
    with pytest.raises(
        GradsegError, match=r"convert it first: python export/to_onnx\.py \S+\.pth --arch erfnet"
    ) as caught:
        open_engine(path)
    assert caught.value.exit_code == 2


def test_checkpoint_without_torch_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(GradsegError, match=r"needs torch, not installed here: pip install .*to_onnx\.py") as caught:
        open_engine(tmp_path / "m.pth")
    assert caught.value.exit_code == 3
