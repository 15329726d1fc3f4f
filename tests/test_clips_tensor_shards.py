"""Tensors in few files: found by every process, whole or missing after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clips.core.tensor_shards import TensorShards
from clips.errors import UserError


def test_tensors_are_read_as_they_were_added_by_any_process(tmp_path: Path) -> None:
    writer = TensorShards(tmp_path / "cache", shard_bytes=40)
    reader, other = TensorShards(tmp_path / "cache"), TensorShards(tmp_path / "cache")
    values = {str(number): torch.full((2, 3), number).bfloat16() for number in range(10)}  # 12 bytes each
    batch = torch.stack(list(values.values())).transpose(1, 2).contiguous().transpose(1, 2)
    for key, value in zip(values, batch, strict=True):
        writer.add(key, value)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert reader.get("9") is None  # collected by the other process
    writer.flush()
    writer.flush()
    assert len(list((tmp_path / "cache").iterdir())) == 3
    for shards in (writer, reader, TensorShards(tmp_path / "cache")):
        for key, value in values.items():
            torch.testing.assert_close(shards.get(key), value, atol=0, rtol=0)
        assert shards.get("10") is None
    for shards in (reader, other):  # the first has read the tensor, the second has not looked for it
        shards.add("3", torch.zeros(1))
        assert not shards.collected
        shards.flush()
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("read", [True, False])
def test_a_lost_shard_is_written_again(read: bool, tmp_path: Path) -> None:
    shards = TensorShards(tmp_path)
    shards.add("a", torch.ones(2))
    shards.flush()
    (path,) = tmp_path.iterdir()
    path.unlink()
    if read:
        assert shards.get("a") is None
    shards.add("a", torch.ones(2))
    shards.flush()
    assert torch.equal(shards.get("a"), torch.ones(2))  # type: ignore[arg-type]


def test_broken_shards_are_missing_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / ".a.safetensors.1.partial").write_bytes(b"")  # of a killed process
    shards = TensorShards(tmp_path)
    assert shards.get("a") is None
    shards.add("a", torch.ones(2))
    shards.flush()
    assert torch.equal(TensorShards(tmp_path).get("a"), torch.ones(2))  # type: ignore[arg-type]
    (tmp_path / "file").write_text("x")
    shards = TensorShards(tmp_path / "file")
    shards.add("a", torch.ones(2))
    with pytest.raises(UserError, match=r"file/.*: cannot write here"):
        shards.flush()
