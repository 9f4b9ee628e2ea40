"""The Jinja environment of chat templates, with what transformers provides to them.

It is sandboxed and immutable: a template reaches no attribute that begins with an underscore,
changes no argument and opens no file. The only file that uses Jinja.
"""

import datetime
import functools
import json
from typing import Any

from paxlike.data.chat.marks import GENERATION_BEGIN, GENERATION_END


@functools.cache
def compiled(source: str) -> Any:
    """Compiles a template (jinja2.Template). Raises jinja2.TemplateError if its syntax is wrong."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


@functools.cache
def _generation() -> type:
    """The extension for `{% generation %}` … `{% endgeneration %}`."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """Marks what the assistant writes. The marks are part of the output, so that they are right
        inside of loops and macros too.
        """

        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            return GENERATION_BEGIN + caller() + GENERATION_END

    return Generation


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, it escapes no HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
