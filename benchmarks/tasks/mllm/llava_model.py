"""Models of lmms-eval: a LLaVA directory, which answers in batches of similar length, a LLaVA behind servers with
OpenAI's chat API, and precomputed answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL.Image import Image

from benchmarks.tasks.mllm.items import QuestionImage, image_hash_name, record_image
from benchmarks.tasks.mllm.llava_input import load_for_evaluation
from benchmarks.tasks.mllm.offline_tasks import unsuppressed_stderr
from benchmarks.tasks.output_cache import AnswerCache, run_on_all
from clips.commandline.progress import Progress, log_estimate
from clips.core.chat_client import REASONING_TAGS, ChatClient, ChatServerError, choices, data_url, image_request
from clips.core.identity import digest
from clips.data.images import to_rgb
from clips.errors import UserError
from clips.parallel.distributed import DistributedContext, all_gather_objects

if TYPE_CHECKING:
    from benchmarks.tasks.blind import BlindView

_WINDOW = 16  # batches with images in memory at the same time
_READ = 64  # questions to servers whose images are in memory at the same time


class LlavaBridgeModel(lmms):
    """A LLaVA directory in transformers' format, of this suite or any other.

    Args:
        pretrained: the directory.
        device: ``cuda`` or ``cpu``; by default a GPU if available.
        batch_size: questions per batch.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        loaded: (model, processor) already in memory, instead of ``pretrained``.
        record_images: store names and thumbnails of the questions' images in ``images``.
        cache: the answer cache.
        processes: the processes that share the questions; with lmms-eval's own command line, lmms-eval shards them.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        device: str | None = None,
        batch_size: int | str = 32,
        dtype: str = "auto",
        loaded: tuple[Any, Any] | None = None,
        record_images: bool = False,
        cache: AnswerCache | None = None,
        processes: DistributedContext | None = None,
    ) -> None:
        super().__init__()
        self._model, self.processor = loaded or load_for_evaluation(pretrained, device or "auto", dtype)
        self._is_owner = loaded is None
        self.batch_size = int(batch_size)
        self.record_images = record_images
        self.cache = cache or AnswerCache(None)
        self.processes = processes or DistributedContext()
        self.view: BlindView | None = None
        self.selection = ""  # hash of the questions that are asked, where some are left out
        self.images: dict[tuple[str, int], QuestionImage] = {}
        self._image_names: set[str] = set()

    @property
    def device(self) -> Any:
        """The model's device."""
        return self._model.device

    def clean(self) -> None:
        """Free the model after its answers, for lmms-eval's own command; a model given as ``loaded`` is asked again."""
        if self._is_owner:
            super().clean()

    @contextlib.contextmanager
    def seeing(self, view: BlindView) -> Iterator[None]:
        """Answer with the images of a view."""
        self.view = view
        try:
            yield
        finally:
            self.view = None

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, in order, from the cache or generated."""
        return self._collect(
            requests, [_key(request, view=self.view, selection=self.selection) for request in requests], self._answers
        )

    def _collect(
        self, requests: Sequence[Instance], keys: Sequence[str], answer: Callable[..., Iterator[dict[int, str]]]
    ) -> list[str]:
        """The cached entry of each request, after all processes have answered the missing ones: ``answer`` yields
        request index → answer for requests with the same settings, batch by batch.
        """
        missing = [index for index, key in enumerate(keys) if key not in self.cache.known]
        if not missing:  # in all processes: rank 0 alone may ask again, to score
            return [self.cache.known[key] for key in keys]

        def work() -> None:
            groups: dict[str, list[int]] = {}  # by generation settings; likelihood requests have none
            for index in missing:
                settings = requests[index].args[1]
                key = repr(sorted(settings.items(), key=str)) if isinstance(settings, Mapping) else ""
                groups.setdefault(key, []).append(index)
            total = len(missing) // self.processes.count
            with Progress("answering", total, "questions", unsuppressed_stderr()) as progress:
                for indices in groups.values():
                    mine = _local_questions(indices, requests, self.task_dict, self.processes)
                    size = self.batch_size * _WINDOW
                    for start in range(0, len(mine), size):
                        window = mine[start : start + size]
                        for answered in answer([requests[index] for index in window]):
                            self.cache.add({keys[window[index]]: text for index, text in answered.items()})
                            progress.advance(len(answered))

        before = set(self.images)
        run_on_all(self.processes, work)
        self.cache.share(self.processes)
        new = {question: self.images[question] for question in self.images.keys() - before}
        for images in all_gather_objects(new) if self.processes.count > 1 else []:
            self.images |= images
        return [self.cache.known[key] for key in keys]

    def _answers(self, requests: Sequence[Instance]) -> Iterator[dict[int, str]]:
        from llava_bridge import iter_answer_batches

        settings = _decoding(requests[0])
        # lmms-eval's settings as transformers' arguments, without those that cause warnings
        arguments: dict[str, Any] = {"max_new_tokens": int(settings["max_new_tokens"])}
        if (settings.get("num_beams") or 1) > 1:
            arguments["num_beams"] = int(settings["num_beams"])
        temperature = settings.get("temperature") or 0
        if settings.get("do_sample", temperature > 0) and temperature > 0:
            arguments |= {"do_sample": True, "temperature": float(temperature)}
            if settings.get("top_p") is not None:
                arguments["top_p"] = float(settings["top_p"])
        prompts = [request.args[0] for request in requests]
        for batch in iter_answer_batches(
            self._model, self.processor, self._images_of(requests), prompts, batch_size=self.batch_size, **arguments
        ):
            yield {index: _truncate_at_stop(text, settings["until"]) for index, text in batch.items()}

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(loss, whether greedy decoding generates it) of each request's answer, in order.

        lmms-eval's likelihood of multi-modal models is the mean loss over the answer's tokens including EOS, of which
        ``multiple_choice`` takes the smallest (``ConfigurableTask.process_results``).
        """
        if other := next((each for each in requests if len(each.args) != 6), None):  # of acc_mutual_info
            raise UserError(f"{other.task_name}: likelihoods without a question are not supported")
        keys = [_key(request, self._continuation(request), self.view, self.selection) for request in requests]
        likelihoods = [json.loads(text) for text in self._collect(requests, keys, self._likelihoods)]
        # lmms-eval converts any other pair to text (``unwrap_generation_output``), which its scorers cannot read
        return [GenerationResult((loss, greedy)) for loss, greedy in likelihoods]

    def _likelihoods(self, requests: Sequence[Instance]) -> Iterator[dict[int, str]]:
        from llava_bridge import loglikelihoods

        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            scored = loglikelihoods(
                self._model,
                self.processor,
                self._images_of(batch),
                [each.args[0] for each in batch],
                [self._continuation(each) for each in batch],
                self.batch_size,
            )
            texts = [json.dumps([-each.total / each.tokens, each.greedy]) for each in scored]
            yield dict(enumerate(texts, start))

    def _continuation(self, request: Instance) -> str:
        """The answer whose likelihood is requested, or the one that the task builds from the question."""
        given, _, doc_id, task, split = request.args[1:]
        return given if isinstance(given, str) else str(given(self.task_dict[task][split][doc_id]))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise UserError("this task has several rounds, which llava_bridge does not support")

    def _images_of(self, requests: Sequence[Instance]) -> list[list[Image]]:
        """The images of each request, the same one as one object, which is then preprocessed once.

        Threads decode and compare them. The first of each request is recorded, except in a blind run.
        """
        unique: dict[str, Image] = {}

        def read(request: Instance) -> list[str]:
            _, _, to_visual, doc_id, task, split = request.args
            visuals = to_visual(self.task_dict[task][split][doc_id]) or []
            if not all(isinstance(visual, Image) for visual in visuals):
                raise UserError(f"{task}: question {doc_id} has visuals other than images")
            if self.view is not None:
                visuals = self.view.visuals(doc_id, visuals, to_visual)
            visuals = [to_rgb(visual) for visual in visuals]  # those of lmms-eval's own command have any mode
            names = [image_hash_name(visual) for visual in visuals]
            for name, visual in zip(names, visuals, strict=True):
                unique.setdefault(name, visual)
            return names

        with ThreadPoolExecutor() as pool:
            images = list(pool.map(read, requests))
        for request, names in zip(requests, images, strict=True):
            if names and self.record_images and self.view is None:
                *_, doc_id, task, _ = request.args
                record = record_image(names[0], unique[names[0]], self._image_names)
                self.images.setdefault((task, doc_id), record)  # each option of a question is a request
        return [[unique[name] for name in names] for names in images]


