"""Recipe ``caption_only``: an image tower and a captioner, without a text tower, and what reads such an encoder."""

from __future__ import annotations

import json
from pathlib import Path

import bench_classes
import clips_world
import numpy as np
import pytest
import torch
from clips_world import tensors_of, trained
from torch.nn import functional as F

from benchmarks.cli import COMMANDS
from benchmarks.results.results import read_result
from clips.commandline.commands import dispatch
from clips.data import decode_image
from clips.encoder import load_captioner, load_encoder
from clips.errors import UserError
from clips.export import ExportConfig, run_export
from clips.method.clips_model import ClipsModel, ModelConfig, build_model, compute_losses
from clips.method.recipes import CaptionerConfig, RecipeConfig
from clips.model.captioner import caption_images, generate, sample_tokens, shift_labels
from clips.model.tokenizer import ClipsTokenizer
from clips.model.towers import encode_image
from llava_bridge.encoders import build_tower
from llava_bridge.encoders import load_encoder as load_vision_encoder

RECIPE = {"name": "caption_only", "captioner": {"max_length": 12, "num_layers": 1, "width": 32}}
TEXTS = [("dog", "A dog runs. It is brown!"), ("car", "A red car."), ("", "Two cups on a table.")]


def built(architecture: str = "clips-tiny", **captioner: object) -> ClipsModel:
    sizes = CaptionerConfig(**{"width": 32, "num_layers": 1, "max_length": 16, **captioner})
    return build_model(ModelConfig(architecture=architecture), RecipeConfig(name="caption_only", captioner=sizes), 0)


def batch_of(model: ClipsModel) -> dict[str, torch.Tensor]:
    rng, tokenizer = np.random.default_rng(0), ClipsTokenizer(12)
    samples = [model.recipe.prepare(web, synthetic, rng, tokenizer) for web, synthetic in TEXTS]
    size = model.image_size
    images = torch.randn(len(TEXTS), 3, size, size, generator=torch.Generator().manual_seed(0))
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]} | {"image": images}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caption_only")
    return trained(clips_world.write_shards(folder / "data"), folder / "run", recipe=RECIPE, max_steps=3)


# The sample of visual tokens ------------------------------------------------------------------------------------


def test_a_sample_of_tokens_depends_on_the_images_seed_alone():
    tokens = torch.arange(40.0).reshape(2, 20, 1)
    seeds = torch.tensor([5, -(2**62)])
    both = sample_tokens(tokens, seeds, 0.35)
    assert both.shape == (2, 7, 1)
    assert all(row.tolist() == sorted(set(row.tolist())) for row in both[..., 0])  # in order, without repetition
    assert torch.equal(sample_tokens(tokens[1:], seeds[1:], 0.35), both[1:])
    assert not torch.equal(sample_tokens(tokens, seeds + 1, 0.35), both)
    assert sample_tokens(tokens, seeds, 0.01).shape == (2, 1, 1)
    assert sample_tokens(tokens[:, :11], seeds, 0.35).shape == (2, 3, 1)  # of 3.85
    assert torch.equal(sample_tokens(tokens, seeds, 1.0), tokens)


def test_each_token_and_each_pair_of_tokens_is_equally_likely():
    count, draws = 9, 20_000
    seeds = torch.from_numpy(np.random.default_rng(0).integers(1 << 62, size=draws))
    found = sample_tokens(torch.arange(float(count)).expand(draws, count)[..., None], seeds, 1 / 3)
    kept = found[..., 0].long()
    chosen = F.one_hot(kept, count).sum(1).double()
    together = chosen.t() @ chosen / draws
    torch.testing.assert_close(together.diagonal(), torch.full((count,), 1 / 3).double(), atol=0.015, rtol=0)
    pairs = together[~torch.eye(count, dtype=torch.bool)]
    torch.testing.assert_close(pairs, torch.full_like(pairs, 3 * 2 / (9 * 8)), atol=0.01, rtol=0)


# The model and its loss -------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_each_token_given_a_third_of_the_patches_and_the_tokens_before():
    model = built()
    batch = batch_of(model)
    losses = compute_losses(model.recipe, model(batch))
    _, patches = encode_image(model.clip, batch["image"])
    total, count = 0.0, 0
    for index, target in enumerate(batch["target"]):
        kept = sample_tokens(patches[index : index + 1], batch["visual_seed"][index : index + 1], 0.35)
        assert kept.shape[1] == int(0.35 * patches.shape[1])
        labels = shift_labels(target)
        for place in batch["target_mask"][index].nonzero()[:, 0].tolist():
            known = torch.where(torch.arange(len(target)) <= place, target, 0)  # later tokens must not count
            logits = model.captioner.logits(kept, None, known[None])[0, place]
            total += F.cross_entropy(logits, labels[place]).item()
            count += 1
    assert losses["caption_loss"].item() == pytest.approx(total / count, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(2 * total / count, rel=1e-4)
    assert set(losses) == {"loss", "caption_loss"}


@pytest.mark.parametrize("architecture", ["clips-tiny", "clips-rn-tiny", "clips-tinyvit-tiny"])
def test_all_that_is_trained_has_a_gradient_and_the_rest_is_frozen(architecture: str):
    model = built(architecture)
    batch = batch_of(model)
    compute_losses(model.recipe, model(batch))["loss"].backward()
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert all((value.grad is None) == (name in frozen) for name, value in model.named_parameters())
    assert 0 < len(frozen) < 12
    assert not any(name.startswith("captioner.") for name in frozen)
    assert all(name.startswith("clip.visual.") for name in dict(model.clip.named_parameters(prefix="clip")))
    if architecture == "clips-tiny":
        expected = {"proj", "ln_post.weight", "ln_post.bias", "positional_embedding"}
        assert frozen == {f"clip.visual.{name}" for name in expected}


def test_the_image_tower_starts_as_that_of_any_other_recipe():
    ours = built().clip.visual.state_dict()
    theirs = build_model(ModelConfig(), RecipeConfig(name="clip"), 0).clip.visual.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert built().captioner.config.width == 32
    assert built(width=None).captioner.config.width == 128  # the architecture's text width


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"recipe": {**RECIPE, "caption_loss_weight": 0}}, r"recipe\.caption_loss_weight: .* no other loss$"),
        ({"recipe": RECIPE, "model": {"architecture": "clips-tiny", "lock_text": True}}, r"model\.lock_text: "),
        ({"recipe": RECIPE, "validation": {"source": {"path": "data"}}}, r"validation\.source: expected null"),
    ],
)
def test_settings_that_need_a_text_tower_are_rejected(tmp_path: Path, fields: dict[str, object], told: str):
    with pytest.raises(UserError, match=told):
        trained(clips_world.write_shards(tmp_path / "data"), tmp_path / "run", **fields)
    assert not (tmp_path / "run" / "manifest.json").exists()


