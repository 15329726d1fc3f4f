"""Import encoders of other formats as encoder directories.

    clips import path/to/clip-vit-base-patch32 --output encoders/openai-b-32
    clips import epoch_32.pt --architecture ViT-B-32 --output encoders/mine
    clips import siglip.pt --architecture ViT-B-16-SigLIP --preprocessing webli --output encoders/siglip

The output is verified: unmodified open_clip loads it, and if the source's own library is installed, both compute the
same features.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from clips.core.artifact import atomic_artifact_dir, check_free, write_manifest
from clips.core.durable import atomic_write
from clips.errors import UserError, unknown_name_error
from clips.model_card import write_card
from clips.model_refs import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, reject_adapters
from clips.ranges import PositiveFloat
from clips.safe_text import log_info

if TYPE_CHECKING:
    from clips.interchange.conversion import ImportedEncoder

IMPORT_FORMATS: dict[str, str] = {  # modules with is_supported(path) and load(path, architecture)
    "hf_clip": "clips.interchange.hf_clip",
    "hf_siglip": "clips.interchange.hf_siglip",
    "open_clip": "clips.interchange.open_clip_format",
}
_TAG_ENTRIES = ("mean", "std", "interpolation", "resize_mode")  # of a pretrained tag; the others are its address


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Entries of open_clip's ``preprocess_cfg``; unset ones are open_clip's default, CLIP's preprocessing.

    Args:
        mean: of the three channels, pixels from 0 to 1.
        std: their standard deviation.
        interpolation: of the resizing, bicubic or bilinear.
        resize_mode: shortest (the shorter edge, then a center crop), longest (the longer edge, then padding) or squash.
        fill_color: of the padding.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    fill_color: Annotated[int, Field(ge=0, le=255)] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Convert a model of another format to an encoder directory.

    Args:
        path: a directory in open_clip's Hub format (also published CLIPS and OpenVision models) or of transformers'
            CLIPModel or SiglipModel; or a weights file: safetensors, a torch state dict or checkpoint.
        output: the encoder directory to write.
        architecture: of a weights file, unless its sizes are those of one architecture of open_clip alone: a CLIPS
            architecture, an open_clip name, or a published one (openvision-vit-large-patch14-224,
            ViT-L-14-CLIPS-336). For a SiglipModel, timm's name of its image tower.
        preprocessing: of a weights file that was trained with another than open_clip gives to files (it is printed): a
            pretrained tag of the architecture in open_clip, such as webli or datacomp1b, or its entries.
        format: open_clip, hf_clip or hf_siglip; detected from the content if not given.
        license: license of the weights; the one in the source's model card if not given.
        tolerance: largest accepted difference of unit features from the source's, if its own library is installed. Some
            SigLIP towers need more, because timm computes GELU where the source approximates it.
    """

    path: str
    output: str
    architecture: str | None = None
    preprocessing: str | Preprocessing | None = None
    format: str | None = None
    license: str | None = None
    tolerance: PositiveFloat = 1e-5

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in IMPORT_FORMATS:
            raise unknown_name_error(self.format, IMPORT_FORMATS, "format")


