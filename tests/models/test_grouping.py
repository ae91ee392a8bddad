"""Gradual grouping: the masked network, its finalised form, and other people's networks."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradseg.base.errors import GradsegError
from gradseg.models.checkpoint import gradual_network, load_checkpoint, save_checkpoint
from gradseg.models.networks.erfnet import SegNetwork
from gradseg.models.spec import spec_for
from gradseg.train import convert, finalise, get_alpha, set_alpha


def randomised(network: nn.Module) -> nn.Module:
    """BatchNorm statistics and scales away from their defaults, so that a wrong order shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return network.eval()


@pytest.mark.parametrize("arch", ["dg2-star-light", "dg4s-star", "dg8s", "dg4"])
def test_finalised_network_equals_the_masked_one(arch: str) -> None:
    torch.manual_seed(0)
    spec = spec_for(arch, input_hw=(48, 64))
    network = randomised(gradual_network(spec)).double()
    set_alpha(network, 0.0)
    x = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        masked = network(x)
        finalise(network)
        grouped = network(x)
        assert get_alpha(network) is None
        assert (masked - grouped).abs().max() < 1e-10
        twin = SegNetwork(spec).double().eval()
        twin.load_state_dict(network.state_dict())  # same names and shapes as the network built grouped
        assert torch.equal(twin(x), grouped)


def test_float32_labels_are_identical() -> None:
    torch.manual_seed(3)
    network = randomised(gradual_network(spec_for("dg2-star-light", input_hw=(96, 128))))
    set_alpha(network, 0.0)
    x = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        before = network(x).argmax(1)
        after = finalise(network)(x).argmax(1)
    assert torch.equal(before, after)
    assert before.unique().numel() > 1


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([2, 3, 4]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (3, 3), (1, 5), (2, 2)]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["zeros", "reflect"]),
    st.floats(0, 1),
)
def test_mask_semantics_for_any_convolution(
    groups: int,
    a: int,
    b: int,
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    bias: bool,
    mode: str,
    alpha: float,
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(groups * a, groups * b, kernel, stride, 1, dilation, 1, bias, mode).double()
    reference, weight = copy.deepcopy(conv), conv.weight.detach().clone()
    x = torch.randn(2, groups * a, 9, 10, dtype=torch.float64)
    dense = conv(x)
    gradual = convert(nn.Sequential(conv), groups)
    assert torch.equal(gradual(x), dense)  # alpha 1: nothing has changed
    mask = torch.zeros(groups * b, groups * a, 1, 1, dtype=torch.float64)
    for g in range(groups):
        mask[g * b : (g + 1) * b, g * a : (g + 1) * a] = 1
    for value in (alpha, 0.0):
        set_alpha(gradual, value)
        reference.weight.data = weight * (mask + value * (1 - mask))
        assert torch.allclose(gradual(x), reference(x), atol=1e-10, rtol=0)
    masked = gradual(x)
    finalise(gradual)
    assert gradual[0].groups == groups
    assert torch.allclose(gradual(x), masked, atol=1e-10, rtol=0)


def test_alpha_between_scales_only_the_off_diagonal_weights() -> None:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    nn.init.ones_(conv.weight)
    gradual = convert(conv, 2)
    set_alpha(gradual, 0.25)
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1, 1)
    assert gradual(x).flatten().tolist() == [11 + 275, 11 + 275, 2.75 + 1100, 2.75 + 1100]


class Residual(nn.Module):
    """A ResNet-like block with a projected shortcut."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        self.down = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.down(x))


def small_resnet() -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 7, 2, 3)
    return nn.Sequential(
        stem,
        nn.ReLU(),
        Residual(8, 16, 2),
        Residual(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def test_a_users_resnet_evolves_trains_and_is_finalised() -> None:
    network = convert(small_resnet(), 4)
    assert isinstance(network[0], nn.Conv2d)
    assert type(network[0]) is nn.Conv2d, "3 input channels do not divide by 4: left dense"
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    x, target = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    losses = []
    for step in range(12):
        set_alpha(network, max(0.0, 1 - step / 6))
        loss = nn.functional.cross_entropy(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    network.eval().double()
    before = network(x.double())
    finalise(network)
    grouped = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == 4]
    assert len(grouped) == 6
    assert torch.allclose(network(x.double()), before, atol=1e-10, rtol=0)


def test_select_by_name_and_predicate() -> None:
    by_name = convert(small_resnet(), 2, select=["2.conv1"])
    assert get_alpha(by_name) == 1.0
    assert sum("Gradual" in type(m).__name__ for m in by_name.modules()) == 1
    pointwise = convert(small_resnet(), 2, select=lambda name, conv: conv.kernel_size == (1, 1))
    assert sum("Gradual" in type(m).__name__ for m in pointwise.modules()) == 2


def test_a_shared_convolution_stays_shared() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    network = convert(nn.Sequential(conv, nn.ReLU(), conv), 2)
    assert network[0] is network[2]
    set_alpha(network, 0.0)
    finalise(network)
    assert network[0] is network[2]
    assert network[0].groups == 2


@pytest.mark.parametrize(
    ("groups", "select", "message"),
    [
        (1, None, "at least 2"),
        (4, ["0"], "3→8 channels: not divisible by 4"),
        (4, ["nowhere"], "no nn.Conv2d named nowhere"),
        (7, None, "no convolution to convert"),
    ],
)
def test_conversion_errors(groups: int, select: list[str] | None, message: str) -> None:
    with pytest.raises(GradsegError, match=message):
        convert(small_resnet(), groups, select)
    with pytest.raises(GradsegError, match="already gradually grouped"):
        convert(convert(small_resnet(), 2, ["2.conv1"]), 2, ["2.conv1"])
    with pytest.raises(GradsegError, match=r"must lie in 0\.\.1"):
        set_alpha(small_resnet(), 1.5)


def test_unfinished_networks_are_refused_untouched(tmp_path: Path) -> None:
    network = convert(small_resnet(), 2)
    set_alpha(network, 0.5)
    with pytest.raises(GradsegError, match=r"alpha is 0\.5"):
        finalise(network)
    assert get_alpha(network) == 0.5
    ours = gradual_network(spec_for("dg2-star-light"))
    set_alpha(ours, 0.3)
    save_checkpoint(tmp_path / "c.pth", ours)
    with pytest.raises(GradsegError, match=r"gradual grouping is not finished, alpha is 0\.3"):
        load_checkpoint(tmp_path / "c.pth")
    set_alpha(ours, 0.0)
    save_checkpoint(tmp_path / "c.pth", ours)
    assert get_alpha(load_checkpoint(tmp_path / "c.pth").network) is None
