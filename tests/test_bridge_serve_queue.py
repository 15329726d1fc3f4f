"""The waiting time that a rejected client gets, compared with the time of the requests before it."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from llava_bridge.inference.streaming import GenerationParams, Prompt, StreamedAnswer
from llava_bridge.serving import worker
from llava_bridge.serving.request import ChatRequest

SECONDS = 0.3
"""That a batch takes, of any size."""


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A batch is being answered; the worker's queue is its own, the model only takes its time."""
    began = threading.Event()

    def ready(
        model: Any, processor: Any, pictures: Any, messages: Any, decoding: GenerationParams, **told: Any
    ) -> Prompt:
        return Prompt(ids=[0], images=pictures, params=decoding, max_new_tokens=1, **told)

    def replies(model: Any, processor: Any, prompts: list[Prompt]) -> list[StreamedAnswer]:
        began.set()
        time.sleep(SECONDS)
        return [StreamedAnswer(text="", prompt_tokens=1, new_tokens=1, finish="stop") for _ in prompts]

    monkeypatch.setattr(worker, "prepare_prompt", ready)
    monkeypatch.setattr(worker, "generate_answers", replies)
    return began


async def answered(served: worker.GenerationWorker, temperature: float | None) -> None:
    decoding = GenerationParams(temperature=temperature)
    asked = ChatRequest(model=None, messages=[], images=[], params=decoding, stream=False, usage=False)
    async for _ in served.stream(asked):
        pass


@pytest.mark.parametrize(
    ("temperatures", "samples", "batches"),
    [
        pytest.param([0.0] * 16, False, 1, id="greedy"),
        pytest.param([0.7] * 2, False, 2, id="drawn"),
        pytest.param([None] * 2, True, 2, id="a LLaVA that draws"),
        pytest.param([0.7, 0.0] * 2, False, 3, id="both"),
        pytest.param([0.0] * 17, False, 2, id="more than a batch"),
        pytest.param([], False, 0, id="nobody waits"),
    ],
)
def test_the_stated_waiting_time_fits_the_queue(temperatures, samples, batches, busy):
    served = worker.GenerationWorker(SimpleNamespace(generation_config=SimpleNamespace(do_sample=samples)), None)

    async def told_and_taken() -> tuple[float, float]:
        await answered(served, 0.0)  # from which it knows how long a batch takes
        busy.clear()
        asked = [asyncio.create_task(answered(served, 0.0))]
        await asyncio.to_thread(busy.wait)
        began = time.monotonic()
        asked += [asyncio.create_task(answered(served, temperature)) for temperature in temperatures]
        await asyncio.sleep(SECONDS / 10)
        told = served.seconds_to_wait()
        await asyncio.gather(*asked)
        return told, time.monotonic() - began

    told, taken = asyncio.run(told_and_taken())
    served.close()
    assert told == pytest.approx(SECONDS * (1 + batches), rel=0.3)
    assert taken == pytest.approx(told, rel=0.3)


def test_finished_batches_and_gone_clients_do_not_count_as_waiting(busy: threading.Event) -> None:
    served = worker.GenerationWorker(SimpleNamespace(generation_config=SimpleNamespace(do_sample=True)), None)

    async def told() -> float:
        await answered(served, None)
        served._thread.submit(int).result()  # what the worker does after its answer
        assert served.seconds_to_wait() == 0
        asked = [asyncio.create_task(answered(served, None)) for _ in range(9)]
        await asyncio.sleep(SECONDS / 10)
        for task in asked[1:]:
            task.cancel()
        await asyncio.sleep(SECONDS / 10)
        seconds = served.seconds_to_wait()
        await asked[0]
        return seconds

    assert asyncio.run(told()) == pytest.approx(SECONDS, rel=0.3)
    served.close()
