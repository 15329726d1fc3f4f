"""Lines of published files of answers, as they are, with the rows of the data that they answer.

The answers are LLaVA-1.5-13B's own: haotian-liu/LLaVA, ``playground/data/eval`` of commit 32cebc38 (its ``eval.zip``),
Apache-2.0, and so are the right answers of MMBench, in its file for the server. Others are those of MME (research use;
as in OpenGVLab/InternVL's ``eval/mme``, MIT), of POPE (RUCAIBox/POPE ``output/coco``, MIT, questions as corrected in
November 2023) and of TextVQA 0.5.1 (CC BY 4.0).
"""

from __future__ import annotations

MME = r"""
{"question_id": "code_reasoning/0020.png", "prompt": "Is a python code shown in the picture?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "Ka52ysmftNSBjTR9uksec6", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": "code_reasoning/0020.png", "prompt": "Is a c++ code shown in the picture?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "cQS2qEoUSLemUcYC94u3b7", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": "artwork/images/14777.jpg", "prompt": "Does this artwork belong to the type of religious?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "Sp3Kf3pTp7k7rpQgkE2U47", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": "artwork/images/14777.jpg", "prompt": "Does this artwork belong to the type of historical?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "Aapq8kHujvNmu6zu859iN4", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": "artwork/images/24291.jpg", "prompt": "Is this artwork titled virgin and child with sts catherine, cecilia, barbara, and ursula?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "Y48Ja38CzgNKtZT6SDzBbG", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": "artwork/images/24291.jpg", "prompt": "Is this artwork titled sorrow?\nAnswer the question using a single word or phrase.", "text": "No", "answer_id": "eej24dZ2ZJbgcJs5Crozft", "model_id": "llava-v1.5-13b", "metadata": {}}
"""  # noqa: E501

MME_DATA = {
    "question_id": ["artwork/14777.jpg"] * 2 + ["artwork/24291.jpg"] * 2 + ["code_reasoning/0020.png"] * 2,
    "question": [
        "Does this artwork belong to the type of religious? Please answer yes or no.",
        "Does this artwork belong to the type of historical? Please answer yes or no.",
        "Is this artwork titled virgin and child with sts catherine, cecilia, barbara, and ursula? Please answer yes or no.",  # noqa: E501
        "Is this artwork titled sorrow? Please answer yes or no.",
        "Is a python code shown in the picture? Please answer yes or no.",
        "Is a c++ code shown in the picture? Please answer yes or no.",
    ],
    "answer": ["Yes", "No"] * 3,
    "category": ["artwork"] * 4 + ["code_reasoning"] * 2,
}

POPE = r"""
{"question_id": 9, "prompt": "Is there a person in the image?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "ZTbvXdBwPRy7N2tGh3WN8m", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 10, "prompt": "Is there a dining table in the image?\nAnswer the question using a single word or phrase.", "text": "No", "answer_id": "ZH2gkwK2hVqgxLMyY9HZY5", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 11, "prompt": "Is there an umbrella in the imange?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "j3peGqVhdyz5RT2eJp6Xt3", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 12, "prompt": "Is there a handbag in the image?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "HbUFijYfTGKrRYko2mpkXh", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 10000011, "prompt": "Is there an umbrella in the imange?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "kg5pGxABgZy6T4q6ktSDR5", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 10000012, "prompt": "Is there a cell phone in the image?\nAnswer the question using a single word or phrase.", "text": "No", "answer_id": "iYjRN7mRRE62KfLYwFd8MY", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 20002999, "prompt": "Is there a couch in the image?\nAnswer the question using a single word or phrase.", "text": "Yes", "answer_id": "BBYn27RJkoBK2UmAnDbxgG", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 20003000, "prompt": "Is there a chair in the image?\nAnswer the question using a single word or phrase.", "text": "No", "answer_id": "U7NqzJRomhizSiYYVzAt79", "model_id": "llava-v1.5-13b", "metadata": {}}
"""  # noqa: E501

POPE_QUESTIONS = r"""
{"question_id": 9, "image": "COCO_val2014_000000210789.jpg", "text": "Is there a person in the image?\nAnswer the question using a single word or phrase.", "category": "adversarial"}
{"question_id": 10, "image": "COCO_val2014_000000210789.jpg", "text": "Is there a dining table in the image?\nAnswer the question using a single word or phrase.", "category": "adversarial"}
{"question_id": 11, "image": "COCO_val2014_000000210789.jpg", "text": "Is there an umbrella in the imange?\nAnswer the question using a single word or phrase.", "category": "adversarial"}
{"question_id": 12, "image": "COCO_val2014_000000210789.jpg", "text": "Is there a handbag in the image?\nAnswer the question using a single word or phrase.", "category": "adversarial"}
{"question_id": 10000011, "image": "COCO_val2014_000000210789.jpg", "text": "Is there an umbrella in the imange?\nAnswer the question using a single word or phrase.", "category": "random"}
{"question_id": 10000012, "image": "COCO_val2014_000000210789.jpg", "text": "Is there a cell phone in the image?\nAnswer the question using a single word or phrase.", "category": "random"}
{"question_id": 20002999, "image": "COCO_val2014_000000277289.jpg", "text": "Is there a couch in the image?\nAnswer the question using a single word or phrase.", "category": "popular"}
{"question_id": 20003000, "image": "COCO_val2014_000000277289.jpg", "text": "Is there a chair in the image?\nAnswer the question using a single word or phrase.", "category": "popular"}
"""  # noqa: E501