class ServedLlava(LlavaBridgeModel):
    """Asks servers, which batch the questions themselves; images are sent without loss, as PNG.

    Args:
        client: the servers' client.
        name: the model's name there.
        options: see `LlavaBridgeModel`.
    """

    def __init__(self, client: ChatClient, name: str, **options: Any) -> None:
        super().__init__(loaded=(None, None), **options)
        self.client, self.name = client, name
        self.seconds = 0.0  # that servers took for answers

    @property
    def device(self) -> Any:
        """Where lmms-eval's own tensors are."""
        return "cpu"

    def _answers(self, requests: Sequence[Instance]) -> Iterator[dict[int, str]]:
        started = time.monotonic()
        windows = (requests[start : start + _READ] for start in range(0, len(requests), _READ))
        bodies = (body for window in windows for body in self._bodies(window))
        pending = [self.client.submit(body, replica=number) for number, body in enumerate(bodies)]
        failure = ""
        for number, (request, future) in enumerate(zip(requests, pending, strict=True)):
            if failure and not future.done():
                future.cancel()
                continue
            try:
                text = choices(future.result())[0][0]
            except ChatServerError as error:  # an empty answer would count as a wrong one
                failure = failure or f"endpoint: {error} ({request.task_name}, question {request.doc_id})"
                continue
            yield {number: _truncate_at_stop(text, _decoding(request)["until"])}
        if failure:  # after the answers that have come, which may have cost money, are cached
            raise UserError(failure)
        self.seconds += time.monotonic() - started

    def _bodies(self, requests: Sequence[Instance]) -> Iterator[dict[str, Any]]:
        urls: dict[int, str] = {}  # of each image object
        for request, images in zip(requests, self._images_of(requests), strict=True):
            for image in images:
                urls[id(image)] = urls.get(id(image)) or data_url(image, "PNG")
            text, settings = request.args[0], _decoding(request)
            decoding = {"max_tokens": int(settings["max_new_tokens"]), "temperature": 0.0}
            if settings.get("do_sample", bool(settings.get("temperature"))):
                sampling = ("temperature", "top_p")
                decoding |= {name: settings[name] for name in sampling if settings.get(name) is not None}
            if (settings.get("num_beams") or 1) > 1:
                raise UserError(f"endpoint: {request.task_name} searches with beams, which OpenAI's chat API has not")
            yield image_request(self.name, [urls[id(image)] for image in images], text, **decoding)

    def print_estimate(self, part: int, total: int, prices: tuple[float, float] | None) -> None:
        """Print what all ``total`` questions would take, from ``part`` of them, none of which was cached."""
        usage = self.client.usage
        log_estimate(
            part=part,
            total=total,
            seconds=self.seconds,
            tokens=(usage["prompt_tokens"], usage["completion_tokens"]),
            prices=prices,
            concurrent=("batch_size", self.batch_size),
        )

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """Not supported: OpenAI's chat API returns no likelihood of a given answer."""
        raise UserError(f"endpoint: {requests[0].task_name} compares likelihoods; expected 'llava:' without endpoint")


