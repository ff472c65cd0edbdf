"""A message template: its pieces are compiled together once, and rendered for each recipient.

Layer: sans-I/O.  Spec: issue text "Message" (Jinja2 over headers and body, undefined names are errors).
Invariants: what the pieces of a message are (fields, bodies of parts) is read from the source, before any data are
known; a value can change the text of its piece, never what the pieces are.

Each field and each body is a piece of its own, so an ``if`` or a loop must end in the piece it begins in.  The pieces
share one scope, in the order of the source: what one sets, the next may use.  They are compiled as one template with a
NUL between each two, which costs one call of Jinja a message; a NUL in the data is refused.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import TemplateSyntaxError

from ..errors import DataError
from .sandbox import TemplateEnvironment, bounded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

#: names that every template knows: the address of the recipient, and all its merge data by column
EMAIL: Final = "email"
ROW: Final = "row"

_TAGS: Final = ("{{", "{%", "{#")
_TAG_ENDS: Final = ("}}", "%}", "#}")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_NO_SPACE: Final = re.compile(r"\S")
_SEPARATOR: Final = "\0"
# what expressions and filters raise on data that do not fit them
_FAULTS: Final = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
# what the parser and the compiler raise besides on nesting that is too deep for them
_LOAD_FAULTS: Final = (*_FAULTS, SyntaxError)


def has_tags(text: str) -> bool:
    return any(tag in text for tag in _TAGS)


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a template.

    Attributes:
        text: with any line ends.
        line: one-based line of the source it begins in.
        is_field: it is the value of a header field; the data in it will be between marks.
        is_html: data are escaped, unless they say `| safe`.
        is_silent: it may set names and define macros, but must not write anything.
    """

    text: str
    line: int
    is_field: bool = False
    is_html: bool = False
    is_silent: bool = False


