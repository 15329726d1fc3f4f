"""Chat templates by name, for LLMs that bring none of their own; one entry of :data:`CHAT_TEMPLATES` each.

Each writes what the LLM's makers trained it with, as their model cards or code say: `vicuna` and `vicuna_v1` after
LLaVA-1.5's ``conversation.py`` (without and with its preamble), `llama_2`, `llama_3`, `llama_3_1` (3.2, too),
`mistral`, `gemma`, `phi_3` after their cards, `chatml` for Qwen 2 to 3 and SmolLM 2, `tulu` for OLMo 2. `plain` is
LLaVA-1.5's for the first stage.
"""

from __future__ import annotations

_PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
FIXED_DATE = "26 Jul 2024"
"""What templates that tell the LLM the date tell it, as Llama 3.1's does: samples must be the same tomorrow."""
BOS = "{{- bos_token if bos_token else '' -}}"


def _template(system: str, user: str, assistant: str, prompt: str, *, before: str = BOS) -> str:
    """A template of what is written for a message of each role, and before an answer, as Jinja expressions."""
    return _frame(before, "", f"{{{{ {system} }}}}", f"{{{{ {user} }}}}", assistant, prompt)


def _with_first_question(wrapped: str, user: str, assistant: str, prompt: str) -> str:
    """For LLMs without a turn for the system: what it says becomes part of the first question, as ``wrapped`` says."""
    return _frame(
        f"{BOS}{{%- set system = namespace(said='') -%}}",
        "system.said + ",
        f"{{%- set system.said = {wrapped} -%}}",
        f"{{{{ {user} }}}}{{%- set system.said = '' -%}}",
        assistant,
        prompt,
    )


def _frame(before: str, ahead: str, system: str, user: str, assistant: str, prompt: str) -> str:
    """What both have in common: a branch for each role, ``said`` being the message with what is put ``ahead`` of it."""
    return (
        f"{before}{{%- for message in messages -%}}"
        f"{{%- set said = {ahead}message['content'] -%}}"
        f"{{%- if message['role'] == 'system' -%}}{system}"
        f"{{%- elif message['role'] == 'user' -%}}{user}"
        f"{{%- else -%}}{{{{ {assistant} }}}}{{%- endif -%}}"
        f"{{%- endfor -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{ {prompt} }}}}{{%- endif -%}}"
    )


def _plain(caption: str) -> str:
    """A picture and its caption: whatever the user asks is left out (LLaVA's ``preprocess_plain`` in ``train.py``)."""
    refusal = "plain: expected a picture and its caption, got a conversation"
    return (
        "{%- if messages|length > 2 -%}{{ raise_exception('"
        + refusal
        + "') }}{%- endif -%}"
        + _frame(BOS, "", "", "{{ '<image>' * (said.split('<image>')|length - 1) }}", rf"{caption} + '\n'", "''")
    )


_VICUNA = ("said + ' '", "'USER: ' + said + ' '", "'ASSISTANT: ' + said + eos_token", "'ASSISTANT:'")
_LLAMA_3_SYSTEM = r"'<|start_header_id|>system<|end_header_id|>\n\n' + said + '<|eot_id|>'"
_LLAMA_3 = (
    r"'<|start_header_id|>user<|end_header_id|>\n\n' + said + '<|eot_id|>'",
    r"'<|start_header_id|>assistant<|end_header_id|>\n\n' + said + '<|eot_id|>'",
    r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
)
# 3.1 is always told two dates, before what the system says; Llama 3.2 the day of asking, for which this one stands.
_LLAMA_3_1_BEGIN = (
    r"{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    rf"Today Date: {FIXED_DATE}\n\n' -}}}}"
    r"{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] -}}{%- endif -%}{{- '<|eot_id|>' -}}"
)

CHAT_TEMPLATES: dict[str, str] = {
    "vicuna": _template(*_VICUNA),
    "vicuna_v1": _template(
        *_VICUNA,
        before=BOS + "{%- if messages[0]['role'] != 'system' -%}{{ " + f'"{_PREAMBLE} "' + " }}{%- endif -%}",
    ),
    # One token begins each turn: for the small LLMs made here, whose contexts are short and whose steps are dear.
    "turns": _template("said + ' '", "'<|user|> ' + said", "'<|assistant|> ' + said + eos_token", "'<|assistant|>'"),
    "llama_2": _with_first_question(
        r"'<<SYS>>\n' + said + '\n<</SYS>>\n\n'",
        "(bos_token if not loop.first and messages[loop.index0 - 1]['role'] == 'assistant' else '')"
        " + '[INST] ' + said + ' [/INST]'",
        "' ' + said + ' ' + eos_token",
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
    "chatml": _template(
        r"'<|im_start|>system\n' + said + '<|im_end|>\n'",
        r"'<|im_start|>user\n' + said + '<|im_end|>\n'",
        r"'<|im_start|>assistant\n' + said + '<|im_end|>\n'",
        r"'<|im_start|>assistant\n'",
        before="",
    ),
    "mistral": _with_first_question(r"said + '\n\n'", "'[INST] ' + said + ' [/INST]'", "' ' + said + eos_token", "''"),
    "gemma": _with_first_question(
        r"said + '\n\n'",
        r"'<start_of_turn>user\n' + said + '<end_of_turn>\n'",
        r"'<start_of_turn>model\n' + said + '<end_of_turn>\n'",
        r"'<start_of_turn>model\n'",
    ),
    "phi_3": _template(
        r"'<|system|>\n' + said + '<|end|>\n'",
        r"'<|user|>\n' + said + '<|end|>\n'",
        r"'<|assistant|>\n' + said + '<|end|>\n'",
        r"'<|assistant|>\n'",
    ),
    "tulu": _template(
        r"'<|system|>\n' + said + '\n'",
        r"'<|user|>\n' + said + '\n'",
        r"'<|assistant|>\n' + said + eos_token + '\n'",
        r"'<|assistant|>\n'",
    ),
    "plain": _plain("said"),
}
"""Name → Jinja source."""

PLAIN_WITH_SPACE = _plain("' ' + said")
"""`plain` with a blank between picture and caption."""

TEMPLATES_WITHOUT_EOT = frozenset({"plain"})
"""Templates to train a stage with, which no LLaVA can keep: answers in them end with no special token."""
