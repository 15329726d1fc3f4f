"""What the documentation's commands find on a reader's disk, in miniature; every path below one folder."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from pathlib import Path

import bench_classes
import bench_world
import bridge_world
import clips_world
import exchange_world
import original_world
import pandas as pd
from bench_layouts import LONG, sugarcrepe, winoground, xm3600, xtd10
from docs_blocks import ROOT
from report_material import items_table, put_result
from script_modules import load_script

from benchmarks.study.state import Step
from clips.core.artifact import write_manifest

PICTURES = 20
LLAVA = """\
output: runs/llava
encoder: runs/mine
llm: models/llm
align: {data: [{path: llava_align.json}], max_steps: 1, global_batch_size: 8}
instruct: {data: [{path: llava_instruct.json}], max_steps: 1, global_batch_size: 8}
precision: fp32
"""
STUDY = """\
name: small
defaults:
  encoder:
    model: {architecture: clips-tiny, image_size: 16, context_length: 12}
    data: {sources: [{path: shards}]}
    max_steps: 1
    global_batch_size: 4
encoders: {clips: {recipe: {name: clips}}}
benchmarks: {retrieval: {data: street.jsonl, captions_per_image: 1}}
"""


def write_configs(root: Path) -> None:
    """The files that commands name and no page shows, and what they read relative to the clone."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "scripts").symlink_to(ROOT / "scripts")
    text = clips_world.config_text(Path("shards"), Path("runs/trained"), max_steps=1)
    for name in ("mine.yaml", "train.yaml"):
        (root / name).write_text(text)
    (root / "llava.yaml").write_text(LLAVA)
    (root / "study.yaml").write_text(STUDY)


def copy_tree(source: Path, target: Path) -> None:
    """A copy whose weights are links: they are only read."""

    def copy(file: str, to: str) -> None:
        (os.link if file.endswith(".safetensors") else shutil.copy2)(file, to)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def make_world(root: Path) -> Path:
    """All of it."""
    write_configs(root)
    images(root)
    _shards(root)
    _benchmarks(root / "data")
    _models(root)
    _demo(root / "runs" / "demo", root)
    _tables_of_items(root)
    return root


def _tables_of_items(root: Path) -> None:
    rows = [("clips", "clip"), ("quiz",), ("accuracy",), range(30)]
    table = pd.DataFrame([*itertools.product(*rows)], columns=["model", "benchmark", "metric", "item"])
    table.assign(score=[float(number % 3 > 0) for number in range(len(table))]).to_parquet(root / "items.parquet")
    for harness in ("lm_eval", "vlmevalkit", "mteb", "inspect_logs"):
        shutil.copytree(Path(__file__).parent / "benchmarks" / "peer_files" / harness, root / harness)


