"""Chat templates as model makers write them: Jinja in a sandbox, with the functions they expect."""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distserve.gateway.errors import BadRequest


class UnusableTemplate(Exception):
    """It cannot be compiled."""


class TemplateRefusal(Exception):
    """The template itself does not take these messages."""


_REFUSALS = (
    TemplateRefusal,
    jinja2.TemplateError,
    # What the expressions of a template raise, which is Python's.
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Generation(Extension):
    """`{% generation %}`, a tag of transformers: training learns from the text in it. Here it is
    that text."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # What is set inside is not known outside, as in transformers.
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """A compiled template. Raises UnusableTemplate."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _strftime_now
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            # SyntaxError: of the Python that jinja2 makes of it.
            raise UnusableTemplate(str(error)) from error

    def render(self, messages: list[dict[str, str]]) -> str:
        """Text of the conversation up to where the assistant speaks. Raises BadRequest."""
        try:
            # Templates tell "none" from "not defined": transformers defines both.
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special,
            )
        except _REFUSALS as error:
            raise BadRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _refuse(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not Jinja's own, which escapes for HTML; with the arguments that transformers gives it."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
