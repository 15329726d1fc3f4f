"""Synthetic captions by a LLaVA: output, filters, work split, kill and resume."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bridge_world
import clips_world
import numpy as np
import pytest
from PIL import Image

from clips.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.core.identity import RUN, run_text
from clips.data import decode_image
from clips.data.formats.webdataset import WebDatasetSource
from clips.data.sources import Record, Sample, SourceConfig, open_source
from clips.errors import UserError
from clips.recaption import run
from clips.recaption.captioners import CaptionModel, GeneratedCaption
from clips.recaption.recaption_config import RecaptionConfig
from clips.recaption.run import (
    OutputShard,
    clean_caption,
    filter_captions,
    group_shards,
    is_finished,
    run_identity,
    run_recaption,
    split_into_shards,
    split_into_windows,
)
from clips.recaption.shard_writers import WORK_DIR, ShardWriter, TarWriter

PROMPT = "{web}. What color is it?"
_BART_LAYER = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_llm: Path) -> Path:
    """A LLaVA that the bridge put together."""
    from llava_bridge.model.build import LlavaParts, build_llava

    directory = tmp_path_factory.mktemp("recaption") / "llava"
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm)))
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 samples in shards of 9, 7 and 5."""
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


Settings = Callable[..., RecaptionConfig]


def settings_of(llava: Path, shards: Path, output: Path) -> Settings:
    usual = {"path": str(shards), "model": str(llava), "output": str(output), "prompt": PROMPT}
    return lambda **fields: RecaptionConfig(**{**usual, "max_new_tokens": 8, "batch_size": 4, **fields})


@pytest.fixture
def settings(llava: Path, shards: Path, tmp_path: Path) -> Settings:
    return settings_of(llava, shards, tmp_path / "out")


@pytest.fixture(scope="module")
def finished(llava: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RecaptionConfig:
    """The config of a run that has ended."""
    config = settings_of(llava, shards, tmp_path_factory.mktemp("finished") / "out")()
    run_recaption(config)
    return config


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("0*"))}


def captions_of(directory: Path, **fields: Any) -> list[str]:
    source = open_source(SourceConfig(path=str(directory), synthetic_caption="re_caption", **fields))
    return [source.read(index, np.random.default_rng(0)).synthetic for index in range(len(source))]


def test_captions_are_those_of_each_image_alone_and_all_else_stays(finished, llava: Path, shards: Path):
    from llava_bridge import answer, load_llava

    written = open_source(SourceConfig(path=finished.output, synthetic_caption="re_caption"))
    before = open_source(SourceConfig(path=str(shards)))
    assert written.blocks == before.blocks == [9, 7, 5]  # type: ignore[attr-defined]
    model, processor = load_llava(llava)
    found = set()
    for index in range(21):
        sample, old = written.read(index, np.random.default_rng(0)), before.read(index, np.random.default_rng(0))
        assert (sample.image, sample.web) == (old.image, old.web)
        assert written.name(index).partition("/")[2] == before.name(index).partition("/")[2]
        record = written.record(index)
        assert record.fields == {**clips_world.captions(index), "re_caption": sample.synthetic}
        picture = decode_image(old.image)
        (alone,) = answer(model, processor, [picture], [PROMPT.replace("{web}", old.web)], max_new_tokens=8)
        assert sample.synthetic == " ".join(alone.split())
        found.add(sample.synthetic)
    assert len(found) > 5  # so that a caption in the wrong place would have been seen


def test_processes_of_one_number_on_two_machines_write_to_two_files(settings: Settings):
    (Path(settings().output) / WORK_DIR).mkdir(parents=True)
    one, other = (ShardWriter(0, settings()) for _ in range(2))
    assert one.partial != other.partial
    one.abandon()
    assert other.partial.exists()
    other.abandon()


