"""What the tests of foreign networks share: conversion on a folder of frames, and what must hold of its result."""

from __future__ import annotations

from typing import Any, Callable, List

import cv2
import numpy as np
import onnx
import pytest
from foreign_toys import CLASSES, HW, MEAN, STD, Net, batches, original_values, tiny

from gradseg.graphs.foreign.convert import deployment_from_foreign
from gradseg.graphs.foreign.spec import Given
from gradseg.graphs.sessions import OnnxRunner

SAID = Given(mean=MEAN, std=STD, count=CLASSES)
FOLDER: List[str] = []  # frames as files, which are read faster than painted


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("frames")
    for index, batch in enumerate(batches()):
        cv2.imwrite(str(made / f"{index}.png"), batch[0])
    FOLDER[:] = [str(made)]
    return str(made)


def converted(model: onnx.ModelProto, given: Given = SAID) -> onnx.ModelProto:
    return deployment_from_foreign(model, given, "net.onnx", FOLDER[0])[0]


def check(made: onnx.ModelProto, expected: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    """The deployment form, and its labels on frames: `expected` of each; all classes occur somewhere."""
    assert [node.op_type for node in made.graph.node][:: len(made.graph.node) - 1] == ["Cast", "Cast"]
    seen, runner = set(), OnnxRunner(made.SerializeToString(), threads=1)
    for batch in batches():
        found, wanted = runner.first(batch), expected(batch).reshape(1, *HW)
        assert (found.dtype, found.shape) == (np.uint8, (1, *HW))
        assert np.mean(found == wanted) > 0.9995
        seen |= set(np.unique(found))
    assert len(seen) > 1


def operators(model: onnx.ModelProto) -> List[str]:
    return [node.op_type for node in model.graph.node]


def check_as_tiny(model: onnx.ModelProto, given: Given = SAID) -> None:
    check(converted(model, given), lambda batch: original_values(tiny().model(["scores"]), batch).argmax(1))


def argmax(net: Net, tensor: str = "scores", **attributes: Any) -> str:
    return net.op("ArgMax", tensor, **{"axis": 1, **attributes})
