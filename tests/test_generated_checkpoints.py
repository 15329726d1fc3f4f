"""Known models saved through random chains of wrappers: their features are those of the original, or an error says why.

Never silently others: averaged weights are read only if there are no raw ones, and a line says so.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exchange_world as world
import generators
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from clips.errors import UserError
from clips.interchange import hf_clip, hf_siglip, open_clip_format
from clips.interchange.conversion import conform, tower_tensors
from clips.interchange.hf_files import has_tokenizer
from clips.model import loading
from clips.model.towers import build_towers, load_trunk

State = dict[str, Tensor]
VIT = world.VIT | {"text_cfg": world.VIT["text_cfg"] | {"vocab_size": 64}}
TIMM = VIT | {"vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}}
ARCHITECTURES = {
    "ViT-small0-8": VIT,
    "ViT-small0-custom": VIT | {"custom_text": True, "init_logit_bias": -10},
    "ViT-small0-timm": TIMM,
}
FLOATS = ("float32", "float16", "bfloat16", "float64")
OTHERS = ("int8", "uint8", "bool", "float8_e4m3fn", "int64")  # which are no weights without scales
PREFIXES = ("", "module.", "model.", "net.", "clip.", "net._orig_mod.", "module.model.clip.", "student.", "a.b.c.")
AVERAGED_PREFIXES = ("ema.", "ema_model.module.", "model_ema.", "swa_model.", "teacher.")
LEVELS = (
    (),
    ("state_dict",),
    ("model",),
    ("module",),
    ("checkpoint", "model"),
    ("state", "model_state_dict"),
    ("mine",),
)
AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema", "averaged_model")
EXTRAS = {"loss.temperature": torch.ones(()), "queue": torch.ones(4, 8), "fc.weight": torch.ones(3, 3)}
OBJECTS: dict[str, Any] = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(5), "step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]},
    "named_optimizer": {"exp_avg": {"visual.proj": torch.ones(2), "logit_scale": torch.ones(())}},
    "lr": np.float64(0.1),
    "random": {"numpy": np.random.RandomState(3).get_state(), "torch": torch.get_rng_state()},
    "losses": np.ones(3, dtype=np.float32),
    "args": argparse.Namespace(lr=1e-3, name="run"),
    "hyper_parameters": {"layers": [1, 2], "name": "x"},
}


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Any]]:
    """The originals by name; open_clip knows them."""
    from open_clip import factory

    world.register_small_siglip_tower()
    with pytest.MonkeyPatch.context() as patch:
        for name, cfg in ARCHITECTURES.items():
            patch.setitem(factory._MODEL_CONFIGS, name, cfg)
        # which compares with open_clip's own loader, in half a second
        patch.setattr(open_clip_format, "library_features", lambda architecture, where: None)
        originals = {name: world.shaken(build_towers(copy.deepcopy(cfg))) for name, cfg in ARCHITECTURES.items()}
        with tempfile.TemporaryDirectory() as folder:
            for name, write in (("hf_clip", world.hf_clip), ("hf_siglip", world.hf_siglip)):
                originals[name] = write(Path(folder) / name), Path(folder) / name
            yield originals


def assert_equal(found: State, expected: State) -> None:
    """Equal weights under the names of one architecture are equal features."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value.float()), name


def read(module: Any, path: Path, architecture: str | None) -> tuple[State, Any]:
    """The weights that an import writes, and what its format says."""
    imported = module.load(path, architecture)
    return conform(imported.weights, tower_tensors(imported.model_cfg, path), path), imported


def read_or_rejected(read: Callable[[], Any], is_read: bool) -> Any:
    """What is read; None if it is rejected, in one line. Both must be right."""
    problem, found = None, None
    try:
        found = read()
    except UserError as error:
        problem = str(error)
    assert (problem is None) == is_read, problem
    assert problem is None or "\n" not in problem
    return found


