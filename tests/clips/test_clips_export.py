from __future__ import annotations

import json
import shutil
from pathlib import Path

import clips_world
import numpy as np
import pytest
import torch
from clips_world import tensors_of, trained
from docs_blocks import blocks
from PIL import Image
from safetensors.torch import load_file, save_file

from clips.core.artifact import directory_hash, read_manifest
from clips.encoder import load_captioner, load_encoder, write_encoder
from clips.errors import UserError
from clips.export import ExportConfig, run_export
from clips.method.clips_model import ModelConfig, build_model
from clips.method.recipes import RecipeConfig
from clips.model.captioner import Captioner, CaptionerDims, caption_images
from clips.training.run_dir import list_checkpoints
from llava_bridge.encoders import load_encoder as load_for_bridge

TEXTS = ["A red square.", "two dogs, running!", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    data = clips_world.write_shards(folder / "train")
    return trained(data, folder / "run", max_steps=3, save_steps=2, keep_checkpoints_after_training=True)


def features(model: torch.nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokens)


@pytest.mark.parametrize("architecture", ["clips-tiny", "clips-rn-tiny", "clips-tinyvit"])
def test_stock_open_clip_sees_the_same_encoder(tmp_path: Path, architecture: str):
    import open_clip

    recipe = RecipeConfig(name="clip")
    trained = build_model(ModelConfig(architecture=architecture, image_size=64), recipe, 3).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for value in trained.clip.parameters():  # away from what a fresh model holds, its zeros above all
            value.add_(torch.randn_like(value) * 0.05)
        for _ in range(5):  # batch norms learn what they see
            trained.clip.train().encode_image(torch.randn(4, 3, 64, 64))
    trained.eval()
    write_encoder(trained, tmp_path)

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    images = torch.stack([preprocess(Image.fromarray(noise)), preprocess(Image.new("RGB", (80, 50), (250, 20, 20)))])
    assert images.shape == (2, 3, 64, 64)
    tokens = tokenizer(TEXTS)
    ours = features(trained.clip, images, tokens)
    for mine, theirs in zip(ours, features(model.eval(), images, tokens), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5, rtol=0)
        assert not torch.allclose(mine[0], mine[1], atol=1e-2)


def test_a_trained_run_loads_with_its_preprocessing_tokens_and_captioner(run: Path):
    encoder = load_encoder(run)
    assert not encoder.model.training
    saved = tensors_of(run)
    assert all(torch.equal(value, saved[name]) for name, value in encoder.model.state_dict().items())
    mean, std = (encoder.config["preprocess_cfg"][name] for name in ("mean", "std"))
    pixels = encoder.preprocess(Image.new("RGB", (40, 30), (128, 128, 128)))
    assert pixels.shape == (3, 16, 16)
    expected = [(128 / 255 - m) / s for m, s in zip(mean, std, strict=True)]
    assert pixels[:, 8, 8].tolist() == pytest.approx(expected, abs=1e-5)
    assert encoder.tokenizer(TEXTS).shape == (3, 12)
    captioner = Captioner(CaptionerDims(**json.loads((run / "captioner_config.json").read_text())))
    captioner.load_state_dict(load_file(run / "captioner.safetensors"))


def test_a_checkpoint_becomes_an_encoder_directory(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    latest = list_checkpoints(run)[-1]
    for number, source in enumerate((run, latest)):
        output = tmp_path / str(number)
        run_export(ExportConfig(checkpoint=str(source), output=str(output)))
        held = tensors_of(latest)
        exported = load_file(output / "open_clip_model.safetensors")
        assert exported
        assert all(torch.equal(value, held[f"model.clip.{name}"]) for name, value in exported.items())
        assert (output / "captioner.safetensors").is_file()
        manifest = read_manifest(output)
        assert manifest["steps"] == 2
        assert manifest["hash"] == directory_hash(output)
        assert manifest["parents"]["checkpoint"]["path"] == str(latest)
    assert "encoder after 2 steps" in capsys.readouterr().err
    with pytest.raises(UserError, match="exists already"):
        run_export(ExportConfig(checkpoint=str(run), output=str(tmp_path / "0")))


def test_a_run_without_weights_is_reported(run: Path, tmp_path: Path):
    finished = tmp_path / "finished"
    shutil.copytree(run, finished, ignore=shutil.ignore_patterns(".checkpoints"))
    for source, message in (
        (tmp_path / "nowhere", "no such directory"),
        (tmp_path, "no checkpoints in it"),
        (finished, "already the encoder directory"),
    ):
        with pytest.raises(UserError, match=message):
            run_export(ExportConfig(checkpoint=str(source), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_state.json", "{", r"train_state\.json: broken"),
        ("config.yaml", "model: {}", r"config\.yaml: expected the config of a training run \('seed'\)"),
        ("config.yaml", "{seed: 0, model: 3, recipe: {}}", r"config\.yaml: model: expected a mapping"),
        ("config.yaml", "{seed: 0, model: {size: 3}, recipe: {}}", r"config\.yaml: model: unknown key 'size'"),
    ],
)
def test_a_checkpoint_with_a_broken_record_is_named(run: Path, tmp_path: Path, name: str, content: str, message: str):
    copy = tmp_path / "checkpoint"
    shutil.copytree(list_checkpoints(run)[-1], copy)
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=message):
        run_export(ExportConfig(checkpoint=str(copy), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


WEIGHTS = "open_clip_model.safetensors"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), r"open_clip_model.safetensors: missing"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{"), r"config.json: not valid JSON"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no weights"), "open_clip_model.safetensors cannot be read"),
        (lambda folder: save_file({"logit_scale": torch.zeros(3)}, folder / WEIGHTS), "open_clip cannot load this"),
        (lambda folder: _spoil(folder, float("nan")), "expected finite weights, got NaN or infinity in visual"),
        (lambda folder: _spoil(folder, float("-inf")), "expected finite weights, got NaN or infinity in visual"),
        (
            lambda folder: _state_pooler(folder),
            "its text tower is a language model of an earlier version",
        ),
        (shutil.rmtree, "no such directory; expected an encoder directory"),
    ],
)
def test_a_broken_encoder_directory_is_named(run: Path, tmp_path: Path, spoil, message: str):
    folder = tmp_path / "encoder"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(".checkpoints"))
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load_encoder(folder)


