"""Answer files of other programs, the input of `clips-bench score`.

Three formats of JSON lines, distinguished by their fields:

- this suite's: ``{"doc_id" or "question_id": …, "answer": "…"}``, optionally ``"prompt"`` for comparison of the texts;
  instead of ``question_id`` also another of ``ID_COLUMNS``;
- LLaVA's playground: ``{"question_id": …, "prompt": "…", "text": "…"}`` (and ``convert_*`` files without a prompt);
- lmms-eval's samples: ``{"doc_id": …, "resps": ["…"], "target": …}``, as ``--log_samples`` writes them. lmms-eval 0.7
  omits ``resps`` if it equals ``filtered_resps``, writes the prompt as ``input``, and has no ``doc``, which older
  versions have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clips.data.text_files import read_json_lines
from clips.errors import UserError

ID_COLUMNS = ("question_id", "questionId", "id", "index", "image_id")
"""Columns of lmms-eval's datasets that ``question_id`` of LLaVA's files may denote (TextVQA's is the image)."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of an answer file.

    Args:
        text: the answer.
        number: index of the question in the data.
        id: id of the question.
        id_name: the field that it was read from.
        prompt: the question's text, with the answer instruction.
        image: the image's file name without extension.
        category: the category of the question.
        target: the right answer in lmms-eval's data.
        doc: the question's row in lmms-eval's data.
        input: lmms-eval's full prompt.
    """

    text: str
    number: int | None = None
    id: str | None = None
    id_name: str = "question_id"
    prompt: str | None = None
    image: str | None = None
    category: str | None = None
    target: str | None = None
    doc: Mapping[str, Any] | None = None
    input: str | None = None


def read_answers(file: Path, questions: Path | None = None) -> list[Answer]:
    """Read the answers of a file in any of the three formats.

    Args:
        file: the answers.
        questions: LLaVA's file of questions, ``{question_id, image, text, category}``, joined to them by the id.

    Raises:
        UserError: a file is missing, or a line has no answer or no question reference.
    """
    by_id: dict[str, dict[str, Any]] = {}
    if questions is not None:
        rows = read_json_lines(questions, texts=(), others=("question_id",))
        by_id = {str(row["question_id"]): _question_fields(row) for _, row in rows}
    answers = [
        _answer(by_id.get(str(row.get("question_id")), {}) | row, f"{file} line {number}")
        for number, row in read_json_lines(file, texts=(), others=())
    ]
    if not answers:
        raise UserError(f"{file}: contains no answers")
    return answers


def _question_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a question adds to its answer; its ``text`` is the answer's ``prompt``."""
    names = {"image": "image", "category": "category", "text": "prompt"}
    return {new: row[name] for name, new in names.items() if name in row}


def _answer(row: Mapping[str, Any], where: str) -> Answer:
    fields = ("answer", "resps", "filtered_resps", "text")
    text = next((row[name] for name in fields if row.get(name) is not None), None)
    while isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise UserError(f"{where}: expected a string as 'answer', 'text' (LLaVA's) or 'resps' (lmms-eval's)")
    number, image, doc, target = (row.get(key) for key in ("doc_id", "image", "doc", "target"))
    id_name = next((key for key in ID_COLUMNS if row.get(key) is not None), "question_id")
    name = row.get(id_name)
    prompt, full_prompt, category = (
        value if isinstance(value := row.get(key), str) else None for key in ("prompt", "input", "category")
    )
    if number is None and name is None and prompt is None:
        raise UserError(f"{where}: expected 'doc_id', 'question_id' or 'prompt' to identify the question")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise UserError(f"{where}: doc_id: expected the question's index in the data, got {number!r:.80}")
    return Answer(
        text=text,
        number=number,
        id=None if name is None else str(name),
        id_name=id_name,
        prompt=prompt,
        image=Path(image).stem if isinstance(image, str) else None,
        category=category,
        target=None if target is None else str(target),
        doc=doc if isinstance(doc, Mapping) else None,
        input=full_prompt,
    )
