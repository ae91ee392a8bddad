"""`calibration/report.py`: what its JSON and its page say, and what it refuses."""

from __future__ import annotations

import argparse
import copy
import html
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from export_toys import SCENES, checkpoint, exported, int8_from_fp32, one_torch_thread  # noqa: F401
from ranges_toys import round_trip

from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.calibration import report
from gradseg.calibration.comparison import figures as int8_figures
from gradseg.calibration.comparison import models as int8_models
from gradseg.calibration.comparison import page as int8_html
from gradseg.calibration.comparison.recipes import best_of, recipes, tensor_errors
from gradseg.calibration.qdq.int8 import Settings, calibrated
from gradseg.calibration.qdq.plan import COMPUTE, plan_for
from gradseg.calibration.qdq.quantise import WeightSettings, weight_scales
from gradseg.calibration.qdq.targets import target_named
from gradseg.calibration.ranges.observers import Observer
from gradseg.graphs.graph import Graph
from gradseg.models.checkpoint import save_checkpoint

TARGETS = ("cpu", "trt", "tidl")
CALIB = "scenes:frames=2,size=64x96,seed=5"
NAME = "<b>&toy.pth"


def scales_of(model: onnx.ModelProto, target: str) -> dict[str, Any]:
    """What fine-tuning would store for a model: here the scales of calibration."""
    known = calibrated(model, CALIB, 2, equalise=False, threads=1)
    plan, graph = plan_for(model, target), Graph(model)
    layers = [node for node in graph.nodes if node.name in plan.nodes and node.op_type in COMPUTE]
    scales = known.activations(target, "mse")
    return {
        "target": target,
        "power_of_two": True,
        "activations": {n: [scales[n].scale, scales[n].zero_point, scales[n].signed] for n in plan.observed()},
        "weights": {
            node.name: weight_scales(
                graph.weights[node.input[1]], node, target_named(target), WeightSettings()
            ).tolist()
            for node in layers
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose name would be markup, two fine-tuned from it, and files that are not its business."""
    place = tmp_path_factory.mktemp("report")
    toy = checkpoint()
    save_checkpoint(place / NAME, toy.network)
    base = {"file": NAME, "sha256": sha256_of(place / NAME)}
    stored = {**scales_of(exported(), "tidl"), "base": base}
    sparsity = {"asked": "0.6", "achieved": 0.61, "layers": {}}
    save_checkpoint(place / "tuned.pth", toy.network, {"quantisation": stored, "sparsity": sparsity})
    damaged = {**stored, "activations": dict(list(stored["activations"].items())[1:])}
    (place / "apart").mkdir()
    save_checkpoint(place / "apart" / "damaged.pth", toy.network, {"quantisation": damaged})
    save_checkpoint(place / "stranger.pth", toy.network, {"quantisation": {**stored, "base": {**base, "sha256": "0"}}})
    (place / "junk.pth").write_bytes(b"no checkpoint")
    return place


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    files = ["--json", str(out / "r.json"), "--html", str(out / "r.html")]
    return [str(place / NAME), *more, "--data", SCENES, "--calib", CALIB, "--threads", "1", "--samples", "2", *files]


@pytest.fixture(scope="module")
def ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run with a variant that fails: its exit code, figures and page."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_figures, "WORST", 2)  # drawing takes longer than measuring networks this small
        code = report.main(arguments(folder, out, str(folder / "apart" / "damaged.pth")))
    return {"code": code, "json": json.loads((out / "r.json").read_text()), "html": (out / "r.html").read_text()}


def row_of(ran: dict[str, Any]) -> dict[str, Any]:
    assert len(ran["json"]["models"]) == 1
    found: dict[str, Any] = ran["json"]["models"][0]
    return found


def variants_of(ran: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variant["name"]: variant for variant in row_of(ran)["variants"]}


def test_json_has_every_variant_with_its_figures(ran: dict[str, Any]) -> None:
    row, variants = row_of(ran), variants_of(ran)
    assert row["model"] == "dg2-star-light" and row["file"].endswith(NAME) and len(row["sha256"]) == 64
    assert len(variants) == 3 * 8 + 2 == len(row["variants"])
    for target in TARGETS:
        own = [v for v in variants.values() if v["target"] == target and not v["qat"]]
        assert {v["method"] for v in own} == {"minmax", "percentile", "entropy", "mse"}
        assert [v["name"] for v in own if v["naive"]] == [f"{target} naive"]
        assert {tuple(v["repair"].values()) for v in own if v["method"] == "mse"} == {
            (a, b) for a in (True, False) for b in (True, False)
        }
    for variant in variants.values():
        if "error" in variant:
            continue
        assert variant["drop_points"] == pytest.approx(100 * (row["float"]["miou"] - variant["miou"]))
        assert 0 < variant["agreement"] <= 1 and 0 < variant["int8_convolutions"] <= variant["convolutions"]
        assert set(variant["per_class"]) == set(row["float"]["per_class"])
        worst = variant["worst_class"]
        change = 100 * (variant["per_class"][worst["name"]] - row["float"]["per_class"][worst["name"]])
        assert worst["change_points"] == pytest.approx(change)
        present = [v for v in variant["per_class"].values() if v is not None]
        assert variant["miou"] == pytest.approx(sum(present) / len(present))
        assert variant["qat"] or 0 <= variant["clipped"]["mean"] <= variant["clipped"]["worst"] <= 1
    assert variants["trt minmax"]["clipped"]["worst"] < 1e-4 < variants["trt entropy"]["clipped"]["worst"]
    assert variants["tidl mse"]["size_bytes"] < 0.6 * row["float"]["size_bytes"]


def test_latency_is_given_only_where_it_is_real(ran: dict[str, Any]) -> None:
    assert row_of(ran)["float"]["latency_ms"] > 0 and row_of(ran)["float"]["latency_samples"] == 2
    for variant in variants_of(ran).values():
        assert ("latency_ms" in variant) == (variant["target"] == "cpu")
    assert "accuracy only" in ran["json"]["conditions"]["emulation"]["tidl"]


def test_best_is_the_highest_miou_of_its_target(ran: dict[str, Any]) -> None:
    row, variants = row_of(ran), variants_of(ran)
    for key, name in row["best"].items():
        rivals = [v for v in variants.values() if v["target"] == key.split("_")[0] and v["miou"] is not None]
        rivals = [v for v in rivals if not v["naive"] and not (key == "tidl_ptq" and v["qat"])]
        assert variants[name]["miou"] == max(v["miou"] for v in rivals)
    rows = [
        {"name": "a", "target": "tidl", "qat": False, "miou": 0.5, "agreement": 0.9},
        {"name": "b", "target": "tidl", "qat": True, "miou": 0.6, "agreement": 0.9},
        {"name": "c", "target": "tidl", "qat": False, "miou": 0.5, "agreement": 0.95},
        {"name": "d", "target": "cpu", "qat": False, "miou": None, "error": "x"},
        {"name": "e", "target": "trt", "qat": False, "naive": True, "miou": 0.9, "agreement": 1.0},
    ]
    assert best_of(rows) == {"cpu": None, "trt": None, "tidl": "b", "tidl_ptq": "c"}


def test_conditions_and_calibration(ran: dict[str, Any]) -> None:
    known = ran["json"]["conditions"]
    assert known["data"] == SCENES and known["frames"] == 4 and known["calib"] == CALIB and known["threads"] == 1
    assert known["command"].startswith("python calibration/report.py ")
    assert {"device", "versions", "commit"} <= set(known)
    calibration = row_of(ran)["calibration"]
    assert calibration["source"] == CALIB and calibration["frames"] == 2
    assert any("only 2 different frames" in line for line in calibration["warnings"])
    assert not any("validation" in line for line in calibration["warnings"])


def test_fine_tuned_checkpoints_beside_the_base_are_variants(ran: dict[str, Any]) -> None:
    tuned = [v for v in variants_of(ran).values() if v["qat"] and "error" not in v]
    assert [Path(v["file"]).name for v in tuned] == ["tuned.pth"]
    assert tuned[0]["target"] == "tidl" and tuned[0]["method"] == "qat" and tuned[0]["sparsity"]["achieved"] == 0.61
    bare = variants_of(ran)["tidl mse, no repair"]  # the toy's stored scales are those of calibration without repair
    assert tuned[0]["miou"] == bare["miou"] and tuned[0]["agreement"] == bare["agreement"]
    assert tuned[0]["own_float_miou"] == row_of(ran)["float"]["miou"]


def test_a_failing_variant_is_recorded_and_the_exit_code_says_so(ran: dict[str, Any]) -> None:
    failed = {name: v for name, v in variants_of(ran).items() if "error" in v}
    assert ran["code"] == 1 and len(failed) == 1
    ((name, variant),) = failed.items()
    assert "damaged.pth" in name and "no scale for tensor" in variant["error"] and variant["miou"] is None
    assert "no scale for tensor" in ran["html"]


class Checker(HTMLParser):
    """Raises for tags that do not nest; collects what a test looks at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def test_page_is_whole_and_needs_nothing_else(ran: dict[str, Any]) -> None:
    page = Checker(ran["html"])
    names = [tag for tag, _ in page.tags]
    assert "script" not in names and "link" not in names
    for tag, attributes in page.tags:
        for key in ("src", "href"):
            assert str(attributes.get(key, "#")).startswith(("#", "data:image/")), (tag, attributes)
        assert tag != "b", "the file's name came through as markup"
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    best = {row_of(ran)["best"]["cpu"], row_of(ran)["best"]["tidl"]}
    assert len(images) == 1 + 2 + 4 * (2 + 2 * len(best)) and all(len(image["alt"]) > 5 for image in images)
    assert "http" not in ran["html"].replace("http-equiv", "") and "url(" not in ran["html"]
    assert "&lt;b&gt;&amp;toy.pth" in ran["html"] and "61.0 % of its weights are zero" in ran["html"]
    for name in variants_of(ran):
        assert html.escape(name) in ran["html"]


def test_everything_from_outside_is_escaped(ran: dict[str, Any]) -> None:
    nasty = "<img src=x onerror=alert(1)>\"'&"
    row = copy.deepcopy(row_of(ran))
    for holder in (row["float"], *row["variants"]):
        if "per_class" in holder:
            holder["per_class"] = {nasty: next(iter(holder["per_class"].values()))}
            if "worst_class" in holder:
                holder["worst_class"]["name"] = nasty
        if "error" in holder:
            holder["error"] = nasty
    row.update(model=nasty, file=nasty, calibration={"source": nasty, "frames": 1, "warnings": [nasty]})
    picture = int8_figures.Picture(nasty, nasty, "data:image/png;base64,")
    section = int8_html.Section(row, picture, [picture], [[picture]], ((nasty, (1, 2, 3)),))
    page = Checker(int8_html.page([section], {"data": nasty, "calib": nasty, "command": nasty}))
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert sum(tag == "img" for tag, _ in page.tags) == 3


def fake_row(**cpu: Any) -> dict[str, Any]:
    base = {"miou": 0.7, "size_bytes": 1000, "latency_ms": 10.0}
    known = {"name": "cpu x", "target": "cpu", "qat": False, "naive": False, "miou": 0.7, "drop_points": 0.0}
    known.update(agreement=1.0, size_bytes=300, worst_class={"name": "car", "change_points": 0.0}, latency_ms=5.0, **{})
    known.update(cpu)
    reliable = known.pop("reliable", True)
    return {
        "latency_reliable": reliable,
        "float": base,
        "variants": [known],
        "best": {"cpu": "cpu x", "trt": None, "tidl": None, "tidl_ptq": None},
    }


@pytest.mark.parametrize(
    ("cpu", "words"),
    [
        ({}, "0.50 of float's time: worth it on this machine"),
        ({"latency_ms": 12.0}, "1.20 of float's time, so float is the better choice"),
        ({"drop_points": 3.0}, "3.00 points below float"),
        ({"reliable": False}, "no verdict on speed, the machine was busy"),
        ({"drop_points": 3.0}, "a trade of accuracy for speed"),
        ({"drop_points": -1.0}, "1.00 points above float"),
    ],
)
def test_verdicts_say_what_the_figures_say(cpu: dict[str, Any], words: str) -> None:
    lines = int8_html.verdicts(fake_row(**cpu))
    assert words in lines[0] and lines[1] == "trt: every variant failed."


def test_worst_tensors_are_those_with_the_least_signal_to_noise() -> None:
    known = calibrated(exported(), CALIB, 2, equalise=False, threads=1)
    settings = Settings("tidl", "minmax", equalise=False, bias_correction=False)
    scales = known.activations("tidl", "minmax")
    errors = tensor_errors(known, settings, scales)
    ratios = [each.sqnr_db for each in errors]
    assert ratios == sorted(ratios) and len(errors) > 20  # type: ignore[type-var]
    rng = np.random.default_rng(0)
    values = rng.normal(size=4000).astype(np.float32)
    seen = Observer()
    seen.update(values)
    first = errors[0]
    scale = scales[first.name]
    known.statistics.observers[first.name] = seen
    again = next(each for each in tensor_errors(known, settings, scales) if each.name == first.name)
    noise = float(((round_trip(scale, values) - values) ** 2).mean())
    assert again.sqnr_db == pytest.approx(10 * np.log10(float((values**2).mean()) / noise), abs=0.2)
    outside = float(((values < again.low) | (values > again.high)).mean())
    assert again.clipped == pytest.approx(outside, abs=0.01)


def test_networks_of_one_architecture_are_told_apart_by_their_files() -> None:
    def subject(arch: str, path: str) -> int8_models.Subject:
        loaded = argparse.Namespace(spec=argparse.Namespace(arch=arch))
        return int8_models.Subject("", Path(path), "", loaded)  # type: ignore[arg-type]

    subjects = [subject("a", "x/1.pth"), subject("a", "x/2.pth"), subject("b", "x/1.pth"), subject("foreign", "u.onnx")]
    int8_models._name(subjects)
    assert [each.name for each in subjects] == ["a (x/1.pth)", "a (2.pth)", "b", "u"]


def test_long_tensor_names_are_parted_and_keep_their_end() -> None:
    assert int8_figures.in_two("/a/b") == "/a/b"
    long = "/encoder/layers.12/conv_module/depthwise/Relu_output_0"
    assert int8_figures.in_two(long).replace("\n", "") == long
    assert all(len(line) <= 40 for line in int8_figures.in_two(long * 3).splitlines())
    assert int8_figures.in_two(long * 3).endswith("Relu_output_0")
    assert int8_figures.in_two("x" * 99) == "…" + "x" * 39


def test_marked_pixels_are_the_changed_ones() -> None:
    frame: np.ndarray[Any, Any] = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    differs = np.zeros((8, 9), bool)
    differs[2, 3] = True
    picture = int8_figures.marked(frame, differs)
    assert tuple(picture[2, 3]) == int8_figures.CHANGED
    others = picture[~differs]
    assert (others == others[:, :1]).all() and others.min() >= 110


def test_leakage_is_warned_of(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gradseg.calibration.comparison.variants.recipes", lambda target, options: recipes("cpu", options)[:1]
    )
    picture = int8_figures.Picture("c", "a", "data:image/png;base64,")
    monkeypatch.setattr(int8_figures, "drops_picture", lambda row: picture)
    monkeypatch.setattr(int8_figures, "worst_tensors", lambda found, target: [picture])
    given = [str(folder / NAME), "--data", SCENES, "--calib", SCENES, "--no-qat", "--samples", "0", "--threads", "1"]
    assert report.main([*given, "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]) == 0
    row = json.loads((tmp_path / "r.json").read_text())["models"][0]
    assert any("4 frames of the validation set" in line for line in row["calibration"]["warnings"])
    assert not any(variant["qat"] for variant in row["variants"])
    assert "latency_ms" not in row["float"]


def test_bad_input_is_one_line_before_any_work(folder: Path, tmp_path: Path) -> None:
    model, page, figures = str(folder / NAME), str(tmp_path / "r.html"), str(tmp_path / "r.json")
    out = ["--json", figures, "--html", page]
    packed = tmp_path / "int8.onnx"
    onnx.save(int8_from_fp32(exported(), CALIB, Settings("cpu", "minmax", 1), 1), str(packed))
    copied = tmp_path / "same.pth"
    shutil.copy(model, copied)
    html_model = tmp_path / "model.html"
    html_model.write_text("x")
    other = tmp_path / "other"
    for part in ("images", "labels"):
        (other / part).mkdir(parents=True)
        cv2.imwrite(str(other / part / "a.png"), np.zeros((8, 8, 3 if part == "images" else 1), np.uint8))
    (other / "classes.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    cases = [
        ([str(tmp_path / "none.pth"), "--data", SCENES, *out], "no such file"),
        ([model, str(copied), "--data", SCENES, *out], "is the same network as"),
        ([str(packed), "--data", SCENES, *out], "is INT8 already"),
        ([str(folder / "stranger.pth"), "--data", SCENES, *out], "is not in the list"),
        ([model, "--data", SCENES, "--json", figures, "--html", str(tmp_path / "r.txt")], "ends in .html"),
        ([str(html_model), "--data", SCENES, "--json", figures, "--html", str(html_model)], "is an input itself"),
        ([model, "--data", SCENES, "--json", str(html_model / "r.json"), "--html", page], "cannot write"),
        ([model, "--data", SCENES, "--samples", "-1", *out], "--samples -1"),
        ([model, "--data", SCENES, "--limit", "0", *out], "--limit 0"),
        ([model, "--data", SCENES, "--calib", "random", *out], "refused"),
        ([model, "--data", SCENES, "--calib", CALIB, "--calib-frames", "0", *out], "at least 1"),
        ([str(html_model), "--data", SCENES, *out], "expected a checkpoint"),
        ([model, "--data", f"folder:{other}", *out], r"are not the data's \['cat', 'dog'\]"),
        ([model, "--data", "nonsense:", *out], "nonsense"),
    ]
    for given, words in cases:
        with pytest.raises(GradsegError, match=words):
            report.main(given)
    assert not Path(page).exists() and not Path(figures).exists()
