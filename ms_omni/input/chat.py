"""Chat templates: which one renders a conversation, what it sees beside the messages, and how it is rendered.

Templates are programs that come with a checkpoint: they run in Jinja's sandbox, with bounds on time and memory. The sandbox keeps a
template from Python's insides, not from `{% for i in range(99999) %}` within another or from `'a' * 10**11`. So every round of a
loop, every call, filter and operator that can make something large is counted, in the thread that renders, and what is too large is
refused before it is created.
"""

from __future__ import annotations

import json
import re
import string
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from ms_omni.errors import InputError, caller_level, warn_once
from ms_omni.input.arguments import did_you_mean, loose_names
from ms_omni.input.files import of_transformers
from ms_omni.input.messages import plain

SECONDS = 10.0  # of this thread's own work; a conversation of 1,000 turns takes 0.1 s
STEPS = 1_000_000  # rounds of loops, calls and filters
CHARACTERS = 1 << 24  # of all intermediate texts, beside 20 copies of the conversation
TEMPLATE_CHARACTERS = 1 << 20
_WHOLE_NUMBER = 100_000  # largest that a function or filter takes: widths, counts, digits
_NUMBER_BITS = 4096
# A field that is very wide, or as wide as an argument says.
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[^a-zA-Z%]*(\*|\d{5,})")
_WIDE_BRACES = re.compile(r"\d{5,}|\{")


def choose_template(available: str | dict[str, str] | None, requested: str | None, tools: Any = None) -> str:
    """The template to render: the requested one (by name or as text), else "tool_use" for tools, else the default.

    Raises:
        InputError: there is none.
    """
    if isinstance(available, dict):
        if requested is not None:
            return available.get(requested, requested)
        if tools and "tool_use" in available:
            return available["tool_use"]
        if "default" in available:
            return available["default"]
        raise InputError(
            f"None of the chat templates ({', '.join(available)}) is named default; pass chat_template= with one name."
        )
    template = requested if requested is not None else available
    if template is None:
        raise InputError(
            "The checkpoint has no chat template (chat_template.json, chat_template.jinja or in "
            "tokenizer_config.json); pass chat_template= with the Jinja text."
        )
    return template


def template_variables(
    tokenizer: Any,
    template: str,
    variables: Mapping[str, Any],
    *,
    tools: Any = None,
    documents: Any = None,
    add_generation_prompt: bool = False,
) -> dict[str, Any]:
    """What a template sees beside the messages.

    Args:
        template: Jinja text.
        variables: the caller's own; one that the template does not read gives a warning, as do `tools` and `documents`.
        tools: functions with annotations and a docstring, or JSON schemas of functions.

    Raises:
        InputError: a tool cannot be described.
    """
    given = {"tools": _schemas(tools) or None, "documents": documents or None, **variables}
    for name, value in given.items():
        if value is not None and not re.search(rf"\b{re.escape(name)}\b", template):
            _warn_unread(name)
    return plain({**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt, **given})


def _schemas(tools: Any) -> list[Any]:
    """The JSON schemas of tools."""
    if tools is None:
        return []
    schemas = []
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        raise InputError(f"tools is {tools!r:.80}, expected a list of functions or of JSON schemas.")
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(tool)
            continue
        if not callable(tool):
            raise InputError(f"tools: a {type(tool).__name__} is no tool; give functions, or JSON schemas of functions.")
        try:
            schemas.append(of_transformers("utils").get_json_schema(tool))
        except Exception as error:  # transformers' own for docstrings and annotations derive from Exception
            raise InputError(f"tools: a function cannot be described: {error}") from error
    return schemas


def _warn_unread(name: str) -> None:
    if name in ("tools", "documents"):
        warn_once(
            f"The chat template does not read {name}: the model will not see them. Pass chat_template= with one that does."
        )
    else:
        warnings.warn(
            f"apply_chat_template has no argument {name!r}, and the chat template does not read it; it is ignored."
            f"{did_you_mean(name, loose_names())}",
            stacklevel=caller_level(),
        )


class TemplateLimitError(jinja2.TemplateError):
    """A template that works for too long, or makes too much."""


class _Budget(threading.local):
    """What the rendering in this thread may still do."""

    def start(self, characters: int) -> None:
        self.steps, self.characters, self.end = STEPS, CHARACTERS + characters, time.thread_time() + SECONDS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0 or (self.steps % 64 == 0 and time.thread_time() > self.end):
            raise TemplateLimitError("it works for too long: a loop does not end, or nearly so")

    def charge(self, size: float) -> None:
        self.characters -= size
        if self.characters < 0:
            raise TemplateLimitError("it makes too much text")


_budget = _Budget()


def _spend(value: Any) -> Any:
    """The value, counted: a list may hold another many times over, and each of those a third."""
    if isinstance(value, str):
        _budget.charge(len(value))
    else:
        for _ in _leaves(value):
            pass
    return value


def _leaves(value: Any) -> Iterator[Any]:
    """The values that a nested value holds; each part of it is a step."""
    if isinstance(value, jinja2.utils.Namespace):
        value = value._Namespace__attrs  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if not isinstance(value, (list, tuple)):
        yield value
        return
    for part in value:
        _budget.step()
        yield from _leaves(part)


def _text(value: Any) -> str:
    """`str(value)`, once it is known not to be too much."""
    for leaf in _leaves(value):
        _budget.charge(len(leaf) if isinstance(leaf, str) else 8)
    return str(value)


def _shown(value: Any) -> Any:
    """What `{{ value }}` writes."""
    return value if isinstance(value, (int, float, bool)) or value is None else _text(value)