_POPE = (
    ("random", "11", "000000210789", "Is there an umbrella in the image?", "yes"),
    ("random", "12", "000000210789", "Is there a cell phone in the image?", "no"),
    ("popular", "2999", "000000277289", "Is there a couch in the image?", "yes"),
    ("popular", "3000", "000000277289", "Is there a chair in the image?", "no"),
    ("popular", "11", "000000210789", "Is there an umbrella in the image?", "yes"),  # not among the lines above
    ("adversarial", "9", "000000210789", "Is there a person in the image?", "yes"),
    ("adversarial", "10", "000000210789", "Is there a dining table in the image?", "no"),
    ("adversarial", "11", "000000210789", "Is there an umbrella in the image?", "yes"),
    ("adversarial", "12", "000000210789", "Is there a handbag in the image?", "no"),
)

POPE_DATA = {
    "category": [kind for kind, *_ in _POPE],
    "question_id": [id for _, id, *_ in _POPE],
    "image_source": [f"COCO_val2014_{image}" for *_, image, _, _ in _POPE],
    "question": [question for *_, question, _ in _POPE],
    "answer": [answer for *_, answer in _POPE],
}

TEXTVQA = r"""
{"question_id": "831bcec304a17054", "prompt": "What brand liquor is on the right?\nReference OCR token: IGNET, N, MORANGIE, MORANGIE, MORANGIE, CHLANDS, ISLAY, OWMOR, OR, SINGL, MALT, WHISKY, SINGLE, MALT, HISKY, SCOTCH, WHITS, LASANTA, NON, CHILL-F, MATURED, RARE, SHERRY, CASKS, BatckK, Reliasen, CAKTYPE, STFILLBOURSON, BATCHNS, TOUE, CISTILLER, 55.6%ac, LONGHO, ATOL, BLAY, SCORLAND, AGED, 10\nAnswer the question using a single word or phrase.", "text": "Longmorn", "answer_id": "4YzWYTE6YpixreetSFAHgu", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": "831bcec304a17054", "prompt": "How long has the drink on the right been aged?\nReference OCR token: IGNET, N, MORANGIE, MORANGIE, MORANGIE, CHLANDS, ISLAY, OWMOR, OR, SINGL, MALT, WHISKY, SINGLE, MALT, HISKY, SCOTCH, WHITS, LASANTA, NON, CHILL-F, MATURED, RARE, SHERRY, CASKS, BatckK, Reliasen, CAKTYPE, STFILLBOURSON, BATCHNS, TOUE, CISTILLER, 55.6%ac, LONGHO, ATOL, BLAY, SCORLAND, AGED, 10\nAnswer the question using a single word or phrase.", "text": "10 years", "answer_id": "RQL7yAB3yXKuVg5bXvHQbh", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": "94ad4aad01e27a32", "prompt": "What number is on the player's jersey?\nReference OCR token: 22\nAnswer the question using a single word or phrase.", "text": "22", "answer_id": "JFFVbDKrqt2iepP7u9ELUy", "model_id": "llava-v1.5-13b", "metadata": {}}
"""  # noqa: E501

TEXTVQA_DATA = {
    "image_id": ["94ad4aad01e27a32", "831bcec304a17054", "831bcec304a17054"],
    "question_id": [34607, 34606, 34605],
    "question": [
        "what number is on the player's jersey?",
        "how long has the drink on the right been aged?",
        "what brand liquor is on the right?",
    ],
    "answers": [
        ["22"] * 10,
        ["10 years", "10 year", *["10 years"] * 6, "martial arts", "10"],
        [*["bowmore"] * 7, "bowmore islay", "dowmore islay", "bowmore islay"],
    ],
}

# llava-v1.5-13b.jsonl of mmbench_dev_20230712: the hint stands before the question, options on lines of their own.
MMBENCH = r"""
{"question_id": 267, "round_id": 0, "prompt": "This diagram shows the life cycle of an apple tree.\nWhich part of an apple tree might grow into a new tree?\nA. a seed\nB. a leaf", "text": "A", "options": ["a seed", "a leaf"], "option_char": ["A", "B"], "answer_id": "3SPQ5jD3Tz5ocQvPEkZg5B", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 293, "round_id": 0, "prompt": "Which material is this spatula made of?\nA. rubber\nB. cotton", "text": "A", "options": ["rubber", "cotton"], "option_char": ["A", "B"], "answer_id": "egnG76tNzQcYcxsSUcy87D", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 1000267, "round_id": 0, "prompt": "This diagram shows the life cycle of an apple tree.\nWhich part of an apple tree might grow into a new tree?\nA. a leaf\nB. a seed", "text": "B", "options": ["a leaf", "a seed"], "option_char": ["A", "B"], "answer_id": "2L7zqAhftUCm4wM9zD5smB", "model_id": "llava-v1.5-13b", "metadata": {}}
{"question_id": 1000293, "round_id": 0, "prompt": "Which material is this spatula made of?\nA. cotton\nB. rubber", "text": "B", "options": ["cotton", "rubber"], "option_char": ["A", "B"], "answer_id": "3Z7cXbYH6fu2Y5PDBoc5jN", "model_id": "llava-v1.5-13b", "metadata": {}}
"""  # noqa: E501

MMBENCH_DATA = {
    "index": [267, 293, 1000267, 1000293],
    "question": [
        "Which part of an apple tree might grow into a new tree?",
        "Which material is this spatula made of?",
    ]
    * 2,
    "hint": ["This diagram shows the life cycle of an apple tree.", "nan"] * 2,
    "answer": ["A", "A", "B", "B"],
    "A": ["a seed", "rubber", "a leaf", "cotton"],
    "B": ["a leaf", "cotton", "a seed", "rubber"],
    **{letter: ["nan"] * 4 for letter in "CD"},
    **{name: ["x"] * 4 for name in ("category", "L2-category", "source")},
    "split": ["dev"] * 4,
}
