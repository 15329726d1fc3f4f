"""``llava-bridge describe``: a LLaVA's answers to one question about many images, as JSON lines.

llava-bridge describe runs/mine-llava photos/ --output described.jsonl
llava-bridge describe runs/mine-llava photos/*.jpg --prompt "Is there a dog in the image?" | head
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from PIL import Image

from clips.commandline.progress import Progress
from clips.core.artifact import atomic_write, directory_hash, log_info, write_errors_as_user_errors
from clips.core.chat_client import ChatClient, ChatServerError, check_urls, choices, image_request
from clips.core.estimate import log_estimate
from clips.core.identity import RUN, RUN_ONLY, identity, read_run, reject_other_run, run_text
from clips.data.invalid_samples import InvalidSamples
from clips.errors import UserError, check_at_least
from clips.model_refs import resolve_model_dir
from clips.text_files import safe_json_loads
from llava_bridge.image_paths import find_images, open_image_or_member
from llava_bridge.model.llava_checks import resolve_llava_dir

_READER_THREADS = 4
Batch = list[tuple[str, Image.Image]]
Answers = Callable[[], "list[tuple[str, str | ChatServerError]]"]
"""Waits for the answers of a batch: image, text or the reason why the server rejects it."""
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Ask a LLaVA the same question about many images; one line ``{"image": …, "text": …}`` each.

    Args:
        model: the LLaVA directory, or ``ORG/NAME`` on the Hub; with ``endpoint`` the model's name there.
        endpoint: base URLs of servers with OpenAI's chat API (vLLM, SGLang, llava-bridge serve), such as
            ``[http://host:8000/v1]``; several serve the same model. The model is not loaded here.
        endpoint_key_env: the environment variable with the servers' API key, if they need one.
        retry_minutes: how long a request is repeated while no server answers it; then the command ends, and resumes.
        images: image files, images in shards (``shard.tar/000000003.png``), directories, shards and globs.
        prompt: the question about each image.
        output: the file of JSON lines to write; the same command resumes with the missing images. Without it lines are
            printed.
        estimate: answer this number of images, print the time, tokens and cost of all, and write nothing. The time is
            realistic for several times the images that are processed concurrently.
        token_prices: prices of a million input and output tokens, for ``estimate`` with ``endpoint``.
        batch_size: images per batch; with ``endpoint`` two batches are requested concurrently.
        max_new_tokens: maximum length of an answer.
    """

    model: str = dataclasses.field(metadata=RUN_ONLY)  # identified by a content hash
    images: list[str] = dataclasses.field(metadata=RUN_ONLY)
    endpoint: tuple[str, ...] = dataclasses.field(default=(), metadata=RUN_ONLY)
    endpoint_key_env: str = dataclasses.field(default="OPENAI_API_KEY", metadata=RUN_ONLY)
    retry_minutes: float = dataclasses.field(default=30.0, metadata=RUN_ONLY)
    prompt: str = "Describe this picture."
    output: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    estimate: int = dataclasses.field(default=0, metadata=RUN_ONLY)
    token_prices: tuple[float, float] | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    batch_size: int = dataclasses.field(default=16, metadata=RUN_ONLY)
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_size", "max_new_tokens")
        check_at_least(0, self, "retry_minutes", "estimate")
        check_urls("endpoint", self.endpoint)
        if not self.images:
            raise UserError("images: expected images, directories, shards (.tar) or globs")
        if not self.prompt.strip():
            raise UserError("prompt: expected a question or an instruction")


def run_describe(config: DescribeConfig) -> None:
    """Write a line for each image; those that cannot be read are counted and listed at the end.

    Raises:
        UserError: no such images or LLaVA, an output of another prompt or model, or no image can be read.
    """
    names = find_images(config.images)
    if not config.endpoint:
        resolve_llava_dir(config.model)  # reported before torch is imported
    if config.estimate:
        _print_estimate(config, names)
        return
    output = _OutputFile(config) if config.output else None
    described_before = output.described_images() if output else set()
    missing = [name for name in names if name not in described_before]
    if len(missing) < len(names):
        log_info(f"{len(names) - len(missing):,} of {len(names):,} images are described already")
    invalid = InvalidSamples()
    if missing:
        engine = _load_engine(config)  # its errors leave no output behind
        with output.open_to_append() if output else contextlib.nullcontext(sys.stdout) as lines:
            _describe(config, engine, missing, lines, invalid)
    for line in invalid.summary():
        log_info(line)
    described = len(names) - invalid.count
    if not described:
        raise UserError(f"images: none of the {len(names):,} images can be read")
    if output:
        log_info(f"{config.output}: {described:,} of {len(names):,} images described")


