"""A LLaVA directory as a model of lmms-eval: questions are answered in batches of like length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL.Image import Image

from benchmarks.kept import KeptAnswers
from benchmarks.mllm.dealing import shared
from benchmarks.outcome import thumbnail
from benchmarks.sharing import together
from clips.errors import UserError
from clips.parallel.processes import Processes, gather_objects
from clips.progress import Progress

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
        kept: where answers are kept, and found.
        processes: who shares the questions. Under lmms-eval's own command line lmms-eval deals them out itself.
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
        kept: KeptAnswers | None = None,
        processes: Processes | None = None,
    ) -> None:
        super().__init__()
        self._model, self.processor = loaded or load_for_evaluation(pretrained, device or "auto", dtype)
        self.batch_size = int(batch_size)
        self.keep_pictures = keep_pictures
        self.kept = kept or KeptAnswers(None)
        self.processes = processes or Processes()
        self.pictures: dict[tuple[str, int], Picture] = {}
        self._seen: set[str] = set()

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self._model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, in order; those that are kept are not asked again."""
        keys = [_key(request) for request in requests]
        missing = [index for index, key in enumerate(keys) if key not in self.kept.known]
        together(self.processes, lambda: self._answer_missing([requests[index] for index in missing]))
        for known, pictures in gather_objects((self.kept.known, self.pictures)) if self.processes.count > 1 else []:
            self.kept.known |= known
            self.pictures |= pictures
        return [self.kept.known[key] for key in keys]

    def _answer_missing(self, requests: Sequence[Instance]) -> None:
        """Answer this process's share of some requests, those about one picture together."""
        with Progress("answering", len(requests) // self.processes.count, "questions") as progress:
            for settings, members in _alike(requests):
                mine = shared([requests[index] for index in members], self.task_dict, self.processes)
                size = self.batch_size * _WINDOW
                for start in range(0, len(mine), size):
                    for answers in self._answers(mine[start : start + size], settings):
                        self.kept.add(answers)
                        progress.advance(len(answers))

    def _answers(self, requests: Sequence[Instance], settings: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        """Key → answer, batch by batch."""
        from llava_bridge import answer_batches

        seen: dict[str, Image] = {}
        batches = answer_batches(
            self._model,
            self.processor,
            [[seen.setdefault(picture_name(visual), visual) for visual in self._visuals(each)] for each in requests],
            [request.args[0] for request in requests],
            batch_size=self.batch_size,
            **_generation(settings),
        )
        for batch in batches:
            yield {_key(requests[place]): _until(text, settings.get("until")) for place, text in batch.items()}

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


def _key(request: Instance) -> str:
    """What a request asks, but for the data and the model: those are known before."""
    prompt, settings, _, number, task, split = request.args
    asked = [task, split, number, request.idx, prompt, sorted(map(repr, settings.items()))]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]


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
