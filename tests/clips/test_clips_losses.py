from __future__ import annotations

import itertools
import math
import multiprocessing
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from clips_world import Largest
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from clips.method.clips_model import ModelConfig, build_model, compute_losses
from clips.method.recipes import CONTRASTIVE_LOSSES, CaptionerConfig, Recipe, RecipeConfig
from clips.model.compute import group_by_length
from clips.model.losses import caption_loss, chunk_rows, contrastive_loss, linear_cross_entropy
from clips.model.tokenizer import ClipsTokenizer


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_softmax(image, texts, scale, bias):
    """The symmetric CLIP loss of each kind of text, element by element; the mean over the kinds."""
    count, total = len(image), 0.0
    for text, i in itertools.product(texts, range(count)):
        by_image = [scale * float(image[i] @ text[j]) for j in range(count)]
        by_text = [scale * float(image[j] @ text[i]) for j in range(count)]
        for scores in (by_image, by_text):
            total += math.log(sum(math.exp(score) for score in scores)) - scores[i]
    return total / (2 * count * len(texts))


def naive_sigmoid(image, texts, scale, bias):
    """Every pair by itself; summed over texts, averaged over images and kinds of text."""
    total = 0.0
    for text, i, j in itertools.product(texts, range(len(image)), range(len(image))):
        logit = scale * float(image[i] @ text[j]) + bias
        total += math.log1p(math.exp(-logit if i == j else logit))
    return total / (len(image) * len(texts))


@pytest.mark.parametrize("chunk", [1, 12, 10_000])
@pytest.mark.parametrize("kind", CONTRASTIVE_LOSSES)
def test_contrastive_losses_against_naive_loops(kind, chunk, monkeypatch):
    naive = {"softmax": naive_softmax, "sigmoid": naive_sigmoid}[kind]
    monkeypatch.setattr("clips.model.losses._CHUNK_ELEMENTS", chunk)
    image, web, partial = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(5, 8, seed=3)
    scale, bias = torch.tensor(6.0), torch.tensor(-2.0)
    for texts in ([web], [web, partial]):
        ours = contrastive_loss(image, texts, scale, bias, kind=kind)
        assert ours.item() == pytest.approx(naive(image, texts, 6.0, -2.0), abs=1e-5)


@pytest.mark.parametrize("loss", CONTRASTIVE_LOSSES)
def test_the_loss_of_several_texts_is_that_of_a_naive_loop(loss: str):
    recipe = Recipe(RecipeConfig(name="sentences", num_sentences=2, loss=loss))
    names = ("image", "web", "sentences_1", "sentences_2")
    outputs = {name: unit(4, 6, seed=seed) for seed, name in enumerate(names)}
    outputs |= {"logit_scale": torch.tensor(5.0), "logit_bias": torch.tensor(-1.0)}
    image, *texts = (outputs[name] for name in names)
    naive = {"softmax": naive_softmax, "sigmoid": naive_sigmoid}[loss]
    mean = sum(naive(image, [text], 5.0, -1.0) for text in texts) / 3
    assert compute_losses(recipe, outputs)["loss"].item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("kind", CONTRASTIVE_LOSSES)
def test_gradients_of_the_contrastive_losses_are_those_of_finite_differences(kind, monkeypatch):
    monkeypatch.setattr("clips.model.losses._CHUNK_ELEMENTS", 2)  # two rows at a time, of three
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # gradcheck needs double precision throughout
    inputs = [unit(3, 4, seed=seed).double().requires_grad_() for seed in range(3)]
    inputs += [torch.tensor(3.0, dtype=torch.float64, requires_grad=True), torch.tensor(-1.0, dtype=torch.float64)]
    inputs[-1].requires_grad_(kind == "sigmoid")

    def loss(image, web, partial, scale, bias):
        return contrastive_loss(image, [web, partial], scale, bias, kind=kind)

    assert torch.autograd.gradcheck(loss, inputs)


def test_contrastive_loss_is_float32_under_autocast():
    image, web = unit(4, 8, seed=1), unit(4, 8, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(image, [web], torch.tensor(14.0))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(image, [web], torch.tensor(14.0)))


