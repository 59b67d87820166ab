"""Answers that follow a grammar: JSON, a JSON schema, or calls of tools. Where the library `llguidance` is missing they are refused.

Before each token is chosen, those that cannot go on in the grammar are ruled out; so what is written follows it, whatever the model.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .answer_text import CLOSE, END_THINK, OPEN
from .protocol import refuse
from .schema import ChatBody, Definition, ToolChoice

STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As templates write JSON; with free white space small models never end."""
ANY_OBJECT = {"type": "object"}
HEAD = "%llguidance {}\n"
MISSING = "needs the library llguidance, which this server lacks; install it with: pip install 'ms-omni[serve]'"


class Grammars:
    """Grammars over the tokens of one model. tokenizer: its backend's JSON; vocabulary: how many tokens the model has."""

    def __init__(self, tokenizer: str, vocabulary: int, end_ids: Sequence[int]):
        import llguidance

        self._library: Any = llguidance
        self._tokenizer = llguidance.LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(end_ids))

    @classmethod
    def for_processor(cls, processor: Any, vocabulary: int, end_ids: Sequence[int]) -> "Grammars | None":
        """None where the library is missing. Takes seconds for a large vocabulary."""
        try:
            return cls(processor.tokenizer.backend_tokenizer.to_str(), vocabulary, end_ids)
        except ImportError:
            return None

    def matcher(self, grammar: str, param: str) -> Any:
        """The state of an answer that follows a grammar. Raises `ApiError` for one that cannot be followed; param: where it comes from."""
        problem = self._library.LLMatcher.validate_grammar(grammar, self._tokenizer)
        if problem and not problem.startswith("WARNING"):
            reason = problem.strip().splitlines()[0]
            raise refuse(param, f"answers cannot follow this: {reason[:300]}", "invalid_schema")
        return self._library.LLMatcher(self._tokenizer, grammar, log_level=0)

    def mark(self, text: str) -> str:
        """A mark such as `<tool_call>` in a grammar: the token that it is, or else its letters."""
        whole = self._tokenizer.tokenize_str(text, parse_special=True)
        return text if len(whole) == 1 and self._tokenizer.is_special_token(whole[0]) else json.dumps(text)


class Constraint:
    """A logits processor for one answer: leaves the tokens that the grammar goes on with."""

    def __init__(self, matcher: Any):
        self._matcher, self._length = matcher, 0

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """ids int64 `[1, T]`, scores float32 `[1, V]`."""
        if self._length:
            self._matcher.consume_tokens(ids[0, self._length :].tolist())
        self._length = ids.shape[1]
        allowed = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():
            raise InputError(f"the grammar of the answer is too complex: {self._matcher.get_error()[:300]}")
        masked = np.full_like(scores, -np.inf)
        np.copyto(masked[0], scores[0], where=allowed[: scores.shape[1]].astype(bool))
        return masked


def grammar_of(body: ChatBody, tools: Sequence[Definition], marks: Any, thinking: bool) -> tuple[str, str] | None:
    """The grammar that an answer must follow and the argument that wants it, or None; marks: `Grammars.mark`; thinking: the answer
    begins within thoughts, which are free.
    """
    answer = _answer(body, tools, marks)
    if answer is None:
        return None
    rules, param = answer
    if thinking:
        rules = f'start: thoughts "\\n\\n" answer\nthoughts: FREE {marks(END_THINK)}\nFREE: /(.|\\n)*/\n{rules}'
    else:
        rules = f"start: answer\n{rules}"
    return HEAD + rules, param


def _answer(body, tools, marks):
    """The rules of an answer behind its thoughts."""
    choice, several = body.tool_choice, body.parallel_tool_calls is not False
    if tools and choice_mode(choice) == "required":
        more = ' ("\\n" call)*' if several else ""
        return f"answer: call{more}\n{_calls(tools, marks)}", "tools"
    form = body.response_format
    if form is not None and form.type != "text":
        schema = ANY_OBJECT if form.json_schema is None else form.json_schema.schema_
        param = "response_format" if form.json_schema is None else "response_format.json_schema.schema"
        rule = f"json: {_json(ANY_OBJECT if schema is None else schema)}\n"
        if tools:
            return f"answer: json | call\n{rule}{_calls(tools, marks)}", param
        return f"answer: json\n{rule}", param
    if any(tool.strict for tool in tools):
        return f"answer: (FREE_TEXT call)* FREE_TEXT\nFREE_TEXT: /(.|\\n)*/\n{_calls(tools, marks)}", "tools"
    return None


def _calls(tools, marks):
    """Rules for a call of one of the tools; arguments of those that are not strict are any object where their schema says nothing."""
    names = " | ".join(f"tool_{number}" for number in range(len(tools)))
    rules = [f'call: {marks(OPEN)} "\\n" ({names}) "\\n" {marks(CLOSE)}']
    for number, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        schema = tool.parameters if tool.parameters else {"type": "object", "properties": {}, "additionalProperties": False}
        rules.append(f'tool_{number}: {head} arguments_{number} "}}"\narguments_{number}: {_json(schema)}')
    return "\n".join(rules) + "\n"


def _json(schema):
    return f"%json {json.dumps({**schema, 'x-guidance': STYLE})}"


def wants_grammar(body: ChatBody) -> str | None:
    """The argument that can only be honoured by a grammar."""
    grammar = grammar_of(body, usable_tools(body), json.dumps, False)
    return None if grammar is None else grammar[1]


def choice_mode(choice: Any) -> str:
    """What a `tool_choice` comes to: "none", "auto" or "required"."""
    if isinstance(choice, ToolChoice):
        return choice.allowed_tools.mode if choice.allowed_tools is not None else "required"
    return choice or "auto"


def usable_tools(body: ChatBody) -> list[Definition]:
    """The functions that may be called. Raises `ApiError` for a choice that does not fit them."""
    tools, choice = [tool.function for tool in body.tools or ()], body.tool_choice
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise refuse("tools", "two of them have the same name; give each its own")
    if not tools and choice not in (None, "none", "auto"):
        raise refuse("tool_choice", "there are no tools; give some")
    if choice_mode(choice) == "none":
        return []
    if not isinstance(choice, ToolChoice):
        return tools
    if choice.function is not None:
        wanted = [choice.function.name]
    else:
        allowed = choice.allowed_tools.tools if choice.allowed_tools is not None else []
        functions = [tool.get("function") for tool in allowed]
        wanted = [function.get("name") if isinstance(function, dict) else None for function in functions]
    for name in wanted:
        if name not in names:
            known = ", ".join(names)
            raise refuse("tool_choice", f"there is no tool {name!r:.70}; the tools are {known}")
    return [tool for tool in tools if tool.name in wanted]