# The encoder directory, and what reads it ---------------------------------------------------------------------------


def test_the_encoder_directory_holds_the_image_tower_alone(encoder: Path, tmp_path: Path):
    config = json.loads((encoder / "open_clip_config.json").read_text())
    assert "text_cfg" not in config["model_cfg"]
    assert not list(encoder.glob("tokenizer*"))
    card = (encoder / "README.md").read_text()
    assert "without a text tower" in card
    assert "zero-shot" not in card
    loaded, weights = load_encoder(encoder), tensors_of(encoder)
    assert {name for name in weights if name.startswith("visual.")} == set(loaded.model.state_dict())
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded.model.encode_image(image), encode_image(loaded.model, image)[1].mean(1))
    with pytest.raises(UserError, match="has no text tower"):
        loaded.tokenizer(["a dog"])
    assert load_captioner(encoder).text_projection is None
    with pytest.raises(UserError, match="expected an encoder with a text tower"):
        run_export(ExportConfig(checkpoint=str(encoder), output=str(tmp_path / "out"), format="hf_clip"))
    assert not (tmp_path / "out").exists()


def test_it_captions_an_image(encoder: Path):
    loaded, captioner = load_encoder(encoder), load_captioner(encoder)
    image = loaded.preprocess(decode_image(clips_world.draw_image(3)))[None]
    with torch.no_grad():
        (words,) = generate(captioner, encode_image(loaded.model, image)[1], None)
    assert len(words) == captioner.config.length - 1  # an untrained one does not end
    assert caption_images(loaded.model, captioner, image, None) == [ClipsTokenizer().decode(words)]


def test_a_llava_reads_the_tower_as_it_was_trained(encoder: Path):
    found = load_vision_encoder(str(encoder))
    tower = build_tower(found.source, found.architecture)
    tower.load_state_dict(dict(found.weights))
    image = torch.randn(2, 3, 16, 16)
    *_, last = tower.eval().states(image, tower.depth)
    torch.testing.assert_close(last[:, 1:], encode_image(load_encoder(encoder).model, image)[1])


def test_clip_can_start_from_its_image_tower(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = ModelConfig(image_size=16, context_length=12, pretrained=str(encoder))
    model = build_model(config, RecipeConfig(name="clip"), 0)
    assert torch.equal(model.clip.visual.conv1.weight, tensors_of(encoder)["visual.conv1.weight"])
    assert model.clip.visual.proj.requires_grad
    assert "the text tower is randomly initialized" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^model\.architecture: .* with both towers"):
        build_model(ModelConfig(architecture=str(encoder)), RecipeConfig(name="clip"), 0)


def test_a_second_stage_takes_over_tower_and_captioner(tmp_path: Path):
    stages = [{"max_steps": 2}, {"max_steps": 1, "model.image_size": 32}]
    run = trained(clips_world.write_shards(tmp_path / "data"), tmp_path / "run", recipe=RECIPE, stages=stages)
    first, last = (tensors_of(path) for path in (tmp_path / "run.stages" / "1", run))
    for name in ("visual.conv1.weight", "head.weight"):
        assert (first[name] - last[name]).abs().max() < 0.01  # one step away, not initialized anew
        assert not torch.equal(first[name], last[name])


def test_texts_are_rejected_in_one_line_and_a_linear_probe_runs(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = bench_classes.write_wds(tmp_path / "data", 12)
    bench_classes.write_wds(data, 20, split="train", start=100)
    words = f"run encoder {encoder} --output {tmp_path / 'results'} --model_name m --device cpu".split()
    for task, status in (("classification", 2), ("linear_probe", 0)):
        benchmark = f"[{{name: {task}, data: {data}}}]"
        assert dispatch("clips-bench", "", COMMANDS, [*words, "--benchmarks", benchmark]) == status, task
    assert "has no text tower; expected an encoder directory" in capsys.readouterr().err
    found = read_result(tmp_path / "results" / "m" / "linear_probe.json")
    assert found.status == "ok"
    assert found.protocol["input_features"] == "mean of the patch tokens of the last layer"
    assert not (tmp_path / "results" / "m" / "classification.json").exists()