def _print_estimate(config: DescribeConfig, names: Sequence[str]) -> None:
    """Answer ``config.estimate`` images, evenly spaced, and print what all of them would take.

    Raises:
        UserError: none of the images can be read.
    """
    count = min(config.estimate, len(names))
    part = [names[number * len(names) // count] for number in range(count)]
    engine, invalid = _load_engine(config), InvalidSamples()
    started = time.monotonic()
    _describe(config, engine, part, io.StringIO(), invalid)
    if invalid.count == count:
        raise UserError(f"estimate: none of {count:,} images can be read")
    log_estimate(
        part=count,
        total=len(names),
        seconds=time.monotonic() - started,
        tokens=(engine.usage["prompt_tokens"], engine.usage["completion_tokens"]),
        prices=config.token_prices,
        concurrent=("2 × batch_size", 2 * config.batch_size) if config.endpoint else ("batch_size", config.batch_size),
    )


def _describe(
    config: DescribeConfig, engine: _Engine, names: Sequence[str], lines: TextIO, invalid: InvalidSamples
) -> None:
    """Write a line for each image; add those that cannot be read to ``invalid``."""
    described = 0
    with Progress("describing", len(names), "images") as progress:
        submitted = (engine.submit(batch) for batch in _batches(names, config.batch_size, invalid))
        for answers in _delayed(submitted, 1 if config.endpoint else 0):
            for name, text in answers():
                if isinstance(text, ChatServerError):
                    invalid.add([(names.index(name), name, str(text))])
                    continue
                lines.write(json.dumps({"image": name, "text": text}, ensure_ascii=False) + "\n")
                described += 1
            lines.flush()
            progress.advance(described + invalid.count - progress.done)


class _Engine(NamedTuple):
    """Answers batches of images; ``usage`` counts the tokens of servers."""

    submit: Callable[[Batch], Answers]
    usage: Counter[str]


def _load_engine(config: DescribeConfig) -> _Engine:
    return _ask_servers(config) if config.endpoint else _ask_model(config)


def _ask_model(config: DescribeConfig) -> _Engine:
    from llava_bridge.inference.generate import answer, load_llava

    model, processor = load_llava(config.model)

    def submit(batch: Batch) -> Answers:
        images, prompts = [image for _, image in batch], [config.prompt] * len(batch)
        names = [name for name, _ in batch]
        return lambda: list(
            zip(names, answer(model, processor, images, prompts, max_new_tokens=config.max_new_tokens), strict=True)
        )

    return _Engine(submit, Counter())


def _ask_servers(config: DescribeConfig) -> _Engine:
    """Greedy answers by servers.

    Raises:
        UserError: no server answers, or it has no such model.
    """
    client = _client(config)
    client.find_model(config.model)

    def submit(batch: Batch) -> Answers:
        settings: dict[str, Any] = {"max_tokens": config.max_new_tokens, "temperature": 0.0}
        requests = [image_request(config.model, [image], config.prompt, **settings) for _, image in batch]
        pending = [client.submit(request, replica=number) for number, request in enumerate(requests)]
        return lambda: [(name, _served_text(future)) for (name, _), future in zip(batch, pending, strict=True)]

    return _Engine(submit, client.usage)


def _client(config: DescribeConfig) -> ChatClient:
    return ChatClient(
        urls=config.endpoint,
        key=os.environ.get(config.endpoint_key_env, ""),
        requests_in_flight=2 * config.batch_size,
        retry_seconds=60 * config.retry_minutes,
    )


def _served_text(pending: Future[dict[str, Any]]) -> str | ChatServerError:
    """An answer; the error if the server rejects, or fails at, this image."""
    try:
        return choices(pending.result())[0][0]
    except ChatServerError as error:
        if error.by_input:
            return error
        raise UserError(f"endpoint: {error}") from None


def _delayed(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items, each after ``count`` more have been taken."""
    pending = deque[Item]()
    for item in items:
        pending.append(item)
        if len(pending) > count:
            yield pending.popleft()
    yield from pending


class _OutputFile:
    """The file of answers, and the file next to it with the identity of its run."""

    def __init__(self, config: DescribeConfig) -> None:
        self.path = Path(config.output or "")
        self.record = self.path.with_name(f"{self.path.name}.{RUN}")
        if config.endpoint:
            model = _client(config).identify_model(config.model, paths=False)
        else:
            model = directory_hash(resolve_model_dir(config.model, "llava"))
        self.run = identity("llava-bridge describe", config, {"model": model})

    def described_images(self) -> set[str]:
        """The names of the images in the file.

        Raises:
            UserError: it is another file, or from another model or prompt.
        """
        if not self.path.exists():
            return set()
        before = read_run(self.record)
        if before is None:
            raise UserError(
                f"output: {self.path} exists and is not from this command, or {self.record.name} next to it is "
                "missing; choose another output"
            )
        reject_other_run(self.path, before, self.run)
        try:
            return {safe_json_loads(line)["image"] for line in self._complete_lines().splitlines()}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"output: {self.path} is no output of this command; choose another") from None

    @contextlib.contextmanager
    def open_to_append(self) -> Iterator[TextIO]:
        """The open file, without the incomplete line of a killed run."""
        with write_errors_as_user_errors(self.path):
            if self.path.exists():
                os.truncate(self.path, len(self._complete_lines()))
            else:
                atomic_write(self.record, run_text(self.run))
            stream = self.path.open("a", encoding="utf-8")
        with stream:
            yield stream

    def _complete_lines(self) -> bytes:
        content = self.path.read_bytes()
        return content[: content.rfind(b"\n") + 1]


def _batches(names: Sequence[str], size: int, invalid: InvalidSamples) -> Iterator[Batch]:
    """Full batches of the readable images; the others are added to ``invalid``."""
    batch: Batch = []
    for index, (name, image) in enumerate(_prefetch(names, 2 * size)):
        if isinstance(image, UserError):
            invalid.add([(index, name, str(image).removeprefix(f"{name}: "))])
            continue
        batch.append((name, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _prefetch(names: Iterable[str], count: int) -> Iterator[tuple[str, Image.Image | UserError]]:
    """Each name with its image or its error; up to ``count`` are decoded ahead."""
    remaining = iter(names)
    with ThreadPoolExecutor(_READER_THREADS) as pool:
        pending = deque((name, pool.submit(_try_to_open, name)) for name in itertools.islice(remaining, count))
        while pending:
            name, image = pending.popleft()
            if (following := next(remaining, None)) is not None:
                pending.append((following, pool.submit(_try_to_open, following)))
            yield name, image.result()


def _try_to_open(name: str) -> Image.Image | UserError:
    try:
        return open_image_or_member(name)
    except UserError as error:
        return error