@pytest.mark.parametrize("chunk", [1, 40, 10_000])
def test_linear_cross_entropy_against_the_plain_one(chunk, monkeypatch):
    monkeypatch.setattr("clips.model.losses._CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = (10 * torch.randn(7, 4, generator=generator)).requires_grad_()
    weight = torch.randn(11, 4, generator=generator).requires_grad_()
    labels = torch.randint(11, (7,), generator=generator)
    ours = linear_cross_entropy(hidden, weight, labels)
    gradients = torch.autograd.grad(3 * ours, [hidden, weight])
    plain = F.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * plain, [hidden, weight]), atol=1e-5, rtol=1e-5)


def test_linear_cross_entropy_in_bfloat16_is_near_the_exact_one_and_its_gradients_are_float32():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 32, generator=generator).requires_grad_()
    weight = (torch.randn(101, 32, generator=generator) / 32**0.5).requires_grad_()
    labels = torch.randint(101, (64,), generator=generator)
    rounded = linear_cross_entropy(hidden, weight, labels, torch.bfloat16)
    exact = linear_cross_entropy(hidden, weight, labels)
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-3)
    gradients = (torch.autograd.grad(loss, [hidden, weight]) for loss in (rounded, exact))
    for near, true in zip(*gradients, strict=True):
        assert near.dtype == torch.float32
        assert (near - true).norm() < 1e-2 * true.norm()


def test_linear_cross_entropy_of_nothing_is_zero():
    weight = torch.randn(11, 4, requires_grad=True)
    loss = linear_cross_entropy(torch.zeros(0, 4), weight, torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, weight)[0].abs().sum() == 0


def test_caption_loss_averages_over_counted_tokens():
    assert caption_loss(torch.tensor(12.0), torch.tensor(4)).item() == 3.0
    assert caption_loss(torch.tensor(0.0), torch.tensor(0)).item() == 0.0


def test_losses_are_the_authors(shared):
    with np.load(shared / "reference/authors_captioner.npz") as file:
        stored = {key: torch.from_numpy(file[key]) for key in file.files if not key.startswith("param/")}
    texts = [stored["web_features"], stored["synthetic_features"]]
    loss = contrastive_loss(stored["image_features"], texts, stored["temperature_scale"])
    assert loss.item() == pytest.approx(stored["contrastive_loss"].item(), abs=1e-4)
    counted = stored["label_mask"] > 0
    logits, labels = stored["logits"][counted], stored["labels"].long()[counted]
    summed = linear_cross_entropy(logits, torch.eye(logits.shape[1]), labels)
    assert caption_loss(summed, counted.sum()).item() == pytest.approx(stored["caption_loss"].item(), abs=1e-4)


# Two processes train as one ------------------------------------------------------------------------------------


SMALL = CaptionerConfig(width=16, num_layers=1, max_length=20)


def batch_of(count):
    """Captions of different length, so that the processes' numbers of counted tokens differ."""
    recipe, tokenizer = Recipe(RecipeConfig(captioner=SMALL)), ClipsTokenizer(12)
    long = [f"{'a red car. two dogs! ' * (1 + 3 * i // count)}" for i in range(count)]
    rng = np.random.default_rng(0)
    samples = [recipe.prepare(f"photo {i}", long[i], rng, tokenizer) for i in range(count)]
    images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]} | {"image": images}


GLOBAL = ("loss", "contrastive_loss", "caption_loss")


def small_model(kind):
    return build_model(ModelConfig(context_length=12), RecipeConfig(loss=kind, captioner=SMALL), seed=0)


