"""Labelled folders, data specs and their messages for what is wrong with them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradseg.base.errors import GradsegError
from gradseg.data.base import IGNORE, Concat, Dataset, Sample, Subset, spread
from gradseg.data.folders import FolderData, camvid, folder_with_classes, list_images, read_classes, read_image
from gradseg.data.scenes.frames import ScenesData
from gradseg.data.specs import open_data, parse_options, scenes_from_options
from gradseg.models.spec import CAMVID_CLASSES, CAMVID_PALETTE, distinct_palette


def make_folder(folder: Path, count: int = 3, top: int = 2, size: tuple[int, int] = (12, 16)) -> Path:
    """images/ and labels/ of `count` frames, label values 0..top, and a classes.json of two classes."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / "images" / f"f{i}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
        cv2.imwrite(str(folder / "labels" / f"f{i}.png"), rng.integers(0, top, size, np.uint8))
    (folder / "classes.json").write_text('{"classes": ["road", "car"]}')
    return folder


class Numbers(Dataset):
    """A dataset whose sample i is named str(first + i)."""

    classes, palette = ("a", "b"), ((0, 0, 0), (1, 1, 1))

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), str(self.first + index))


def fails(part: str) -> Any:
    return pytest.raises(GradsegError, match=part)


# data/base.py


@pytest.mark.parametrize(
    ("limit", "names"), [(1, "0"), (3, "036"), (5, "02468"), (10, "0123456789"), (99, "0123456789")]
)
def test_spread_takes_evenly(limit: int, names: str) -> None:
    data = spread(Numbers(10), limit)
    assert "".join(data[i].name for i in range(len(data))) == names
    assert data.classes == Numbers.classes and data.palette == Numbers.palette


@given(st.integers(1, 500), st.integers(1, 600))
def test_spread_is_sorted_and_without_repeats(count: int, limit: int) -> None:
    data = spread(Numbers(count), limit)
    taken = [int(data[i].name) for i in range(len(data))]
    assert len(taken) == min(count, limit) and taken == sorted(set(taken)) and taken[-1] < count


@pytest.mark.parametrize("limit", [0, -4])
def test_spread_needs_a_frame(limit: int) -> None:
    with fails(f"--limit {limit}: at least 1"):
        spread(Numbers(3), limit)


def test_concat_goes_through_its_parts() -> None:
    data = Concat([Numbers(2), Numbers(1, 10), Subset(Numbers(9), [8, 3])])
    assert [data[i].name for i in range(len(data))] == ["0", "1", "10", "8", "3"]
    with pytest.raises(IndexError):
        data[5]


def test_mixing_classes_names_both() -> None:
    other = Numbers(1)
    other.classes = ("a", "zebra")
    with fails(r"cannot be mixed: \['a', 'b'\] and \['a', 'zebra'\]"):
        Concat([Numbers(1), other])


# data/folders.py


