# SPDX-License-Identifier: MIT
"""A picture of any size goes in, and its mask comes out over it."""

import numpy as np
import pytest
from PIL import Image

from convstudy import cli
from convstudy.conv import cpu
from convstudy.images import overlay
from convstudy.models.unet import UNet
from convstudy.nn.blas import BlasOps
from convstudy.train import predict
from convstudy.train.weights import save_weights


@pytest.fixture
def network():
    """One that takes what is redder than it is blue for the object, whatever its size."""
    network = UNet.initialised(0, width=1)
    state = {name: np.zeros_like(array) for name, array in network.state_dict().items()}
    for name, array in state.items():
        layer, kind = name.rsplit(".", 1)
        if f"{layer}.running_var" in state and kind in ("running_var", "weight"):
            array[...] = 1
    state["inc.double_conv.0.weight"][0, :, 1, 1] = 1, 0, -1
    state["inc.double_conv.3.weight"][0, 0, 1, 1] = 1
    state["up4.conv.double_conv.0.weight"][0, 0, 1, 1] = 1
    state["up4.conv.double_conv.3.weight"][0, 0, 1, 1] = 1
    state["outc.conv.weight"][1] = 10
    state["outc.conv.bias"][...] = 1, 0
    network.load_state_dict(state)
    return network


def picture(height, width):
    """Return a blue picture with its left third red, and where it is."""
    image = np.zeros((3, height, width), np.float32)
    red = np.zeros((height, width), bool)
    red[:, : width // 3] = True
    image[0, red], image[2, ~red] = 1, 1
    return image, red


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (1, 1), (3, 200), (200, 90)], ids=str)
@pytest.mark.parametrize("how", [{}, {"trained_on": (32, 48)}, {"scale": 0.5}, {"scale": 2}])
def test_any_size_at_any_scale(size, how, network):
    image, red = picture(*size)
    found = predict.segment(network, image, **how)
    assert found.shape == size
    assert found.dtype == np.uint8
    # Resizing blurs the border alone.
    shrunk = max(1, size[0] * size[1] / (32 * 48)) ** 0.5 * 2
    wrong = (found != red).sum(axis=1).max()
    assert wrong <= 2 * shrunk + 1


def test_the_network_sees_pictures_of_the_size_that_it_was_trained_on(network):
    seen = []

    class Watch(BlasOps):
        def conv2d(self, x, *arguments, **options):
            seen.append(x.shape)
            return super().conv2d(x, *arguments, **options)

    predict.segment(network, picture(400, 300)[0], Watch(), trained_on=(40, 30))
    predict.segment(network, picture(20, 15)[0], Watch(), trained_on=(40, 30))
    predict.segment(network, picture(50, 30)[0], Watch())
    assert [shape for shape in seen if shape[1] == 3] == [
        (1, 3, 40, 30),
        (1, 3, 40, 30),
        (1, 3, 50, 30),
    ]


