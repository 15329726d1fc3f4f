"""Images as tiles: what the LLM gets, against transformers' own LLaVA-NeXT and against tiles joined by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from families import quick_of
from PIL import Image
from scipy import stats

from clips.errors import UserError
from llava_bridge import answer
from llava_bridge.conversation import InvalidConversationError
from llava_bridge.data import read_samples
from llava_bridge.data.batches import ConversationCollator, ConversationDataset
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.model.image_processing import (
    check_pinpoints,
    effective_patch_size,
    max_image_tokens,
    num_image_tokens,
    resolve_pinpoints,
    with_aspect_ratio,
)
from llava_bridge.projectors import PROJECTORS, ProjectorConfig, ProjectorShape
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import split_parts

GRIDS = {"mlp2x_gelu": 4, "mlp3x_gelu": 4, "linear": 4, "pixel_shuffle": 2, "pool": 2, "c_abstractor": 2}
GRIDS |= {"pixel_shuffle_linear": 2, "patch_merger": 2}
SIZES = (*bridge_world.SHAPES, (97, 33), (32, 32), (1, 400), (400, 1), (30, 300))


@pytest.fixture(scope="module")
def llm(bridge_long_llm: Path) -> str:
    return str(bridge_long_llm)


@pytest.fixture(scope="module")
def llava(bridge_encoder: Path, llm: str) -> tuple[Any, Any]:
    model, processor = build_llava(
        LlavaParts(encoder=str(bridge_encoder), llm=llm, image_aspect_ratio="anyres", seed=3)
    )
    return bridge_world.widen(model, 0.2), processor


def conversations(llava: tuple[Any, Any], album: Path, length: int = 400) -> ConversationDataset:
    (source,) = bridge_world.source(album)
    return ConversationDataset(read_samples(source), make_conversation_encoder(*llava), length)


def learned(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", quick_of(GRIDS, "mlp2x_gelu", "pixel_shuffle"))
def test_an_image_has_as_many_tokens_as_features(name: str, bridge_encoder: Path, llm: str) -> None:
    projector = ProjectorConfig(type=name, num_tokens=4)
    parts = LlavaParts(encoder=str(bridge_encoder), llm=llm, image_aspect_ratio="anyres", projector=projector)
    model, processor = build_llava(parts)
    pictures = bridge_world.noise(*SIZES)
    features = model.get_image_features(**processor.image_processor(pictures, return_tensors="pt")).pooler_output
    counted = [num_image_tokens(processor, picture) for picture in pictures]
    assert [len(one) for one in features] == counted
    assert make_conversation_encoder(model, processor).num_image_tokens(pictures) == counted
    assert len(set(counted)) > 4
    grid = GRIDS[name]
    assert max(counted) == max_image_tokens(processor) == grid**2 + 2 * grid * (2 * grid + 1)
    for picture, count in zip(pictures, counted, strict=True):  # transformers' own way to ask
        inputs = processor(images=picture, text="<image>\nWhat?", return_tensors="pt")
        assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == count
    assert len(answer(model, processor, [pictures[0], None, pictures[1:3]], ["a", "b", "c"], max_new_tokens=2)) == 3


@pytest.mark.parametrize(
    ("size", "tiles", "kept"),
    [
        ((40, 24), (1, 2), (slice(0, 4), slice(1, 7))),  # 32 × 64: 40 × 24 leaves bars of a patch left and right
        ((64, 64), (2, 2), (slice(0, 8), slice(0, 8))),
        ((200, 30), (1, 3), (slice(1, 3), slice(0, 12))),
    ],
)
def test_tiles_are_joined_as_by_hand(size: Any, tiles: Any, kept: Any, llava: tuple[Any, Any]) -> None:
    model, processor = llava
    made = processor.image_processor(bridge_world.noise(size), return_tensors="pt")
    assert made["pixel_values"].shape == (1, 1 + tiles[0] * tiles[1], 3, 32, 32)
    with torch.no_grad():
        found = model.get_image_features(**made).pooler_output[0]
        states = model.model.vision_tower(made["pixel_values"][0], output_hidden_states=True).hidden_states[-2]
        projected = model.model.multi_modal_projector(states[:, 1:] if states.shape[1] == 17 else states)
    overview, *cut = projected.unflatten(1, (4, 4))
    rows = [torch.cat(cut[row * tiles[1] : (row + 1) * tiles[1]], dim=1) for row in range(tiles[0])]
    whole = torch.cat(rows)[kept]
    ends = model.model.image_newline.detach().expand(len(whole), 1, -1)
    wanted = torch.cat([overview.flatten(0, 1), torch.cat([whole, ends], dim=1).flatten(0, 1)])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_base_image_and_the_tiles_are_parts_of_the_image(llava: tuple[Any, Any]) -> None:
    """Left black, right white: the first tile is black, the second white, the overview has both."""
    picture = Image.new("RGB", (64, 32), "black")
    picture.paste("white", (32, 0, 64, 32))
    (shown,) = llava[1].image_processor([picture], return_tensors="pt")["pixel_values"]
    bright = shown * torch.tensor([0.2, 0.3, 0.25])[:, None, None] + torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    assert bright[1].abs().max() < 1e-5
    assert (bright[2] - 1).abs().max() < 1e-5
    assert bright[0, :, :, :14].abs().max() < 0.01
    assert (bright[0, :, :, 18:] - 1).abs().max() < 0.01


def test_the_loss_and_its_gradients_are_those_of_transformers(llava: tuple[Any, Any], bridge_album: Path) -> None:
    """Samples of one image, two, none; images of several shapes."""
    model, processor = llava
    data = conversations(llava, bridge_album)
    collator = ConversationCollator(processor.image_processor, processor.tokenizer.pad_token_id)
    batch = collator([data[index] for index in range(7)])
    batch.pop("invalid_samples")
    assert batch["pixel_values"].shape == (6, 5, 3, 32, 32)
    assert batch["image_sizes"] == [[24, 40], [40, 24], [64, 64], [30, 200], [24, 40], [64, 64]]
    model.requires_grad_(True)
    loss = LlavaLoss(model)(**batch)["loss"]
    theirs = model(**batch).loss
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    ours, wanted = learned(model, loss), learned(model, theirs)
    assert ours.keys() == wanted.keys()
    assert ours["model.image_newline"].any()
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_squares_train_as_in_a_llava_without_tiles(
    llava: tuple[Any, Any], bridge_encoder: Path, llm: str, bridge_album: Path
) -> None:
    model, processor = llava
    parts = LlavaParts(encoder=str(bridge_encoder), llm=llm, image_aspect_ratio="crop", seed=3)
    flat, squares = build_llava(parts)
    weights = {name: value for name, value in model.state_dict().items() if "image_newline" not in name}
    flat.load_state_dict(weights)
    (source,) = bridge_world.source(bridge_album)
    chats = make_conversation_encoder(model, processor, square_images=True), make_conversation_encoder(flat, squares)
    images = with_aspect_ratio(processor.image_processor, "crop"), squares.image_processor
    batches = []
    for chat, of_images in zip(chats, images, strict=True):
        data = ConversationDataset(read_samples(source), chat, 400)
        batches.append(ConversationCollator(of_images, 0)([data[index] for index in range(7)]))
        batches[-1].pop("invalid_samples")
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    torch.testing.assert_close(batches[0]["pixel_values"], batches[1]["pixel_values"])
    own = copy.deepcopy(model).requires_grad_(True)
    losses = (
        LlavaLoss(own, square_images=True)(**batches[0])["loss"],
        LlavaLoss(flat.requires_grad_(True))(**batches[1])["loss"],
    )
    torch.testing.assert_close(*losses)
    ours, wanted = learned(own, losses[0]), learned(flat, losses[1])
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4, msg=name)
    text = torch.tensor([[5, 6, 7, 8]])
    without = LlavaLoss(own, square_images=True)(input_ids=text, labels=text)["loss"]  # with a blank square times 0
    torch.testing.assert_close(without, LlavaLoss(flat)(input_ids=text, labels=text)["loss"])


def test_the_token_at_the_ends_of_rows_is_a_part_of_the_projector(llava: tuple[Any, Any]) -> None:
    parts, model = split_parts(llava[0]), llava[0]
    owned = [{id(weight) for weight in part.parameters()} for part in parts.values()]
    assert id(model.model.image_newline) in {id(weight) for weight in parts["projector"].parameters()}
    assert set.union(*owned) == {id(weight) for weight in model.parameters()}
    assert sum(map(len, owned)) == len(list(model.parameters()))


@pytest.mark.parametrize("width", [32, 512])
def test_the_token_at_the_ends_of_rows_starts_at_llavas_scale(width: int, bridge_encoder: Path, tmp_path: Path) -> None:
    """LLaVA's ``torch.randn(hidden_size) / torch.sqrt(hidden_size)``: of any width its length is about 1."""
    llm = bridge_world.make_llm(tmp_path / "llm", width=width)
    parts = LlavaParts(encoder=str(bridge_encoder), llm=str(llm), image_aspect_ratio="anyres", seed=3)
    newline = build_llava(parts)[0].model.image_newline.detach().double()
    low, high = (stats.chi2.ppf(part, width) / width for part in (1e-4, 1 - 1e-4))
    assert low < float(newline.square().sum()) < high