def images(root: Path) -> None:
    folder = root / "photos" / "images"
    folder.mkdir(parents=True)
    rows = []
    for number in range(PICTURES):
        name = "first.jpg" if number == 0 else f"{number}.jpg"
        bench_world.draw_image(number).save(folder / name)
        short, *more = bench_world.captions(number)
        rows.append({"file_name": name, "caption": short, "description": ". ".join(more)})
    shutil.copy(folder / "first.jpg", root / "photo.jpg")
    with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "caption", "description"])
        writer.writeheader()
        writer.writerows(rows)
    lines = [{"image": f"photos/images/{row['file_name']}", "captions": [row["caption"]]} for row in rows]
    (root / "street.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = [{"image": row["file_name"], "caption": row["caption"], "negative": "A cow."} for row in rows[:6]]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    karpathy(root / "photos", "mine")


def karpathy(folder: Path, name: str) -> Path:
    """Karpathy's JSON next to ``images``, a half of them in each of the splits train and test."""
    if not (folder / "images").is_dir():
        (folder / "images").mkdir(parents=True)
        for number in range(6):
            bench_world.draw_image(number).save(folder / "images" / f"{number}.jpg")
    images = [
        {
            "filename": path.name,
            "split": ("train", "test")[place % 2],
            "sentences": [{"raw": text} for text in bench_world.captions(place)],
        }
        for place, path in enumerate(sorted((folder / "images").iterdir()))
    ]
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": images}))
    return folder


def _shards(root: Path) -> None:
    """Training data with the captions under the names that pages use, as shards and as a table."""
    rows = []
    samples: dict[str, dict[str, bytes]] = {}
    for number in range(12):
        told = clips_world.captions(number)
        named = {"org_caption": told["web_caption"], "re_caption": told["synthetic_caption"]}
        text = json.dumps({**told, **named}).encode()
        samples[f"{number:09d}"] = {"png": clips_world.draw_image(number), "json": text}
        rows.append({"url": f"photos/images/{number + 1}.jpg", **named})
    clips_world.write_shard(root / "shards" / "shard-00000.tar", samples)
    pd.DataFrame(rows).to_parquet(root / "rows.parquet")


def _benchmarks(root: Path) -> None:
    for name in ("coco", "flickr30k"):
        karpathy(root / name, name)
    LONG["docci"](root)
    LONG["urban1k"](root)
    LONG["dci"](root / "dci")
    xm3600(root)
    xtd10(root)
    bench_classes.write_wds(root / "wds_imagenet1k")
    pairs = sugarcrepe(root / "sugar-crepe" / "data")
    shutil.move(pairs / "images", root / "val2017")
    winoground(root / "winoground")
    bench_world.write_hub(root / "mllm")
    (root / bench_world.HUB).symlink_to(root / "mllm" / bench_world.HUB)


def _models(root: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    from clips.train import train

    for place in ("models/llm", "path/to/llm", "vicuna-7b-v1.5"):
        bridge_world.make_llm(root / place, context=256)
    trunk = timm.create_model("tiny_vit_5m_224", num_classes=0)
    save_file(trunk.state_dict(), root / "models" / "trunk.safetensors")
    train(clips_world.train_config(root / "shards", root / "runs" / "mine", max_steps=1))
    (root / "runs" / "mine.json").unlink()
    copy_tree(root / "runs" / "mine", root / "runs" / "clips")
    llava = bench_world.write_llava(root / "runs" / "mine-llava")
    write_manifest(llava, kind="llava", config={}, seed=0, stages={"align": {"steps": 1, "samples_seen": 8}})
    copy_tree(root / "runs" / "mine-llava", root / "mine")
    bridge_world.make_encoder(root / "runs" / "openai-vit", bridge_world.OPENAI_VIT)
    bridge_world.make_llava(root / "runs" / "open-clip-llava", root / "runs" / "openai-vit", root / "models" / "llm")
    config = json.loads((ROOT / "clips/model/configs/clips-tiny.json").read_text())
    config["text_cfg"]["vocab_size"] = 32_000
    weights = bridge_world.open_clip_model(config).state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": weights[key] for key in weights}}, root / "epoch_1.pt")
    exchange_world.hf_clip(root / "openai-clip")
    talk = bridge_world.make_talk(root / "talk")
    rows = [{**row, "image": f"talk/{row['image']}"} for row in json.loads((talk / "talk.json").read_text())]
    for name in ("llava_align.json", "llava_instruct.json"):
        (root / name).write_text(json.dumps(rows))
    parts = original_world.Parts()
    tower = original_world.write_tower(parts, root / "tower")
    original_world.write_original(parts, root / "llava-v1.5-7b", str(tower))
    original_world.write_config(parts, root / "pretrain", str(tower))
    parts.llm.save_pretrained(root / "vicuna-7b-v1.5")
    parts.tokenizer.save_pretrained(root / "vicuna-7b-v1.5")
    torch.save(original_world.projector_weights(parts), root / "pretrain" / "mm_projector.bin")


def _demo(output: Path, root: Path) -> None:
    """The demo's directory as a finished run of it looks, with parts of the world in the place of what it trains."""
    from benchmarks.study import commands, state
    from benchmarks.study.study_record import write_study_record

    study = ROOT / "scripts" / "studies" / "demo.yaml"
    keyed = commands.resolve_study(commands.StudyConfig(study=str(study), output=str(output), check=False))
    write_study_record(output, commands.study_record(keyed, str(study)))
    for step in keyed.steps:
        for path in step.outputs:
            _made(step, path, root)
        key = step.key
        words = {"kind": step.kind, "command": " ".join(step.command), "outputs": key.outputs, "started": 1.0}
        state.write_record(output, state.StepRecord(name=step.name, key=key.key, status="done", seconds=9.0, **words))
        assert state.state_of(step).is_done, step.name
    for day in ("monday", "friday"):
        copy_tree(output, output.with_name(day))
    for name, skill in (("mine", 0.4), ("theirs", 0.6)):
        put_result(root / "results" / name, name, "retrieval", items_table(skill, benchmark="retrieval"))


def _made(step: Step, path: Path, root: Path) -> None:
    """One output of one step of the demo."""
    if step.kind == "data":
        scenes = load_script("demo/make_scenes.py")
        config = {"split": step.config["split"], "num_scenes": 9, "num_object_classes": 8}
        scenes.make_scenes(scenes.ScenesConfig(output=str(path), **config))
    elif step.kind == "evaluation":
        skill = {"untrained": 0.1, "clip": 0.4, "clips": 0.7}[path.parent.name.split("-")[0]]
        rows = [path.parents[2] / kind / path.parent.name for kind in ("encoders", "llava")]
        items, model = items_table(skill, benchmark=path.stem), next(row for row in rows if row.is_dir())
        put_result(path.parents[1], path.parent.name, path.stem, items, model=model)
    else:
        parts = {"encoder": "runs/mine", "llm": "models/llm", "llava": "runs/mine-llava"}
        copy_tree(root / parts[step.kind], path)
