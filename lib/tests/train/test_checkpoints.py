# SPDX-License-Identifier: MIT
"""Files of arrays: written whole or not at all, known when damaged; and the last two of them."""

import os

import numpy as np
import pytest

from convstudy.train import tensors
from convstudy.train.checkpoints import Checkpoints


@pytest.fixture
def arrays(rng):
    return {
        "a": rng.standard_normal((3, 4)).astype(np.float32),
        "turned": rng.standard_normal((3, 4)).T,
        "count": np.array(7, np.int64),
        "none": np.zeros((0, 2)),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_arrays_come_back_with_their_metadata(tmp_path, arrays):
    tensors.write(tmp_path / "deep" / "x.safetensors", arrays, {"k": "v"})
    found, metadata = tensors.read(tmp_path / "deep" / "x.safetensors")
    assert_same(found, arrays)
    assert metadata == {"k": "v"}


def test_others_files_are_read_and_ours_by_others(tmp_path, arrays):
    from safetensors.numpy import load_file, save_file

    save_file({"a": arrays["a"]}, tmp_path / "theirs.safetensors")
    assert_same(tensors.read(tmp_path / "theirs.safetensors")[0], {"a": arrays["a"]})
    tensors.write(tmp_path / "ours.safetensors", arrays)
    assert_same(load_file(tmp_path / "ours.safetensors"), arrays)


def test_every_kind_of_damage_is_known(tmp_path, arrays):
    path = tmp_path / "x.safetensors"
    tensors.write(path, arrays, {"k": "v"})
    whole = path.read_bytes()
    for place in (3, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(tensors.DamagedError, match="no whole|is damaged"):
            tensors.read(path)
    for kept in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(tensors.DamagedError, match="x.safetensors"):
            tensors.read(path)
    path.write_bytes(whole.replace(b'"k":"v"', b'"k":"w"'))
    with pytest.raises(tensors.DamagedError, match="its content is not what was written"):
        tensors.read(path)
    with pytest.raises(FileNotFoundError, match="is not there"):
        tensors.read(tmp_path / "y.safetensors")


@pytest.mark.parametrize("moment", ["fsync", "open"])
def test_what_fails_while_writing_leaves_the_old_file(moment, tmp_path, arrays, monkeypatch):
    path = tmp_path / "x.safetensors"
    tensors.write(path, arrays)

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, moment, full)
    if moment == "open":  # after the file is in its place
        with pytest.raises(OSError, match="No space"):
            tensors.replace(path, path.read_bytes())
    else:
        with pytest.raises(OSError, match="No space"):
            tensors.write(path, {"a": np.ones(3)})
    monkeypatch.undo()
    assert_same(tensors.read(path)[0], arrays)
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


def save(folder, *steps):
    kept = Checkpoints(folder)
    for step in steps:
        metadata = {"options": "{}", "seconds": "0.5", "at": str(step)}
        kept.save(step, {"a": np.full(50, float(step))}, metadata)
    return kept


def test_the_last_two_are_kept_and_the_newest_is_taken(tmp_path):
    kept = save(tmp_path, 1, 2, 10, 9_999_999, 123_456_789)
    assert kept.steps() == [9_999_999, 123_456_789]
    step, arrays, metadata = kept.load()
    assert (step, metadata["at"]) == (123_456_789, "123456789")
    assert (arrays["a"] == step).all()
    kept.clear()
    assert kept.load() is None
    assert Checkpoints(tmp_path / "nowhere").load() is None


def test_a_damaged_one_is_passed_over_and_said(tmp_path, capsys):
    kept = save(tmp_path, 10, 20)
    kept.path(20).write_bytes(kept.path(20).read_bytes()[:-7])
    assert kept.load()[0] == 10
    said = capsys.readouterr().err
    assert "step-00000020.safetensors is no whole .safetensors file" in said
    assert said.endswith("going on from step 10 instead\n")
    kept.path(10).write_bytes(b"")
    with pytest.raises(tensors.DamagedError, match="train in another folder"):
        kept.load()


@pytest.mark.parametrize("metadata", [None, {"size": "16x16"}, {"options": "{}"}])
def test_what_is_no_checkpoint_is_passed_over_and_said(metadata, tmp_path, capsys):
    kept = save(tmp_path, 10)
    tensors.write(kept.path(20), {"fc.weight": np.ones(3)}, metadata)
    assert kept.load()[0] == 10
    said = capsys.readouterr().err
    assert "step-00000020.safetensors is no checkpoint: it does not say " in said
    assert said.endswith("going on from step 10 instead\n")
    kept.path(10).unlink()
    with pytest.raises(tensors.DamagedError, match=r"20.safetensors is no .*\(anew=yes\)"):
        kept.load()


def test_what_a_kill_left_behind_is_no_checkpoint_and_goes(tmp_path):
    kept = save(tmp_path, 10)
    left = tmp_path / ".step-00000020.safetensors.4711.part"
    left.write_bytes(b"half")
    (tmp_path / "step-x.safetensors").write_bytes(b"other")
    assert kept.steps() == [10]
    assert kept.load()[0] == 10
    save(tmp_path, 20)
    assert not left.exists()