def test_no_image_is_truncated(llava: tuple[Any, Any], bridge_album: Path) -> None:
    data = conversations(llava, bridge_album)
    lengths = [len(data.encode(sample)["input_ids"]) for sample in data.samples]
    assert lengths[2] - lengths[0] == 88 - 44
    assert data.sizes()[4] > data.sizes()[0] > data.sizes()[5]
    short = conversations(llava, bridge_album, 80)
    assert short.encode(short.samples[0])["input_ids"].count(short.chat.image_id) == 44
    with pytest.raises(InvalidConversationError, match="its images do not fit into 80 tokens"):
        short.encode(short.samples[2])


def test_pinpoints(bridge_encoder: Path, llm: str) -> None:
    own = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[64, 128]]}
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=llm, **own))  # type: ignore[arg-type]
    (picture,) = bridge_world.noise((100, 100))
    assert processor.image_processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 9, 3, 32, 32)
    assert model.config.image_grid_pinpoints == [[64, 128]]
    assert resolve_pinpoints(336, None) == [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    assert resolve_pinpoints(16, [(32, 16)]) == [[32, 16]]
    with pytest.raises(UserError, match=r"image_grid_pinpoints: expected multiples of 32, .* got \[32, 48\]"):
        resolve_pinpoints(32, [[32, 64], [32, 48]])
    check_pinpoints("anyres", [[32, 64]])
    check_pinpoints("pad", None)
    for wrong in ([], [[32]], [[0, 32]]):
        with pytest.raises(UserError, match="image_grid_pinpoints: expected pairs of height and width"):
            check_pinpoints("anyres", wrong)
    with pytest.raises(UserError, match=r"image_grid_pinpoints: expected none without .*, got image_aspect_ratio pad"):
        check_pinpoints("pad", [[32, 64]])


def test_an_encoder_without_patches_is_rejected(bridge_encoder: Path, llm: str) -> None:
    assert PROJECTORS.keys() - GRIDS.keys() == {"perceiver"}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"projector": ProjectorConfig(type="perceiver")}, r"projector\.type: expected one that preserves the grid"),
        ({"image_grid_pinpoints": [[32, 65]]}, "image_grid_pinpoints: expected multiples of 32"),
    ]
    for fields, message in refused:
        with pytest.raises(UserError, match=f"^{message}"):
            build_llava(
                LlavaParts(**{"encoder": str(bridge_encoder), "llm": llm, "image_aspect_ratio": "anyres", **fields})
            )
    with pytest.raises(UserError, match=r"^vision_feature_select_strategy: expected default with .* anyres, got full"):
        effective_patch_size(ProjectorConfig(), ProjectorShape(patches=16, width=8, llm=8, extra=1), 32)
    coarse = ProjectorConfig(type="c_abstractor", num_tokens=49)
    with pytest.raises(
        UserError, match=r"^image_size: .* 7 × 7 tokens for a tile of 32 pixels; expected a multiple of 7"
    ):
        effective_patch_size(coarse, ProjectorShape(patches=64, width=8, llm=8), 32)
