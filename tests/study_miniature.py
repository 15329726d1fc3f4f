"""The full-scale studies made small: the same files, their parts random and tiny models of the same classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_classes
import bench_world
import bridge_world
import yaml

STUDIES = Path(__file__).parents[1] / "scripts" / "studies"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = {**bridge_world.VIT, "text_cfg": {**bridge_world.VIT["text_cfg"], "context_length": 77, "vocab_size": 49408}}
ZOO_BENCHMARKS = ("gqa", "textvqa_val")
TIMM = {"aimv2": "test_vit", "convnext": "test_convnext"}  # timm's own small ones of the family


def full(name: str) -> dict[str, Any]:
    """The study as it is shipped."""
    return yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))


def miniature(name: str, folder: Path) -> Path:
    """Write a study with all rows and settings of the one called ``name``, but next to nothing to compute.

    It has all benchmarks, except that the ten encoders of the zoo are evaluated on ``ZOO_BENCHMARKS`` only.
    """
    study = full(name)
    if name == "encoder_zoo":
        for part in (study, study["display"]):
            part["benchmarks"] = {benchmark: part["benchmarks"][benchmark] for benchmark in ZOO_BENCHMARKS}
    study["output"] = str(folder / "out")
    for field in ("executor", "resources", "gpu"):
        study.pop(field, None)
    study["jobs"], study["threads"] = 2, 1
    parts = folder / "parts"
    study["encoders"] = {name: small_encoder(entry, parts / name) for name, entry in study["encoders"].items()}
    if study.get("llms"):
        study["llms"] = {name: str(bridge_world.make_llm(parts / name, context=512)) for name in study["llms"]}
        _small_llavas(study, folder)
    else:
        _small_encoders(study, folder)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return file


def small_encoder(entry: Any, directory: Path) -> Any:
    """An encoder of the same class: of transformers, open_clip or timm. What is trained stays as it is."""
    if not isinstance(entry, str):
        return entry
    source, _, name = entry.partition(":")
    if source == "timm":
        return f"timm:{TIMM[name.split('_')[0]]}@random"
    if source == "transformers":
        save_vision_model(name, directory)
        return f"transformers:{directory}"
    bridge_world.make_encoder(directory, VIT)
    return str(directory)


def save_vision_model(name: str, directory: Path) -> None:
    """A random model of the class that the hub's model ``name`` has, with its preprocessor."""
    from transformers import AutoConfig, AutoModel

    from llava_bridge.planning.model_sizes import known_configs

    kind = known_configs()[name]["model_type"]
    config = AutoConfig.for_model(kind, **SMALL, image_size=32, patch_size=8)
    AutoModel.from_config(config).save_pretrained(directory)
    processor = {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 32, "width": 32}}
    processor |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "resample": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def _small_llavas(study: dict[str, Any], folder: Path) -> None:
    talk = bridge_world.make_talk(folder / "talk", samples=4)
    rows = json.loads((talk / "talk.json").read_text(encoding="utf-8"))
    captions = [{**row, "conversations": row["conversations"][:2]} for row in rows]
    (talk / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    hub = bench_world.write_hub(folder / "hub", pictures=2)
    write_mmvet(hub)
    study["paths"] = {"playground": str(talk), "mllm": str(hub)}
    llava = study["defaults"]["llava"]
    llava |= {"chat_template": "auto", "precision": "fp32", "num_workers": 0, "distributed": {"num_processes": 1}}
    for stage, file in (("align", "captions"), ("instruct", "talk")):
        data = [
            {**source, "path": f"$playground/{file}.json", "image_root": "$playground"}
            for source in llava[stage]["data"]
        ]
        llava[stage] |= {"data": data, "max_steps": 1, "global_batch_size": 2, "micro_batch_size": 1, "max_length": 512}
    for rule in study.get("overrides", []):
        if "image_size" in rule["llava"]:
            rule["llava"]["image_size"] = 64  # as there larger than their own
    study["defaults"]["benchmark"]["max_new_tokens"] = 2


def write_mmvet(hub: Path) -> None:
    """MM-Vet's columns, two questions."""
    columns = {
        "question_id": ["v1_0", "v1_1"],
        "image": [bench_world.draw_image(0), bench_world.draw_image(1)],
        "question": ["What color is it?"] * 2,
        "answer": [bench_world.color(0), bench_world.color(1)],
        "image_source": ["VQAv2"] * 2,
        "capability": [["rec"]] * 2,
    }
    bench_world.write_parquet(hub / bench_world.HUB / "MMVet/data/test-00000-of-00001.parquet", columns)


def _small_encoders(study: dict[str, Any], folder: Path) -> None:
    world = {"split": "train", "num_scenes": 12, "num_object_classes": 8, "image_size": 64}
    study["data"] = {"world": world}
    shared = study["defaults"]["encoder"]
    shared["data"] |= {"sources": [{"path": "$data/world"}], "num_workers": 0}
    shared["data"].pop("shuffle_buffer_shards")
    shared["recipe"] = {
        "captioner": {"num_layers": 1, "width": 32, "num_heads": 2, "max_length": 16, "max_loss_tokens": 4}
    }
    for entry in study["encoders"].values():
        if isinstance(entry, dict):
            entry["model"] = {"architecture": "clips-tiny"}
            small = {"max_samples": 8, "global_batch_size": 4, "optimizer.warmup_samples": 4}
            sizes = zip(entry["stages"], (32, 64), strict=True)
            entry["stages"] = [{**stage, "model.image_size": size, **small} for stage, size in sizes]
    study["paths"] = {"classes": str(bench_classes.write_wds(folder / "classes"))}
    study["benchmarks"] = {
        name: {**entry, "data": "$classes" if name == "imagenet1k" else "$data/world"}
        for name, entry in study["benchmarks"].items()
    }