def test_the_result_is_described_and_clips_trains_on_it(finished, llava: Path, tmp_path: Path):
    output = Path(finished.output)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["kind"] == "captions"
    assert manifest["captions"]["written"] == 21
    assert manifest["captions"]["dropped"] == {}
    assert 21 <= manifest["captions"]["tokens"] <= 21 * 8
    assert manifest["data"]["model"]["class"] == "LlavaForConditionalGeneration"
    assert len(manifest["data"]["model"]["hash"]) == 64
    assert json.loads((output / "sizes.json").read_text()) == {"00000.tar": 9, "00001.tar": 7, "00002.tar": 5}
    card = (output / "README.md").read_text()
    assert all(text in card for text in (str(llava), PROMPT, "synthetic_caption: re_caption"))
    assert not (output / ".work").exists()
    sources = {"sources": [{"path": finished.output, "synthetic_caption": "re_caption"}]}
    clips_world.trained(output, tmp_path / "encoder", data=sources, max_steps=1)
    made = json.loads((tmp_path / "encoder" / "manifest.json").read_text())
    assert made["parents"]["out"]["hash"] == manifest["hash"]


def test_batches_are_full_across_shards_and_invalid_images(settings, tmp_path, monkeypatch, capsys):
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(21)}
    samples["000000003"]["png"] = b"not a picture"
    samples["000000012"]["json"] = b"{broken"
    items = list(samples.items())
    for number, part in enumerate((items[:9], items[9:16], items[16:])):
        clips_world.write_shard(tmp_path / "bad" / f"{number}.tar", dict(part))
    sizes: list[int] = []
    describe = CaptionModel.describe

    def counted(self: CaptionModel, pictures: Any, prompts: Any, seed: int) -> Any:
        sizes.append(len(pictures))
        return describe(self, pictures, prompts, seed)

    monkeypatch.setattr(CaptionModel, "describe", counted)
    run_recaption(settings(path=str(tmp_path / "bad")))
    assert sizes == [4, 4, 4, 4, 3]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["captions"]["dropped"] == {"undecodable image": 1, "broken JSON": 1}
    assert "8 captions; 1 × undecodable image" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"00000\.tar: 1 of 9 samples are invalid, more than max_invalid_ratio"):
        run_recaption(settings(path=str(tmp_path / "bad"), output=str(tmp_path / "strict"), max_invalid_ratio=0.1))
    assert not list((tmp_path / "strict").rglob("*.tar*"))


def test_an_interrupted_recaptioning_resumes_and_writes_the_same(settings, tmp_path, monkeypatch):
    drawn = functools.partial(settings, temperature=1.0)
    monkeypatch.setattr("clips.recaption.run._WINDOW_BATCHES", 1)
    run_recaption(drawn(output=str(tmp_path / "whole")))
    describe = CaptionModel.describe
    for after, shards in ((1, 0), (3, 1), (5, 2)):
        calls, config = [0], drawn(output=str(tmp_path / f"after {after}"))

        def interrupted(self: CaptionModel, pictures: Any, prompts: Any, seed: int) -> Any:
            calls[0] += 1  # noqa: B023
            if calls[0] > after:  # noqa: B023
                raise KeyboardInterrupt
            return describe(self, pictures, prompts, seed)

        monkeypatch.setattr(CaptionModel, "describe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recaption(config)
        done = {path: path.stat().st_mtime_ns for path in Path(config.output).glob("*.tar")}
        assert len(done) == shards
        assert not list(Path(config.output, ".work").glob("*.partial"))
        assert len([*Path(config.output, ".work").glob("captions-*.json")]) == after
        last = max(Path(config.output, ".work").glob("captions-*.json"), key=lambda path: int(path.stem[9:]))
        intact = last.read_bytes()
        middle = len(intact) // 2
        last.write_bytes(intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :])
        calls[0] = -6  # of the six batches those are left that were not captioned before, and the damaged one
        run_recaption(config)
        assert calls[0] == 1 - after
        assert content(Path(config.output)) == content(tmp_path / "whole")
        assert {path: path.stat().st_mtime_ns for path in done} == done
        assert not Path(config.output, ".work").exists()
        monkeypatch.setattr(CaptionModel, "describe", describe)
    assert len(content(tmp_path / "whole")) == 3


