"""The Jinja2 that templates run in: nothing of Python can be reached, and every rendering ends.

Layer: sans-I/O.  Spec: issue text "Message" (sandboxed, undefined names are errors).
Invariants: attributes are reached only where `_ATTRIBUTES` lists them; nothing here is random, reads a file or knows
the time, so that one row always gives the same message.

What is bounded, for each rendering anew:
  * steps: passes through loops, calls and filters, and the elements those look at (`MAX_STEPS`);
  * characters: of all that is written out, and of every text made on the way (`MAX_CHARACTERS`), so that text which
    grows in a loop ends like text that is written in one;
  * a single value: `MAX_VALUE` characters or elements, integers of `MAX_INTEGER_BITS` bits.
How: the tree of a template is changed before it is compiled.  A loop takes its elements from `_steps`; its body, and
that of a macro, begins with `_charge` for the text it holds; what an expression gives goes through a writer (`_write`,
`_write_field`); ``~`` goes through `_text` and `_made`.  Operators, calls and filters are Jinja's own hooks.  There is
no ``while`` in Jinja, recursive loops are refused, and a macro that calls itself meets Python's own limit or the steps,
so no other way to go on for ever is left.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from jinja2 import StrictUndefined, Undefined, filters, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup, escape

from .words import MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jinja2.runtime import Context

#: passes through loops, calls, filters and elements looked at; arbitrary, about a tenth of a second
MAX_STEPS: Final = 200_000
#: characters made in one rendering; arbitrary, twice what large receivers take as a whole message would be 100 MiB, and
#: that comes from attachments, which no template touches
MAX_CHARACTERS: Final = 16 << 20
#: characters of one text, elements of one list
MAX_VALUE: Final = 1 << 20
#: largest integer an operator may give
MAX_INTEGER_BITS: Final = 4096
#: columns that text may be widened or indented by
MAX_WIDTH: Final = 1000

_TEXT_METHODS: Final = """
    capitalize casefold count endswith find isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace istitle
    isupper lower lstrip partition removeprefix removesuffix rfind rpartition rsplit rstrip split splitlines startswith
    strip swapcase title upper"""
_LOOP_ATTRIBUTES: Final = """
    changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"""
# what may be reached of a value; a mapping gives its own keys besides
_ATTRIBUTES: Final[Mapping[type, frozenset[str]]] = {
    str: frozenset(_TEXT_METHODS.split()),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
    dict: frozenset(["get", "items", "keys", "values"]),
    LoopContext: frozenset(_LOOP_ATTRIBUTES.split()),
    Cycler: frozenset(["current", "next", "reset"]),
}
# filters of Jinja that are kept; the others are random, of no use in mail, or cannot be bounded
_KEPT_FILTERS: Final = """
    abs batch capitalize count d default dictsort e escape filesizeformat first float forceescape groupby int items last
    length list lower map max min reject rejectattr reverse round safe select selectattr slice sort string striptags sum
    title tojson trim truncate unique upper urlencode wordcount"""
# those whose numbers say how much they make
_SIZED_FILTERS: Final = frozenset(["batch", "round", "slice", "tojson"])


class LimitError(TemplateRuntimeError):
    """A template went past a bound."""


class Budget:
    """What is left of the bounds in the rendering that runs."""

    __slots__ = ("characters", "steps")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.steps = MAX_STEPS
        self.characters = MAX_CHARACTERS

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise LimitError(f"the template takes more than {MAX_STEPS:,} steps")

    def charge(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise LimitError(f"the template makes more than {MAX_CHARACTERS:,} characters")

    def made(self, value: object) -> None:
        """Charge for a value that was made, and see that it is not too large by itself."""
        if isinstance(value, str):
            self.charge(len(value))
            if len(value) > MAX_VALUE:
                raise LimitError(f"the template makes a text of more than {MAX_VALUE:,} characters")
        elif isinstance(value, (list, tuple, dict)):
            self.step(len(value))
            if len(value) > MAX_VALUE:
                raise LimitError(f"the template makes a list of more than {MAX_VALUE:,} elements")
        elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise LimitError(f"the template makes a number of more than {MAX_INTEGER_BITS:,} bits")

    def text(self, value: object) -> str:
        """The value as text; containers are measured first, since one may hold a large text many times."""
        if isinstance(value, str):
            return value
        if isinstance(value, (list, tuple, dict)):
            self.charge(self.measure(value, is_written=True))
        return str(value)

    def measure(self, value: object, *, is_written: bool = False) -> int:
        """About how many characters a value is; what is undefined may be inside one that is not written out."""
        self.step()
        if isinstance(value, str):
            size = len(value)
        elif isinstance(value, (list, tuple)):
            size = sum(self.measure(element, is_written=is_written) for element in value)
        elif isinstance(value, dict):
            size = sum(self.measure(part, is_written=is_written) for item in value.items() for part in item)
        else:
            return len(str(value)) if is_written and isinstance(value, Undefined) else 8
        if size > MAX_VALUE:
            raise LimitError(f"the template makes a text of more than {MAX_VALUE:,} characters")
        return size

    def steps_of(self, elements: Iterable[Any]) -> Iterator[Any]:
        for element in elements:
            self.step()
            yield element


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """One for each job: the budget of the rendering that runs is part of it."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, cache_size=0)
        self.budget = Budget()
        self.globals = {"range": self._range, "dict": dict, "namespace": Namespace, "cycler": Cycler}
        kept = {name: self._bounded(filters.FILTERS[name], name in _SIZED_FILTERS) for name in _KEPT_FILTERS.split()}
        own: dict[str, Callable[..., Any]] = {
            "center": self._center,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "wordwrap": self._wordwrap,
        }
        hidden = {
            "_charge": self._charge,
            "_made": self._made,
            "_steps": self._steps,
            "_text": self._text,
            "_write": self._write,
            "_write_field": self._write_field,
        }
        self.filters = {**kept, **{name: self._bounded(own[name]) for name in own}, **hidden}

    # Jinja's hooks

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(isinstance(obj, kind) and attr in allowed for kind, allowed in _ATTRIBUTES.items())

    def getattr(self, obj: Any, attribute: str) -> Any:
        # the data of a row come before the methods of a mapping, in which Jinja looks first
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        # `format` is not among the attributes; there is nothing to wrap
        return None

    def is_safe_callable(self, obj: Any) -> bool:
        # calling an undefined name says so
        if isinstance(obj, (Macro, LoopContext, Undefined)) or obj is dict or obj is Namespace or obj is Cycler:
            return True
        # methods let through by `is_safe_attribute`, and `range`
        return getattr(obj, "__self__", None) is not None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.budget.step()
        result = super().call(context, obj, *args, **kwargs)
        self.budget.made(result)
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        result = super().getitem(obj, argument)
        if isinstance(argument, slice):
            self.budget.made(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        if operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError("text cannot be formatted with %; write it with {{ }}")
        if operator in ("*", "**") and not _is_small(operator, left, right):
            raise LimitError(f"the template makes a value of more than {MAX_VALUE:,} characters or elements")
        result = _OPERATORS[operator](left, right)
        self.budget.made(result)
        return result

    # what the changed tree calls; with the context, so that Jinja does not call it while it compiles, once for all

    @pass_context
    def _charge(self, context: Context, text: str, characters: int) -> str:
        self.budget.step()
        self.budget.charge(characters)
        return text

    @pass_context
    def _made(self, context: Context, value: Any) -> Any:
        self.budget.made(value)
        return value

    @pass_context
    def _text(self, context: Context, value: Any) -> Any:
        return value if isinstance(value, Undefined) else self.budget.text(value)

    @pass_context
    def _steps(self, context: Context, elements: Any) -> Any:
        if isinstance(elements, Undefined):
            return elements
        return self.budget.steps_of(elements)

    @pass_context
    def _write(self, context: Context, value: Any) -> Any:
        """Text of a body; what is undefined raises when Jinja makes a text of it."""
        if isinstance(value, str):
            self.budget.charge(len(value))
            return value.replace(MARK, "") if MARK in value else value
        if value is None:
            raise TemplateRuntimeError("a value is null; write {{ name or 'something else' }} for it")
        if isinstance(value, Undefined):
            return value
        text = self.budget.text(value)
        self.budget.charge(len(text))
        return text

    @pass_context
    def _write_field(self, context: Context, value: Any) -> str:
        """Text of a header field, between marks that tell it from what the author wrote."""
        return f"{MARK}{self._write(context, value)}{MARK}"

    # functions and filters of our own

    def _range(self, *args: int) -> range:
        numbers = range(*args)
        if len(numbers) > MAX_STEPS:
            raise LimitError(f"range of more than {MAX_STEPS:,} numbers")
        return numbers

    def _bounded(self, function: Callable[..., Any], is_sized: bool = False) -> Callable[..., Any]:
        """A filter that pays for what it is given and what it makes."""
        budget = self.budget

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            budget.step()
            for value in args:
                if isinstance(value, (list, tuple, dict)):
                    budget.charge(budget.measure(value))
            if is_sized:
                for value in (*args[1:], *kwargs.values()):
                    if isinstance(value, int) and value > MAX_WIDTH:
                        raise LimitError(f"{function.__name__.removeprefix('do_')} takes a number up to {MAX_WIDTH:,}")
            result = function(*args, **kwargs)
            if isinstance(result, Iterator):
                return budget.steps_of(result)
            budget.made(result)
            return result

        return run

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(filters.make_attrgetter(self, attribute), value)
        d = self.budget.text(d)
        texts: list[str] = []
        size = 0
        for element in self.budget.steps_of(value):
            texts.append(self.budget.text(element))
            size += len(texts[-1]) + len(d)
            if size > MAX_VALUE + len(d):
                raise LimitError(f"the template makes a text of more than {MAX_VALUE:,} characters")
        return escape(d).join(texts) if any(isinstance(text, Markup) for text in texts) else d.join(texts)

    def _replace(self, s: str, old: str, new: str, count: int | None = None) -> str:
        s = self.budget.text(s)
        old, new = self.budget.text(old), self.budget.text(new)
        found = len(s) + 1 if old == "" else s.count(old)
        times = found if count is None or count < 0 else min(found, count)
        if len(s) + times * (len(new) - len(old)) > MAX_VALUE:
            raise LimitError(f"the template makes a text of more than {MAX_VALUE:,} characters")
        return s.replace(old, new, times)

    def _center(self, value: str, width: int = 80) -> str:
        return self.budget.text(value).center(_width(width))

    def _indent(self, s: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
        space = " " * _width(width)
        s = self.budget.text(s)
        if len(s) + len(space) * s.count("\n") > MAX_VALUE:
            raise LimitError(f"the template makes a text of more than {MAX_VALUE:,} characters")
        lines = [space + line if line or blank else line for line in s.split("\n")]
        text = "\n".join(lines)
        if not first:
            text = text.removeprefix(space)
        return Markup(text) if isinstance(s, Markup) else text

    def _wordwrap(self, s: str, width: int = 79, break_long_words: bool = True) -> str:
        return filters.do_wordwrap(self, self.budget.text(s), max(1, int(width)), break_long_words, "\n")


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}


def _is_small(sign: str, left: Any, right: Any) -> bool:
    """Whether a product or a power of two values is within the bounds, told before it is made."""
    if isinstance(left, int) and isinstance(right, int):
        if sign == "*":
            return left.bit_length() + right.bit_length() <= MAX_INTEGER_BITS
        return right < 0 or left.bit_length() * right <= MAX_INTEGER_BITS
    if isinstance(right, (str, list, tuple)):
        left, right = right, left
    if isinstance(left, (str, list, tuple)) and isinstance(right, int):
        return len(left) * right <= MAX_VALUE
    return True


def _width(width: object) -> int:
    if not isinstance(width, int) or width > MAX_WIDTH:
        raise LimitError(f"a width is a number up to {MAX_WIDTH:,}")
    return max(0, width)


class _Bounder(NodeTransformer):
    """Puts the bounds into the tree of a template, and refuses what cannot be bounded."""

    def __init__(self, writer: str) -> None:
        self.writer = writer

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, nodes.TemplateData) else _filter(child, self.writer) for child in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        node.nodes = [_filter(child, "_text") for child in node.nodes]
        return _filter(node, "_made")

    def visit_Name(self, node: nodes.Name) -> nodes.Name:
        if node.name == "self":
            raise TemplateSyntaxError("`self` is not available: a template has no blocks", node.lineno)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not available", node.lineno)
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_steps")
        return _charged(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        return _charged(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        return _charged(node)

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise TemplateSyntaxError(
            f"{type(node).__name__.lower()} is not available: a template is one file", node.lineno
        )

    visit_Extends = visit_Include = visit_Import = visit_FromImport = visit_Block = _refuse


def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _charged(node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
    """Let the text inside be paid for at each pass; text inside an inner loop is paid for there as well."""
    held = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    charge = _filter(nodes.Const("", lineno=node.lineno), "_charge", nodes.Const(held, lineno=node.lineno))
    node.body = [nodes.Output([charge], lineno=node.lineno), *node.body]
    return node


def bounded(tree: nodes.Template, *, is_field: bool) -> nodes.Template:
    """Put the bounds into a tree.

    Args:
        is_field: it is the value of a header field: what its expressions give is marked.

    Raises:
        TemplateSyntaxError: it uses what is not available.
    """
    _Bounder("_write_field" if is_field else "_write").visit(tree)
    return tree
