"""What an encoder of any source must do: an entry of SPECS a kind, the same tests for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bridge_world
import open_clip
import pytest
import timm
import torch
import transformers
from families import quick_of
from safetensors.torch import save_file
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.vision_utils import get_vision_window_index

from clips.errors import UserError
from llava_bridge.encoders import ENCODER_SOURCES, load_encoder, parse_spec
from llava_bridge.encoders.timm_source import TimmVit
from llava_bridge.encoders.transformers_source import FAMILIES
from llava_bridge.inference.generate import answer, load_llava
from llava_bridge.model.build import LlavaParts, build_llava
from llava_bridge.model.llava_files import convert_tower_to_transformers
from llava_bridge.model.modeling_vision import build_vision_model

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"patch_size": 8, "image_size": 32}
VIT = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
QWEN = {"depth": 3, "num_heads": 2, "patch_size": 8}
MLP = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 16}
CONFIGS: dict[str, Callable[[], Any]] = {
    "clip": lambda: transformers.CLIPVisionConfig(**SMALL),
    "siglip": lambda: transformers.SiglipVisionConfig(**SMALL),
    "siglip2": lambda: transformers.Siglip2VisionConfig(**{**SMALL, "num_patches": 16}),
    "aimv2": lambda: transformers.Aimv2VisionConfig(**SMALL),
    "aimv2_native": lambda: transformers.Aimv2VisionConfig(**SMALL, is_native=True),
    "dinov2": lambda: transformers.Dinov2Config(**SMALL, mlp_ratio=2),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2),
    "dinov3": lambda: transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=4),
    "metaclip2": lambda: transformers.MetaClip2VisionConfig(**SMALL),
    "mlcd": lambda: transformers.MLCDVisionConfig(**SMALL),
    "vit": lambda: transformers.ViTConfig(**SMALL),
    "ijepa": lambda: transformers.IJepaConfig(**SMALL),
    "pixio": lambda: transformers.PixioConfig(**VIT, mlp_ratio=2, n_cls_tokens=3),
    "radio": lambda: transformers.RadioConfig(**VIT, mlp_ratio=2.0, max_img_size=64),
    "tipsv2": lambda: transformers.Tipsv2VisionConfig(**VIT, mlp_ratio=2, num_register_tokens=2),
    "internvl": lambda: transformers.InternVLVisionConfig(**SMALL),
    "qwen2_vl": lambda: Qwen2VLVisionConfig(**QWEN, embed_dim=32, hidden_size=16),
    "qwen2_5_vl": lambda: Qwen2_5_VLVisionConfig(**QWEN, **MLP, window_size=32, fullatt_block_indexes=[1]),
    "qwen3_vl": lambda: Qwen3VLVisionConfig(**QWEN, **MLP, num_position_embeddings=36, deepstack_visual_indexes=[1]),
}
STOCK = ("clip", "siglip", "aimv2", "aimv2_native", "dinov2", "mlcd")
QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PREFIXES = {"dinov2_with_registers": 5, "dinov3": 5, "pixio": 3, "radio": 10, "tipsv2": 3}
RESIZING = ("dinov2", "siglip2", "aimv2_native", "mlcd", "internvl", *QWENS, *PREFIXES)
RESIZED = ("clip", "siglip", "metaclip2", "vit", "ijepa")  # on request
SPECS = (*CONFIGS, "open_clip", "open_clip_sines", "resnet", "trunk", "timm", "timm_trained")
ONE_SIZE = ("resnet",)
TIMM = ("timm", "timm_trained")
SIDES = ("resnet", "trunk", *TIMM)  # of 64 pixels


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    found = {"timm": "timm:test_vit@random"}
    for number, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(number)
        save(model_class(config())(config()), folder / name)
        found[name] = f"transformers:{folder / name}"
    learned = {**bridge_world.VIT, "vision_cfg": {**bridge_world.VIT["vision_cfg"], "pos_embed_type": "learnable"}}
    directories = {"open_clip": learned, "open_clip_sines": bridge_world.VIT}
    directories |= {"resnet": bridge_world.RESNET, "trunk": bridge_world.TRUNK}
    for name, cfg in directories.items():
        bridge_world.make_encoder(folder / name, cfg)
        found[name] = str(folder / name)
    config = folder / "trunk" / "open_clip_config.json"
    config.write_text(config.read_text().replace("[0.4, 0.5, 0.6]", "[0.3, 0.3, 0.3]"))
    vit = timm.create_model("test_vit")
    for value in vit.parameters():
        torch.nn.init.normal_(value, std=0.1)
    save_file(vit.state_dict(), folder / "timm.safetensors")
    found["timm_trained"] = f"timm:test_vit@{folder / 'timm.safetensors'}"
    return found


def model_class(config: Any) -> Any:
    return FAMILIES[config.model_type].model_class()  # not all are in transformers' AutoModel


def save(model: Any, directory: Path) -> None:
    for value in model.parameters():  # zeros, as some begin with, would hide mistakes
        torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(directory)
    processor = {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 32, "width": 32}}
    processor |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "resample": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))


def pixels(name: str, size: int | None = None) -> torch.Tensor:
    side = size or (64 if name in SIDES else 32)
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


def states(model: Any, batch: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model(batch, output_hidden_states=True).hidden_states)


def own_size(name: str) -> int | None:
    return 64 if name in TIMM else 32 if name in QWENS else None


def theirs(name: str, directory: str, batch: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """Hidden states as transformers gives them, without register tokens, the last one behind the family's norm."""
    model = model_class(CONFIGS[name]()).from_pretrained(directory.removeprefix("transformers:")).eval()
    found = layers_of(name, model, batch, **options)
    if norm := FAMILIES[model.config.model_type].final_norm:
        found[-1] = model.get_submodule(norm)(found[-1]).detach()
    return found


