from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from clips.encoder import load_encoder
from clips.errors import UserError
from clips.model import architectures, towers
from clips.model.architectures import ModelConfig
from clips.model.tokenizer import VOCAB_FILE, ClipsTokenizer


def built(**fields):
    torch.manual_seed(0)
    return towers.build_towers(architectures.model_cfg(ModelConfig(**fields))).eval()


@pytest.fixture(scope="module")
def tiny():
    return built(context_length=12)


@pytest.fixture(scope="module")
def trunked():
    return built(architecture="clips-tinyvit", image_size=64)


@pytest.fixture(scope="module")
def resnet():
    return built(architecture="clips-rn-tiny")


def images(count, size=64):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_conventions_of_the_method(tiny):
    visual, block = tiny.visual, tiny.transformer.resblocks[0]
    assert isinstance(visual.ln_pre, torch.nn.Identity)
    assert (visual.pool_type, visual.final_ln_after_pool, tiny.text_pool_type) == ("avg", True, "last")
    assert not visual.positional_embedding.requires_grad
    assert visual.positional_embedding[0].abs().max() == 0  # the class token has no place
    assert tiny.attn_mask is None
    assert block.mlp.gelu.approximate == "tanh"
    assert visual.transformer.resblocks[0].mlp.gelu.approximate == "none"
    assert {module.eps for module in tiny.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
    assert tiny.token_embedding.weight.shape == (32_000, 128)
    assert tiny.logit_scale.shape == (1,)
    assert tiny.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_image_feature_is_the_normed_mean_of_the_patch_tokens(tiny):
    features, tokens = towers.encode_image(tiny, images(2))
    assert tokens.shape == (2, 16, 128)
    torch.testing.assert_close(features, tiny.visual.ln_post(tokens.mean(dim=1)) @ tiny.visual.proj)


def with_text(attention="all", custom_text=False):
    torch.manual_seed(0)
    cfg = architectures.model_cfg(ModelConfig(context_length=12, text_attention=attention))
    return towers.build_towers(cfg | {"custom_text": custom_text}).eval()


@pytest.mark.parametrize("attention", ["all", "causal"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_features_are_open_clips(attention, custom_text):
    model = with_text(attention, custom_text)
    assert hasattr(model, "text") == custom_text
    text = ClipsTokenizer(12)(["a red car", "", "two brown dogs run"])
    features, tokens = towers.encode_text(model, text)
    assert tokens.shape == (3, 11, 128)
    assert towers.token_widths(model) == (128, 128)
    torch.testing.assert_close(features, model.encode_text(text), atol=1e-6, rtol=0)
    torch.testing.assert_close(towers.encode_image(model, images(2))[0], model.encode_image(images(2)))


def test_text_feature_comes_from_the_class_token_and_tokens_from_before_the_last_norm(tiny):
    text = ClipsTokenizer(12)(["a red car"])
    outputs = []
    hook = tiny.transformer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    features, tokens = towers.encode_text(tiny, text)
    hook.remove()
    hidden = tiny.transformer(tiny.token_embedding(text) + tiny.positional_embedding)
    torch.testing.assert_close(tokens, hidden[:, :-1])
    torch.testing.assert_close(features, tiny.ln_final(hidden[:, -1]) @ tiny.text_projection)


@pytest.mark.parametrize("attention", ["all", "causal"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_the_short_way_to_text_features_has_their_values_and_gradients(attention, custom_text):
    model = with_text(attention, custom_text).double()
    text = ClipsTokenizer(12)(["word " * (index * 7 % 12) for index in range(40)])
    weight = torch.randn(40, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for features in (towers.encode_text_features(model, text), model.encode_text(text)):
        (features * weight).sum().backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append({"features": features.detach(), **gradients})
        model.zero_grad()
    short, plain = found
    assert short.keys() == plain.keys()
    assert any("resblocks.0" in name for name in short)
    for name, value in plain.items():
        torch.testing.assert_close(short[name], value, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("attention", ["all", "causal"])
def test_the_short_way_to_text_features_computes_less(attention):
    model, text = with_text(attention), ClipsTokenizer(12)(["car"] * 32 + ["a long caption of many words"] * 16)
    work = {}
    for encode in (towers.encode_text_features, towers.encode_text):
        with FlopCounterMode(display=False) as counter:
            encode(model, text)
        work[encode] = counter.get_total_flops()
    assert work[towers.encode_text_features] < {"all": 0.9, "causal": 0.7}[attention] * work[towers.encode_text]


def test_a_text_tower_of_another_kind_takes_the_long_way():
    torch.manual_seed(0)
    cfg = architectures.model_cfg(ModelConfig(context_length=12))
    cfg["text_cfg"]["qk_norm"] = True  # blocks of open_clip's other kind
    model = towers.build_towers(cfg).eval()
    text = ClipsTokenizer(12)(["a red car", "two brown dogs run"])
    torch.testing.assert_close(towers.encode_text_features(model, text), model.encode_text(text))


@pytest.mark.parametrize(("name", "width", "channels"), [("trunked", 256, 320), ("resnet", 128, 512)])
def test_towers_with_a_grid(request, name, width, channels):
    model = request.getfixturevalue(name)
    features, tokens = towers.encode_image(model, images(3))
    assert features.shape == (3, width)
    assert tokens.shape == (3, 4, channels)  # 64 pixels at stride 32
    assert towers.token_widths(model) == (channels, width)
    torch.testing.assert_close(features, model.encode_image(images(3)))
    if name == "trunked":
        grid = model.visual.trunk.forward_features(images(3))
    else:
        grid = model.visual.forward_intermediates(images(3), indices=1)["image_intermediates"][0]
    torch.testing.assert_close(tokens[1, 2], grid[1, :, 1, 0])  # row by row


@pytest.mark.parametrize("model", ["tiny", "trunked", "resnet"])
def test_permuting_the_batch_permutes_the_output(model, request):
    model, order = request.getfixturevalue(model), torch.tensor([2, 0, 3, 1])
    text = ClipsTokenizer(model.context_length)(["a", "red car", "two dogs", "grass"])
    for encode, batch in ((towers.encode_image, images(4)), (towers.encode_text, text)):
        for direct, permuted in zip(encode(model, batch), encode(model, batch[order]), strict=True):
            torch.testing.assert_close(permuted, direct[order], atol=1e-5, rtol=1e-5)


def test_an_open_clip_architecture_gets_the_text_conventions():
    cfg = architectures.model_cfg(ModelConfig(architecture="ViT-B-32"))
    assert cfg["vision_cfg"]["width"] == 768
    assert cfg["text_cfg"]["width"] == 512
    assert cfg["text_cfg"]["no_causal_mask"]
    assert (cfg["text_cfg"]["vocab_size"], cfg["text_cfg"]["context_length"]) == (32_000, 80)


def test_pretrained_trunk_is_loaded_and_cast(trunked, shared):
    path = shared / "models/tiny_vit_5m_224/timm_tiny_vit_5m_224_headless.safetensors"
    stored = load_file(path)
    name = "stages.1.blocks.0.attn.qkv.weight"
    towers.load_trunk(trunked, path)
    loaded = trunked.visual.trunk.state_dict()[name]
    assert (stored[name].dtype, loaded.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(loaded, stored[name].float())
    assert towers.encode_image(trunked, images(2))[0].isfinite().all()


def test_unfit_trunk_weights_are_rejected(tiny, trunked, tmp_path):
    whole, path = trunked.visual.trunk.state_dict(), tmp_path / "trunk.safetensors"
    save_file(whole | {"head.fc.weight": torch.zeros(1000, 320)}, path)
    towers.load_trunk(trunked, path)  # a classifier is left out
    first = next(iter(whole))
    for weights, message in (
        ({name: value for name, value in whole.items() if name != first}, f"lacks {first}"),
        (whole | {"other.weight": torch.zeros(2)}, "has the unexpected other.weight"),
        (whole | {first: torch.zeros(2)}, f"has another shape of {first}"),
    ):
        save_file(weights, path)
        with pytest.raises(UserError, match=f"{path} {message}"):
            towers.load_trunk(trunked, path)
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        towers.load_trunk(trunked, path)
    with pytest.raises(UserError, match="no such file"):
        towers.load_trunk(trunked, tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="expected an architecture whose image tower is a timm model"):
        towers.load_trunk(tiny, path)


def test_variants_of_open_clips_configs_keep_what_makes_them_so():
    cfg = architectures.model_cfg(ModelConfig(architecture="RN50-quickgelu"))
    assert cfg["quick_gelu"]
    built = towers.build_towers(cfg | {"vision_cfg": cfg["vision_cfg"] | {"layers": [1, 1, 1, 1], "width": 16}})
    names = {type(module).__name__ for module in built.modules()}
    assert "QuickGELU" in names
    assert "GELU" not in names
    coca = architectures.model_cfg(ModelConfig(architecture="coca_ViT-B-32"))
    assert coca["vision_cfg"]["attentional_pool"]
    assert "output_tokens" not in coca["vision_cfg"]
    assert architectures.model_cfg(ModelConfig(architecture="ViTamin-XL-384"))["vision_cfg"]["image_size"] == 384


def test_every_config_of_open_clip_is_known():
    import open_clip

    texts = {name: open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()}
    with_language_model = {name for name, text in texts.items() if "hf_model_name" in text}
    assert 8 < len(with_language_model) < 15
    for name in texts:
        if name in with_language_model:
            with pytest.raises(UserError, match=f"^model.architecture: {name}: expected open_clip's own text tower"):
                architectures.model_cfg(ModelConfig(architecture=name))
        else:
            assert architectures.model_cfg(ModelConfig(architecture=name))["vision_cfg"]["image_size"]


def one_layer_of(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config with the fewest layers: depth aside, one ViT of open_clip's own is built as another."""
    vision = {**cfg["vision_cfg"]}
    if "timm_model_name" not in vision:
        vision["layers"] = [1] * 4 if isinstance(vision["layers"], list) else 1
    return cfg | {"vision_cfg": vision, "text_cfg": cfg["text_cfg"] | {"layers": 1}}


def kind_of(cfg: dict[str, Any]) -> str:
    """What configs of one kind share: all of a tower of open_clip's own; timm's module and what is put on its trunk."""
    import timm

    if name := cfg["vision_cfg"].get("timm_model_name"):
        kept = {key: value for key, value in cfg["vision_cfg"].items() if key not in ("timm_model_name", "image_size")}
        return f"{timm.model_entrypoint(name).__module__} {kept}"
    return json.dumps(cfg, sort_keys=True)


@pytest.mark.slow
def test_open_clip_configs_of_every_kind_encode_images_and_texts():
    import open_clip

    kinds: dict[str, dict[str, Any]] = {}
    for name in open_clip.list_models():
        if "hf_model_name" not in open_clip.get_model_config(name)["text_cfg"]:
            cfg = one_layer_of(architectures.model_cfg(ModelConfig(architecture=name)))
            found = kinds.setdefault(kind_of(cfg), cfg)
            if cfg["embed_dim"] < found["embed_dim"]:
                kinds[kind_of(cfg)] = cfg
    assert len(kinds) > 50
    with torch.device("meta"):  # shapes without numbers: quick, and no memory
        for cfg in kinds.values():
            model = towers.build_towers(cfg).eval()
            size = towers.preprocess_cfg(cfg)["size"]
            image, patches = towers.encode_image(model, torch.zeros(2, 3, *size))
            words = torch.zeros(2, cfg["text_cfg"]["context_length"], dtype=torch.long)
            text, tokens = towers.encode_text(model, words)
            assert image.shape == text.shape == (2, cfg["embed_dim"])
            assert len(patches) == len(tokens) == 2
            assert patches.ndim == tokens.ndim == 3


def test_an_encoder_with_a_language_model_is_read_without_the_models_directory(tmp_path: Path):
    import open_clip
    import transformers

    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
    transformers.BertConfig(**size, vocab_size=30_522).save_pretrained(tmp_path / "lm")
    directory = tmp_path / "encoder"
    shutil.copytree(tmp_path / "lm", directory)
    transformers.BertTokenizerFast(vocab=str(VOCAB_FILE)).save_pretrained(directory)
    text = {"hf_model_name": str(tmp_path / "lm"), "hf_tokenizer_name": str(tmp_path / "lm"), "context_length": 12}
    text |= {"hf_model_pretrained": False, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    written = open_clip.CustomTextCLIP(**cfg).eval()
    save_file(written.state_dict(), directory / "open_clip_model.safetensors")
    config = {"model_cfg": cfg | {"custom_text": True}, "preprocess_cfg": {"size": [32, 32]}}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp_path / "lm")
    encoder = load_encoder(directory)
    tokens = encoder.tokenizer(["a red car", ""])
    assert tokens.shape == (2, 12)
    torch.testing.assert_close(encoder.model.encode_text(tokens), written.encode_text(tokens))
    with pytest.raises(UserError, match=r"^model\.architecture: .*: expected open_clip's own text tower"):
        architectures.model_cfg(ModelConfig(architecture=str(directory)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "clips-tyni"}, "'clips-tyni'; did you mean 'clips-tiny'"),
        ({"image_size": 60}, r"model\.image_size: expected a multiple of the patch size 16, got 60"),
        (
            {"architecture": "ViT-B-16-SigLIP", "image_size": 192},
            r"model\.image_size: expected 224, the fixed size of this trunk",
        ),
        (
            {"architecture": "ViTamin-XL-384", "image_size": 256},
            r"model\.image_size: expected 384, the fixed size of this trunk",
        ),
        ({"architecture": "clips-rn-tiny", "image_size": 20}, r"20 does not fit this image tower \(.*too small\)"),
        ({"architecture": "RN5"}, r"unknown model\.architecture 'RN5'; did you mean 'RN50'\?"),
    ],
)
def test_bad_architectures_are_rejected(fields, message):
    with pytest.raises(UserError, match=message) as told:
        built(**fields)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("size", [[64, 64], [64, 48]])
def test_an_image_size_may_be_stated_twice_but_not_differ(tmp_path: Path, size: list[int]):
    config = json.loads((architectures.CONFIG_DIR / "clips-tiny.json").read_text())
    config["vision_cfg"]["image_size"] = size
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (tmp_path / "open_clip_model.safetensors").touch()
    if size == [64, 64]:
        assert architectures.model_cfg(ModelConfig(architecture=str(tmp_path)))["vision_cfg"]["image_size"] == 64
    else:
        with pytest.raises(UserError, match=r"model\.architecture: expected a square image size, got \[64, 48\]"):
            architectures.model_cfg(ModelConfig(architecture=str(tmp_path)))


def test_a_trial_image_changes_no_state():
    made = towers.build_towers(architectures.model_cfg(ModelConfig(architecture="clips-rn-tiny")))
    assert all(module.training for module in made.modules())
    assert int(made.visual.bn1.num_batches_tracked) == 0