def run_import(config: ImportConfig) -> None:
    """Run ``clips import``."""
    path, output = Path(config.path), config.output
    if not path.exists():
        raise UserError(f"path: {path}: no such file or directory")
    if Path(output).resolve() == path.resolve():
        raise UserError(f"output: expected another directory than {path}, which is read")
    check_free(output)
    reject_adapters(path, str(path))
    from safetensors.torch import save_file

    from clips.encoder import load_encoder
    from clips.interchange.conversion import conform, tower_tensors
    from clips.interchange.hf_files import model_type
    from clips.interchange.open_clip_format import architectures_of_size
    from clips.interchange.parity import Parity, compare
    from clips.model.architectures import describe_preprocessing

    modules = {name: importlib.import_module(module) for name, module in IMPORT_FORMATS.items()}
    format = config.format or next((name for name, module in modules.items() if module.is_supported(path)), None)
    if format is None and path.is_dir():
        kind = model_type(path)
        fault = f"its config.json is of a '{kind}'" if kind else f"no {OPEN_CLIP_CONFIG}, no config.json"
        raise UserError(f"{path}: {fault}; expected open_clip's Hub format, or transformers' CLIPModel or SiglipModel")
    if format is None:
        raise UserError(f"{path}: expected a checkpoint that ends in .safetensors, .bin, .pt, .pth or .ckpt")
    imported: ImportedEncoder = modules[format].load(path, config.architecture)
    if config.preprocessing is not None:
        imported = with_preprocessing(imported, config, format)
    try:
        weights = conform(imported.weights, tower_tensors(imported.model_cfg, path), imported.where)
    except UserError as error:
        near = architectures_of_size(imported.weights) if config.architecture else []
        if not near or config.architecture in near:
            raise
        raise UserError(f"{error}; did you mean --architecture {' or '.join(near)}?") from None

    license = config.license or imported.license or "unknown"
    with atomic_artifact_dir(output, kind="encoder") as partial:
        written = {"model_cfg": imported.model_cfg, "preprocess_cfg": imported.preprocess_cfg}
        atomic_write(partial / OPEN_CLIP_CONFIG, json.dumps(written, indent=2) + "\n")
        save_file(weights, partial / OPEN_CLIP_WEIGHTS)
        imported.write_tokenizer(partial)
        encoder = load_encoder(partial)  # by unmodified open_clip
        parity = Parity()
        if imported.features is not None:  # the source's own library is installed
            parity = compare(encoder, imported.features, path)
            difference = parity.largest_difference
            if difference is None or not difference <= config.tolerance:
                why = f" ({imported.approximation})" if imported.approximation else ""
                raise UserError(
                    f"{config.path}: open_clip's features would differ from the source's by {difference:.1e}{why}, "
                    f"and tolerance is {config.tolerance:.0e}"
                )
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=config,
            parents={"source": path},
            format=format,
            architecture=config.architecture,
            license=license,
            preprocessing=describe_preprocessing(imported.preprocess_cfg),
            **vars(parity),
        )
        write_card(partial, "imported", manifest=manifest, license=license, config=config, cfg=imported.model_cfg)
    _report_preprocessing(imported, config)
    log_info(f"{output}: encoder imported from {format}; {parity}")


def with_preprocessing(imported: ImportedEncoder, config: ImportConfig, format: str) -> ImportedEncoder:
    """The encoder with the preprocessing that the config states: its entries, or those of an open_clip tag.

    Raises:
        UserError: no such tag, or the imported files state their own preprocessing.
    """
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    from clips.model.architectures import complete_preprocess_cfg

    stated, name = config.preprocessing, config.architecture
    if format.startswith("hf_"):
        raise UserError(f"preprocessing: expected none, because {config.path} states its own")
    if isinstance(stated, Preprocessing):
        entries, source = {key: value for key, value in vars(stated).items() if value is not None}, "as stated"
    else:
        tag = get_pretrained_cfg(name or "", stated or "")
        if not tag:
            known = ", ".join(list_pretrained_tags_by_model(name or "")) or "none"
            raise UserError(
                f"preprocessing: expected entries, or an open_clip tag of architecture {name} (known: {known}), "
                f"got {stated}"
            )
        entries, source = {key: tag[key] for key in _TAG_ENTRIES if key in tag}, f"open_clip's of {name}, {stated}"
    preprocess = complete_preprocess_cfg(entries, imported.preprocess_cfg["size"])
    return dataclasses.replace(imported, preprocess_cfg=preprocess, preprocess_source=source)


def _report_preprocessing(imported: ImportedEncoder, config: ImportConfig) -> None:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    from clips.interchange.open_clip_format import PREPROCESSING_OF_FILES
    from clips.model.architectures import complete_preprocess_cfg, describe_preprocessing

    preprocess, name = imported.preprocess_cfg, config.architecture or ""
    log_info(f"{config.output}: images: {describe_preprocessing(preprocess)} ({imported.preprocess_source})")
    by_name = imported.preprocess_source == PREPROCESSING_OF_FILES
    for tag in open_clip.list_pretrained_tags_by_model(name) if by_name else ():
        published = complete_preprocess_cfg(get_pretrained_cfg(name, tag), preprocess["size"])
        if any(published[key] != preprocess[key] for key in _TAG_ENTRIES):
            log_info(
                f"preprocessing: open_clip's published weights {tag} of {name} have another: "
                f"{describe_preprocessing(published)}; for weights trained so, give --preprocessing {tag}"
            )
    if f"{name}-quickgelu" in open_clip.list_models():
        log_info(
            f"architecture: {name} computes GELU; for weights trained with QuickGELU, as OpenAI's, MetaCLIP's and "
            f"DFN's, which look the same, give --architecture {name}-quickgelu"
        )
