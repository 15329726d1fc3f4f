"""Images at their own aspect ratio: towers against transformers and timm, LLaVAs against transformers' own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
import transformers

from clips.core.patches import patch_mask, to_patches
from clips.errors import UserError
from llava_bridge import answer, load_llava, loglikelihoods
from llava_bridge.conversion.swap_encoder import SwapConfig, run_swap
from llava_bridge.data import read_samples
from llava_bridge.data.collator import ConversationCollator, ConversationDataset
from llava_bridge.data.inspect_command import InspectConversationsConfig, run_inspect
from llava_bridge.encoders.encoder import hidden_state
from llava_bridge.encoders.timm_source import TimmNaFlexVit
from llava_bridge.model.anyres import num_image_tokens
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.model.load_llava import load_for_training
from llava_bridge.planning.model_sizes import llm_size, vision_size
from llava_bridge.planning.plan import llava_cost, sizes_of
from llava_bridge.projectors import PROJECTORS, ProjectorConfig
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import setup_stage
from llava_bridge.training.stage_config import StageConfig
from llava_bridge.training.train_config import LlavaTrainConfig

BUDGET = 24
SIZES = (*bridge_world.SHAPES, (97, 33), (1, 400), (400, 1), (30, 300))
COUNTS = [24, 24, 16, 24]
"""Tokens of the album's images: 4 × 6, 6 × 4, 4 × 4 and 2 × 12 patches."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bridge_world.make_naflex(tmp_path_factory.mktemp("native") / "encoder")


@pytest.fixture(scope="module")
def llm(bridge_long_llm: Path) -> str:
    return str(bridge_long_llm)


def native(tower: Path, llm: str, **fields: Any) -> LlavaParts:
    usual = {"encoder": f"transformers:{tower}", "llm": llm, "max_num_patches": BUDGET, "seed": 3}
    return LlavaParts(**{**usual, "image_aspect_ratio": "native", **fields})


@pytest.fixture(scope="module")
def llava(encoder: Path, llm: str) -> tuple[Any, Any]:
    model, processor = build_llava(native(encoder, llm))
    for part in (model.model.language_model, model.model.multi_modal_projector):
        bridge_world.widen(part, 0.2)
    return model, processor


