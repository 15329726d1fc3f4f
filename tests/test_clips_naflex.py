"""Images at their own aspect ratio in the training of encoders: against timm, each image alone, and to the end."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import clips_world
import naflex_world
import numpy as np
import pytest
import test_clips_distributed as distributed
import torch
from clips_world import is_equal, metrics, stopped_at, trained
from naflex_world import BUDGET, MEAN, PATCH, SHAPES, STD
from PIL import Image
from torch.utils.data import default_collate

from clips.core.patches import PatchBudget, is_packed, normalize, patch_mask, trim_padding, unpack
from clips.data import augment as augmenting
from clips.data.augment import augment, read_crop
from clips.data.data_config import AugmentConfig
from clips.data.loader import iterate_batches, shared_memory
from clips.encoder import load_encoder
from clips.errors import UserError
from clips.method.clips_model import ClipsModel, build_model
from clips.method.recipes import RECIPES, RecipeConfig
from clips.model.architectures import CaptionerConfig, ModelConfig
from clips.model.captioner import sample_tokens
from clips.model.tokenizer import ClipsTokenizer
from clips.model.towers import patch_token_batches
from clips.train import train
from clips.training import validation
from clips.training.setup import open_train_dataset

SIZE = PatchBudget(PATCH, BUDGET)
WHOLE = AugmentConfig(crop_scale_min=1.0)
CAPTIONER = CaptionerConfig(max_length=12, num_layers=2, width=32)
IMAGES = [naflex_world.draw_image(index) for index in range(len(SHAPES))]


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(naflex_world.write_config(tmp_path_factory.mktemp("naflex") / "small.json"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "train"
    for shard in range(3):
        samples = {
            f"{n:09d}": {"png": naflex_world.draw_image(n), "json": json.dumps(clips_world.captions(n)).encode()}
            for n in range(shard * 7, shard * 7 + 7)
        }
        clips_world.write_shard(folder / f"shard-{shard:05d}.tar", samples)
    return folder


def fields(architecture: str, data: Path, **more: Any) -> dict[str, Any]:
    model = {"architecture": architecture, "context_length": 12, "max_num_patches": BUDGET}
    validation = {"eval_steps": 3, "num_samples": 5, "source": {"path": str(data)}}
    return {"model": model, "validation": validation, **more}


@pytest.fixture(scope="module")
def encoder(architecture: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data, tmp_path_factory.mktemp("runs") / "whole", **fields(architecture, data))


# Views ------------------------------------------------------------------------------------------------------------


def test_the_full_image_has_the_patches_of_siglip_2(architecture: str) -> None:
    import transformers

    theirs = transformers.Siglip2ImageProcessor(
        patch_size=PATCH, max_num_patches=BUDGET, image_mean=MEAN, image_std=STD
    )
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    for content in IMAGES:
        packed = augment(opened(content), SIZE, WHOLE, np.random.default_rng(0))
        assert packed.dtype == torch.uint8
        own = unpack(normalize(packed[None], mean, std))
        expected = theirs(opened(content), return_tensors="pt")
        assert own.grids.tolist() == expected["spatial_shapes"].tolist()
        real = own.valid[0]
        assert real.tolist() == expected["pixel_attention_mask"][0].bool().tolist()
        torch.testing.assert_close(
            own.values[0, real], expected["pixel_values"][0, real], atol=2.1 / 255 / min(STD), rtol=0
        )


def test_crops_keep_the_aspect_ratio_and_fill_the_budget() -> None:
    config = AugmentConfig(crop_scale_min=0.2, horizontal_flip=True, color_jitter=0.4, gray_scale_prob=0.2)
    for content, (width, height) in zip(IMAGES, SHAPES, strict=True):
        for seed in range(10):
            box = augmenting._random_box(
                width, height, 0.2, np.random.default_rng(seed), augmenting._aspects(SIZE, width, height)
            )
            assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(width / height)
            rows, columns = (
                unpack(read_crop(content, SIZE, config, np.random.default_rng(seed))[None]).grids[0].tolist()
            )
            assert abs(math.log(columns / rows * height / width)) < math.log(2)  # of 2 rows, each is a half
            assert 16 <= rows * columns <= BUDGET


def test_a_mirrored_crop_is_mirrored_in_pixels_not_in_patches() -> None:
    image = opened(IMAGES[3])
    flip = dataclasses.replace(WHOLE, horizontal_flip=True)
    plain, mirrored = (augment(one, SIZE, WHOLE, np.random.default_rng(0)) for one in (image, image.transpose(0)))
    found = [augment(image, SIZE, flip, np.random.default_rng(seed)) for seed in range(8)]
    assert {
        next(i for i, one in enumerate((plain, mirrored)) if (one.int() - crop.int()).abs().max() < 3) for crop in found
    } == {0, 1}


def test_most_patches_of_photos_are_real(pytestconfig: Any) -> None:
    rng = np.random.default_rng(0)
    sizes = [(640, 480), (480, 640), (500, 375), (640, 427), (427, 640), (500, 333), (612, 612), (640, 360)]
    sizes += [(int(600 * ratio), 600) for ratio in np.exp(rng.uniform(-1.1, 1.1, 56))]
    for budget in (196, 256, 576, 1024):
        grids = torch.tensor([PatchBudget(16, budget).resized(height, width) for width, height in sizes]) // 16
        assert patch_mask(grids, int(grids.prod(dim=1).max())).float().mean() >= 0.95


# Towers and recipes -----------------------------------------------------------------------------------------------


def built(architecture: str, recipe: str, **more: Any) -> ClipsModel:
    config = ModelConfig(architecture=architecture, context_length=12, max_num_patches=BUDGET, **more)
    model = build_model(config, RecipeConfig(name=recipe, captioner=CAPTIONER), 0)
    torch.manual_seed(1)
    for value in model.clip.visual.parameters():  # positions and prefix tokens are too small to matter
        torch.nn.init.normal_(value, std=0.2) if value.requires_grad else None
    return model.eval()


def batch_of(model: ClipsModel) -> dict[str, torch.Tensor]:
    rng, tokenizer = np.random.default_rng(0), ClipsTokenizer(12)
    texts = [clips_world.captions(index) for index in range(len(IMAGES))]
    rows = [model.recipe.prepare(one["web_caption"], one["synthetic_caption"], rng, tokenizer) for one in texts]
    packed = torch.stack([augment(opened(content), SIZE, WHOLE, rng) for content in IMAGES])
    mean, std = (torch.tensor(model.preprocess_cfg[name]) for name in ("mean", "std"))
    return default_collate(rows) | {"image": normalize(packed, mean, std)}


@torch.no_grad()
@pytest.mark.parametrize("recipe", RECIPES)
def test_padding_changes_nothing_in_any_recipe(architecture: str, recipe: str) -> None:
    model = built(architecture, recipe)
    batch = batch_of(model)
    together = model(batch)
    alone = []
    for row in range(len(IMAGES)):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        alone.append(model(one | {"image": trim_padding(one["image"])}))
    for name, value in together.items():
        parts = [outputs[name] for outputs in alone]
        if name.startswith("caption_"):
            torch.testing.assert_close(value, sum(parts), atol=0, rtol=1e-5)
        elif value.ndim:
            torch.testing.assert_close(value, torch.cat(parts), atol=1e-5, rtol=0)
    dirty = batch["image"].clone()
    dirty[:, 0, 1:][~unpack(dirty).valid] = 9.0
    for name, value in model(batch | {"image": dirty}).items():
        torch.testing.assert_close(value, together[name], atol=1e-5, rtol=1e-5)


def test_a_sample_of_tokens_has_no_padding_and_does_not_depend_on_it() -> None:
    seeds, counts = torch.tensor([5, 7, 9]), torch.tensor([[180], [9], [1]])  # 0.35 * 180 is below 63
    tokens, valid = torch.arange(200.0).expand(3, 200)[..., None], torch.arange(200) < counts
    found, drawn = sample_tokens(tokens, seeds, 0.35, valid)
    assert drawn is not None
    assert drawn.sum(dim=1).tolist() == [62, 3, 1]
    for row, count in enumerate(counts[:, 0].tolist()):
        alone, _ = sample_tokens(tokens[row : row + 1, :count], seeds[row : row + 1], 0.35)
        assert found[row, drawn[row]].tolist() == alone[0].tolist()


# Runs -------------------------------------------------------------------------------------------------------------


def test_a_run_states_its_ratio_of_real_patches_and_learns(encoder: Path) -> None:
    found = metrics(encoder)
    assert all(0.85 < entry["real_patches"] <= 1 for entry in found)
    assert "val_web_i2t_r1" in found[-1]
    config = json.loads((encoder / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["max_num_patches"] == BUDGET
    assert config["preprocess_cfg"]["size"] == [4 * PATCH, 4 * PATCH]  # of the square, for other tools
    assert f"own aspect ratio, at most {BUDGET} patches" in (encoder / "README.md").read_text()


@torch.no_grad()
def test_the_directory_has_timms_features_of_each_image_alone(encoder: Path) -> None:
    loaded = load_encoder(encoder)
    packed = torch.stack([loaded.preprocess(opened(content)) for content in IMAGES])
    features = loaded.model.encode_image(packed)
    gray = opened(IMAGES[0]).convert("L")
    assert torch.equal(loaded.preprocess(gray), loaded.preprocess(gray.convert("RGB")))
    trunk, head = loaded.model.visual.trunk, loaded.model.visual.head
    for row, patches in enumerate(packed):
        rows, columns = unpack(patches[None]).grids[0].tolist()
        cells = unpack(patches[None]).values[0, : rows * columns].unflatten(1, (PATCH, PATCH, 3))
        image = cells.unflatten(0, (rows, columns)).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2)
        torch.testing.assert_close(features[row], head(trunk(image[None]))[0], atol=1e-5, rtol=0)


def test_retrieval_reads_the_own_aspect_ratio(encoder: Path) -> None:
    from benchmarks.tasks.encoders.embedding import embed_images, load_dual_encoder

    dual = load_dual_encoder(str(encoder), "cpu", "auto")
    assert dual.preprocessing["input_resize"] == f"own aspect ratio, at most {BUDGET} patches"
    images = [opened(content) for content in IMAGES]
    found = embed_images(dual, images.__getitem__, [str(size) for size in SHAPES], batch_size=4)
    squashed = embed_images(dual, lambda index: images[index].resize((40, 40)), [str(size) for size in SHAPES], 4)
    with torch.no_grad():
        own = torch.cat([dual.model.encode_image(trim_padding(dual.preprocess(image)[None])) for image in images])
    torch.testing.assert_close(found, torch.nn.functional.normalize(own, dim=-1), atol=1e-5, rtol=0)
    assert (found - squashed).abs().max() > 1e-3


@torch.no_grad()
def test_a_llava_reads_it_with_its_own_budget(encoder: Path, bridge_long_llm: Path) -> None:
    from llava_bridge.model.build import LlavaParts, build_llava

    model, processor = build_llava(
        LlavaParts(encoder=str(encoder), llm=str(bridge_long_llm), image_aspect_ratio="native", vision_feature_layer=-1)
    )
    assert processor.image_processor.max_num_patches == BUDGET
    loaded = load_encoder(encoder)
    images = [opened(content) for content in IMAGES]
    states = model.model.vision_tower(**processor.image_processor(images, return_tensors="pt")).last_hidden_state[0]
    trunk = loaded.model.visual.trunk
    packed = unpack(torch.stack([loaded.preprocess(image) for image in images]))
    own = trunk.forward_features(**packed.naflex_inputs())["patches"][:, trunk.num_prefix_tokens :]
    torch.testing.assert_close(states, own[packed.valid], atol=1e-5, rtol=0)


def test_an_image_tower_without_texts(architecture: str, data: Path, tmp_path: Path) -> None:
    from clips.caption import CaptionConfig, run_caption

    settings = {**fields(architecture, data, validation={}), "max_steps": 1}
    recipe = {"name": "caption_only", "captioner": {"max_length": 12, "num_layers": 1, "width": 32}}
    output = trained(data, tmp_path / "tower", **{**settings, "recipe": recipe})
    loaded = load_encoder(output)
    packed = torch.stack([loaded.preprocess(opened(content)) for content in IMAGES])
    with torch.no_grad():
        features = loaded.model.encode_image(packed)
        alone = torch.cat([loaded.model.encode_image(trim_padding(one[None])) for one in packed])
        for rows, tokens in patch_token_batches(loaded.model, packed):
            torch.testing.assert_close(tokens.mean(dim=1), features[rows], atol=1e-5, rtol=0)
    torch.testing.assert_close(features, alone, atol=1e-5, rtol=0)
    (tmp_path / "image.png").write_bytes(IMAGES[3])
    run_caption(CaptionConfig(image=str(tmp_path / "image.png"), encoder=str(output)))


def test_workers_read_what_one_thread_reads(architecture: str, data: Path, tmp_path: Path) -> None:
    batches = []
    for workers in (0, 2):
        config = clips_world.train_config(data, tmp_path / f"{workers}", **fields(architecture, data))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=workers))
        opened_data = open_train_dataset(config)
        batches.append([batch["image"].clone() for batch in iterate_batches(opened_data, first_step=0, last_step=3)])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one, other)
        assert one.shape[2] == 1 + int(unpack(one).grids.prod(dim=1).max())
    assert shared_memory(2, 4, SIZE) == 7 * 4 * (1 + BUDGET) * PATCH * PATCH * 3


def test_a_stopped_run_resumes_exactly(architecture: str, data: Path, encoder: Path, tmp_path: Path) -> None:
    config = clips_world.train_config(data, tmp_path / "run", **fields(architecture, data))
    with stopped_at(4):
        train(config)
    train(config)
    assert is_equal(tmp_path / "run", encoder)


def test_micro_batches_train_and_validate_the_same(
    architecture: str, data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out: list[torch.Tensor] = []
    monkeypatch.setattr(validation, "trim_padding", lambda images: held_out.append(images) or trim_padding(images))
    trained(data, tmp_path / "parts", **fields(architecture, data, micro_batch_size=1))
    distributed.assert_same_training(tmp_path / "parts", encoder)
    assert held_out
    assert all(is_packed(images) for images in held_out)


@pytest.mark.slow
def test_two_processes_train_the_same(architecture: str, data: Path, encoder: Path, tmp_path: Path) -> None:
    fsdp = {"strategy": "fsdp", "activation_checkpointing": True}
    plan: list[dict[str, Any]] = []
    for name, way in {"ddp": {}, "fsdp": {"distributed": fsdp}}.items():
        clips_world.train_config(data, tmp_path / name, **fields(architecture, data, **way))
        plan.append({"config": str(tmp_path / f"{name}.json"), "stop": None})
    distributed.drive(tmp_path, plan)
    for name in ("ddp", "fsdp"):
        assert distributed.processes_of(tmp_path / name) == 2
        distributed.assert_same_training(tmp_path / name, encoder)


def test_a_later_stage_may_have_another_budget(architecture: str, data: Path, tmp_path: Path) -> None:
    stages = [{"max_steps": 2}, {"max_steps": 1, "model.max_num_patches": 48}]
    trained(data, tmp_path / "staged", **fields(architecture, data, stages=stages))
    assert load_encoder(tmp_path / "staged").config["preprocess_cfg"]["max_num_patches"] == 48


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"architecture": "clips-tiny"},
            r"model\.max_num_patches: expected an architecture whose image tower is timm's",
        ),
        ({"max_num_patches": 0}, r"model\.max_num_patches: expected 1 or more, below 65536, got 0"),
        ({"image_size": 64}, r"model\.image_size: expected none with model\.max_num_patches"),
        ({"patch_dropout": 0.5}, r"model\.patch_dropout: expected none with model\.max_num_patches"),
        (
            {"lock_image": True, "cache_trunk_features": True},
            r"model\.cache_trunk_features: expected none with model\.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_rejected(architecture: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        build_model(ModelConfig(**{"architecture": architecture, "max_num_patches": BUDGET, **more}), RecipeConfig(), 0)


@torch.no_grad()
def test_timms_own_loader_and_model_give_the_features_of_an_exported_tower(encoder: Path, tmp_path: Path) -> None:
    import timm

    from clips.interchange.exporting import export_encoder

    export_encoder(encoder, str(tmp_path / "tower"), format="timm")
    tower = timm.create_model(f"local-dir:{tmp_path / 'tower'}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(tower)
    assert (tuple(settings["mean"]), tuple(settings["std"])) == (MEAN, STD)
    loaded = load_encoder(encoder)
    for content in IMAGES:
        packed = loaded.preprocess(opened(content))[None]
        patches = unpack(packed)
        torch.testing.assert_close(tower(patches.naflex_inputs()), loaded.model.encode_image(packed), atol=1e-5, rtol=0)
        budget = {"patch_size": (PATCH, PATCH), "max_seq_len": BUDGET}
        theirs = timm.data.create_transform(**settings, **budget, naflex=True, patchify=True)(opened(content))
        assert torch.equal(theirs["patch_coord"], patches.naflex_inputs()["patch_coord"][0, patches.valid[0]])
        level = 1.01 / 255 / min(STD)  # timm rounds the resized image to 8 bits
        torch.testing.assert_close(theirs["patches"], patches.values[0, patches.valid[0]], atol=level, rtol=0)
    card = (tmp_path / "tower" / "README.md").read_text()
    names = {"image": opened(IMAGES[3])}  # six times as wide as high
    exec(card.split("```python\n")[1].split("```")[0].replace("DIRECTORY", str(tmp_path / "tower")), names)
    own = loaded.model.encode_image(loaded.preprocess(opened(IMAGES[3]))[None])
    torch.testing.assert_close(names["features"], own, atol=0.02, rtol=0)
    pairs = [(names["preprocess"](opened(content)), 0) for content in IMAGES]
    batch, _ = timm.data.naflex_dataset.NaFlexCollator(names["budget"]["max_seq_len"])(pairs)
    torch.testing.assert_close(tower(batch)[3:4], names["features"], atol=1e-5, rtol=0)


def test_other_formats_and_patch_maps_are_rejected(encoder: Path, tmp_path: Path) -> None:
    from benchmarks.tasks.encoders.patch_embeddings import patch_embeddings
    from clips.interchange.exporting import export_encoder

    with pytest.raises(UserError, match="hf_dual has no images at their own aspect ratio; timm has"):
        export_encoder(encoder, str(tmp_path / "out"), format="hf_dual")
    loaded = load_encoder(encoder)
    with pytest.raises(UserError, match="no patch embeddings for images at their own aspect ratio"):
        patch_embeddings(loaded.model, loaded.preprocess(opened(IMAGES[0]))[None])