def drawn_numbers(data: st.DataObject, state: State) -> tuple[State, str]:
    """The tensors in other numbers, and their name: those of ``OTHERS`` for one tensor, others for all."""
    kind = data.draw(st.sampled_from(FLOATS * 3 + OTHERS), "numbers")
    if kind in FLOATS:
        return {name: value.to(getattr(torch, kind)) for name, value in state.items()}, kind
    name = data.draw(st.sampled_from([name for name, value in state.items() if value.ndim > 1]), "tensor")
    return state | {name: (state[name] * 40).to(getattr(torch, kind))}, kind


def check_file(data: st.DataObject, originals: dict[str, Any], folder: Path, said: list[str]) -> None:
    """A file of open_clip's model, as trainers write it."""
    architecture = data.draw(st.sampled_from(sorted(ARCHITECTURES)), "architecture")
    raw, kind = drawn_numbers(data, originals[architecture].state_dict())
    averaged = {name: value + 0.3 for name, value in raw.items()} if kind in FLOATS else {}
    expected, is_read = raw, kind in FLOATS

    prefix = data.draw(st.sampled_from(PREFIXES), "prefix")
    state = {f"{prefix}{name}": value for name, value in raw.items()}
    if data.draw(st.booleans(), "wrapped inside"):
        state = {
            name.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module."): x for name, x in state.items()
        }
    where = data.draw(st.sampled_from(["", "", "prefix", "key", "alone"]), "averaged weights")
    if where == "prefix":
        other = data.draw(st.sampled_from(AVERAGED_PREFIXES), "their prefix")
        state = {f"{other}{name}": value for name, value in averaged.items()} | state
    plain = {"module.": "", "net._orig_mod.": "net.", "module.model.clip.": "model.clip."}.get(prefix, prefix)
    extras = data.draw(st.sets(st.sampled_from(sorted(EXTRAS))), "extra tensors")
    state |= {name: EXTRAS[name] for name in extras}
    is_read &= not (extras and not plain)  # a model may not have more than its own tensors
    if data.draw(st.booleans(), "n_averaged"):
        state[f"{plain}n_averaged"] = torch.tensor(5)

    levels = data.draw(st.sampled_from(LEVELS), "levels")
    content: dict[str, Any] = {}
    key = data.draw(st.sampled_from(AVERAGED_KEYS), "their key")
    if where == "alone" and averaged:
        levels, expected = (key,), averaged
        state = {f"{prefix}{name}": value for name, value in averaged.items()}
        is_read = True
    if where == "key" and levels and averaged:
        content[key] = {f"module.{name}": value for name, value in averaged.items()}
    inner = content
    for level in levels[:-1]:
        inner = inner.setdefault(level, {})
    if levels:
        inner[levels[-1]] = state
    else:
        content |= state
    objects = data.draw(st.sets(st.sampled_from([*OBJECTS, "path"])), "objects") if levels else set()
    content |= {name: OBJECTS[name] for name in objects if name in OBJECTS}
    if "path" in objects and data.draw(st.integers(0, 3), "a path, too") == 0:
        content["path"], is_read = pathlib.PurePosixPath("a"), False

    if not levels and data.draw(st.booleans(), "safetensors"):
        path = folder / "weights.safetensors"
        save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        path = folder / data.draw(st.sampled_from(["a.pt", "a.bin", "a.ckpt", "a.pth"]), "file")
        torch.save(content, path, _use_new_zipfile_serialization=data.draw(st.booleans(), "zip file"))
    found = read_or_rejected(lambda: read(open_clip_format, path, architecture)[0], is_read)
    if found is None:
        return
    assert_equal(found, expected)
    if where == "alone":
        assert any("averaged weights" in line for line in said)