@pytest.fixture(scope="module")
def saved(llava: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bridge_world.save(tmp_path_factory.mktemp("native") / "llava", *llava)


@torch.no_grad()
def test_features_are_those_of_transformers_for_each_image_alone(encoder: Path, llava: tuple[Any, Any]) -> None:
    model, processor = llava
    images = bridge_world.noise(*SIZES)
    theirs = transformers.Siglip2VisionModel.from_pretrained(encoder).eval()
    prepare = transformers.AutoImageProcessor.from_pretrained(encoder, max_num_patches=BUDGET)
    made = processor.image_processor(images, return_tensors="pt")
    found = model.get_image_features(**made).pooler_output
    for image, features in zip(images, found, strict=True):
        own = prepare(image, return_tensors="pt")
        real = int(own["pixel_attention_mask"].sum())
        states = theirs(**own, output_hidden_states=True).hidden_states[-2][:, :real]
        expected = model.model.multi_modal_projector(states)[0]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    for layer in range(4):
        tower = model.model.vision_tower
        states = tower(**made, output_hidden_states=layer).hidden_states[layer]
        alone = [
            theirs(**own, output_hidden_states=True).hidden_states[layer][0, : int(own["pixel_attention_mask"].sum())]
            for own in (prepare(image, return_tensors="pt") for image in images)
        ]
        torch.testing.assert_close(states, torch.cat(alone)[None], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("prefix", [{}, {"class_token": True, "reg_tokens": 2}, {"rope_type": "axial"}])
def test_features_are_those_of_timm_for_each_image_alone(prefix: dict[str, Any]) -> None:
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    torch.manual_seed(0)
    small = NaFlexVitCfg(embed_dim=32, depth=3, num_heads=2, patch_size=8, pos_embed_grid_size=(4, 4), **prefix)
    trunk = bridge_world.widen(NaFlexVit(small, num_classes=0), 0.1).eval()
    tower = TimmNaFlexVit(trunk)
    images = [torch.randn(1, 3, height, width) for height, width in ((32, 48), (16, 96), (32, 32), (8, 8))]
    grids = torch.tensor([[image.shape[2] // 8, image.shape[3] // 8] for image in images])
    patches = [to_patches(image, 8)[0] for image in images]
    batch = torch.nn.utils.rnn.pad_sequence(patches, batch_first=True)
    real = patch_mask(grids, batch.shape[1])
    states = list(tower.patch_states(batch, grids, tower.depth))
    squares = list(tower.states(images[2], tower.depth))
    assert len(states) == len(squares) == 4
    for row, image in enumerate(images):
        last, between = trunk.forward_intermediates(image, output_fmt="NLC")  # timm's own patches of one image
        expected = [*between[:-1], last[:, trunk.num_prefix_tokens :]]
        for state, wanted in zip(states[1:], expected, strict=True):
            torch.testing.assert_close(state[row][real[row]], wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden_state(tower, images[2], -1)[0], states[-1][2][real[2]], atol=1e-5, rtol=0)


def test_an_image_has_as_many_tokens_as_patches(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    images = bridge_world.noise(*SIZES)
    made = processor.image_processor(images, return_tensors="pt")
    features = model.get_image_features(**made).pooler_output
    counted = [num_image_tokens(processor, image) for image in images]
    assert [len(one) for one in features] == counted
    assert counted[:4] == COUNTS
    assert max(counted) <= BUDGET
    assert made["pixel_values"].shape == (len(SIZES), max(counted), 8 * 8 * 3)  # not the budget
    assert processor.image_processor([images[2]], return_tensors="pt")["pixel_values"].shape == (1, 16, 192)
    assert make_conversation_encoder(model, processor).num_image_tokens(images) == counted
    for image, count in zip(images, counted, strict=True):  # transformers' own way
        inputs = processor(images=image, text="<image>\nWhat?", return_tensors="pt")
        assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == count


def test_at_the_budget_of_siglip_2_95_percent_of_a_tower_s_patches_are_real() -> None:
    from llava_bridge.model.native_processing import NativeImageProcessor

    photos = [(640, 480), (480, 640), (640, 427), (500, 375), (612, 612), (640, 360), (1240, 1754), (1920, 1080)]
    made = NativeImageProcessor()(bridge_world.noise(*photos), return_tensors="pt")
    patches = made["pixel_values"].shape[0] * made["pixel_values"].shape[1]
    assert (made["image_sizes"] // 16).prod(dim=1).sum() >= 0.95 * patches


def test_the_loss_and_its_gradients_are_those_of_transformers(llava: tuple[Any, Any], bridge_album: Path) -> None:
    """Samples of one image, two, none; images of several shapes."""
    model, processor = llava
    (source,) = bridge_world.source(bridge_album)
    data = ConversationDataset(read_samples(source), make_conversation_encoder(model, processor), 400)
    collator = ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id)
    batch = collator([data[index] for index in range(7)])
    batch.pop("invalid_samples")
    assert batch["image_sizes"] == [[32, 48], [48, 32], [32, 32], [16, 96], [32, 48], [32, 32]]
    assert int((batch["input_ids"] == model.config.image_token_index).sum()) == sum(COUNTS) + 24 + 16
    model.requires_grad_(True)
    found = []
    for loss in (LlavaLoss(model)(**batch)["loss"], model(**batch).loss):
        loss.backward()
        own = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        found.append({"loss": loss.detach(), **own})
        model.zero_grad()
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    assert any("vision_tower" in name and value.any() for name, value in ours.items())
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4, msg=name)
    model.requires_grad_(False)


def test_a_directory_answers_as_the_model_and_each_question_as_alone(llava: tuple[Any, Any], saved: Path) -> None:
    model, processor = load_llava(saved, device="cpu")
    images: list[Any] = bridge_world.noise(*bridge_world.SHAPES)
    wanted = bridge_world.logits(*llava, images[0])
    torch.testing.assert_close(bridge_world.logits(model, processor, images[0]), wanted)
    assert not torch.allclose(bridge_world.logits(model, processor, images[1]), wanted[:, -1:], atol=1e-3)
    again, own = load_for_training(str(saved), "auto")
    torch.testing.assert_close(bridge_world.logits(again, own, images[0]), wanted)
    assert own.image_processor.max_num_patches == BUDGET
    asked, prompts = [*images, None, images[:2], images[0]], ["What?"] * 6 + ["Why?"]
    together = answer(model, processor, asked, prompts, max_new_tokens=5, batch_size=7)
    alone = [
        answer(model, processor, [one], [prompt], max_new_tokens=5)[0]
        for one, prompt in zip(asked, prompts, strict=True)
    ]
    assert together == alone
    scores = loglikelihoods(model, processor, asked, prompts, ["red"] * 7, batch_size=7)
    first = loglikelihoods(model, processor, asked[:1], prompts[:1], ["red"])[0]
    assert scores[0].total == pytest.approx(first.total, abs=1e-4)


@pytest.mark.parametrize("first", ["llava_bridge", "transformers"])
def test_transformers_finds_the_processor_by_name(first: str, saved: Path) -> None:
    second = {"llava_bridge": "transformers", "transformers": "llava_bridge"}[first]
    early = "transformers.AutoProcessor" if first == "transformers" else "None"
    code = f"""
import {first}
{early}
import {second}
processor = transformers.AutoProcessor.from_pretrained({str(saved)!r})
print(type(processor).__name__, type(processor.image_processor).__name__, processor.image_processor.max_num_patches)
model = transformers.AutoModelForImageTextToText.from_pretrained({str(saved)!r})
print(type(model).__name__)
"""
    assert bridge_world.python(code) == [
        f"NativeLlavaProcessor NativeImageProcessor {BUDGET}",
        "LlavaForConditionalGeneration",
    ]


def test_the_budget_of_an_encoder_is_its_own_square(encoder: Path, llm: str) -> None:
    model, processor = build_llava(native(encoder, llm, max_num_patches=None))
    assert processor.image_processor.max_num_patches == model.config.image_seq_length == 16
    linear, _ = build_llava(native(encoder, llm, projector=ProjectorConfig(type="linear")))
    assert linear.config.image_seq_length == BUDGET


def test_incompatible_parts_are_rejected(
    encoder: Path, llm: str, bridge_encoder: Path, bridge_talk: Path, saved: Path, tmp_path: Path
) -> None:
    for other in (str(bridge_encoder), f"several:transformers:{encoder} + transformers:{encoder}"):
        with pytest.raises(UserError, match=r"^encoder: expected one for any aspect ratio with image_aspect_ratio nat"):
            build_llava(native(encoder, llm, encoder=other))
    for name in PROJECTORS.keys() - {"mlp2x_gelu", "linear"}:
        with pytest.raises(UserError, match=rf"^projector\.type: expected mlpNx_gelu or linear with .*, got {name}"):
            build_llava(native(encoder, llm, projector=ProjectorConfig(type=name, num_tokens=4)))
    data = bridge_world.source(bridge_talk)

    def config(align: dict[str, Any] | None = None, **fields: Any) -> LlavaTrainConfig:
        stages = {"align": StageConfig(data=data, **(align or {})), "instruct": StageConfig(data=data)}
        usual: dict[str, Any] = {"output": "x", "encoder": "timm:x", "llm": "x", "image_aspect_ratio": "native"}
        return LlavaTrainConfig(**{**usual, **stages, **fields})

    config(max_num_patches=1024)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"align": {"cache_vision_features": True}}, r"align\.cache_vision_features: expected false with image_aspect"),
        ({"align": {"image_aspect_ratio": "squash"}}, r"align\.image_aspect_ratio: expected null, since all stages"),
        ({"image_size": 384}, "image_size: expected none with image_aspect_ratio native, .* got 384"),
        ({"max_num_patches": 0}, "max_num_patches: expected 1 or more, got 0"),
        ({"max_num_patches": 64, "image_aspect_ratio": "pad"}, "max_num_patches: expected none without .* native, got"),
        ({"projector": ProjectorConfig(type="pool")}, r"projector\.type: expected mlpNx_gelu or linear .* got pool"),
        ({"encoder": None, "llm": None, "llava": "x"}, "image_aspect_ratio: expected none with llava, which has its"),
    ]
    for fields, message in wrong:
        with pytest.raises(UserError, match=f"^{message}"):
            config(**fields)
    further: dict[str, Any] = {"encoder": None, "llm": None, "llava": str(saved), "image_aspect_ratio": "squash"}
    with pytest.raises(UserError, match=r"^align\.cache_vision_features: expected false with .* native, which .*llava"):
        setup_stage(config({"cache_vision_features": True}, **further), "align", tmp_path)
    with pytest.raises(UserError, match=r"^align\.image_aspect_ratio: expected null, since .* keeps the images"):
        setup_stage(config({"image_aspect_ratio": "pad"}, **further), "align", tmp_path)


def test_swaps(saved: Path, encoder: Path, bridge_llava: Path, tmp_path: Path) -> None:
    swap: dict[str, Any] = {"llava": str(bridge_llava), "encoder": f"transformers:{encoder}"}
    swap |= {"image_aspect_ratio": "native", "max_num_patches": BUDGET, "output": str(tmp_path / "swapped")}
    run_swap(SwapConfig(**swap))
    model, processor = load_llava(tmp_path / "swapped", device="cpu")
    assert len(answer(model, processor, bridge_world.noise((50, 30)), ["What?"], max_new_tokens=2)) == 1
    with pytest.raises(UserError, match=r"^max_num_patches: expected none without image_aspect_ratio native"):
        SwapConfig(**{**swap, "image_aspect_ratio": "squash"})


def test_results_state_the_budget(saved: Path) -> None:
    from benchmarks.tasks.mllm.llava_input import input_settings

    stated = input_settings(load_llava(saved, device="cpu")[1])
    assert stated["input_resize"] == f"own aspect ratio, at most {BUDGET} patches"
    assert (stated["input_resolution"], stated["input_interpolation"]) == (32, "bilinear")


def test_a_benchmark_reads_images_of_all_shapes(places: Path, saved: Path, tmp_path: Path) -> None:
    import bench_world

    from benchmarks.results.results import read_items
    from benchmarks.tasks.run_config import BenchmarkConfig

    pope = BenchmarkConfig(name="pope", data=str(places / "hub"), max_new_tokens=4, limit=4)
    alone, together = (bench_world.measure(tmp_path / str(size), pope, llava=saved, batch_size=size) for size in (1, 4))
    assert read_items(alone)["prediction"].tolist() == read_items(together)["prediction"].tolist()
    assert together.protocol["input_resize"] == f"own aspect ratio, at most {BUDGET} patches"


def test_inspection_counts_the_tokens_of_each_image(llm: str, bridge_album: Path, capsys: Any) -> None:
    fields: dict[str, Any] = {"path": str(bridge_album / "talk.json"), "llm": llm, "max_length": 400}
    run_inspect(InspectConversationsConfig(**fields, image_tokens=BUDGET, image_aspect_ratio="native", num_shown=7))
    counted = list(map(int, re.findall(r"<image> × (\d+)", capsys.readouterr().out)))
    assert counted == [*COUNTS, 24, 16]


def test_a_plan_knows_the_budget(encoder: Path, llm: str, bridge_talk: Path) -> None:
    def config(**fields: Any) -> LlavaTrainConfig:
        stage = StageConfig(data=bridge_world.source(bridge_talk), max_steps=10)
        parts: dict[str, Any] = {"encoder": f"transformers:{encoder}", "llm": llm, "image_aspect_ratio": "native"}
        return LlavaTrainConfig(**{"output": "x", "align": stage, "instruct": stage, **parts, **fields})

    own, large = sizes_of(config()), sizes_of(config(max_num_patches=400))
    assert (own.tokens, large.tokens) == (16, 400)
    assert own.vision is not None
    assert large.vision is not None
    assert large.vision.flops > 20 * own.vision.flops
    assert own.vision == vision_size(f"transformers:{encoder}")
    assert "400 tokens an image" in llava_cost(config(max_num_patches=400), gpu="a100-80").basis
    assert llm_size(llm) == own.llm
    with pytest.raises(UserError, match=r"^encoder: expected one for any aspect ratio"):
        sizes_of(config(encoder="timm:test_vit@random"))


def test_the_original_format_has_no_native_aspect_ratio(llava: tuple[Any, Any]) -> None:
    from llava_bridge.conversion.original_llava import _aspect_ratio_settings

    with pytest.raises(UserError, match=r"^image_aspect_ratio: the original LLaVA has no native"):
        _aspect_ratio_settings(llava[1].image_processor)


EVERY = ["vision", "projector", "llm"]
LONG = {"max_length": 300, "learning_rate": 1e-3}


def run_of(directory: Path, name: str, parts: bridge_world.Parts, settings: dict[str, Any], **fields: Any) -> Path:
    own = {"image_aspect_ratio": "native", "max_num_patches": BUDGET, "encoder": f"transformers:{parts.encoder}"}
    return bridge_world.instruct_file(directory, name, parts, {**LONG, **settings}, **{**own, **fields})


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, encoder: Path, bridge_long_llm: Path) -> bridge_world.Parts:
    """With an album, and two samples of it, of which one has no image."""
    album = bridge_world.make_album(tmp_path_factory.mktemp("native") / "album")
    rows = json.loads((album / "talk.json").read_text())
    (album / "mixed.json").write_text(json.dumps([rows[3], rows[5]]))
    return bridge_world.Parts(encoder, bridge_long_llm, album)


def mixed(directory: Path, name: str, parts: bridge_world.Parts, **fields: Any) -> Path:
    """Three steps of two samples, one with an image and one without."""
    settings = {"file": "mixed.json", "global_batch_size": 2, "tunable_parts": EVERY}
    return run_of(directory, name, parts, settings, **fields)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, parts: bridge_world.Parts) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    align = bridge_world.stage(parts.talk, **LONG)
    paths = [
        run_of(directory, "untrained", parts, {"learning_rate": 1e-30}),
        run_of(directory, "plain", parts, {}),
        run_of(directory, "packed", parts, {"packing": True}),
        run_of(directory, "whole", parts, {"tunable_parts": EVERY}),
        run_of(directory, "both", parts, {}, stages=["align", "instruct"], align=align),
        mixed(directory, "mixed", parts),
    ]
    bridge_world.trained_alone(*paths)
    return directory