def test_a_finished_recaptioning_stays_and_other_settings_are_rejected(finished, settings, monkeypatch, capsys):
    other = dataclasses.replace(finished, max_new_tokens=3)
    monkeypatch.setattr(CaptionModel, "__init__", lambda *arguments: pytest.fail("the model is loaded again"))
    run_recaption(finished)
    assert "done before" in capsys.readouterr().err
    with pytest.raises(UserError, match="max_new_tokens is 8 there and 3 now"):
        run_recaption(other)
    with monkeypatch.context() as patch:
        patch.setattr(run, "directory_hash", lambda path: "another model's")
        with pytest.raises(UserError, match=r"inputs\.model is '\w{64}' there and \"another model's\" now"):
            run_recaption(finished)
    with monkeypatch.context() as patch:
        patch.setattr(WebDatasetSource, "describe", lambda self: {"index_hash": "other"})
        with pytest.raises(UserError, match=r"inputs\.source is '\w{64}' there and 'other' now"):
            run_recaption(finished)
    begun = settings()
    Path(begun.output, ".work").mkdir(parents=True)  # as by a process that began at the same time
    own = run_identity(begun, open_source(begun))
    (Path(begun.output) / WORK_DIR / RUN).write_text(run_text(own))
    assert not is_finished(begun, own)
    with pytest.raises(UserError, match="max_new_tokens is 8 there and 3 now"):
        run_recaption(dataclasses.replace(begun, max_new_tokens=3))
    shutil.rmtree(begun.output)
    shutil.copytree(finished.output, begun.output, ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(UserError, match="not empty, and not an artifact"):
        run_recaption(begun)


def test_several_drawn_captions_as_a_table(settings: Settings, tmp_path: Path):
    frame_folder = tmp_path / "photos"
    frame_folder.mkdir()
    rows = []
    for index in range(6):
        (frame_folder / f"{index}.png").write_bytes(clips_world.draw_image(index))
        rows.append({"url": f"{index}.png", "org_caption": f"thing {index}", "score": index})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {
        "format": "table",
        "path": str(tmp_path / "rows.jsonl"),
        "image_root": str(frame_folder),
        "web_caption": "org_caption",
    }
    run_recaption(settings(**table, output_format="parquet", num_captions=3, temperature=1.5, shard_size=4))
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == ["00000.parquet", "00001.parquet"]
    back = open_source(SourceConfig(**{**table, "path": str(tmp_path / "out"), "synthetic_caption": "re_caption"}))
    assert len(back) == 6
    drawn = {back.read(4, np.random.default_rng(seed)).synthetic for seed in range(30)}
    assert len(drawn) == 3
    assert back.read(4, np.random.default_rng(0)).image == clips_world.draw_image(4)
    assert back.read(4, np.random.default_rng(0)).web == "thing 4"
    run_recaption(settings(**table, output=str(tmp_path / "tar")))
    record = open_source(
        SourceConfig(path=str(tmp_path / "tar"), web_caption="org_caption", synthetic_caption=None)
    ).record(5)
    assert record.fields.items() >= rows[5].items()


def test_a_model_of_another_family_without_a_chat_template(settings: Settings, tmp_path: Path):
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    from clips.model.tokenizer import VOCAB_FILE

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"encoder_hidden_size": 32, "vocab_size": 30522, "bos_token_id": 101, "sep_token_id": 102, "pad_token_id": 0}
    config = BlipConfig(text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 8})
    torch.manual_seed(0)  # its first token begins a word
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(pictures, BertTokenizer(str(VOCAB_FILE))).save_pretrained(tmp_path / "blip")
    run_recaption(settings(model=str(tmp_path / "blip"), prompt="a picture of", max_new_tokens=3))
    found = captions_of(tmp_path / "out")
    assert len(found) == 21
    assert all(text.startswith("a picture of ") and len(text.split()) <= 6 for text in found)  # BLIP continues it


