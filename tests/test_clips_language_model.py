"""Text towers that are language models of transformers: a masked and a causal one, trained, resumed, exported."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import bench_world
import clips_world
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.tasks.run_config import BenchmarkConfig
from clips.encoder import load_encoder, write_encoder
from clips.errors import UserError
from clips.method.clips_model import ClipsModel, build_model
from clips.method.recipes import RecipeConfig
from clips.model import towers
from clips.model.architectures import CaptionerConfig, ModelConfig, model_cfg
from clips.model.hf_text import POOLERS, HFTextTower
from clips.model.text_tokenizer import build_text_tokenizer
from clips.model.tokenizer import VOCAB_FILE
from clips.training.mfu import fake_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES |= {"max_position_embeddings": 32}
TEXTS = ["a red car", "", "two brown dogs run on the green grass and then they sleep for a while"]
CAPTIONER = CaptionerConfig(max_length=12, num_layers=1, width=32)


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("language models")
    torch.manual_seed(0)
    bert = transformers.BertConfig(**SIZES, vocab_size=30_522)
    save(transformers.BertModel(bert), transformers.BertTokenizerFast(vocab=str(VOCAB_FILE)), folder / "bert")
    words = ["<unk>", "<s>", "</s>", "a", "red", "green", "car", "two", "brown", "dogs", "run", "on", "grass", "thing"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    llama = transformers.LlamaConfig(**SIZES, vocab_size=len(words), num_key_value_heads=2)
    llm = transformers.LlamaForCausalLM(llama)
    save(llm, transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names), folder / "llama")
    return {name: folder / name for name in ("bert", "llama")}


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def architecture(lm: Path, folder: Path, **text: Any) -> str:
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"hf_model_name": str(lm), "hf_proj_type": "linear", "context_length": 10, **text}
    path = folder / "architecture.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def built(lm: Path, folder: Path, text: dict[str, Any] | None = None, **fields: Any) -> ClipsModel:
    config = ModelConfig(architecture=architecture(lm, folder, **(text or {})), **fields)
    return build_model(config, RecipeConfig(name="clips", captioner=CAPTIONER), seed=0).eval()


@pytest.mark.parametrize("pooler", POOLERS[:3])
def test_features_and_weights_are_open_clips(pooler: str, lms: dict[str, Path], tmp_path: Path) -> None:
    model = built(lms["bert"], tmp_path, {"hf_pooler_type": pooler})
    write_encoder(model, tmp_path / "encoder")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'encoder'}").eval()  # with its own HFTextEncoder
    assert type(theirs.text) is open_clip.model.HFTextEncoder
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'encoder'}")(TEXTS)
    assert torch.equal(tokens, model.tokenizer(TEXTS))
    with torch.no_grad():
        expected, own_tokens = theirs.encode_text(tokens), towers.encode_text(model.clip, tokens)[1]
        for found in (towers.encode_text(model.clip, tokens)[0], towers.encode_text_features(model.clip, tokens)):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert own_tokens.shape == (3, 9 if pooler.startswith("cls") else 10, 32)
    stored = transformers.AutoModel.from_pretrained(lms["bert"]).state_dict()
    now = model.clip.text.transformer.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in now.items())
    assert any(name.startswith("pooler") for name in now) is (pooler == "cls_pooler")


def test_a_directory_that_is_written_again_is_read_again(lms: dict[str, Path], tmp_path: Path) -> None:
    for name in ("bert", "llama"):
        shutil.copytree(lms[name], tmp_path / "lm")
        model = built(tmp_path / "lm", tmp_path)
        assert model.clip.text.config.model_type == name
        write_encoder(model, tmp_path / "encoder")
        again = load_encoder(tmp_path / "encoder")
        assert again.model.text.config.model_type == name
        shutil.rmtree(tmp_path / "lm")
        shutil.rmtree(tmp_path / "encoder")


SMALL = {"vocab_size": 64, "pad_token_id": 0}
OTHERS = {
    "roberta": transformers.RobertaConfig(**SIZES, **SMALL),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZES, **SMALL),
    "mt5": transformers.MT5Config(**SMALL, d_model=32, d_kv=8, d_ff=32, num_layers=3, num_heads=2),
    "m2m_100": transformers.M2M100Config(**SMALL, d_model=32, encoder_layers=3, encoder_attention_heads=2),
    "gpt2": transformers.GPT2Config(**SMALL, n_embd=32, n_layer=3, n_head=2),
    "modernbert": transformers.ModernBertConfig(**SIZES, **SMALL),
    "qwen3": transformers.Qwen3Config(**SIZES, **SMALL, num_key_value_heads=2, head_dim=16),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_types(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = HFTextTower(name, 24, config=OTHERS[name], proj_type="mlp").eval()
    tokens = torch.randint(3, 64, (2, 9))
    tokens[0, 5:] = 0
    found = tower.encode_features(tokens)
    if name in ("roberta", "xlm-roberta", "mt5", "m2m_100"):  # open_clip's own, beside BERT
        OTHERS[name].save_pretrained(tmp_path)
        how = {"pooler_type": "mean_pooler", "proj_type": "mlp", "pretrained": False}
        theirs = open_clip.hf_model.HFTextEncoder(str(tmp_path), 24, **how).eval()
        theirs.load_state_dict(tower.state_dict())
        torch.testing.assert_close(found, theirs(tokens), atol=1e-5, rtol=1e-5)
    tower.lock(1)
    trained = [name for name, value in tower.named_parameters() if value.requires_grad]
    assert all(".2." in name or "norm" in name.lower() or "ln_f" in name or "proj." in name for name in trained), (
        trained
    )
    assert any(".2." in name for name in trained)
    assert (found[0] - tower.encode_features(tokens[:1, :5])[0]).abs().max() < 1e-5


@pytest.mark.parametrize("pooler", ["last_pooler", "max_pooler", "mean_pooler"])
def test_a_causal_language_model_is_pooled_over_its_own_tokens(
    pooler: str, lms: dict[str, Path], tmp_path: Path
) -> None:
    model = built(lms["llama"], tmp_path, {"hf_pooler_type": pooler})
    tokens = model.tokenizer(TEXTS)
    lengths = [4, 1, 10]  # <s> and words, cut
    assert [(row != 2).sum().item() for row in tokens] == lengths  # </s> is padding
    lm = transformers.AutoModel.from_pretrained(lms["llama"]).eval()
    with torch.no_grad():
        found = towers.encode_text_features(model.clip, tokens)
        for index, length in enumerate(lengths):
            last = lm(tokens[index : index + 1, :length]).last_hidden_state[0]
            pooled = {"last_pooler": last[-1], "max_pooler": last.amax(0), "mean_pooler": last.mean(0)}[pooler]
            torch.testing.assert_close(found[index], model.clip.text.proj(pooled), atol=1e-5, rtol=1e-5)
    write_encoder(model, tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    assert torch.equal(again.tokenizer(TEXTS), model.tokenizer(TEXTS))
    torch.testing.assert_close(again.model.encode_text(tokens), model.clip.encode_text(tokens))
    assert open_clip.model.HFTextEncoder is not HFTextTower


def test_the_last_token_is_the_one_that_the_tokenizer_adds(lms: dict[str, Path], tmp_path: Path) -> None:
    """As of Qwen3-Embedding, whose tokenizer ends each text with the token that it also has for padding."""
    lm = tmp_path / "lm"
    shutil.copytree(lms["llama"], lm)
    made = Tokenizer.from_file(str(lm / "tokenizer.json"))
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(lm)
    model = built(lm, tmp_path, {"hf_pooler_type": "last_pooler"})
    tokens = model.tokenizer(["a blue car"])
    assert tokens[0].tolist() == [3, 0, 6, 2, *[0] * 6]  # "blue" is unknown, as padding is
    with torch.no_grad():
        last = transformers.AutoModel.from_pretrained(lm).eval()(tokens[:, :4]).last_hidden_state[0, -1]
        found = towers.encode_text_features(model.clip, tokens)[0]
        torch.testing.assert_close(found, model.clip.text.proj(last), atol=1e-5, rtol=1e-5)
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps(config | {"pad_token_id": 2}))
    with pytest.raises(UserError, match="it adds the padding token 2 to texts"):
        built(lm, tmp_path, {"hf_pooler_type": "last_pooler"})
    (lm / "config.json").write_text(json.dumps(config))
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="</s>").save_pretrained(lm)
    with pytest.raises(UserError, match="set pad_token_id in its"):
        built(lm, tmp_path)


@pytest.mark.parametrize(("name", "pooler"), [("bert", "cls_pooler"), ("llama", "last_pooler")])
def test_trained_resumed_exported_and_evaluated(name, pooler, lms, tmp_path, monkeypatch):
    data = clips_world.write_shards(tmp_path / "data")
    model = {"architecture": architecture(lms[name], tmp_path, hf_pooler_type=pooler)}
    whole = clips_world.trained(data, tmp_path / "whole", model=model)
    config = clips_world.train_config(data, tmp_path / "run", model=model)
    with clips_world.stopped_at(3):
        clips_world.train(config)
    clips_world.train(config)
    assert clips_world.is_equal(tmp_path / "run", whole)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    moved = lms[name].rename(lms[name].with_name(f"{name}-moved"))
    try:  # the encoder directory has all that this suite needs
        encoder = load_encoder(whole)
        hits = bench_world.write_shards(tmp_path / "test")
        found = bench_world.measure(
            tmp_path / "results", BenchmarkConfig(name="retrieval", data=str(hits)), encoder=str(whole)
        )
        assert len(found.metrics) > 3
        again = ModelConfig(architecture=str(whole), pretrained=str(whole))
        further = build_model(again, RecipeConfig(), seed=1)
    finally:
        moved.rename(lms[name])
    assert torch.equal(build_text_tokenizer(again)(TEXTS), encoder.tokenizer(TEXTS))
    for key, value in further.clip.state_dict().items():
        assert torch.equal(value, encoder.model.state_dict()[key]), key
    pixels = encoder.preprocess(Image.new("RGB", (40, 30), "red"))[None]
    if name == "bert":
        theirs = open_clip.create_model(f"local-dir:{whole}").eval()
        for one in ("image", "text"):
            inputs = pixels if one == "image" else encoder.tokenizer(TEXTS)
            expected = getattr(theirs, f"encode_{one}")(inputs)
            torch.testing.assert_close(getattr(encoder.model, f"encode_{one}")(inputs), expected, atol=1e-5, rtol=1e-5)
    else:
        with pytest.raises(Exception, match="add_pooling_layer"):
            open_clip.create_model(f"local-dir:{whole}")


def test_a_frozen_language_model_has_no_gradients_and_its_outputs_are_cached(lms, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for unlocked in (0, 1):
        model = built(lms["llama"], tmp_path, lock_text=True, lock_text_unlocked_layers=unlocked).train()
        tokens = model.tokenizer(TEXTS)
        towers.encode_text_features(model.clip, tokens).square().sum().backward()
        trained = {name.split(".")[1] for name, value in model.clip.text.named_parameters() if value.grad is not None}
        layers = {
            name for name, value in model.clip.text.named_parameters() if value.grad is not None and "layers" in name
        }
        assert all("layers.2" in name for name in layers)
        assert (len(trained), len(layers) > 0) == ((1, False) if not unlocked else (3, True))  # weight; layers, norm
        assert model.clip.text.transformer.training is bool(unlocked)
    cached = built(lms["llama"], tmp_path, lock_text=True, cache_text_features=True).train()
    frozen = built(lms["llama"], tmp_path, lock_text=True).train()
    calls: list[int] = []
    cached.clip.text.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(2):
        found = towers.encode_text_features(cached.clip, tokens)
        torch.testing.assert_close(found, towers.encode_text_features(frozen.clip, tokens), atol=1e-6, rtol=1e-6)
        found.sum().backward()
        assert calls == [1]
    assert cached.clip.text.proj.weight.grad is not None


def test_it_is_planned_without_its_weights(lms: dict[str, Path], tmp_path: Path) -> None:
    config = ModelConfig(architecture=architecture(lms["bert"], tmp_path, hf_pooler_type="mean_pooler"))
    planned = fake_model(config, RecipeConfig(name="clips", captioner=CAPTIONER))
    own = built(lms["bert"], tmp_path, {"hf_pooler_type": "mean_pooler"})
    assert {name: value.shape for name, value in planned.named_parameters()} == {
        name: value.shape for name, value in own.named_parameters()
    }


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ({"hf_pooler_type": "attention"}, {}, r"hf_pooler_type: expected one of mean_pooler, .* got attention"),
        ({"hf_proj_type": None}, {}, r"hf_proj_type: expected linear or mlp for 32 to 24 channels"),
        ({"tokenizer_kwargs": {"language": "de"}}, {}, r"tokenizer_kwargs: expected only clean, got language"),
        (
            {"hf_tokenizer_name": "absent/here/at all"},
            {},
            r"hf_tokenizer_name: absent/here/at all: cannot be downloaded",
        ),
        ({}, {"context_length": 33}, r"^model.context_length: expected at most 32, the language model's, got 33"),
        ({"context_length": 77}, {}, r"^model.context_length: expected at most 32, the language model's, got 77"),
        ({}, {"text_attention": "causal"}, r"text_attention: expected none with a language model"),
        ({}, {"lock_text": True, "lock_text_unlocked_layers": 9}, r"this tower cannot be frozen in part"),
        ({}, {"cache_text_features": True}, r"cache_text_features: expected model.lock_text: true"),
    ],
)
def test_settings_that_do_not_fit(text, fields, message, lms, tmp_path):
    with pytest.raises(UserError, match=message):
        built(lms["bert"], tmp_path, text, **fields)


def test_other_models_and_tokenizers_are_rejected(lms: dict[str, Path], tmp_path: Path) -> None:
    transformers.Dinov2Config().save_pretrained(tmp_path / "dino")
    with pytest.raises(UserError, match="expected a language model, got a dinov2"):
        model_cfg(ModelConfig(architecture=architecture(tmp_path / "dino", tmp_path)))
    with pytest.raises(UserError, match=r"hf_model_name: .*absent: cannot be downloaded from the Hub"):
        model_cfg(ModelConfig(architecture=architecture(tmp_path / "absent", tmp_path)))


@pytest.mark.parametrize("name", ["roberta", "gpt2", "modernbert"])
def test_the_longest_text_of_a_type_is_read(name: str, lms: dict[str, Path], tmp_path: Path) -> None:
    config = type(OTHERS[name])(**OTHERS[name].to_dict() | {"pad_token_id": 1, "max_position_embeddings": 16})
    config.save_pretrained(tmp_path / name)
    tower = HFTextTower(str(tmp_path / name), 24, proj_type="linear")
    longest = 14 if name == "roberta" else 16
    with pytest.raises(UserError, match=f"context_length: expected at most {longest}, .*, got {longest + 1}"):
        model_cfg(ModelConfig(architecture=architecture(tmp_path / name, tmp_path, context_length=longest + 1)))
    model_cfg(ModelConfig(architecture=architecture(tmp_path / name, tmp_path, context_length=longest)))
    assert tower.encode_features(torch.full((2, longest), 5)).isfinite().all()


def test_a_tokenizer_with_more_tokens_than_the_model_is_rejected(lms: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hf_tokenizer_name: .*bert: expected at most 14 tokens, .*llama, got \d{5}"):
        built(lms["llama"], tmp_path, {"hf_tokenizer_name": str(lms["bert"])})


def test_an_encoder_without_weights_of_its_language_model_alone(lms: dict[str, Path], tmp_path: Path) -> None:
    write_encoder(built(lms["bert"], tmp_path), tmp_path / "encoder")
    begun = ModelConfig(architecture=str(tmp_path / "encoder"))
    with pytest.raises(UserError, match=r"^model.pretrained: expected .*encoder, or model.pretrained_text: false"):
        build_model(begun, RecipeConfig(name="clip"), seed=0)
    build_model(dataclasses.replace(begun, pretrained_text=False), RecipeConfig(name="clip"), seed=0)


def test_a_real_llama_whose_tokenizer_adds_no_token(shared: Path, tmp_path: Path) -> None:
    config = ModelConfig(
        architecture=architecture(shared / "models/stories15M", tmp_path, hf_pooler_type="mean_pooler"), lock_text=True
    )
    model = build_model(config, RecipeConfig(name="clip"), seed=0)
    tokens = model.tokenizer(["Once upon a time", ""])
    assert ((tokens != 2).sum(dim=1) > 0).tolist() == [True, False]  # </s> is padding
    for batch in (tokens, tokens[1:]):
        assert towers.encode_text_features(model.clip, batch).isfinite().all()
    lm = transformers.AutoModel.from_pretrained(shared / "models/stories15M").eval()
    with torch.no_grad():
        own = lm(tokens[:1, : int((tokens[0] != 2).sum())]).last_hidden_state.mean(dim=1)
        found = towers.encode_text_features(model.clip, tokens)[:1]
        torch.testing.assert_close(found, model.clip.text.proj(own), atol=1e-5, rtol=1e-4)