def test_stages_train_their_parts_and_packing_changes_nothing(runs: Path) -> None:
    learned = {name: bridge_world.moved(runs / "untrained", runs / name) for name in ("plain", "whole", "both")}
    assert learned == {"plain": {"projector", "llm"}, "whole": set(EVERY), "both": {"projector", "llm"}}
    plain = bridge_world.losses(runs / "plain")
    assert bridge_world.losses(runs / "packed") == pytest.approx(plain, abs=1e-4)
    assert bridge_world.losses(runs / "both")[-1] < bridge_world.losses(runs / "both")[0]
    model, processor = load_llava(runs / "both", device="cpu")
    images: list[Any] = bridge_world.noise(*bridge_world.SHAPES)
    assert len(answer(model, processor, images, ["What color is it?"] * 4, max_new_tokens=3)) == 4


@pytest.mark.parametrize("way", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_processes_of_which_one_has_no_image_learn_as_one(
    way: str, parts: bridge_world.Parts, runs: Path, tmp_path: Path
) -> None:
    from llava_bridge.training.train_config import DistributedConfig

    path = mixed(tmp_path, way, parts, distributed=DistributedConfig(deepspeed=way))
    bridge_world.run_processes(2, "swap_driver.py", str(path), timeout=300)
    one, two = runs / "mixed", tmp_path / way
    assert bridge_world.metrics(two, "grad_norm") == pytest.approx(bridge_world.metrics(one, "grad_norm"), rel=1e-4)
    bridge_world.assert_same_training(two, one, 4e-5, 1e-4)


def test_a_stopped_run_resumes_exactly(parts: bridge_world.Parts, runs: Path, tmp_path: Path) -> None:
    path = run_of(tmp_path, "plain", parts, {})
    done = bridge_world.run_python(
        str(Path(__file__).with_name("stop_driver.py")), str(path), "1", **bridge_world.launched()
    )
    assert "the same command resumes it" in done.stderr
    assert not (tmp_path / "plain").exists()
    assert "resuming the unfinished run" in bridge_world.train(path)
    bridge_world.assert_same_training(tmp_path / "plain", runs / "plain", 0)
