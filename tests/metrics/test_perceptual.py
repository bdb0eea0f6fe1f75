"""LPIPS and DISTS: the same numbers by a second route, with random weights and with the real."""

import os
from pathlib import Path

import pytest
import torch
from metric_oracles import (
    as_clip,
    blurred,
    dists_of,
    lpips_of,
    numpy_weights,
    photo,
    random_weights,
    write_weights,
)
from safetensors.torch import load_file, save_file

from psssr_fast.errors import InputError, ModelError, UsageError
from psssr_fast.metrics.dists import Dists
from psssr_fast.metrics.lpips import Lpips

TRUTH = photo()[40:96, 60:124]
RESULT = blurred(TRUTH, 2)
REAL = os.environ.get("PSSSR_METRICS_WEIGHTS")
with_real_weights = pytest.mark.skipif(REAL is None, reason="PSSSR_METRICS_WEIGHTS is not set")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A directory with random weights of all metrics."""
    folder = tmp_path_factory.mktemp("weights")
    for net in ("alex", "vgg"):
        write_weights(folder, net)
    save_file(
        {
            "alpha": torch.rand(1, 1475, 1, 1, generator=torch.Generator().manual_seed(1)),
            "beta": torch.rand(1, 1475, 1, 1, generator=torch.Generator().manual_seed(2)),
        },
        folder / "dists_alpha_beta.safetensors",
    )
    return folder


def check_lpips(net: str, folder: Path) -> None:
    tensors = numpy_weights(load_file(folder / f"lpips_{net}.safetensors"))
    expected = [lpips_of(RESULT, TRUTH, net, tensors), lpips_of(TRUTH, RESULT, net, tensors)]
    lpips = Lpips(net, weights=folder)
    found = lpips(as_clip(RESULT, TRUTH), as_clip(TRUTH, RESULT))
    assert expected[0] > 0.02
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def check_dists(folder: Path) -> None:
    tensors = numpy_weights(load_file(folder / "lpips_vgg.safetensors"))
    shares = numpy_weights(load_file(folder / "dists_alpha_beta.safetensors"))
    expected = dists_of(RESULT, TRUTH, tensors, *(shares[k].ravel() for k in ("alpha", "beta")))
    found = Dists(weights=folder)(as_clip(RESULT), as_clip(TRUTH)).item()
    assert expected > 0.02
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_by_two_routes(net, weights):
    check_lpips(net, weights)


def test_dists_by_two_routes(weights):
    check_dists(weights)


@with_real_weights
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_by_two_routes_with_the_real_weights(net):
    check_lpips(net, Path(str(REAL)))


@with_real_weights
def test_dists_by_two_routes_with_the_real_weights():
    check_dists(Path(str(REAL)))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_equal_frames_have_no_distance(net, weights):
    clip = as_clip(TRUTH)
    assert Lpips(net, weights=weights)(clip, clip).tolist() == [0]
    assert Dists(weights=weights)(clip, clip).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_the_slope(weights):
    lpips = Lpips("alex", weights=weights).double()
    truth = as_clip(TRUTH).double()
    point = as_clip(RESULT).double().requires_grad_()
    (gradient,) = torch.autograd.grad(lpips(point, truth).sum(), point)
    # Along the gradient, far less than the distance to the next corner of a ReLU or a maximum.
    step = 1e-7 * gradient / gradient.norm()
    with torch.no_grad():
        slope = (lpips(point + step, truth) - lpips(point - step, truth)).item() / 2e-7
    assert slope == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_the_gradient_is_finite_where_no_feature_is_left(tmp_path):
    tensors = random_weights("alex")
    tensors["conv0.bias"].fill_(-1000)  # every ReLU of the first stage gives 0
    save_file(tensors, tmp_path / "lpips_alex.safetensors")
    point = as_clip(RESULT).requires_grad_()
    distance = Lpips("alex", weights=tmp_path)(point, as_clip(TRUTH)).sum()
    (gradient,) = torch.autograd.grad(distance, point)
    assert distance.isfinite() and gradient.isfinite().all()


def test_half_precision_only_concerns_the_convolutions(weights):
    lpips = Lpips("vgg", weights=weights)
    clips = as_clip(RESULT), as_clip(TRUTH)
    exact = lpips(*clips).item()
    with torch.autocast("cpu", torch.bfloat16):
        near = lpips(*clips)
    assert near.dtype == torch.float32
    assert near.item() != exact and near.item() == pytest.approx(exact, rel=0.02)


def test_missing_and_wrong_weights_are_refused_in_one_line(tmp_path, weights):
    with pytest.raises(ModelError, match=r"lpips_alex\.safetensors.*--weights"):
        Lpips("alex", weights=tmp_path)
    with pytest.raises(ModelError, match=r"lin1.weight has shape .*192.*needed .*128"):
        Lpips("vgg", weights=weights / "lpips_alex.safetensors")
    tensors = random_weights("alex")
    del tensors["lin3.weight"]
    save_file(tensors, tmp_path / "lpips_alex.safetensors")
    with pytest.raises(ModelError, match=r"lin3\.weight has shape none") as refused:
        Lpips("alex", weights=tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="alex, vgg"):
        Lpips("squeeze", weights=weights)


def test_small_pictures_are_refused(weights):
    small = torch.rand(1, 3, 34, 50)
    with pytest.raises(InputError, match="35x35 pixels; got 50x34"):
        Lpips("alex", weights=weights)(small, small)
    smallest = torch.rand(1, 3, 35, 35)
    assert Lpips("alex", weights=weights)(smallest, 1 - smallest).isfinite().all()
    least = torch.rand(1, 3, 16, 16)
    assert Dists(weights=weights)(least, 1 - least).isfinite().all()
