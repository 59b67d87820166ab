"""Chat templates: what they may do, and that none of them takes long or much."""

import threading

import pytest

from ms_omni.errors import InputError
from ms_omni.input import chat

TALK = [{"role": "user", "content": "hello"}]
TOO_LONG = [
    "{% for i in range(10**10) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for x in [[1],[1]] recursive %}{{ loop([[1],[1]]) }}{% endfor %}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for i in [1] %}" * 40 + "{% endfor %}" * 40,
    "{% set ns = namespace(x=3) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 3.14|round(10**9) }}",
    "x" * (1 << 21),
]
TOO_MUCH = [
    "{{ 'a' * 10**11 }}",
    "{{ 10**9 * [1] }}",
    "{{ 'a'|center(10000000000) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ ['a']|map('center', 10**10)|list }}",
    "{{ '%10000000000d' % 1 }}{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=10**9) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 100000).join(range(99999)|map('string')) }}",
    "{{ ('\n' * 1000000)|indent(99999) }}",
    "{{ ('\t' * 1000000).expandtabs(9999) }}",
    "{{ range(99999)|list|tojson(indent=99999) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ range(9999)|batch(10**9, 'x')|list }}",
    *(
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = " + grown + " %}{% endfor %}{{ ns.s }}"
        for grown in ("ns.s ~ ns.s", "ns.s + ns.s", "[ns.s, ns.s]", "dict(a=ns.s, b=ns.s)", "namespace(a=ns.s, b=ns.s)")
    ),
    "{% set x %}{% for i in range(99999) %}" + "y" * 10000 + "{% endfor %}{% endset %}",
]


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(chat, "STEPS", 20_000)


@pytest.mark.parametrize("template", [*TOO_LONG, *TOO_MUCH, "{{ 1 / 0 }}", "{{ raise_exception('not so') }}"])
def test_no_template_takes_long_or_much(processor, few_steps, template):
    """In a thread of its own, as servers render: nothing rests on signals."""
    caught = []

    def ask():
        with pytest.raises(InputError, match="The chat template cannot render this conversation: .") as info:
            processor.apply_chat_template(TALK, chat_template=template)
        caught.append(info)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert caught


@pytest.mark.parametrize(
    "template, text",
    [
        ("{% for m in messages[::-1] %}{{ loop.index }}/{{ loop.length }} {{ m.role ~ ':' ~ 1 }}{% endfor %}", "1/1 user:1"),
        ("{% for a, b in [(1, 2), (3, 4)] if a > 1 %}{{ a }}{{ b }}{% else %}none{% endfor %}", "34"),
        ("{% for k in absent %}x{% else %}none{% endfor %}{{ absent }}", "none"),
        ("{% for i in [1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ loop.previtem }}{% endfor %}", "1"),
        (
            "{{ '{{{}}} {a}'.format(1, a=2) }}{{ '**%s** %3d' % ('a', 3) }}{{ 'a,b'.split(',')[-1] * 3 }}",
            "{1} 2**a**   3bbb",
        ),
        (
            "{{ {'a': [1, '<é>']}|tojson }}{{ [{'a': 1}]|map(attribute='a')|join('-') }}{{ 'aba'|replace('a', 'c', 1) }}",
            None,
        ),
        ("{% generation %}{{ 'a'.replace('a', 'b').join(['x', 'y']) }}{% endgeneration %}", "xby"),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
    ],
)
def test_what_templates_do_is_as_before(processor, template, text):
    rendered = processor.apply_chat_template(TALK, chat_template=template)
    plain = processor.tokenizer.apply_chat_template(TALK, chat_template=template, tokenize=False)
    assert rendered == plain and text in (None, rendered)


def test_templates_see_no_objects(processor):
    class Tool:
        def save(self):
            raise AssertionError("called by a template")

    talk = [{"role": "user", "content": "hello", "name": Tool(), "age": 3}]
    assert processor.apply_chat_template(talk, chat_template="{{ messages[0].name }}{{ messages[0].age }}") == "<Tool>3"
    with pytest.raises(InputError, match="unsafe"):
        processor.apply_chat_template(talk, chat_template="{{ cycler.__init__.__globals__ }}")
