from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exchange_world as world
import numpy as np
import open_clip
import pytest
import torch
from clips_world import tensors_of
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from clips.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.core.artifact import directory_hash, read_manifest
from clips.encoder import load_encoder
from clips.errors import UserError
from clips.interchange.hf_files import write_tokenizer
from clips.interchange.importing import ImportConfig, run_import
from clips.method.clips_model import build_model
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model.text_tokenizer import build_text_tokenizer
from clips.model.tokenizer import ClipsTokenizer, tokenizer_text_cfg
from clips.model_refs import state_tokenizer
from clips.soup import SoupConfig, run_soup
from clips.training.teacher import teacher_parameters

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")
CLIPS_CFG = {  # as the released configs state it, at a tiny size
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "patch_size": 8,
        "head_width": 16,
        "no_ln_pre": True,
        "pool_type": "avg",
        "final_ln_after_pool": True,
        "norm_kwargs": {"eps": 1e-6},
    },
    "text_cfg": {
        "context_length": 80,
        "vocab_size": 32000,
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
        "width": 32,
        "heads": 4,
        "layers": 2,
        "pool_type": "last",
        "no_causal_mask": True,
        "act_kwargs": {"approximate": "tanh"},
        "norm_kwargs": {"eps": 1e-6},
    },
}


@pytest.fixture(scope="module", autouse=True)
def _siglip_tower() -> None:
    world.register_small_siglip_tower()


def imported(source: Path, output: Path, **fields: Any) -> Any:
    run_import(ImportConfig(path=str(source), output=str(output), **fields))
    return load_encoder(output)


def assert_same_features(encoder: Any, theirs: Any, tokens: torch.Tensor) -> None:
    """Of unit length and of any length, to 1e-5; and not because all is one."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for mine, other in (
            (encoder.model.encode_image(images), theirs.get_image_features(pixel_values=images).pooler_output),
            (encoder.model.encode_text(tokens), theirs.get_text_features(input_ids=tokens).pooler_output),
        ):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(F.normalize(mine, dim=-1), F.normalize(other, dim=-1), atol=1e-5, rtol=0)
            assert not torch.allclose(mine[0], mine[1], atol=1e-2)


CLIP_KINDS: dict[str, dict[str, Any]] = {
    "openai": {},
    "laion": {"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu"}},
    "mixed": {"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6}},
    "old eos": {"text": {"eos_token_id": 2}},
    "inner eos": {"text": {"eos_token_id": 5}},
}


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_hf_clip(tmp_path: Path, kind: str):
    theirs = world.hf_clip(tmp_path / "hf", **CLIP_KINDS[kind])
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    tokens = encoder.tokenizer(["a red square", "two dogs"])
    assert_same_features(encoder, theirs, tokens)
    with torch.no_grad():
        logits = theirs(input_ids=tokens, pixel_values=torch.ones(1, 3, 32, 32)).logits_per_image
        assert torch.allclose(logits, encoder.model.get_logits(torch.ones(1, 3, 32, 32), tokens)[0], atol=1e-4)
    assert read_manifest(tmp_path / "encoder")["largest_difference"] < 1e-6


def test_hf_clip_brings_its_words_and_its_pixels(tmp_path: Path):
    from transformers import AutoImageProcessor, AutoTokenizer

    world.hf_clip(tmp_path / "hf")
    encoder = imported(tmp_path / "hf", tmp_path / "encoder", license="mit")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    padded = theirs(world.TEXTS, padding="max_length", max_length=10, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(encoder.tokenizer(world.TEXTS), padded)
    assert encoder.tokenizer(["a red dog"])[0, :5].tolist() == [1, 3, 4, 2, 12]  # begin, a, red, unknown, end
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "hf")(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(encoder.preprocess(picture), pixels, atol=1e-5, rtol=0)
    assert encoder.config["preprocess_cfg"]["resize_mode"] == "shortest"
    assert read_manifest(tmp_path / "encoder")["license"] == "mit"
    assert "license: mit" in (tmp_path / "encoder" / "README.md").read_text()


def test_hf_siglip(tmp_path: Path):
    theirs = world.hf_siglip(tmp_path / "hf")
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    tokens = encoder.tokenizer(["a red square", "two dogs"])
    assert_same_features(encoder, theirs, tokens)
    with torch.no_grad():
        pixels = torch.ones(1, 3, 32, 32)
        logits = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
        torch.testing.assert_close(encoder.model.get_logits(pixels, tokens)[0], logits, atol=1e-4, rtol=0)
    assert encoder.config["preprocess_cfg"]["resize_mode"] == "squash"
    assert read_manifest(tmp_path / "encoder")["format"] == "hf_siglip"


def test_an_activation_that_differs_from_timm_is_reported(tmp_path: Path):
    world.hf_siglip(tmp_path / "hf", vision={"hidden_act": "gelu"})
    with pytest.raises(UserError, match=r"by \d\.\de-0\d \(timm's .* computes gelu_pytorch_tanh, the source gelu\)"):
        imported(tmp_path / "hf", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
    imported(tmp_path / "hf", tmp_path / "encoder", tolerance=0.1)
    assert 1e-5 < read_manifest(tmp_path / "encoder")["largest_difference"] < 0.1


def as_training_checkpoint(model: torch.nn.Module, path: Path) -> None:
    state = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, path)


SAVERS = {
    "epoch_3.pt": as_training_checkpoint,
    "weights.bin": lambda model, path: torch.save(model.state_dict(), path),
    "weights.safetensors": lambda model, path: save_file(model.state_dict(), path),
}


@pytest.fixture
def small_architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name that stock open_clip knows, at the size of `exchange_world.VIT`."""
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-small0-8", world.VIT)
    return "ViT-small0-8"