def _state_pooler(folder: Path) -> None:
    file = folder / "open_clip_config.json"
    file.write_text(file.read_text().replace('"text_cfg": {', '"text_cfg": {"hf_pooler_type": "last_pooler",'))


def _spoil(folder: Path, value: float) -> None:
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if name.startswith("visual") and weights[name].is_floating_point())
    weights[name].view(-1)[0] = value
    save_file(weights, folder / WEIGHTS)


def test_the_pretrained_trunk_need_not_be_there_for_an_export(run: Path, tmp_path: Path):
    import yaml

    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    for record in moved.rglob("config.yaml"):
        config = yaml.safe_load(record.read_text())
        config["model"]["pretrained_trunk"] = "/gone.safetensors"
        record.write_text(yaml.safe_dump(config))
    run_export(ExportConfig(checkpoint=str(moved), output=str(tmp_path / "out")))
    assert load_file(tmp_path / "out" / "open_clip_model.safetensors")


@pytest.fixture
def reader(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of someone who follows docs/training.md."""
    shutil.copytree(run, tmp_path / "runs" / "mine")
    (tmp_path / "photo.jpg").write_bytes(clips_world.draw_image(1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented(word: str) -> str:
    """The Python of docs/training.md with ``word`` in it."""
    (text,) = (block.text for block in blocks("docs/training.md") if block.language == "python" and word in block.text)
    return text


def test_peft_adapts_towers_as_documented(reader: Path):
    said: list[torch.Tensor] = []
    images, tokens = torch.randn(4, 3, 16, 16), torch.randint(1, 99, (4, 12))

    def train(model: torch.nn.Module) -> None:
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for _ in range(2):
            (model.encode_image(images) * model.encode_text(tokens)).sum().backward()
            optimizer.step()
        said.extend(features(model, images, tokens))

    exec(documented("peft").replace("...  #", "train(model)  #"), {"train": train})
    tuned, before = (load_encoder(reader / "runs" / name).model for name in ("tuned", "mine"))
    for found, expected, old in zip(
        features(tuned, images, tokens), said, features(before, images, tokens), strict=True
    ):
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, old, atol=1e-3)


def test_a_captioner_says_what_is_documented(reader: Path, capsys: pytest.CaptureFixture[str]):
    exec(documented("caption_images"), {})
    encoder, captioner = load_encoder(reader / "runs/mine"), load_captioner(reader / "runs/mine")
    image = encoder.preprocess(Image.open(reader / "photo.jpg"))
    expected = caption_images(encoder.model, captioner, image[None], encoder.tokenizer(["my web caption"]))
    assert capsys.readouterr().out == f"{expected}\n"


def test_encoders_trained_by_settings_that_left_are_read(run: Path, tmp_path: Path):
    """Distillation, hard negatives, prefixes of the embedding, Muon and adapters."""
    earlier = tmp_path / "earlier"
    shutil.copytree(run, earlier)
    checkpoint = list_checkpoints(earlier)[-1]
    manifest = read_manifest(earlier)
    recipe = {"name": "negclip", "loss": "supcon", "hard_negatives": True, "embedding_widths": [16]}
    manifest["config"]["recipe"] |= recipe | {"distillation": {"teacher": "runs/teacher", "weight": 1.0}}
    manifest["config"]["optimizer"] |= {"name": "muon", "muon_momentum": 0.95}
    manifest["config"]["model"] |= {"lora": {"r": 2, "apply_to": ["image", "text"]}, "pretrained_text": True}
    for path in (earlier / "manifest.json", checkpoint / "config.yaml"):  # JSON is YAML
        path.write_text(json.dumps(manifest if path.suffix == ".json" else manifest["config"]))
    images, tokens = torch.randn(2, 3, 16, 16), torch.randint(1, 99, (2, 12))
    assert_close = torch.testing.assert_close
    assert_close(*(features(load_encoder(path).model, images, tokens) for path in (earlier, run)), rtol=0, atol=0)
    load_captioner(earlier)
    assert load_for_bridge(str(earlier)).architecture == load_for_bridge(str(run)).architecture
    with pytest.raises(UserError, match=r"^.*config\.yaml: model: unknown key 'lora'"):
        run_export(ExportConfig(checkpoint=str(checkpoint), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
