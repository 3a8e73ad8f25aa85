# SPDX-License-Identifier: MIT
"""Weights as files: the same network comes back, from the original's files too."""

import importlib.util
import io
import zipfile

import numpy as np
import pytest

from convstudy.models.unet import UNet
from convstudy.train import tensors, weights


@pytest.fixture(params=[(3, 2, False, 2), (1, 1, True, 3), (4, 5, False, 1)], ids=str)
def network(request):
    network = UNet.initialised(1, *request.param)
    network.randomise_statistics(2)
    return network


def assert_same(found, expected):
    assert repr(found) == repr(expected)
    state = expected.state_dict()
    for name, array in found.state_dict().items():
        assert array.dtype == state[name].dtype
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_the_same_network_comes_back(ending, network, tmp_path):
    path = tmp_path / f"weights{ending}"
    weights.save_weights(path, network, {"size": "16x16"})
    found, metadata = weights.load_weights(path)
    assert_same(found, network)
    assert metadata == ({"size": "16x16"} if ending == ".safetensors" else {})


def test_what_wrappers_put_before_names_and_files_beside_them_is_left_out(network, tmp_path):
    state = {f"_orig_mod.module.{name}": a for name, a in network.state_dict().items()}
    tensors.write(tmp_path / "x.safetensors", state | {"mask_values": np.array([0, 255])})
    assert_same(weights.load_weights(tmp_path / "x.safetensors")[0], network)


def test_other_types_of_number_are_taken(network, tmp_path):
    import ml_dtypes

    for dtype, near in ((np.float64, 0), (np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2)):
        state = {
            name: array.astype(dtype) if array.dtype == np.float32 else array
            for name, array in network.state_dict().items()
        }
        tensors.write(tmp_path / "x.safetensors", state)
        found = weights.load_weights(tmp_path / "x.safetensors")[0].state_dict()
        for name, array in network.state_dict().items():
            np.testing.assert_allclose(found[name], array, rtol=near, atol=1e-6)


def test_what_cannot_be_taken_is_refused_in_words(network, tmp_path):
    def load(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return weights.load_weights(tmp_path / name)

    with pytest.raises(FileNotFoundError, match="gone.npz is not there"):
        load("gone.npz")
    with pytest.raises(ValueError, match="end in .safetensors or .npz or .pth; name one"):
        load("x.h5", b"")
    with pytest.raises(ValueError, match="bad.npz is no whole .npz file"):
        load("bad.npz", b"PK\x03\x04 and no more")
    whole, packed = io.BytesIO(), io.BytesIO()
    np.save(whole, np.ones(3))
    with pytest.raises(ValueError, match="array.npz is no whole .npz file: .*not a zip file"):
        load("array.npz", whole.getvalue())
    np.savez_compressed(packed, a=np.arange(10_000))
    packed.getbuffer()[100] ^= 255
    with pytest.raises(ValueError, match="flipped.npz is no whole .npz file"):
        load("flipped.npz", packed.getvalue())
    np.savez(tmp_path / "more.npz", **network.state_dict())
    with zipfile.ZipFile(tmp_path / "more.npz", "a") as archive:
        archive.writestr("readme.txt", "of my best training")
    with pytest.raises(ValueError, match="more.npz holds readme.txt, which is no array"):
        load("more.npz")
    tensors.write(tmp_path / "other.safetensors", {"fc.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"other.safetensors: .* not the state of a U-Net"):
        load("other.safetensors")
    state = network.state_dict()
    del state["inc.double_conv.4.bias"]
    tensors.write(tmp_path / "less.safetensors", state)
    with pytest.raises(ValueError, match=r"less.safetensors: .*inc.double_conv.4.bias is missing"):
        load("less.safetensors")


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="it is of machines without PyTorch"
)
def test_pth_needs_pytorch(network, tmp_path):
    with pytest.raises(ImportError, match="EXTRAS=torch.*or use .safetensors"):
        weights.save_weights(tmp_path / "x.pth", network)


# ---- PyTorch


@pytest.fixture
def torch():
    return pytest.importorskip(
        "torch", reason='PyTorch is not installed: run "make setup EXTRAS=torch"'
    )


def test_pth_goes_both_ways(network, torch, tmp_path):
    weights.save_weights(tmp_path / "ours.pth", network)
    state = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert list(state) == list(network.shapes)
    # As the original saves: with the masks' values beside the parameters.
    torch.save(state | {"mask_values": [0, 1]}, tmp_path / "theirs.pth")
    assert_same(weights.load_weights(tmp_path / "theirs.pth")[0], network)
    (tmp_path / "bad.pth").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="bad.pth cannot be read by PyTorch"):
        weights.load_weights(tmp_path / "bad.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list; save the network's state_dict"):
        weights.load_weights(tmp_path / "list.pth")


@pytest.mark.parametrize(("bilinear", "width", "classes"), [(False, 6, 3), (True, 4, 1)])
def test_a_real_network_s_weights_give_its_results(bilinear, width, classes, torch, tmp_path, rng):
    from originals import torch_unet

    from convstudy.nn.reference import ReferenceOps

    theirs = torch_unet(torch, bilinear, width, 3, classes).train()
    x = rng.standard_normal((2, 3, 21, 38)).astype(np.float32)
    theirs(torch.from_numpy(x))  # statistics of its own
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours, _ = weights.load_weights(tmp_path / "theirs.pth")
    with torch.inference_mode():
        expected = theirs.double().eval()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(ours.forward(x, ReferenceOps()), expected, rtol=1e-9, atol=1e-12)
