from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import clips_world
import exchange_world as world
import pytest
import torch
from clips_world import tensors_of, trained
from PIL import Image
from safetensors.torch import load_file

from clips.core.artifact import directory_hash, read_manifest
from clips.encoder import load_encoder, write_encoder
from clips.errors import UserError
from clips.export import ExportConfig, run_export
from clips.interchange.importing import ImportConfig, run_import
from clips.method.clips_model import ModelConfig, build_model
from clips.method.recipes import RecipeConfig
from clips.training.run_dir import list_checkpoints

NO_WARNING = "ignore:builtin type .* has no __module__:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(NO_WARNING)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder directories by name: our towers, CLIP-like and SigLIP-like ones."""
    folder = tmp_path_factory.mktemp("encoders")
    world.register_small_siglip_tower()
    for name in ("clips-tiny", "clips-tinyvit"):
        config = ModelConfig(architecture=name, context_length=12, image_size=64)
        model = build_model(config, RecipeConfig(name="clip"), 0)
        (folder / name).mkdir()
        world.shaken(model)
        write_encoder(model, folder / name)
    world.open_clip_directory(folder / "clip")
    (folder / "clip.json").write_text(json.dumps(world.VIT))
    causal = ModelConfig(architecture=str(folder / "clip.json"), text_attention="causal")
    (folder / "causal").mkdir()
    write_encoder(build_model(causal, RecipeConfig(name="clip"), 0), folder / "causal")
    world.open_clip_directory(folder / "biased", world.VIT | {"init_logit_bias": -10.0})
    quick = world.VIT | {"quick_gelu": True, "custom_text": True}
    world.open_clip_directory(folder / "quick", quick)
    world.hf_siglip(folder / "hf_siglip")
    run_import(ImportConfig(path=str(folder / "hf_siglip"), output=str(folder / "siglip")))
    return folder


def exported(encoders: Path, name: str, form: Any, output: Path, **fields: Any) -> Any:
    run_export(ExportConfig(checkpoint=str(encoders / name), output=str(output), format=form, **fields))
    return load_encoder(encoders / name)


def probe(encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    size = encoder.config["preprocess_cfg"]["size"]
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(9)), encoder.tokenizer(world.TEXTS)


def assert_close(mine: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mine[0], mine[1], atol=1e-2)


