"""A LLaVA directory as a model of lmms-eval: questions are answered in batches of like length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL.Image import Image

from benchmarks.outcome import thumbnail
from clips.errors import UserError

DEFAULT_NEW_TOKENS = 128  # where neither the task nor the user says how long an answer may be
_WINDOW = 16  # batches whose pictures are held at once


@dataclass(frozen=True)
class Picture:
    """What is kept of a question's first picture.

    Args:
        name: hash of its pixels; questions about the same picture share it.
        thumbnail: a small JPEG, for the first question about it only.
    """

    name: str
    thumbnail: bytes | None


def picture_name(picture: Image) -> str:
    """A name made of a picture's pixels: the same wherever it comes from."""
    content = f"{picture.mode}{picture.size}".encode() + picture.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


class LlavaBridge(lmms):
    """A LLaVA directory in transformers' layout, ours or any.

    Args:
        pretrained: the directory.
        device: ``cuda`` or ``cpu``; by default a GPU where there is one.
        batch_size: questions at once.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        loaded: (model, processor) already in memory, instead of ``pretrained``.
        keep_pictures: remember a thumbnail of every picture, see ``pictures``.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        device: str | None = None,
        batch_size: int | str = 32,
        dtype: str = "auto",
        loaded: tuple[Any, Any] | None = None,
        keep_pictures: bool = False,
    ) -> None:
        super().__init__()
        self._model, self.processor = loaded or load_for_evaluation(pretrained, device or "auto", dtype)
        self.batch_size = int(batch_size)
        self.keep_pictures = keep_pictures
        self.pictures: dict[tuple[str, int], Picture] = {}
        self._seen: set[str] = set()

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self._model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, in order."""
        from llava_bridge import answer

        answers = [""] * len(requests)
        for settings, members in _alike(requests):
            size = self.batch_size * _WINDOW
            for start in range(0, len(members), size):
                window = members[start : start + size]
                prompts = [requests[index].args[0] for index in window]
                pictures = [self._visuals(requests[index]) for index in window]
                texts = answer(
                    self._model, self.processor, pictures, prompts, batch_size=self.batch_size, **_generation(settings)
                )
                for index, text in zip(window, texts, strict=True):
                    answers[index] = _until(text, settings.get("until"))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the tasks at hand generate."""
        raise UserError("this task scores likelihoods, which llava_bridge does not offer; take one that generates")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise UserError("this task asks in several rounds, which llava_bridge does not offer")

    def _visuals(self, request: Instance) -> list[Image]:
        """The pictures of a request, the first one remembered."""
        _, _, to_visual, doc_id, task, split = request.args
        visuals = to_visual(self.task_dict[task][split][doc_id]) or []
        if not all(isinstance(visual, Image) for visual in visuals):
            raise UserError(f"{task}: question {doc_id} comes with something else than pictures")
        if self.keep_pictures and visuals:
            self._remember((task, doc_id), visuals[0])
        return visuals

    def _remember(self, key: tuple[str, int], picture: Image) -> None:
        name = picture_name(picture)
        self.pictures[key] = Picture(name, None if name in self._seen else thumbnail(picture))
        self._seen.add(name)


def load_for_evaluation(directory: str, device: str, precision: str) -> tuple[Any, Any]:
    """(model, processor) of a LLaVA directory.

    Args:
        directory: the LLaVA directory.
        device: ``auto``, ``cuda`` or ``cpu``.
        precision: ``auto`` is bfloat16 on a GPU and float32 elsewhere.
    """
    import torch

    from llava_bridge import load_llava

    if not directory:
        raise UserError("pretrained: expected a LLaVA directory")
    model, processor = load_llava(directory, None if device == "auto" else device)
    if precision != "auto":
        model = model.to(getattr(torch, precision))
    return model, processor


def _alike(requests: Sequence[Instance]) -> Iterator[tuple[Mapping[str, Any], list[int]]]:
    """Indices of the requests that share generation settings."""
    groups: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    for index, request in enumerate(requests):
        settings = request.args[1]
        groups.setdefault(repr(sorted(settings.items(), key=str)), (settings, []))[1].append(index)
    yield from groups.values()


def _generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """lmms-eval's generation settings as transformers' ``generate`` takes them without complaint."""
    made: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens", DEFAULT_NEW_TOKENS))}
    if settings.get("num_beams", 1) > 1:
        made["num_beams"] = int(settings["num_beams"])
    temperature = settings.get("temperature") or 0
    if settings.get("do_sample", temperature > 0) and temperature > 0:
        made |= {"do_sample": True, "temperature": float(temperature)}
        if settings.get("top_p") is not None:
            made["top_p"] = float(settings["top_p"])
    return made


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    """``text`` up to the first of the stop words."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if stop:
            text = text.split(stop, 1)[0]
    return text.strip()
