from __future__ import annotations

from pathlib import Path

import clips_world
import pytest
import torch
import yaml
from clips_world import tensors_of, trained

from clips.core.artifact import read_manifest
from clips.encoder import load_captioner, load_encoder
from clips.errors import UserError
from clips.model_card import write_card
from clips.soup import SoupConfig, run_soup


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two with a captioner and another order of samples each, one without."""
    folder = tmp_path_factory.mktemp("soup")
    data = clips_world.write_shards(folder / "data")
    for seed, name in enumerate(("clips", "clips", "clip")):
        recipe = {"name": name, "captioner": {"max_length": 12, "num_layers": 1, "width": 32}}
        license = "mit" if name == "clips" else None
        trained(data, folder / str(seed), max_steps=1, seed=seed, recipe=recipe, license=license)
    return [folder / str(seed) for seed in range(3)]


def test_the_weights_are_the_mean(encoders: list[Path], tmp_path: Path):
    run_soup(SoupConfig(encoders=tuple(map(str, encoders[:2])), output=str(tmp_path / "soup")))
    one, two, mean = (tensors_of(folder) for folder in (*encoders[:2], tmp_path / "soup"))
    for name, value in mean.items():
        torch.testing.assert_close(value, (one[name] + two[name]) / 2)
    assert any(name.startswith("blocks") for name in mean)  # the captioner's
    assert load_encoder(tmp_path / "soup").tokenizer(["a dog"]).shape == (1, 12)
    load_captioner(tmp_path / "soup")
    parents = read_manifest(tmp_path / "soup")["parents"]
    assert [parent["path"] for parent in parents.values()] == list(map(str, encoders[:2]))
    card = (tmp_path / "soup" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert all(f"- `{encoder}`\n" in card for encoder in encoders[:2])


def test_without_a_captioner_in_all_there_is_none(encoders: list[Path], tmp_path: Path):
    run_soup(SoupConfig(encoders=tuple(map(str, encoders)), output=str(tmp_path / "soup")))
    assert not list((tmp_path / "soup").glob("captioner*"))
    assert "license: unknown" in (tmp_path / "soup" / "README.md").read_text()  # they do not agree


def test_models_that_do_not_match_are_rejected(encoders: list[Path], tmp_path: Path):
    with pytest.raises(UserError, match="two or more"):
        SoupConfig(encoders=("a",), output="b")
    with pytest.raises(UserError, match="expected an encoder directory"):
        run_soup(SoupConfig(encoders=(str(encoders[0]), str(tmp_path)), output=str(tmp_path / "soup")))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="expected an object with 'model_cfg'"):
        run_soup(SoupConfig(encoders=(str(tmp_path / "other"),) * 2, output=str(tmp_path / "soup")))
    assert not (tmp_path / "soup").exists()


def test_a_strangers_license_is_no_markup_in_the_card(tmp_path: Path):
    license = "mit\nbase_model: theirs\n---\n<script>alert(1)</script> [x](javascript:y) \x1b]0;z\x07"
    text = {"context_length": 12}
    cfg = {"vision_cfg": {"image_size": 32}, "embed_dim": 8, "text_cfg": text}
    write_card(tmp_path, "soup", config=SoupConfig(encoders=("a", "b"), output="c"), license=license, cfg=cfg)
    card = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(card.split("\n---\n")[0])
    assert head["license"].startswith("mit base_model: theirs --- ")
    assert "base_model" not in head
    assert not any(sign in card.split("\n---\n")[1] for sign in ("<script", "[x](", "\x1b", "\x07"))