def test_an_encoder_decoder_writes_as_alone(settings: Settings, tmp_path: Path):
    """Florence-2: the decoder's start token is the EOS token, and BART's encoder counts positions from the left."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers import CLIPImageProcessor as Pictures
    from transformers import PreTrainedTokenizerFast as Fast
    from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

    words = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789", "thing", "<image>"]
    words_alone = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    words_alone.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = Fast(tokenizer_object=words_alone, extra_special_tokens={"image_token": "<image>"}, **names)
    one, width = [1] * 4, {"projection_dim": 16, "max_position_embeddings": 8}
    tower = Florence2VisionConfig(depths=one, embed_dim=[8] * 4, num_heads=one, num_groups=one, window_size=2, **width)
    layers = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in _BART_LAYER.items()}
    text = BartConfig(vocab_size=len(words), d_model=16, max_position_embeddings=64, init_std=1.0, **layers)
    torch.manual_seed(1)
    config = Florence2Config(text_config=text, vision_config=tower, image_token_id=tokenizer.image_token_id)
    model = Florence2ForConditionalGeneration(config).eval()
    square = {"height": 64, "width": 64}
    pictures = Pictures(size=square, crop_size=square, do_center_crop=False, image_seq_length=5)
    processor = Florence2Processor(pictures, tokenizer)
    model.save_pretrained(tmp_path / "florence")
    processor.save_pretrained(tmp_path / "florence")

    captioner = CaptionModel(settings(model=str(tmp_path / "florence"), precision="fp32"))
    prompts = ["thing a", "thing a b c 4"]
    images = [decode_image(clips_world.draw_image(number)) for number in range(2)]
    written = captioner.describe(images, prompts, seed=0)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        inputs = processor(text=prompt, images=image, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        expected.append(processor.batch_decode(output, skip_special_tokens=True))
    assert [[caption.text for caption in captions] for captions in written] == expected
    assert all(len(text.split()) > 1 for (text,) in expected)


def test_shards_keep_to_the_sources_own_and_groups_to_whole_batches():
    assert split_into_shards([5, 3], 4) == [OutputShard(0, 0, 4), OutputShard(1, 4, 5), OutputShard(2, 5, 8)]
    shards = split_into_shards([100] * 10, 1000)
    groups = group_shards(shards, 4)  # 64 batches are 256 samples
    assert [[shard.number for shard in group] for group in groups] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    windows = split_into_windows(groups[1], 4)
    assert windows[0] == range(300, 332)
    assert windows[-1] == range(588, 600)
    assert [index for window in windows for index in window] == list(range(300, 600))


def test_the_work_is_shared_by_part_and_rank(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    assert settings().share() == (0, 1)
    assert settings(shard="3/64").share() == (2, 64)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert settings(shard="3/64").share() == (17, 512)
    for part in ("0/4", "5/4", "1", "a/b"):
        with pytest.raises(UserError, match="shard: expected for instance 3/64"):
            settings(shard=part)


def test_a_part_writes_its_own_groups_alone(settings: Settings, finished, monkeypatch, capsys):
    monkeypatch.setattr("clips.recaption.run._MIN_GROUP_BATCHES", 1)  # each shard is a group
    config = settings(shard="1/2")
    run_recaption(config)
    assert list(content(Path(config.output))) == ["00000.tar", "00002.tar"]
    assert "this part is done; 1 of 3 shards are missing" in capsys.readouterr().err
    run_recaption(settings(shard="2/2"))
    assert content(Path(config.output)) == content(Path(finished.output))


@pytest.mark.parametrize(
    ("text", "ended", "kept"),
    [
        ("A dog.  It runs. The", False, "A dog. It runs."),
        ("A dog.\nIt runs. The", True, "A dog. It runs. The"),
        ("A dog runs over", False, "A dog runs over"),
        ('He says "stop!" And th', False, 'He says "stop!"'),
        ("It costs 3.5 dollars. A pa", False, "It costs 3.5 dollars."),
        ("Is it red? Yes.", False, "Is it red? Yes."),
    ],
)
def test_an_unfinished_last_sentence_is_dropped(text: str, ended: bool, kept: str):
    assert clean_caption(GeneratedCaption(text, 9, ended), drop_incomplete_sentence=True) == kept
    assert clean_caption(GeneratedCaption(text, 9, ended), drop_incomplete_sentence=False) == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>Is it a dog?\n\nYes.</think>\n\nA dog runs.", "A dog runs."),
        ("Is it a dog? Yes.\n</think>\nA dog runs.", "A dog runs."),  # the template has the first tag
        ("<think>Is it a dog? Yes. The", ""),
    ],
)
def test_reasoning_is_no_caption(text: str, kept: str):
    assert clean_caption(GeneratedCaption(text, 9, ended=bool(kept)), drop_incomplete_sentence=True) == kept


@pytest.mark.parametrize("kind", ["MPO", "AVIF", "TIFF"])
def test_an_image_is_stored_as_the_model_sees_it(kind: str, settings: Settings, tmp_path: Path):
    picture, stream, turned = Image.effect_noise((40, 24), 90).convert("RGB"), io.BytesIO(), Image.Exif()
    if kind == "TIFF":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(stream, kind)
    else:
        turned[0x0112] = 6
        picture.save(
            stream, kind, exif=turned, **({"save_all": True, "append_images": [picture]} if kind == "MPO" else {})
        )
    writer = TarWriter(tmp_path / "0.tar", settings())
    writer.add(Record("a", {"web": "b"}), Sample(stream.getvalue(), "b", ""), "c")
    writer.close()
    stored = open_source(SourceConfig(path=str(tmp_path / "0.tar"), web_caption="web", synthetic_caption=None))
    image = decode_image(stored.read(0, np.random.default_rng(0)).image)
    assert image.tobytes() == decode_image(stream.getvalue()).tobytes()
    assert image.size == (picture.size if kind == "TIFF" else picture.size[::-1])


def test_captions_that_do_not_fit_are_dropped(settings: Settings):
    config = settings(min_words=2, max_words=4)
    said = [GeneratedCaption(text, 1, ended=True) for text in ("one", "one two", "one two", "a b c d", "a b c d e", "")]
    assert filter_captions(said, config)[0] == ["one two", "a b c d"]
    assert filter_captions(said[:1], config) == ([], "caption too short")
    assert filter_captions(said[4:], config) == ([], "caption too long")
    assert filter_captions(said[5:], config) == ([], "no caption written")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_captions": 2}, "temperature: expected above 0 for 2 captions"),
        ({"max_words": 3, "min_words": 5}, r"max_words: expected 5 \(min_words\) or more"),
        ({"caption_column": "web_caption"}, "caption_column: expected a name other than the web caption's"),
        ({"caption_column": "image", "output_format": "parquet"}, "caption_column: expected a name other than 'image'"),
        ({"weight": 2.0}, "weight: expected null, since recaption reads one source, got 2.0"),
        ({"max_invalid_ratio": 20}, "max_invalid_ratio: expected a number from 0 to 1, got 20"),  # made in Python
        ({"import_modules": ("no_such_module",)}, "import_modules: cannot import 'no_such_module'"),
        ({"model": "no/such/model"}, "model: no/such/model: model cannot be read"),
    ],
)
def test_mistakes_are_one_line(settings: Settings, fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as raised:
        run_recaption(settings(**fields))
    assert "\n" not in str(raised.value)


def test_the_module_of_an_unregistered_model_is_asked_for(settings: Settings, tmp_path: Path):
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/config.json").write_text('{"model_type": "another_llava"}')
    with pytest.raises(UserError, match=r"^import_modules: expected the module that registers .*'another_llava'"):
        run_recaption(settings(model=str(tmp_path / "llava")))


@pytest.mark.slow
def test_a_llava_that_the_bridge_trained_in_processes_that_are_killed(tmp_path, bridge_encoder, bridge_talk, capsys):
    config = bridge_world.config_file(tmp_path, "llava", bridge_talk, encoder=str(bridge_encoder))
    trained = bridge_world.run_python("-m", "llava_bridge", "train", "--config", str(config))
    assert trained.returncode == 0, trained.stderr
    data = clips_world.write_shards(tmp_path / "data", sizes=(40, 30, 35, 45, 20))
    fields = {"model": tmp_path / "llava", "batch_size": 1, "max_new_tokens": 6, "prompt": PROMPT}
    options = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    options = ["-m", "clips.cli", "recaption", str(data), *options, "--import_modules", "[llava_bridge]", "--output"]
    begun = subprocess.Popen(
        [sys.executable, *options, str(tmp_path / "shared"), "--shard", "1/2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "shared" / "00000.tar").exists() and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    second = bridge_world.run_python(*options, str(tmp_path / "shared"), "--shard", "2/2")
    assert second.returncode == 0, second.stderr
    assert "this part is done" in second.stderr
    rest = bridge_world.run_python(*options, str(tmp_path / "shared"))  # all that is missing, in one process
    assert rest.returncode == 0, rest.stderr
    assert dispatch("clips", "", COMMANDS, [*options[2:], str(tmp_path / "alone")]) == 0
    assert content(tmp_path / "shared") == content(tmp_path / "alone")
    assert len(content(tmp_path / "alone")) == 5
    counts = json.loads((tmp_path / "alone" / "manifest.json").read_text())["captions"]
    empty = counts["dropped"].get("no caption written", 0)  # so small a model may end a caption at once
    assert len(captions_of(tmp_path / "alone")) == counts["written"] == 170 - empty > 150
    assert not (tmp_path / "shared" / ".work").exists()