def assert_same(encoder: Any, theirs: Any) -> None:
    pixels, tokens = probe(encoder)
    with torch.no_grad():
        assert_close(encoder.model.encode_image(pixels), theirs.get_image_features(pixel_values=pixels).pooler_output)
        assert_close(encoder.model.encode_text(tokens), theirs.get_text_features(input_ids=tokens).pooler_output)
        logits = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
        torch.testing.assert_close(encoder.model.get_logits(pixels, tokens)[0], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_timm_loads_the_trunk_of_an_encoder_directory(encoders: Path):
    import open_clip
    import timm

    model = open_clip.create_model(f"local-dir:{encoders / 'clips-tinyvit'}").eval()
    trunk = timm.create_model("tiny_vit_5m_224", num_classes=0).eval()
    trunk.load_state_dict(model.visual.trunk.state_dict())
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert_close(model.visual.head(trunk(pixels)), model.encode_image(pixels))


@pytest.mark.parametrize("name", ["clip", pytest.param("quick", marks=pytest.mark.slow)])
def test_hf_clip_and_back(encoders: Path, tmp_path: Path, name: str):
    from transformers import AutoTokenizer, CLIPModel

    encoder = exported(encoders, name, "hf_clip", tmp_path / "hf")
    assert_same(encoder, CLIPModel.from_pretrained(tmp_path / "hf").eval())
    card = (tmp_path / "hf" / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n")
    assert "CLIPModel.from_pretrained" in card
    assert "padding=" not in card
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [*world.TEXTS, "Don't: 12 cafés & naïve snowmen ☃"]
    for text, row in zip(texts, encoder.tokenizer(texts), strict=True):
        ids = words(text, truncation=True).input_ids
        assert row[: len(ids)].tolist() == ids
        assert not row[len(ids) :].any()

    run_import(ImportConfig(path=str(tmp_path / "hf"), output=str(tmp_path / "back")))
    once, twice = (load_file(folder / "open_clip_model.safetensors") for folder in (encoders / name, tmp_path / "back"))
    assert {key.removeprefix("text.") for key in once} == set(twice)
    assert all(torch.equal(value, twice[key.removeprefix("text.")]) for key, value in once.items())
    ours, theirs = (load_encoder(folder).config["preprocess_cfg"] for folder in (encoders / name, tmp_path / "back"))
    assert ours == theirs


def test_hf_siglip_and_back(encoders: Path, tmp_path: Path):
    from transformers import SiglipModel

    encoder = exported(encoders, "siglip", "hf_siglip", tmp_path / "hf", license="apache-2.0")
    assert_same(encoder, SiglipModel.from_pretrained(tmp_path / "hf").eval())
    first, again = (load_file(folder / "model.safetensors") for folder in (encoders / "hf_siglip", tmp_path / "hf"))
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    manifest = read_manifest(tmp_path / "hf")
    assert manifest["kind"] == "hf_siglip"
    assert manifest["largest_difference"] < 1e-5
    assert manifest["parents"]["encoder"]["hash"] == directory_hash(encoders / "siglip")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert all(fact in card for fact in ("SiglipModel.from_pretrained", 'padding="max_length"'))


@pytest.mark.parametrize(
    ("name", "form", "why"),
    [
        ("clips-tiny", "hf_clip", "norms the patches before the first block, this tower does not"),
        ("clips-tinyvit", "hf_clip", "has a ViT, this image tower is a TimmModel"),
        ("clips-tiny", "hf_siglip", "has a ViT with attention pooling, this image tower does not"),
        ("biased", "hf_clip", "has no logit bias, which this encoder's sigmoid loss has trained"),
        ("causal", "hf_clip", "reads the largest token if the end token is 2$"),
        ("siglip", "hf_clip", "has a ViT, this image tower is a TimmModel"),
        ("clip", "hf_siglip", "has a ViT with attention pooling, this image tower does not"),
    ],
)
def test_unsupported_conversions_state_the_reason(encoders: Path, tmp_path: Path, name: str, form: Any, why: str):
    with pytest.raises(UserError, match=why) as told:
        exported(encoders, name, form, tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "form"), [("clip", "hf_clip"), ("siglip", "hf_siglip")])
def test_exported_tokenizers_clean_texts_as_the_encoder(encoders: Path, tmp_path: Path, name: str, form: Any):
    """Of open_clip's own tokenizer and of one of transformers; the card names texts that the format cannot clean."""
    from transformers import AutoTokenizer

    encoder = exported(encoders, name, form, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    length = encoder.tokenizer([""]).shape[1]
    for text in [*world.ODD_TEXTS, "Red, squaRE! _dogs_ “two”"]:
        theirs = tokenizer(text, truncation=True, max_length=length).input_ids
        ours = encoder.tokenizer([text])[0, : len(theirs)].tolist()
        assert (ours == theirs) is (text != "repaired: cafÃ©" or form == "hf_siglip"), (
            text
        )  # no word of this vocabulary
    named = read_manifest(tmp_path / "hf")["other_tokens"]
    assert ("repaired: cafÃ©" in named) is (form == "hf_clip")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert all(f"`{text}`" in card for text in named)


@pytest.mark.slow
@pytest.mark.parametrize("cleaning", ["whitespace", "lower", "canonicalize"])
def test_cleaning_in_a_tokenizers_file_equals_open_clips(cleaning: str):
    """Each assigned character within a word and alone; C2 and C3 begin encodings that ftfy repairs."""
    from open_clip.tokenizer import get_clean_fn
    from tokenizers import normalizers

    from clips.interchange.hf_files import cleaning_normalizers

    clean, steps = get_clean_fn(cleaning), normalizers.Sequence(cleaning_normalizers(cleaning))
    differ = []
    for code in (*range(1, 0x3100), *range(0xA000, 0xD7FF), *range(0xF900, 0x10000), *range(0x1F000, 0x1FB00)):
        text = f"a{chr(code)}b {chr(code)} Cd"
        if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs") and clean(text) != steps.normalize_str(text):
            differ.append(chr(code))
    assert differ == ["Â", "Ã"]


def test_a_preprocessing_that_transformers_lacks_is_rejected(tmp_path: Path):
    for name, preprocess in (
        ("padded", world.PREPROCESS | {"resize_mode": "longest"}),
        ("as numbers", world.PREPROCESS | {"mean": 0.5, "std": 0.25}),
    ):
        world.open_clip_directory(tmp_path / name, preprocess=preprocess)
    with pytest.raises(UserError, match=r"^preprocess_cfg: transformers has no resize mode 'longest' to 32x32$"):
        exported(tmp_path, "padded", "hf_clip", tmp_path / "no")
    exported(tmp_path, "as numbers", "hf_clip", tmp_path / "hf")
    assert read_manifest(tmp_path / "hf")["pixel_levels"] < 0.1


def test_a_wrong_conversion_is_noticed(encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from clips.interchange import hf_files

    monkeypatch.setattr(hf_files, "activation_name", lambda act: "relu")
    with pytest.raises(UserError, match=r"hf_siglip: features would differ by \d"):
        exported(encoders, "siglip", "hf_siglip", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_sigmoid_training_loads_in_stock_open_clip(tmp_path: Path):
    import open_clip

    data = clips_world.write_shards(tmp_path / "train")
    recipe = {"name": "clip", "loss": "sigmoid"}
    run = trained(
        data, tmp_path / "run", max_steps=4, save_steps=2, keep_checkpoints_after_training=True, recipe=recipe
    )
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{run}")
    bias = tensors_of(run)["logit_bias"]
    assert torch.equal(model.logit_bias, bias)
    assert model.logit_bias.item() != -10.0  # it has been trained
    pixels = preprocess(Image.new("RGB", (20, 20), "red"))[None]
    tokens = open_clip.get_tokenizer(f"local-dir:{run}")(["red", "blue"])
    with torch.no_grad():
        logits = model.eval().get_logits(pixels, tokens)[0]
        cosines = model.encode_image(pixels, normalize=True) @ model.encode_text(tokens, normalize=True).t()
        torch.testing.assert_close(logits, model.logit_scale.exp() * cosines + bias)


@pytest.mark.slow
def test_a_checkpoint_is_exported_for_transformers(encoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, model = clips_world.write_shards(tmp_path / "train"), {"architecture": str(encoders / "clip")}
    run = trained(data, tmp_path / "run", max_steps=2, save_steps=1, keep_checkpoints_after_training=True, model=model)
    (latest,) = list_checkpoints(run)  # of mid-training
    run_export(ExportConfig(checkpoint=str(latest), output=str(tmp_path / "hf"), format="hf_clip"))
    assert "without the captioner, which hf_clip does not support" in capsys.readouterr().err
    exported = tensors_of(tmp_path / "hf")["visual_projection.weight"]
    assert torch.equal(exported, tensors_of(latest)["model.clip.visual.proj"].t())


def test_a_card_has_results_and_what_the_data_was(tmp_path: Path):
    data, held_out = clips_world.write_shards(tmp_path / "train"), clips_world.write_shards(tmp_path / "test", (5,))
    validation = {"source": {"path": str(held_out)}, "eval_steps": 2}
    fields = {"validation": validation, "license": "cc-by-4.0", "keep_checkpoints_after_training": True}
    run = trained(data, tmp_path / "run", max_steps=4, save_steps=2, **fields)
    card, manifest = (run / "README.md").read_text(), read_manifest(run)
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "21 samples, hash `" in card
    for kind in ("web", "partial", "whole"):
        shares = [100 * manifest["last"][f"val_{kind}_{way}_r1"] for way in ("i2t", "t2i")]
        assert f"| {kind} | {shares[0]:.1f} | {shares[1]:.1f} |" in card

    (latest,) = list_checkpoints(run)
    run_export(ExportConfig(checkpoint=str(latest), output=str(tmp_path / "earlier"), license="mit"))
    assert read_manifest(tmp_path / "earlier")["last"]["step"] == 2
    card = (tmp_path / "earlier" / "README.md").read_text()
    for text in ("R@1 at step 2:", "The weights: mit.", "21 samples, hash `"):
        assert text in card
    run_export(ExportConfig(checkpoint=str(latest), output=str(tmp_path / "again")))
    assert (tmp_path / "again" / "README.md").read_text().startswith("---\nlicense: cc-by-4.0\n")