class Program:
    """A compiled template.

    Attributes:
        authors: of each piece, the texts before, between and after its values, if they are the same for all data; None
            where conditions or loops decide.
        names: of each piece, the columns that are its values; None where some piece does more than name columns.

    Raises:
        DataError: the template cannot be compiled; with the line.
    """

    def __init__(self, pieces: list[Piece]) -> None:
        self._environment = TemplateEnvironment()
        self._count = len(pieces)
        body: list[nodes.Node] = []
        trees = [self._parse(piece) for piece in pieces]
        self.authors = [_author_texts(tree) for tree in trees]
        named = [_plain_names(tree) for tree in trees]
        self.names = None if None in named else [names for names in named if names is not None]
        whole = self._whole([node for tree in trees for node in tree.body])
        try:
            self._names = _required_names(whole)
            for tree, piece in zip(trees, pieces, strict=True):
                inner = bounded(tree, is_field=piece.is_field).body
                if piece.is_html:
                    option = nodes.Keyword("autoescape", nodes.Const(True))
                    inner = [nodes.ScopedEvalContextModifier([option], inner, lineno=piece.line)]
                body += [*inner, nodes.Output([nodes.TemplateData(_SEPARATOR)], lineno=piece.line)]
            self._template = self._environment.from_string(self._whole(body))
        except _LOAD_FAULTS as error:
            raise self._explain(error) from None
        self._uses_row = ROW in meta.find_undeclared_variables(whole)

    def check(self, columns: Collection[str]) -> None:
        """See that every name is a column.

        Raises:
            DataError: naming one that is missing, and the nearest column.
        """
        for name, line in self._names:
            if name not in columns and name != EMAIL:
                near = difflib.get_close_matches(name, [*columns, EMAIL], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DataError(f"the template names {name!r}, which is no column of the recipients{hint}", line=line)

    def render(self, address: str, merge: Mapping[str, object]) -> list[str]:
        """The text of each piece.

        Raises:
            DataError: a name is undefined, an expression does not fit the data, or a bound of `sandbox` is passed.
        """
        variables = {**merge, EMAIL: address}
        if self._uses_row and ROW not in merge:
            variables[ROW] = variables.copy()
        self._environment.budget.renew()
        template = self._template
        try:
            text = "".join(template.root_render_func(template.new_context(variables)))
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError:
            raise DataError("the text of the message holds half of a surrogate pair, which is no character") from None
        except _FAULTS as error:
            raise self._explain(error) from None
        parts = text.split(_SEPARATOR)
        if len(parts) != self._count + 1:
            raise DataError("the merge data hold a NUL")
        parts.pop()
        return parts

    def _parse(self, piece: Piece) -> nodes.Template:
        if _SEPARATOR in piece.text:
            raise DataError("a template cannot hold a NUL", line=piece.line)
        try:
            tree = self._read(piece.text)
        except _LOAD_FAULTS as error:
            line = error.lineno if isinstance(error, TemplateSyntaxError) else 1
            where = " (what begins in a field or part must end in it)" if "nd of template" in str(error) else ""
            raise DataError(f"template: {_words(error)}{where}", line=piece.line + line - 1) from None
        for node in [tree, *tree.find_all(nodes.Node)]:
            node.lineno = (node.lineno or 1) + piece.line - 1
        if piece.is_silent and _writes(tree):
            raise DataError(
                "a line of the header that begins with a tag may only set names: name the field first and put the "
                "condition into its value (a field whose value comes out empty is left out)",
                line=piece.line,
            )
        return tree

    def _read(self, text: str) -> nodes.Template:
        """Parse; what stands behind the last tag is put in as it is, as Jinja looks at each character of it."""
        cut = _tail_start(text)
        if cut is not None:
            try:
                tree = self._environment.parse(text[:cut])
            except _LOAD_FAULTS:
                pass  # the fault is told of the whole
            else:
                last = tree.body[-1].nodes[-1] if isinstance(tree.body[-1], nodes.Output) else None
                if isinstance(last, nodes.TemplateData):
                    last.data += _LINE_END.sub("\n", text[cut:])
                    return tree
        return self._environment.parse(text)

    def _whole(self, body: list[nodes.Node]) -> nodes.Template:
        whole = nodes.Template(body, lineno=1)
        whole.set_environment(self._environment)
        return whole

    def _explain(self, error: BaseException) -> DataError:
        """What went wrong, with the line of the source it went wrong in."""
        line = error.lineno if isinstance(error, TemplateSyntaxError) else None
        trace = error.__traceback__
        while line is None and trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                inner = trace.tb_next
                while inner is not None and inner.tb_frame.f_code.co_filename != "<template>":
                    inner = inner.tb_next
                if inner is None:
                    line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return DataError(f"template: {_words(error)}", line=line)


def _tail_start(text: str) -> int | None:
    """Where text begins that is behind all tags, and behind a character of the text that no tag takes away."""
    end = max(map(text.rfind, _TAG_ENDS)) + 2
    if has_tags(text[max(end - 1, 0) :]):
        return None
    found = _NO_SPACE.search(text, end if end > 1 else 0)
    return None if found is None else found.end()


def _words(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep, or a macro calls itself without end"
    return str(error) or type(error).__name__


def _writes(tree: nodes.Template) -> bool:
    """Whether a piece writes anything but white space, outside of the macros and blocks that it sets."""
    open_nodes: list[nodes.Node] = list(tree.body)
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, nodes.Output):
            if any(not isinstance(child, nodes.TemplateData) or child.data.strip() for child in node.nodes):
                return True
        elif isinstance(node, (nodes.CallBlock, nodes.FilterBlock)):
            return True
        elif not isinstance(node, (nodes.Macro, nodes.AssignBlock)):
            open_nodes += node.iter_child_nodes()
    return False


def _author_texts(tree: nodes.Template) -> tuple[str, ...] | None:
    texts = [""]
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                texts[-1] += node.data
            else:
                texts.append("")
    return tuple(texts)


def _plain_names(tree: nodes.Template) -> tuple[str, ...] | None:
    """The columns that a piece names in their order, if it does nothing else."""
    names: list[str] = []
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            if isinstance(node, nodes.Name) and node.name != ROW:
                names.append(node.name)
            elif not isinstance(node, nodes.TemplateData):
                return None
    return tuple(names)


def _required_names(whole: nodes.Template) -> tuple[tuple[str, int], ...]:
    """The columns a template cannot do without, each with the line that names it first.

    A name that is asked for with `is defined` or given a `default` anywhere is one it can do without.
    """
    undeclared = meta.find_undeclared_variables(whole)
    excused = set(_names_of(_guarded(whole), undeclared))
    lines: dict[str, int] = {}
    for name, line in _used(whole, undeclared):
        if name not in excused:
            lines[name] = min(line, lines.get(name, line))
    return tuple(sorted(lines.items()))


def _guarded(whole: nodes.Template) -> Iterator[nodes.Node]:
    for filtered in whole.find_all(nodes.Filter):
        if filtered.name in ("default", "d") and filtered.node is not None:
            yield filtered.node
    for test in whole.find_all(nodes.Test):
        if test.name in ("defined", "undefined"):
            yield test.node


def _names_of(found: Iterator[nodes.Node], undeclared: set[str]) -> Iterator[str]:
    for node in found:
        name = _column(node, undeclared)
        if name is not None:
            yield name


def _used(whole: nodes.Template, undeclared: set[str]) -> Iterator[tuple[str, int]]:
    for node in whole.find_all((nodes.Name, nodes.Getitem, nodes.Getattr)):
        name = _column(node, undeclared)
        if name is not None:
            yield name, node.lineno


def _column(node: nodes.Node, undeclared: set[str]) -> str | None:
    """The column that an expression names: ``name``, ``row.name`` or ``row["name"]``."""
    if isinstance(node, nodes.Name) and node.name in undeclared and node.name != ROW:
        return node.name
    if isinstance(node, (nodes.Getattr, nodes.Getitem)) and isinstance(node.node, nodes.Name):
        if node.node.name != ROW or ROW not in undeclared:
            return None
        if isinstance(node, nodes.Getattr):
            return None if node.attr in ("get", "items", "keys", "values") else node.attr
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return node.arg.value
    return None