@pytest.mark.parametrize("name", SAVERS)
def test_a_file_of_weights_with_its_architecture(tmp_path: Path, name: str, small_architecture: str):
    model = world.open_clip_model(world.VIT)
    SAVERS[name](model, tmp_path / name)
    encoder = imported(tmp_path / name, tmp_path / "encoder", architecture=small_architecture)
    assert encoder.model.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, encoder.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert encoder.tokenizer(["a photo"])[0, :4].tolist() == [49406, 320, 1125, 49407]  # OpenAI's words
    assert encoder.config["preprocess_cfg"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    manifest = read_manifest(tmp_path / "encoder")
    assert manifest["hash"] == directory_hash(tmp_path / "encoder")
    assert manifest["parents"]["source"]["hash"] == directory_hash(tmp_path / name)


@pytest.mark.parametrize("custom", [False, True])
def test_a_hub_directory_whose_weights_are_a_pickle_of_tensors(tmp_path: Path, custom: bool):
    cfg = world.VIT | {"custom_text": custom}
    model = world.open_clip_directory(tmp_path / "hub", cfg)
    (tmp_path / "hub" / "open_clip_model.safetensors").unlink()
    plain = {key.removeprefix("text."): value for key, value in model.state_dict().items()}  # either layout is read
    torch.save(plain, tmp_path / "hub" / "open_clip_pytorch_model.bin")
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    encoder = imported(tmp_path / "hub", tmp_path / "encoder")
    tokens = encoder.tokenizer(world.TEXTS)
    with torch.no_grad():
        assert torch.equal(encoder.model.encode_text(tokens), model.encode_text(tokens))
    assert encoder.config["preprocess_cfg"] == world.PREPROCESS
    assert read_manifest(tmp_path / "encoder")["license"] == "apache-2.0"


def test_released_clips_gets_its_tokenizer(tmp_path: Path):
    model = world.open_clip_directory(tmp_path / "released", CLIPS_CFG)
    encoder = imported(tmp_path / "released", tmp_path / "encoder")
    tokens = encoder.tokenizer(world.TEXTS)
    assert torch.equal(tokens, ClipsTokenizer(80)(world.TEXTS))  # class token last, as the authors' CLIPS_Tokenizer
    with torch.no_grad():
        assert torch.equal(encoder.model.encode_text(tokens), model.encode_text(tokens))
    assert "tokenizer_kwargs" not in encoder.config["model_cfg"]["text_cfg"]


def test_released_clips_is_read_without_an_import(tmp_path: Path):
    model = world.open_clip_directory(tmp_path / "released", CLIPS_CFG)
    (tmp_path / "released" / "open_clip_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "released" / "open_clip_pytorch_model.bin")  # as the authors write it
    encoder, expected = load_encoder(tmp_path / "released"), ClipsTokenizer(80)(world.TEXTS)
    assert teacher_parameters(str(tmp_path / "released")) == sum(value.numel() for value in model.parameters())
    run_soup(SoupConfig(encoders=(str(tmp_path / "released"),) * 2, output=str(tmp_path / "soup")))
    assert tensors_of(tmp_path / "soup").keys() == model.state_dict().keys()
    assert torch.equal(encoder.tokenizer(world.TEXTS), expected)
    write_tokenizer(encoder.tokenizer, tmp_path)  # as exports to transformers do
    assert (tmp_path / "tokenizer.json").is_file()
    with torch.no_grad():
        assert torch.equal(encoder.model.encode_text(expected), model.encode_text(expected))
    config = ModelConfig(architecture=str(tmp_path / "released"), pretrained=str(tmp_path / "released"))
    assert torch.equal(build_text_tokenizer(config)(world.TEXTS), expected)
    start = build_model(config, RecipeConfig(name="clip"), seed=0).clip.state_dict()
    assert all(torch.equal(value.flatten(), start[name].flatten()) for name, value in model.state_dict().items())


def test_other_encoders_keep_open_clips_tokenizer():
    """CLIPA's too, whose configs are CLIPS's but for context and activation."""
    names = open_clip.list_models()
    assert len([name for name in names if "CLIPA" in name]) == 6
    for name in names:
        config = {"model_cfg": open_clip.get_model_config(name)}
        assert state_tokenizer(config) is config, name
    assert state_tokenizer({"model_cfg": CLIPS_CFG})["model_cfg"]["text_cfg"]["tokenizer_mode"] == "clips"


def test_training_and_bridge_read_an_imported_encoder(tmp_path: Path):
    from clips.model.initialization import load_pretrained
    from llava_bridge.encoders import build_tower
    from llava_bridge.encoders import load_encoder as load_for_bridge

    world.hf_clip(tmp_path / "hf")
    encoder = imported(tmp_path / "hf", tmp_path / "encoder")
    found = load_for_bridge(str(tmp_path / "encoder"))
    tower = build_tower(found.source, found.architecture).eval()
    tower.load_state_dict(found.weights)
    pixels = torch.randn(2, 3, 32, 32)
    *_, last = tower.states(pixels, tower.depth)
    with torch.no_grad():
        feature = encoder.model.visual.ln_post(last[:, 0]) @ encoder.model.visual.proj
        torch.testing.assert_close(feature, encoder.model.encode_image(pixels))

    torch.manual_seed(7)
    other = type(encoder.model)(**encoder.config["model_cfg"])
    said = load_pretrained(other, None, ModelConfig(pretrained=str(tmp_path / "encoder")), tokenizer_text_cfg(12))
    assert said == [f"the text tower is randomly initialized: {tmp_path / 'encoder'} has none of these tokens"]
    assert all(
        torch.equal(value, other.visual.state_dict()[k]) for k, value in encoder.model.visual.state_dict().items()
    )


def test_an_imported_encoder_embeds_for_the_benchmarks(tmp_path: Path):
    from benchmarks.tasks.encoders.embedding import embed_images, embed_texts, load_dual_encoder

    theirs = world.hf_siglip(tmp_path / "hf")
    imported(tmp_path / "hf", tmp_path / "encoder")
    dual = load_dual_encoder(str(tmp_path / "encoder"), "cpu", "float32")
    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    images, texts = embed_images(dual, pictures.__getitem__, ["r", "b"], 2), embed_texts(dual, ["a red square"], 2)
    with torch.no_grad():
        expected = theirs.get_text_features(input_ids=dual.tokenizer(["a red square"])).pooler_output
    torch.testing.assert_close(texts, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert (images.shape, dual.preprocessing["input_resize"]) == ((2, 32), "squash")


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder / "has run"),)


def spoil_hf(path: Path) -> None:
    world.hf_clip(path)
    weights = load_file(path / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), path / "model.safetensors", metadata={"format": "pt"})