def _check_arguments(*values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > _WHOLE_NUMBER for value in values):
        raise TemplateLimitError(f"a function or filter is given a number over {_WHOLE_NUMBER}")


def _bounded(function: Callable) -> Callable:
    """A filter that counts, and whose numbers are bounded."""

    @wraps(function)  # with Jinja's attributes, which say what the filter is given
    def run(*args: Any, **kwargs: Any) -> Any:
        _budget.step()
        _check_arguments(*args[1:], *kwargs.values())
        return _spend(function(*args, **kwargs))

    return run


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = _text(text), str(old), str(new)
    matches = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    _budget.charge(len(text) + matches * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _join(items: Iterable[Any], separator: Any = "", attribute: str | int | None = None) -> str:
    texts = []
    for item in items:
        if attribute is not None:
            item = _environment().getitem(item, attribute)
        texts.append(_text(item))
        _budget.charge(len(str(separator)))
    return str(separator).join(texts)


def _format(form: Any, *args: Any, **kwargs: Any) -> str:
    _check_percent(str(form))
    _text((args, kwargs))
    return str(form) % (kwargs or args)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(text)
    _budget.charge((text.count("\n") + 1) * (len(width) if isinstance(width, str) else width))
    return jinja2.filters.do_indent(text, width, first, blank)


def _check_percent(form: str) -> None:
    if _WIDE_PERCENT.search(form):
        raise TemplateLimitError("a format asks for a very wide field")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers': Jinja's own would write HTML's escapes."""
    if (isinstance(indent, int) and indent > 16) or len(str(separators or "")) > 32:
        raise TemplateLimitError("tojson is asked to indent very far")
    _text(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which templates mark what the assistant wrote: its body, as it is."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment in which transformers renders chat templates, counted."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], finalize=_shown
        )
        for name in ("urlize", "striptags", "wordwrap", "pprint"):  # take long over crafted texts, and are of no use here
            del self.filters[name]
        self.filters |= {
            "tojson": _tojson,
            "replace": _replace,
            "join": _join,
            "format": _format,
            "indent": _indent,
            "string": _text,
        }
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all((jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)):
            written = sum(len(text.data) for text in loop.find_all(jinja2.nodes.TemplateData))
            loop.body.insert(0, jinja2.nodes.ExprStmt(_call("loop_round", jinja2.nodes.Const(written))))
            if isinstance(loop, jinja2.nodes.For):
                loop.iter = _call("counted", loop.iter)
        return _counted(tree)

    def loop_round(self, written: int) -> None:
        """A round begins, in which so many characters stand in the template itself."""
        _budget.step()
        _budget.charge(written)

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop; those that its condition leaves out are counted as well."""
        for item in items:
            _budget.step()
            yield item

    def concat_texts(self, *values: Any) -> str:
        """What `a ~ b` means."""
        return "".join(map(_text, values))

    def literal(self, value: Any) -> Any:
        """A list, tuple or dict that the template writes."""
        return _spend(value)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template."""
        _budget.step()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        given = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}  # Jinja's own
        if isinstance(owner, _Environment):
            return function(*args)
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args, **given)
        if isinstance(owner, str) and name == "join":
            return _join(args[0], owner)
        if name in ("encode", "translate", "expandtabs"):
            raise TemplateLimitError(f"the method {name} is of no use in a chat template, and can make very much of little")
        if isinstance(owner, (str, int, float)):
            _check_arguments(*args, *given.values())
        if name in ("format", "format_map"):
            _text((args, given))
            form = getattr(getattr(function, "__wrapped__", None), "__self__", "")
            if any(spec and _WIDE_BRACES.search(spec) for _, _, spec, _ in string.Formatter().parse(form)):
                raise TemplateLimitError("a format asks for a very wide field, or for one as wide as an argument says")
        return _spend(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Every `+`, `*`, `**` and `%`."""
        _budget.step()
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(count, int):
                    _budget.charge(len(text) * max(0, count))
        if operator == "%" and isinstance(left, str):
            _check_percent(left)
            _text(right)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _NUMBER_BITS:
                raise TemplateLimitError("it computes with a very large number")
        return _spend(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return _spend(super().getitem(obj, argument)) if isinstance(argument, slice) else super().getitem(obj, argument)


def _call(name: str, *values: Any) -> jinja2.nodes.Call:
    """A call of a method of the environment, which no template can give another meaning."""
    return jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute(name), list(values), [], None, None)


def _counted(node: Any) -> Any:
    """The tree with `a ~ b` and written lists as calls that count."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_counted(child) if isinstance(child, jinja2.nodes.Node) else child for child in value]
        elif isinstance(value, jinja2.nodes.Node):
            setattr(node, field, _counted(value))
    if isinstance(node, jinja2.nodes.Concat):
        return _call("concat_texts", *node.nodes)
    if isinstance(node, (jinja2.nodes.List, jinja2.nodes.Dict)) or (
        isinstance(node, jinja2.nodes.Tuple) and node.ctx == "load"
    ):
        return _call("literal", node)
    return node


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    return _Environment()


def render_template(template: str, size: int, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of variables.

    Args:
        size: characters of the conversation, of which the result may hold some copies.

    Raises:
        TemplateLimitError: it is too long, works for too long or makes too much; whatever else a template can raise.
    """
    if len(template) > TEMPLATE_CHARACTERS:
        raise TemplateLimitError(f"it has {len(template)} characters; at most {TEMPLATE_CHARACTERS} are read")
    _budget.start(20 * size)
    pieces = []
    for piece in _compiled(template).generate(**variables):
        pieces.append(piece)
        _budget.charge(len(piece))
    return "".join(pieces)