def two_processes(rank, port, path):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = {}
    for kind in CONTRASTIVE_LOSSES:
        model = torch.nn.parallel.DistributedDataParallel(small_model(kind))
        part = {name: tensor.chunk(2)[rank] for name, tensor in batch_of(8).items()}
        losses = compute_losses(model.module.recipe, model(part))
        losses["loss"].backward()
        values = torch.stack([losses[name].detach() for name in GLOBAL])
        torch.distributed.all_reduce(values)
        gradients = {name: value.grad for name, value in model.module.named_parameters() if value.requires_grad}
        found[kind] = {"losses": values / 2, "gradients": gradients}
    if rank == 0:
        torch.save(found, path)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    """Losses and gradients of two processes, for each contrastive loss."""
    path = tmp_path_factory.mktemp("gloo") / "two.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["open_clip"])
    mp.start_processes(two_processes, (port, path), nprocs=2, start_method="forkserver")
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", CONTRASTIVE_LOSSES)
def test_two_processes_give_the_loss_and_gradients_of_one(kind, gloo):
    model, batch, two = small_model(kind), batch_of(8), gloo[kind]
    counts = [int(part.sum()) for part in batch["target_mask"].chunk(2)]
    assert counts[0] != counts[1]  # else a mean of means would pass
    losses = compute_losses(model.recipe, model(batch))
    losses["loss"].backward()
    one = torch.stack([losses[name].detach() for name in GLOBAL])
    torch.testing.assert_close(two["losses"], one, atol=1e-5, rtol=1e-6)
    for name, value in model.named_parameters():
        if value.requires_grad:
            rounding = 5e-6 * float(value.grad.abs().max())  # sums in another order, by another number of threads
            torch.testing.assert_close(two["gradients"][name], value.grad, atol=rounding, rtol=0, msg=name)


def test_no_loss_materializes_all_logits(monkeypatch):
    monkeypatch.setattr("clips.model.losses._CHUNK_ELEMENTS", 5000)
    hidden = torch.randn(400, 8, requires_grad=True)
    weight = torch.randn(500, 8, requires_grad=True)
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, torch.arange(400)).backward()
    assert largest.numbers <= 5000 < 400 * 500
    for kind in CONTRASTIVE_LOSSES:
        image, text = (torch.randn(400, 8, requires_grad=True) for _ in range(2))
        with Largest() as largest:
            contrastive_loss(image, [text], torch.tensor(10.0), torch.tensor(0.0), kind=kind).backward()
        assert largest.numbers <= 5000 < 400 * 400, kind


@pytest.mark.parametrize(("words", "width", "rows"), [(32_000, 128, 131), (49_408, 512, 339), (128_256, 4096, 130)])
def test_a_chunk_on_a_cpu_has_as_many_rows_as_columns_if_memory_allows(words, width, rows):
    assert chunk_rows(torch.empty(1).expand(words, width)) == rows


# Logits and log-probabilities; on a CPU bfloat16 logits also in float32.
@pytest.mark.parametrize(("dtype", "copies"), [(torch.float32, 2), (torch.bfloat16, 2.5)])
def test_only_one_chunk_of_the_caption_loss_is_in_memory(dtype, copies, monkeypatch):
    monkeypatch.setattr("clips.model.losses._CHUNK_ELEMENTS", 2**18)
    hidden, weight = torch.randn(1024, 4, requires_grad=True), torch.randn(2048, 4, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        linear_cross_entropy(hidden, weight, torch.arange(1024), dtype)
    events = recorded.profiler.kineto_results.events()
    peak = max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert 0.9 * copies < peak / (4 * 2**18) < copies + 0.2


@pytest.mark.parametrize(
    ("rows", "groups", "device", "kind"),
    [(count, groups, "cpu", "texts") for count, groups in ((1, 1), (7, 1), (16, 1), (40, 2), (64, 4), (1000, 8))]
    + [(40, 2, "cpu", "captions"), (256, 4, "cuda", "captions"), (256, 1, "cuda", "texts"), (1024, 2, "cuda", "texts")],
)
def test_every_row_is_in_one_group_and_no_group_cuts_a_row(rows, groups, device, kind):
    lengths = torch.randint(1, 80, (rows,), generator=torch.Generator().manual_seed(0))
    order, sizes, longest = group_by_length(lengths, torch.device(device), kind)
    assert sorted(order.tolist()) == list(range(rows))
    assert (len(sizes), sum(sizes)) == (groups, rows)
    assert [int(part.max()) for part in lengths[order].split(sizes)] == longest == sorted(longest)


def test_groups_of_like_length_leave_padding_out():
    lengths = torch.tensor([5] * 32 + [60] * 32).roll(5)
    _, sizes, longest = group_by_length(lengths, torch.device("cpu"), "texts")
    assert (sizes, longest) == ([16] * 4, [5, 5, 60, 60])