class RecordedAnswersModel(lmms):
    """A model with recorded answers: question index → answer."""

    is_simple = True

    def __init__(self, answers: Mapping[int, str]) -> None:
        super().__init__()
        self.answers = answers

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The recorded answer to each request."""
        return [self.answers[request.args[3]] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not available."""
        raise UserError("this task scores likelihoods, which answers do not contain")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not available."""
        raise UserError("this task has several rounds, but the file has one answer per question")


_NAMES = ("imageId", "image_id", "img_id", "image_name", "image_path", "image_source")


def _local_questions(
    indices: Sequence[int], requests: Sequence[Instance], task_dict: Mapping[str, Any], processes: DistributedContext
) -> list[int]:
    """This process's shard of the request indices; ``task_dict`` is task → split → dataset."""
    # questions about one image are recognized by the undecoded data, which is cheaper than decoding every image twice;
    # a wrong guess costs time and changes no answer
    key_functions: dict[tuple[str, str], Callable[[int], str]] = {}
    groups: dict[tuple[str, str], list[int]] = {}
    for index in indices:
        number, task, split = requests[index].args[-3:]
        if (task, split) not in key_functions:
            key_functions[task, split] = _image_key(task_dict[task][split])
        groups.setdefault((task, key_functions[task, split](number)), []).append(index)
    loads = [0] * processes.count
    mine: list[int] = []
    for group in groups.values():
        least = loads.index(min(loads))
        loads[least] += len(group)
        if least == processes.rank:
            mine += group
    return mine


def _image_key(documents: Any) -> Callable[[int], str]:
    import datasets

    features = getattr(documents, "features", None) or {}
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    names = [name for name in _NAMES if name in features]
    if images:
        raw = documents.select_columns(images)
        for name in images:
            raw = raw.cast_column(name, datasets.Image(decode=False))

        def content_hash(number: int) -> str:
            contents = [raw[number][name] or {} for name in images]
            return hashlib.sha256(b"".join(each.get("bytes") or str(each).encode() for each in contents)).hexdigest()

        return content_hash
    if names:
        named = documents.select_columns(names[:1])
        return lambda number: str(named[number][names[0]])
    return str


def _key(request: Instance, continuation: str | None = None, view: BlindView | None = None, selection: str = "") -> str:
    """Hash of a request without the data and the model, which the cache's own key covers."""
    prompt, _, _, number, task, split = request.args
    number, condition = (number, []) if view is None else (view.numbers[number], view.condition(number))
    content = [task, split, number, request.idx, prompt, continuation, *condition, *([selection] if selection else [])]
    content += sorted(map(repr, _decoding(request).items())) if continuation is None else []
    return digest(content)[:32]


def _decoding(request: Instance) -> dict[str, Any]:
    """The request's generation settings as lmms-eval's own LLaVAs use them: with their default length, and without the
    default stop string, an empty line, which would end an answer after its first paragraph.
    """
    settings = request.args[1]
    stops = settings.get("until") or []
    stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop not in ("", "\n\n")]
    return {"max_new_tokens": 1024, **settings, "until": stops}


def _truncate_at_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first stop string after its reasoning."""
    if any(start in text and end not in text for start, end in REASONING_TAGS):
        return text.strip()
    answer = text
    for _, end in REASONING_TAGS:
        answer = answer.rpartition(end)[2]
    thought, text = text[: len(text) - len(answer)], answer.lstrip()
    for stop in stops:
        text = text.split(stop, 1)[0]
    return (thought + text).strip()
