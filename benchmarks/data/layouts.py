"""The layouts in which pictures with captions come: one entry each, recognised by what lies on the disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.data import captions_json, hub, languages, long_captions, shards, tables
from benchmarks.data.source import CaptionSource, Found, OnDisk
from clips.errors import UserError, suggest


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout.

    Args:
        about: what it is, in a few words.
        fits: whether what lies there looks like it.
        read: its pictures and captions.
        takes: the fields of `CaptionSource` that it heeds, besides data and layout.
    """

    about: str
    fits: Callable[[OnDisk], bool]
    read: Callable[[OnDisk], Found]
    takes: tuple[str, ...] = ()


LAYOUTS: dict[str, Layout] = {
    "shards": Layout(
        about="WebDataset shards, CLIP_benchmark's included: .tar files, in a folder a split or in one",
        fits=shards.is_shards,
        read=shards.read_shards,
        takes=("split",),
    ),
    "docci": Layout(
        about="DOCCI: docci_descriptions.jsonlines and its pictures",
        fits=long_captions.is_docci,
        read=long_captions.read_docci,
        takes=("split", "images"),
    ),
    "dci": Layout(
        about="Densely Captioned Images: splits.json, annotations, photos",
        fits=long_captions.is_dci,
        read=long_captions.read_dci,
        takes=("split", "images"),
    ),
    "iiw": Layout(
        about="ImageInWords: data.jsonl and the pictures of DOCCI or DCI",
        fits=long_captions.is_iiw,
        read=long_captions.read_iiw,
        takes=("images",),
    ),
    "urban1k": Layout(
        about="Urban-1k: folders caption and image",
        fits=long_captions.is_urban1k,
        read=long_captions.read_urban1k,
        takes=("images",),
    ),
    "xm3600": Layout(
        about="Crossmodal-3600: captions.jsonl with every language, and images",
        fits=languages.is_xm3600,
        read=languages.read_xm3600,
        takes=("images", "language"),
    ),
    "parallel": Layout(
        about="Flickr30k-200, XTD200, XTD10: names of pictures and a file of captions a language",
        fits=languages.is_parallel,
        read=languages.read_parallel,
        takes=("images", "language"),
    ),
    "datasets": Layout(
        about="Hugging Face datasets: parquet files, save_to_disk, or ORG/NAME on the hub",
        fits=hub.is_hub,
        read=hub.read_hub,
        takes=("split", "subset", "image_column", "caption_columns"),
    ),
    "sharegpt4v": Layout(
        about="ShareGPT4V: share-captioner_coco_lcs_sam_1246k_1107.json and its pictures",
        fits=long_captions.is_sharegpt4v,
        read=long_captions.read_sharegpt4v,
        takes=("split", "images"),
    ),
    "paired": Layout(
        about="CLIP_benchmark's JSON of one language: image_paths and annotations",
        fits=languages.is_paired,
        read=languages.read_paired,
        takes=("images",),
    ),
    "coco": Layout(
        about="COCO's captions_*.json: images and annotations",
        fits=captions_json.is_coco,
        read=captions_json.read_coco,
        takes=("images",),
    ),
    "karpathy": Layout(
        about="Karpathy's JSON: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json",
        fits=captions_json.is_karpathy,
        read=captions_json.read_karpathy,
        takes=("split", "images"),
    ),
    "list": Layout(
        about="a JSON list of {image, caption}, as ALBEF and BLIP have it",
        fits=captions_json.is_list,
        read=captions_json.read_list,
        takes=("images",),
    ),
    "lines": Layout(
        about="JSON lines of {image, captions}, {image, caption} or {caption, images}",
        fits=captions_json.is_lines,
        read=captions_json.read_json_lines,
        takes=("images", "language"),
    ),
    "table": Layout(
        about="a CSV, TSV or parquet file with columns for the picture's name and its captions",
        fits=tables.is_table,
        read=tables.read_table,
        takes=("images", "image_column", "caption_columns"),
    ),
    "text": Layout(
        about="lines of picture,caption or picture#0<tab>caption, as Flickr30k's",
        fits=captions_json.is_text,
        read=captions_json.read_text,
        takes=("images",),
    ),
}
"""In the order in which they are tried: those that would fit another's data too come after it."""


def read_source(source: CaptionSource) -> Found:
    """The pictures and captions of a source, by the layout that it names or that fits.

    Raises:
        UserError: nothing is there, no layout fits, or it heeds no such setting; what is malformed is found while the
            rows are read.
    """
    found = OnDisk(source)
    if source.layout is not None and source.layout not in LAYOUTS:
        raise suggest(source.layout, LAYOUTS, "layout")
    if not found.path.exists() and source.layout != "datasets":
        raise UserError(f"{source.data}: no such file or directory (a data set of the hub needs 'layout: datasets')")
    name = source.layout or next((name for name, layout in LAYOUTS.items() if layout.fits(found)), None)
    if name is None:
        raise UserError(
            f"{source.data}: expected .tar shards or another layout ({', '.join(list(LAYOUTS)[1:])}), found none"
        )
    for field in dataclasses.fields(source):
        heeded = field.name in {"data", "layout", *LAYOUTS[name].takes}
        if not heeded and getattr(source, field.name) != field.default:
            takes = ", ".join(LAYOUTS[name].takes)
            raise UserError(f"{field.name}: {source.data}: the layout '{name}' has no such setting (it has {takes})")
    return LAYOUTS[name].read(found)
