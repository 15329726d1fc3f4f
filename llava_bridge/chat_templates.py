"""Chat templates by name, for LLMs without one; one entry of :data:`CHAT_TEMPLATES` each.

Each reproduces the training format of the LLM, according to model cards or code: `vicuna` and `vicuna_v1` after
LLaVA-1.5's ``conversation.py`` (without and with its preamble), `llama_2`, `llama_3`, `llama_3_1` (3.2, too),
`mistral`, `gemma`, `phi_3` after their cards, `chatml` for Qwen 2 to 3 and SmolLM 2, `qwen_1_5` the same with
LLaVA-NeXT's system message for Qwen 1.5 to 3, `tulu` for OLMo 2. `plain` is LLaVA-1.5's for the first stage.
"""

from __future__ import annotations

_PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
FIXED_DATE = "26 Jul 2024"
"""Fixed date for templates that state a date, as Llama 3.1's does: samples must not change from day to day."""
BOS = "{{- bos_token if bos_token else '' -}}"


def _template(system: str, user: str, assistant: str, prompt: str, *, before: str = BOS) -> str:
    """A template from the text of each role's message, and the text before an answer, as Jinja expressions."""
    return _frame(before, "", f"{{{{ {system} }}}}", f"{{{{ {user} }}}}", assistant, prompt)


def _with_first_question(wrapped: str, user: str, assistant: str, prompt: str) -> str:
    """For LLMs without a system role: the first question begins with the system message, as ``wrapped`` writes it."""
    return _frame(
        f"{BOS}{{%- set system = namespace(text='') -%}}",
        "system.text + ",
        f"{{%- set system.text = {wrapped} -%}}",
        f"{{{{ {user} }}}}{{%- set system.text = '' -%}}",
        assistant,
        prompt,
    )


def _frame(before: str, ahead: str, system: str, user: str, assistant: str, prompt: str) -> str:
    """A branch for each role; ``text`` is the message after ``ahead``."""
    return (
        f"{before}{{%- for message in messages -%}}"
        f"{{%- set text = {ahead}message['content'] -%}}"
        f"{{%- if message['role'] == 'system' -%}}{system}"
        f"{{%- elif message['role'] == 'user' -%}}{user}"
        f"{{%- else -%}}{{{{ {assistant} }}}}{{%- endif -%}}"
        f"{{%- endfor -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{ {prompt} }}}}{{%- endif -%}}"
    )


def _plain(caption: str) -> str:
    """An image and its caption: the user's text is omitted (LLaVA's ``preprocess_plain`` in ``train.py``)."""
    message = "plain: expected an image and its caption, got a conversation"
    check = f"{{%- if messages|length > 2 -%}}{{{{ raise_exception('{message}') }}}}{{%- endif -%}}"
    marks = "{{ '<image>' * (text.split('<image>')|length - 1) }}"
    return check + _frame(BOS, "", "", marks, rf"{caption} + '\n'", "''")


_VICUNA = ("text + ' '", "'USER: ' + text + ' '", "'ASSISTANT: ' + text + eos_token", "'ASSISTANT:'")
_LLAMA_3_SYSTEM = r"'<|start_header_id|>system<|end_header_id|>\n\n' + text + '<|eot_id|>'"
_LLAMA_3 = (
    r"'<|start_header_id|>user<|end_header_id|>\n\n' + text + '<|eot_id|>'",
    r"'<|start_header_id|>assistant<|end_header_id|>\n\n' + text + '<|eot_id|>'",
    r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
)
# Llama 3.1 states two dates before the system message; Llama 3.2 the current one, replaced by this one.
_LLAMA_3_1_BEGIN = (
    r"{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    rf"Today Date: {FIXED_DATE}\n\n' -}}}}"
    r"{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] -}}{%- endif -%}{{- '<|eot_id|>' -}}"
)

_CHATML = (
    r"'<|im_start|>system\n' + text + '<|im_end|>\n'",
    r"'<|im_start|>user\n' + text + '<|im_end|>\n'",
    r"'<|im_start|>assistant\n' + text + '<|im_end|>\n'",
    r"'<|im_start|>assistant\n'",
)

CHAT_TEMPLATES: dict[str, str] = {
    "vicuna": _template(*_VICUNA),
    "vicuna_v1": _template(
        *_VICUNA, before=BOS + "{%- if messages[0]['role'] != 'system' -%}{{ " + f'"{_PREAMBLE} "' + " }}{%- endif -%}"
    ),
    # One token begins each message: for small LLMs with short contexts, as the demo's.
    "turns": _template("text + ' '", "'<|user|> ' + text", "'<|assistant|> ' + text + eos_token", "'<|assistant|>'"),
    "llama_2": _with_first_question(
        r"'<<SYS>>\n' + text + '\n<</SYS>>\n\n'",
        "(bos_token if not loop.first and messages[loop.index0 - 1]['role'] == 'assistant' else '')"
        " + '[INST] ' + text + ' [/INST]'",
        "' ' + text + ' ' + eos_token",
        "''",
    ),
    "llama_3": _template(_LLAMA_3_SYSTEM, *_LLAMA_3),
    "llama_3_1": _frame(
        BOS + _LLAMA_3_1_BEGIN,
        "",
        f"{{%- if not loop.first -%}}{{{{ {_LLAMA_3_SYSTEM} }}}}{{%- endif -%}}",
        f"{{{{ {_LLAMA_3[0]} }}}}",
        *_LLAMA_3[1:],
    ),
    "chatml": _template(*_CHATML, before=""),
    "qwen_1_5": _template(
        *_CHATML,
        before=r"{%- if messages[0]['role'] != 'system' -%}"
        r"{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif -%}",
    ),
    "mistral": _with_first_question(r"text + '\n\n'", "'[INST] ' + text + ' [/INST]'", "' ' + text + eos_token", "''"),
    "gemma": _with_first_question(
        r"text + '\n\n'",
        r"'<start_of_turn>user\n' + text + '<end_of_turn>\n'",
        r"'<start_of_turn>model\n' + text + '<end_of_turn>\n'",
        r"'<start_of_turn>model\n'",
    ),
    "phi_3": _template(
        r"'<|system|>\n' + text + '<|end|>\n'",
        r"'<|user|>\n' + text + '<|end|>\n'",
        r"'<|assistant|>\n' + text + '<|end|>\n'",
        r"'<|assistant|>\n'",
    ),
    "tulu": _template(
        r"'<|system|>\n' + text + '\n'",
        r"'<|user|>\n' + text + '\n'",
        r"'<|assistant|>\n' + text + eos_token + '\n'",
        r"'<|assistant|>\n'",
    ),
    "plain": _plain("text"),
}
"""Name → Jinja source."""

PLAIN_WITH_SPACE = _plain("' ' + text")
"""`plain` with a space between image and caption."""