def test_folder_reads_what_was_written(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d")
    data = folder_with_classes(folder)
    sample = data[1]
    assert len(data) == 3 and data.classes == ("road", "car") and data.palette == distinct_palette(2)
    assert sample.name == "f1" and sample.image.dtype == np.uint8 and sample.label.dtype == np.uint8
    image: Any = cv2.imread(str(folder / "images" / "f1.png"))
    label: Any = cv2.imread(str(folder / "labels" / "f1.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(sample.image, image) and np.array_equal(sample.label, label)


def test_list_images_is_sorted_and_skips_the_rest(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "c.jpeg"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG", "c.jpeg"]


def test_camvid_ignores_its_void(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", 1, size=(3, 4))
    raw = np.arange(12, dtype=np.uint8).reshape(3, 4)
    cv2.imwrite(str(folder / "labels" / "f0.png"), raw)
    data = camvid(folder)
    expected = raw.copy()
    expected[raw == 11] = IGNORE
    assert np.array_equal(data[0].label, expected) and data.classes == CAMVID_CLASSES and data.palette == CAMVID_PALETTE


def test_ignored_values_and_255_come_out_as_ignore(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", 1, size=(1, 4))
    cv2.imwrite(str(folder / "labels" / "f0.png"), np.array([[0, 1, 77, 255]], np.uint8))
    assert FolderData(folder, ("a", "b"), distinct_palette(2), ignore=(77,))[0].label.tolist() == [[0, 1, 255, 255]]
    assert FolderData(folder, ("a", "b"), distinct_palette(2), ignore=(1, 77))[0].label.tolist() == [[0, 255, 255, 255]]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d")
    for part in ("labels", "images"):
        (folder / part).rename(folder / f"old-{part}")
        with fails(f"no folder {part}/ inside"):
            folder_with_classes(folder)
        (folder / f"old-{part}").rename(folder / part)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    with fails(r"images: no images \(.*\.jpg"):
        camvid(tmp_path)


def test_missing_labels_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d")
    for name in ("f1.png", "f2.png"):
        (folder / "labels" / name).unlink()
    with fails("2 of 3 images .*first .*f1.png"):
        folder_with_classes(folder)


def test_a_label_value_out_of_range_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", 1)
    cv2.imwrite(str(folder / "labels" / "f0.png"), np.full((12, 16), 7, np.uint8))
    with fails(r"f0.png: label values \[7\] outside the 2 classes \(0\.\.1\)"):
        folder_with_classes(folder)[0]


def test_a_label_of_another_size_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", 1)
    cv2.imwrite(str(folder / "labels" / "f0.png"), np.zeros((6, 16), np.uint8))
    with fails("f0.png: label is 6x16.*image 12x16"):
        folder_with_classes(folder)[0]


@pytest.mark.parametrize("label", [np.zeros((12, 16, 3), np.uint8), np.zeros((12, 16), np.uint16)])
def test_a_label_that_is_no_index_image_is_named(tmp_path: Path, label: np.ndarray[Any, Any]) -> None:
    folder = make_folder(tmp_path / "d", 1)
    cv2.imwrite(str(folder / "labels" / "f0.png"), label)
    with fails("f0.png: a label is one channel of uint8"):
        folder_with_classes(folder)[0]


def test_corrupt_and_empty_files_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", 2)
    (folder / "images" / "f0.png").write_bytes(b"no image")
    (folder / "labels" / "f1.png").write_bytes(b"no image")
    data = folder_with_classes(folder)
    with fails("images/f0.png: corrupt or not an image"):
        data[0]
    with fails("labels/f1.png: corrupt or not an image"):
        data[1]
    (folder / "images" / "f0.png").write_bytes(b"")
    with fails("images/f0.png: is empty"):
        data[0]
    with fails("gone.png: no such file"):
        read_image(folder / "gone.png")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("{", "not JSON"),
        ("3", "expected"),
        ('"road"', "expected"),
        ('{"names": ["a", "b"]}', "expected"),
        ('{"classes": "road"}', "expected"),
        ('{"classes": ["road"]}', "1 classes; expected 2 to 255"),
        ('{"classes": ["road", 3]}', "expected 2 to 255 names"),
        (json.dumps([str(i) for i in range(256)]), "256 classes"),
        ('{"classes": ["a", "b"], "palette": [[1, 2, 3]]}', "palette must hold 2 colours"),
        ('{"classes": ["a", "b"], "palette": [[1, 2, 3], [1, 2]]}', "palette must hold 2 colours"),
        ('{"classes": ["a", "b"], "palette": [[1, 2, 3], [1, 2, 256]]}', "palette must hold 2 colours"),
        ('{"classes": ["a", "b"], "palette": [[1, 2, 3], [1, 2, true]]}', "palette must hold 2 colours"),
        ('{"classes": ["a", "b"], "ignore": [256]}', "ignore must hold label values"),
        ('{"classes": ["a", "b"], "ignore": "void"}', "ignore must hold label values"),
    ],
)
def test_a_bad_classes_json_is_explained(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(GradsegError, match=part) as caught:
        read_classes(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_a_missing_classes_json_shows_an_example(tmp_path: Path) -> None:
    with fails('classes.json: no such file; expected a classes.json such as .*"classes"'):
        folder_with_classes(tmp_path)


def test_classes_json_in_full_and_as_a_list(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('{"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 9}')
    assert read_classes(path) == (("a", "b"), ((1, 2, 3), (4, 5, 6)), (9,))
    path.write_text('["straße", "car"]', encoding="utf-8")
    assert read_classes(path) == (("straße", "car"), distinct_palette(2), ())


# data/specs.py


def test_open_data_opens_every_kind(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "my data")
    assert len(open_data(f"folder:{folder}")) == 3
    assert open_data(f"camvid:{folder}").classes == CAMVID_CLASSES
    assert len(open_data(f"folder:{folder}", limit=2)) == 2
    both = open_data(f"camvid:{folder}+scenes:frames=4,size=48x64")
    assert len(both) == 7 and both.classes == CAMVID_CLASSES and both[5].image.shape == (48, 64, 3)


def test_a_plus_in_a_path_is_no_separator(tmp_path: Path) -> None:
    assert len(open_data(f"folder:{make_folder(tmp_path / 'a+b')}")) == 3


def test_mixing_different_classes_is_refused(tmp_path: Path) -> None:
    with fails("different classes cannot be mixed"):
        open_data(f"folder:{make_folder(tmp_path / 'd')}+scenes:frames=2,size=48x64")


@pytest.mark.parametrize("text", ["", "camvid", "/data/camvid", "video:x", "CAMVID:x", ":", "http://x"])
def test_an_unknown_spec_shows_the_grammar(text: str) -> None:
    with fails("data spec .*expected camvid:DIR, folder:DIR, scenes:"):
        open_data(text)


@pytest.mark.parametrize("text", ["camvid:", "folder:", "camvid:/no/such/folder"])
def test_a_folder_that_is_not_there_is_named(text: str) -> None:
    with fails("no such folder"):
        open_data(text)


def test_scene_options_and_their_defaults() -> None:
    data = scenes_from_options("frames=7, seed=5,size=48x64")
    assert isinstance(data, ScenesData) and (data.frames, data.seed, data.size_hw) == (7, 5, (48, 64))
    default = scenes_from_options("")
    assert (default.frames, default.seed, default.size_hw) == (200, 0, (360, 480))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("frame=3", r"unknown option 'frame=3'; known: frames=…, seed=…, size=…"),
        ("frames", "unknown option 'frames'"),
        ("frames=", "frames=: expected a whole number above 0"),
        ("frames=0", "frames=0: expected a whole number above 0"),
        ("frames=-1", "frames=-1: expected a whole number above 0"),
        ("frames=2.5", "frames=2.5: expected"),
        ("seed=x", "seed=x: expected a whole number"),
        ("size=360", "write HEIGHTxWIDTH"),
        ("size=0x10", "write HEIGHTxWIDTH"),
        ("size=16x16", "use 32x32 to 4320x4320"),
    ],
)
def test_bad_scene_options_are_explained(text: str, part: str) -> None:
    with fails(part):
        open_data(f"scenes:{text}")


VALUES = st.text(string.ascii_letters + string.digits + " =x-./", max_size=6).map(str.strip)


@given(st.dictionaries(st.sampled_from(["frames", "seed", "size"]), VALUES))
def test_options_round_trip(options: dict[str, str]) -> None:
    text = ",".join(f"{key}={value}" for key, value in options.items())
    assert parse_options(text, ("frames", "seed", "size"), "scenes:") == options


@given(st.text(string.printable, max_size=30))
def test_any_option_text_is_parsed_or_refused(text: str) -> None:
    try:
        data = scenes_from_options(text)
    except GradsegError as error:
        assert "\n" not in str(error)
    else:
        assert len(data) >= 1 and min(data.size_hw) >= 32