def check_directory(data: st.DataObject, originals: dict[str, Any], folder: Path) -> None:
    """A directory of transformers' CLIP or SigLIP."""
    name = data.draw(st.sampled_from(["hf_clip", "hf_siglip"]), "model")
    model, source = originals[name]
    module = {"hf_clip": hf_clip, "hf_siglip": hf_siglip}[name]
    state, kind = drawn_numbers(data, model.state_dict())
    is_read = kind in FLOATS
    expected = {key: value.to(torch.float32) for key, value in state.items()}
    for file in source.iterdir():
        if not file.name.startswith("model.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    assert has_tokenizer(folder)
    change = data.draw(st.sampled_from(["", "", "extra", "missing", "shape"]), "change")
    first = sorted(state)[data.draw(st.integers(0, len(state) - 1), "tensor of it")]
    if change == "extra":
        state["text_model.extra.weight"] = torch.ones(3)
    elif change == "missing":
        del state[first]
    elif change == "shape":
        state[first] = torch.cat([state[first].reshape(-1)] * 2)
    is_read &= not change
    if data.draw(st.booleans(), "pickle"):
        torch.save(state, folder / "pytorch_model.bin")
    elif data.draw(st.booleans(), "shards"):
        import json

        names = sorted(state)
        files = {key: f"model-0000{1 + (number % 2)}-of-00002.safetensors" for number, key in enumerate(names)}
        for shard in set(files.values()):
            part = {key: state[key].contiguous() for key in names if files[key] == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(
            {key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    result = read_or_rejected(lambda: read(module, folder, None), is_read)
    if result is None:
        return
    found, imported = result
    model = copy.deepcopy(model)
    model.load_state_dict(expected)
    pixels, tokens = (
        torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[1, 3, 4, 12]]),
    )
    tokens = torch.nn.functional.pad(tokens, (0, 6))
    reference = [
        model.get_image_features(pixel_values=pixels).pooler_output,
        model.get_text_features(input_ids=tokens).pooler_output,
    ]
    towers = build_towers(copy.deepcopy(imported.model_cfg)).eval()
    towers.load_state_dict(found)
    with torch.no_grad():
        own = [towers.encode_image(pixels), towers.encode_text(tokens)]
    torch.testing.assert_close(own, reference, atol=1e-4, rtol=1e-4)


def check_trunk(data: st.DataObject, originals: dict[str, Any], folder: Path) -> None:
    """A file of timm's weights for an image tower's trunk."""
    original = originals["ViT-small0-timm"]
    state, kind = drawn_numbers(data, original.visual.trunk.state_dict())
    is_read = kind in FLOATS
    prefix = data.draw(st.sampled_from(["", "", "model.", "trunk."]), "prefix")
    more = data.draw(st.sets(st.sampled_from(["head.weight", "fc.bias", "extra"])), "extra tensors")
    is_read &= not prefix and "extra" not in more
    content = {f"{prefix}{name}": value.contiguous() for name, value in state.items()}
    save_file(content | {name: torch.ones(3) for name in more}, folder / "trunk.safetensors")
    fresh = copy.deepcopy(original)
    with torch.no_grad():
        for value in fresh.visual.trunk.parameters():
            value.zero_()
    if read_or_rejected(lambda: load_trunk(fresh, folder / "trunk.safetensors") or True, is_read) is None:
        return
    assert_equal(fresh.visual.trunk.state_dict(), state)


@generators.sizes
def test_features_are_the_originals_or_an_error_says_why(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, examples: int
):
    said: list[str] = []
    monkeypatch.setattr(loading, "log_info", said.append, raising=False)

    def check(data: st.DataObject) -> None:
        said.clear()
        kind = data.draw(st.sampled_from(["file"] * 8 + ["directory", "trunk"]), "kind")
        with tempfile.TemporaryDirectory() as folder:
            if kind == "file":
                check_file(data, models, Path(folder), said)
            elif kind == "directory":
                check_directory(data, models, Path(folder))
            else:
                check_trunk(data, models, Path(folder))

    generators.explore(check, examples)