def spoil_bert(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')


def state() -> dict[str, torch.Tensor]:
    return world.open_clip_model(world.VIT).state_dict()


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "hf": (spoil_hf, r"hf: its weights do not fit its config\.json: missing keys: "),
    "bert": (spoil_bert, r"bert: its config\.json is of a 'bert'; expected open_clip's Hub format"),
    "absent.pt": (lambda path: None, r"absent\.pt: no such file or directory"),
    "broken.pt": (lambda path: path.write_bytes(b"no weights"), r"broken\.pt: .*expected a state dict"),
    "evil.pt": (
        lambda path: torch.save({"state_dict": state(), "args": Evil(path.parent)}, path),
        r"evil\.pt: rejected: it contains more than tensors, and reading it would run code",
    ),
    "other.pt": (
        lambda path: torch.save(state() | {"visual.extra": torch.zeros(1)}, path),
        r"other\.pt: not of this architecture: it has the unexpected visual\.extra$",
    ),
    "shape.pt": (
        lambda path: torch.save(state() | {"visual.proj": torch.zeros(64, 23)}, path),
        r"another shape of visual\.proj: \(64, 23\), expected \(64, 24\)$",
    ),
    "objects.npz": (lambda path: np.savez(path, a=np.array([{}], dtype=object)), r"objects\.npz: not a readable \.npz"),
    "other.npz": (
        lambda path: np.savez(path, a=np.zeros(2)),
        r"other\.npz: expected the parameters of the authors' two",
    ),
    "notes.txt": (lambda path: path.write_text("none"), r"notes\.txt: expected a checkpoint that ends in"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_directory_without_an_encoder_is_rejected_and_nothing_written(tmp_path, name, small_architecture):
    spoil, message = SPOILT[name]
    path = tmp_path / name
    spoil(path)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as told:
        imported(path, tmp_path / "out", architecture=small_architecture if path.suffix in (".pt", ".npz") else None)
    assert "\n" not in str(told.value)
    assert set(tmp_path.iterdir()) == before


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], small_architecture: str):
    path, output = tmp_path / "weights.pt", tmp_path / "encoder"
    torch.save(world.open_clip_model(world.VIT).state_dict(), path)
    run = ["import", str(path), "--output", str(output)]
    for extra, complaint in (
        ([], "does not state its architecture; give --architecture"),
        (["--architecture", "ViT-small0-9"], "did you mean 'ViT-small0-8'?"),
        (["--architecture", "coca_ViT-B-32"], "has CoCa's decoder"),
        (["--architecture", small_architecture, "--format", "hf_clip"], "expected none, because"),
        (["--format", "gguf"], "unknown format 'gguf' (known: hf_clip"),
        (["--tolerance", "0"], "tolerance: expected a number above 0"),
    ):
        assert dispatch("clips", "", COMMANDS, [*run, *extra]) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert complaint in told
        assert not output.exists()
    assert dispatch("clips", "", COMMANDS, [*run, "--architecture", small_architecture]) == 0
    assert "encoder imported from open_clip" in capsys.readouterr().err
    assert load_encoder(output)