def layers_of(name: str, model: Any, batch: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    side = batch.shape[2] // 8
    if name in QWENS:
        return list(map(torch.stack, zip(*(qwen_states(model, image, side) for image in batch), strict=True)))
    if name == "siglip2":
        grid = batch.unflatten(3, (side, 8)).unflatten(2, (side, 8))  # (B, 3, rows, 8, columns, 8)
        patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        mask, shapes = torch.ones(len(batch), side * side).long(), torch.tensor([[side, side]] * len(batch))
        with torch.no_grad():
            return list(model(patches, mask, shapes, output_hidden_states=True).hidden_states)
    with torch.no_grad():
        found = model(batch, output_hidden_states=True, **options).hidden_states
    prefix = PREFIXES.get(name, 1)
    return [torch.cat([state[:, :1], state[:, prefix:]], 1) if prefix > 1 else state for state in found]


def qwen_states(model: Any, image: torch.Tensor, side: int) -> list[torch.Tensor]:
    """States of one image, each token put at the place of its patch."""
    processor = transformers.Qwen2VLImageProcessor(patch_size=8)
    patches, rows, columns = processor.patchify(image[None], 8, 2, 2)
    shape = torch.tensor([[1, rows, columns]])
    blocks = torch.arange(side * side // 4)
    if hasattr(model.config, "window_size"):
        blocks, _ = get_vision_window_index(shape, 2, model.config.window_size, 8)
    with torch.no_grad():
        found = model(patches[0], shape, output_hidden_states=True).hidden_states
    places = []
    for block in blocks.tolist():
        row, column = divmod(block, side // 2)
        places += [(2 * row + i) * side + 2 * column + j for i in (0, 1) for j in (0, 1)]
    return [torch.empty_like(state).index_copy(0, torch.tensor(places), state) for state in found]


def test_every_source_is_tested(specs: dict[str, str]) -> None:
    assert set(specs) == set(SPECS)
    assert {parse_spec(specs[name])[0] for name in SPECS} == set(ENCODER_SOURCES)


@pytest.mark.parametrize("size", [160, 64])
def test_features_equal_timms_own(size: int, specs: dict[str, str]) -> None:
    file = specs["timm_trained"].partition("@")[2]
    trunk = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay={"file": file}, img_size=size).eval()
    batch = pixels("timm_trained", size)
    with torch.no_grad():
        last = trunk.forward_features(batch)[:, 1:]
        inner = trunk.get_intermediate_layers(batch, n=len(trunk.blocks))
    found = states(build_vision_model(load_encoder(specs["timm_trained"], size)), batch)
    assert len(found) == 1 + len(trunk.blocks)
    for one, expected in zip(found[1:], [*inner[:-1], last], strict=True):
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[-1], inner[-1], atol=1e-2)  # the last alone is behind the norm


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "test_vit2"])
def test_hidden_states_of_timms_vits_are_what_their_blocks_give(name: str) -> None:
    trunk = timm.create_model(name, num_classes=0, img_size=56 if "14" in name else 64).eval()
    tower, batch, between = TimmVit(trunk), torch.randn(2, 3, *trunk.patch_embed.img_size), []
    for block in trunk.blocks:
        block.register_forward_hook(lambda _, inputs, output: between.append((inputs[0], output)))
    with torch.no_grad():
        found = list(tower.states(batch, tower.depth))
    expected = [between[0][0], *(output for _, output in between[:-1]), trunk.norm(between[-1][1])]
    assert len(found) == tower.depth + 1 == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other[:, trunk.num_prefix_tokens :], atol=1e-5, rtol=1e-5)
        assert one.shape[1] == 16
    for deepest in (tower.depth - 2, 0):
        del between[:]
        with torch.no_grad():
            fewer = list(tower.states(batch, deepest))
        assert (len(fewer), len(between)) == (deepest + 1, max(1, deepest))
        assert all(torch.equal(one, other) for one, other in zip(fewer, found, strict=False))