def test_from_files_to_a_file(network, tmp_path, capsys):
    save_weights(tmp_path / "w.safetensors", network, {"size": "32x48"})
    image, _ = picture(60, 100)
    Image.fromarray((np.moveaxis(image, 0, 2) * 255).astype(np.uint8)).save(tmp_path / "p.png")
    words = [str(tmp_path / name) for name in ("w.safetensors", "p.png", "o.png", "m.png")]
    assert cli.main(["predict", *words[:2], "-o", words[2], "--mask", words[3]]) == 0
    assert "100 x 60 pixels, 3" in capsys.readouterr().out
    drawn, mask = (np.asarray(Image.open(path)) for path in words[2:])
    assert drawn.shape == (60, 100, 3)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:, :30] == 255).all()
    np.testing.assert_array_equal(drawn, overlay(image, mask // 255))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.npz", "p.png", "-o", "o.png"], "gone.npz is not there"),
        (["w.npz", "gone.png", "-o", "o.png"], "gone.png is not there"),
        (["w.npz", "d.png", "-o", "o.png"], "d.png is a folder; name a picture in it"),
        (["w.npz", "w.npz", "-o", "o.png"], "w.npz cannot be read as an image"),
        (["w.npz", "p.png", "-o", "o.txt"], "o.txt: Pillow cannot write such a picture"),
        (["w.npz", "p.png", "-o", "o.psd"], "o.psd: Pillow cannot write such a picture ('PSD')"),
        (["w.npz", "p.png", "-o", "o.xbm"], "cannot write mode RGB as XBM"),
        (["w.npz", "long.png", "-o", "o.webp"], "exceeds WebP limit of 16383 pixels"),
        (["w.npz", "long.png", "-o", "o.gif"], "o.gif: Pillow cannot write such a picture"),
        (["w.npz", "p.png", "-o", "o.hdf"], "end the name as another picture's, such as .png"),
        (["w.npz", "p.png", "-o", "o.png", "--mask", "m.qoi"], "m.qoi: Pillow cannot write"),
        (["w.npz", "p.png", "-o", ""], "convstudy: . is a folder; name a file in it"),
        (["w.npz", "p.png", "-o", "d.png"], "d.png is a folder; name a file in it"),
        (["w.npz", "p.png", "-o", "p.png"], "too, which would be lost; give another name"),
        (["w.npz", "p.png", "-o", "./d.png/../p.png"], "p.png is given for another file"),
        (["w.npz", "p.png", "-o", "w.npz"], "w.npz is given for another file, too"),
        (["w.npz", "p.png", "-o", "o.png", "--mask", "o.png"], "o.png is given for another file"),
        (["w.npz", "p.png", "-o", "o.png", "--mask", "p.png"], "p.png is given for another file"),
        (["w.npz", "p.png", "-o", "no/o.png"], "no is not there; make the folder first"),
        (["w.npz", "p.png", "-o", "o.png", "--scale", "0"], "scale must be a number above 0"),
        (["w.npz", "p.png", "-o", "o.png", "--scale", "nan"], "scale must be a number above 0"),
        (["w.npz", "p.png", "-o", "o.png", "--scale", "1e300"], "below 1.07e+08, got 1e+300"),
        (["w.npz", "p.png", "-o", "o.png", "--scale", "1e308"], "a picture of 20 x 20, below"),
    ],
)
def test_what_is_refused_is_said_in_one_line(words, message, network, tmp_path, capsys):
    save_weights(tmp_path / "w.npz", network)
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    Image.new("RGB", (1, 70_000)).save(tmp_path / "long.png")
    (tmp_path / "d.png").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    paths = [str(tmp_path / w) if "." in w else w for w in words]
    assert cli.main(["predict", *paths]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("size", ["large", "16", "16x16x3", "0x16", "-1x16", "9" * 400 + "x9"])
def test_a_size_that_is_none_is_said_with_the_file_that_has_it(size, network, tmp_path):
    save_weights(tmp_path / "w.safetensors", network, {"size": size})
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    with pytest.raises(ValueError, match=f"w.safetensors: its size={size} has to be height x"):
        predict.draw(*(tmp_path / name for name in ("w.safetensors", "p.png", "o.png")))


def test_a_picture_that_cannot_be_written_leaves_the_one_before(network, tmp_path, monkeypatch):
    def fails(self, content, **_):
        if 16 not in self.size:  # what is tried before the work
            content.write(b"half")
            raise OSError("encoder error")

    save_weights(tmp_path / "w.npz", network)
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    (tmp_path / "o.png").write_bytes(b"the one before")
    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(ValueError, match=r"o.png: Pillow cannot write .*encoder error"):
        predict.draw(*(tmp_path / name for name in ("w.npz", "p.png", "o.png")))
    assert (tmp_path / "o.png").read_bytes() == b"the one before"


def test_a_picture_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="3 channels and the network takes 1"):
        predict.segment(UNet.initialised(0, 1, width=1), picture(16, 16)[0])


def test_too_little_memory_is_said_with_the_scale_that_fits(network, monkeypatch):
    image, _ = picture(400, 400)
    monkeypatch.setattr(cpu, "threads", lambda: 1)  # of unfolded images, each has some
    needed = predict.forward_bytes(network, 400, 400)
    monkeypatch.setattr(predict, "free_bytes", lambda: needed / 4)
    with pytest.raises(MemoryError, match=r"at 400 x 400 .*; scale=0.29 fits"):
        predict.segment(network, image)
    predict.segment(network, image, scale=0.29)
    with pytest.raises(MemoryError):
        predict.segment(network, image, scale=0.35)


def test_the_memory_predicted_is_what_is_taken():
    import tracemalloc

    network = UNet.initialised(0, width=8)
    image = np.zeros((3, 256, 256), np.float32)
    predict.segment(network, image)
    tracemalloc.start()
    predict.segment(network, image)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    predicted = predict.forward_bytes(network, 256, 256) - 4 * network.parameter_count
    assert 0.7 * predicted < taken < 1.15 * predicted


# ---- the drawing


def test_a_mask_is_tinted_and_edged_and_the_rest_left_alone():
    image = np.full((3, 8, 9), 0.5, np.float32)
    mask = np.zeros((8, 9), np.uint8)
    mask[2:6, 2:7] = 1
    drawn = overlay(image, mask)
    assert (drawn[mask == 0] == 128).all()
    np.testing.assert_array_equal(drawn[2, 2], (86, 180, 233))
    np.testing.assert_array_equal(drawn[3, 3], np.rint((127.5 + np.array([86, 180, 233])) / 2))
    # An object that goes on beyond the picture has no edge there.
    assert not np.array_equal(overlay(image, np.ones_like(mask))[0, 0], (86, 180, 233))


def test_classes_have_colours_of_their_own():
    drawn = overlay(np.zeros((3, 1, 7), np.float32), np.arange(7)[None])
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 7
    with pytest.raises(ValueError, match="overlay: the image is of shape"):
        overlay(np.zeros((3, 4, 5)), np.zeros((5, 4), int))