@pytest.mark.parametrize("name", ["timm_trained", "open_clip", "siglip"])
def test_activations_are_computed_again_with_the_same_gradients(name: str, specs: dict[str, str]) -> None:
    model = build_vision_model(load_encoder(specs[name], own_size(name))).requires_grad_(True).train()
    ends = (".blocks.0", ".resblocks.0", ".layers.0")
    first = next(module for path, module in model.named_modules() if path.endswith(ends))
    calls: list[int] = []
    next(first.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for times in (1, 2):
        model.zero_grad()
        model(pixels(name), output_hidden_states=[-2]).hidden_states[-2].square().mean().backward()
        gradients.append({key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None})
        assert len(calls) == times
        calls.clear()
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("size", [32, 64])
def test_hidden_states_equal_open_clips_own(size: int, specs: dict[str, str]) -> None:
    model = open_clip.create_model(f"local-dir:{specs['open_clip']}", force_image_size=size).eval()
    batch = pixels("open_clip", size)
    with torch.no_grad():
        visual = model.visual.forward_intermediates(batch, output_fmt="NLC", output_extra_tokens=True)
    extra, patches = visual["image_intermediates_prefix"], visual["image_intermediates"]
    found = states(build_vision_model(load_encoder(specs["open_clip"], size)), batch)
    assert len(found) == 1 + len(patches) == 4
    for one, prefix, rest in zip(found[1:], extra, patches, strict=True):
        torch.testing.assert_close(one, torch.cat([prefix, rest], dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_equal_transformers_own(name: str, specs: dict[str, str]) -> None:
    encoder = load_encoder(specs[name], own_size(name))
    model = build_vision_model(encoder)
    ours, expected = states(model, pixels(name)), theirs(name, specs[name], pixels(name))
    assert len(ours) == len(expected) == 4
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert (encoder.pixels.size, encoder.pixels.mean, encoder.pixels.interpolation) == (32, (0.4, 0.5, 0.6), "bilinear")
    assert (model.config.hidden_size, model.config.patch_size, model.config.num_hidden_layers) == (32, 8, 3)
    assert ours[0].shape[1] == 16 + int(model.config.class_token)


def test_a_classifier_without_a_pooler_is_read(tmp_path: Path) -> None:
    """As google/vit-base-patch16-224, whose head reads the class token itself."""
    torch.manual_seed(0)
    save(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)), tmp_path / "vit")
    ours = states(build_vision_model(load_encoder(f"transformers:{tmp_path / 'vit'}")), pixels("vit"))
    whole = transformers.ViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    expected = states(whole, pixels("vit"))
    expected[-1] = whole.vit.layernorm(expected[-1]).detach()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


LAST_NORMALIZED = {"vit", "ijepa", "dinov2", "dinov2_with_registers", "dinov3", "pixio", "tipsv2"}
LAST_NORMALIZED |= {"aimv2", "aimv2_native"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_llava_reads_the_features_that_a_models_authors_use(name: str, specs: dict[str, str]) -> None:
    """``last_hidden_state`` of self-supervised models, LLaVA's last layer but one of CLIPs and SigLIPs."""
    model = build_vision_model(load_encoder(specs[name], own_size(name)))
    found = states(model, pixels(name))[model.tower.default_layer][:, int(model.config.class_token) :]
    if name in QWENS:
        whole = model_class(CONFIGS[name]()).from_pretrained(specs[name].removeprefix("transformers:")).eval()
        norms: list[torch.Tensor] = []
        norm = whole.merger.norm if name == "qwen3_vl" else whole.merger.ln_q
        norm.register_forward_hook(lambda _, inputs, output: norms.append(output))
        qwen_states(whole, pixels(name)[0], 4)  # in Qwen's own order, so compare as sets of tokens
        assert len(norms) == 1
        torch.testing.assert_close(found[0].sort(0)[0], norms[0].flatten(0, -2).sort(0)[0], atol=1e-5, rtol=1e-5)
        return
    if name == "siglip2":
        expected = theirs(name, specs[name], pixels(name))[-2]
    else:
        whole = model_class(CONFIGS[name]()).from_pretrained(specs[name].removeprefix("transformers:")).eval()
        with torch.no_grad():
            own = whole(pixels(name), output_hidden_states=True)
        raw = own.hidden_states[-1 if name in ("radio", "internvl") else -2]
        expected = own.last_hidden_state if name in LAST_NORMALIZED else raw
    assert model.tower.is_normalized(model.tower.default_layer) == (name in LAST_NORMALIZED)
    torch.testing.assert_close(found, expected[:, expected.shape[1] - 16 :], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("vit_small_patch14_dinov2", -1), ("vit_small_patch16_dinov3", -1), ("vit_tiny_patch16_224", -2)],
)
def test_timms_dinos_are_read_behind_their_norm(name: str, layer: int) -> None:
    with torch.device("meta"):
        assert TimmVit(timm.create_model(name)).default_layer == layer


@pytest.mark.parametrize(("layer", "stock"), [(None, False), (3, False), ([-1, -2], False), (-2, True)])
def test_transformers_llava_which_has_no_final_norm_takes_no_tower_that_is_read_behind_it(
    layer, stock, specs, bridge_llm
):
    model, _ = build_llava(LlavaParts(encoder=specs["dinov2"], llm=str(bridge_llm), vision_feature_layer=layer))
    assert convert_tower_to_transformers(model) == stock


@pytest.mark.parametrize("name", quick_of(SPECS, "clip", "siglip2", "dinov3", "open_clip", "timm", "trunk"))
def test_images_do_not_mix_gradients_reach_trained_parts_and_saving_changes_nothing(name, specs, tmp_path):
    model, batch = build_vision_model(load_encoder(specs[name], own_size(name))), pixels(name)
    found = states(model, batch)
    for one, other in zip(found, states(model, batch[[2, 0, 1]]), strict=True):
        torch.testing.assert_close(one[[2, 0, 1]], other, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(one[0], one[1])
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    for one, other in zip(found, states(again, batch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 if name == "trunk" else 0, rtol=0)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    model.requires_grad_(True).train()
    model(pixels(name), output_hidden_states=True).hidden_states[-1].square().mean().backward()
    heads = ("head", "post_layernorm", "layernorm", "rms_norm", "norm.", "attnpool", "ln_post", "proj", "mask_token")
    heads = (*heads, "merger", "pooler")  # of Qwen-VL and ViT
    unreached = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert all(any(head in key for head in heads) for key in unreached), unreached
    assert len(unreached) < 0.45 * len(list(model.parameters()))


def test_pretrained_weights_without_a_network_fail_before_timm_asks(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm asked, which takes a minute"))
    told = r"encoder: no pretrained weights for timm:resnet18 \(.+\); try timm:resnet18@FILE, or timm:resnet18@random"
    with pytest.raises(UserError, match=told):
        load_encoder("timm:resnet18")


@pytest.mark.parametrize("listed", [False, True])
def test_without_a_network_the_weights_that_timm_has_cached_are_enough(
    listed: bool, tmp_path: Path, monkeypatch
) -> None:
    """The Hub's cache as timm fills it, and as ``snapshot_download`` of one file does, with a list of all files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name, commit = "test_vit", "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    stored = timm.create_model(name).state_dict()
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True)
    save_file(stored, repo / "blobs" / "weights")
    (repo / "snapshots" / commit / "model.safetensors").symlink_to("../../blobs/weights")
    (repo / "refs" / "main").write_text(commit)
    if listed:
        files = {name: {"size": 1, "blob_id": "a"} for name in ("config.json", "model.safetensors")}
        (repo / "trees").mkdir()
        (repo / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    weights = load_encoder(f"timm:{name}").weights
    assert weights is not None
    assert all(torch.equal(value, stored[key.removeprefix("trunk.")]) for key, value in weights.items())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_a_diverged_training_left_are_rejected(broken: float, tmp_path: Path) -> None:
    """From every source, as by import: with them, answers and scores are those of noise."""
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    trunk["norm.weight"][3] = broken
    save_file(trunk, tmp_path / "trunk.safetensors")
    vision = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    model = transformers.CLIPVisionModel(vision)
    with torch.no_grad():
        next(model.parameters())[0] = broken
    model.save_pretrained(tmp_path / "clip")
    transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8).save_pretrained(tmp_path / "clip")
    for spec in (f"timm:vit_tiny_patch16_224@{tmp_path / 'trunk.safetensors'}", f"transformers:{tmp_path / 'clip'}"):
        with pytest.raises(UserError, match=r"^encoder: .*: expected finite weights, got NaN or infinity in "):
            load_encoder(spec)


@pytest.mark.parametrize("name", SPECS)
def test_another_image_size(name: str, specs: dict[str, str]) -> None:
    size = 128 if name in SIDES else 64
    if name in ONE_SIZE:
        with pytest.raises(UserError, match=r"image_size: .* is no ViT"):
            load_encoder(specs[name], size)
        return
    model = build_vision_model(load_encoder(specs[name], size))
    grid = model.config.image_size // model.config.patch_size
    assert (model.config.image_size, states(model, pixels(name, size))[-1].shape[1]) == (
        size,
        grid**2 + int(model.config.class_token),
    )
    if name in (*RESIZED, *RESIZING):
        options = {"interpolate_pos_encoding": True} if name in RESIZED else {}
        expected = theirs(name, specs[name], pixels(name, size), **options)
        for one, other in zip(states(model, pixels(name, size)), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    if name not in SIDES:
        step = 16 if name in QWENS else 8
        with pytest.raises(
            UserError, match=rf"image_size: expected a multiple of {step}, the patch size of .*, got 60"
        ):
            load_encoder(specs[name], 60)


@pytest.mark.parametrize("name", quick_of(CONFIGS, "clip", "dinov3"))
def test_a_llava_with_a_tower_of_transformers_is_transformers_own(name, specs, bridge_llm, tmp_path):
    model, processor = build_llava(LlavaParts(encoder=specs[name], llm=str(bridge_llm), vision_feature_layer=-2))
    (picture,) = bridge_world.noise((50, 40))
    expected = answer(model, processor, [picture], ["What?"], max_new_tokens=5)
    assert convert_tower_to_transformers(model) is (name in STOCK)
    assert answer(model, processor, [picture], ["What?"], max_new_tokens=5) == expected
    again, processor = load_llava(bridge_world.save(tmp_path, model, processor))
    assert answer(again, processor, [picture], ["What?"], max_new_tokens=5) == expected


def test_complete_clip_models_and_unfit_models(specs: dict[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=SMALL))
    save(whole, tmp_path / "whole")
    model = build_vision_model(load_encoder(f"transformers:{tmp_path / 'whole'}"))
    expected = whole.vision_model(pixels("clip"), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states(model, pixels("clip"))[-2], expected[-2].detach(), atol=1e-5, rtol=0)
    transformers.ResNetConfig().save_pretrained(tmp_path / "resnet")
    with pytest.raises(UserError, match="is a resnet; expected one of clip_vision_model"):
        load_encoder(f"transformers:{tmp_path / 'resnet'}")
    with pytest.raises(UserError, match=r"nothing is not a directory \(expected one, or ORG/NAME on the Hub"):
        load_encoder(f"transformers:{tmp_path / 'nothing'}")
    (tmp_path / "whole" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"expected a preprocessor_config\.json that states how"):
        load_encoder(f"transformers:{tmp_path / 'whole'}")


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_an_image_size_that_is_no_multiple_of_the_patch(kind: str, bridge_llm: Path, tmp_path: Path) -> None:
    """As that of SigLIP so400m-patch14-384, whose last 6 pixels belong to no patch; another size must be a multiple."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    small |= {"image_size": 30, "patch_size": 8}
    torch.manual_seed(0)
    stock: Any
    if kind == "siglip":
        stock = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**small)).eval()
        transformers.SiglipImageProcessor(size={"height": 30, "width": 30}).save_pretrained(tmp_path / "own")
    else:
        stock = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**small)).eval()
        square = {"height": 30, "width": 30}
        transformers.CLIPImageProcessor(size=square, crop_size=square).save_pretrained(tmp_path / "own")
    stock.save_pretrained(tmp_path / "own")
    reference = f"transformers:{tmp_path / 'own'}"
    pixels = torch.randn(2, 3, 30, 30)
    with torch.no_grad():
        expected = stock(pixels, output_hidden_states=True).hidden_states
        for layer in (-1, -2):
            found = build_vision_model(load_encoder(reference), layer)(pixels, output_hidden_states=[layer])
            torch.testing.assert_close(found.hidden_states[layer], expected[layer])
    model, processor = build_llava(LlavaParts(encoder=reference, llm=str(bridge_llm)))
    assert model.config.image_seq_length == 9
    image = bridge_world.noise((40, 50))[0]
    logits = bridge_world.logits(model, processor, image, "What?")
    assert convert_tower_to_transformers(model)
    again, own = load_llava(bridge_world.save(tmp_path / "llava", model, processor), device="cpu")
    torch.testing.assert_close(bridge_world.logits(again, own, image, "What?"), logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="image_size: expected a multiple of 8"):
        load_encoder(reference, 44)
