"""What pydantic found wrong with a file, in our words: the path of the key, the value, and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from netstack.yaml_file import FileError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

MAX_TOLD: Final = 100
"""Errors of one file that are told."""

_EXPECTED: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
"""Kinds of errors that need no more than a word. The others say themselves what was expected."""

_BOUND: Final = {"greater_than_equal": "of at least", "less_than_equal": "of at most", "greater_than": "above"}


class ConfigurationError(FileError):
    """Everything that is wrong with a file. As text it is the first of it, and how much more there is."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        more = len(problems) - 1
        rest = f" (and {more} more: `netstack config check` lists them)" if more > 0 else ""
        super().__init__(where, problems[0] + rest)
        self.problems = tuple(problems)


def problems_of(error: ValidationError, model: type[BaseModel], content: object) -> list[str]:
    """One line for each error in `content`, which is what the file says."""
    return [_line(each, model, content) for each in error.errors(include_url=False)[:MAX_TOLD]]


def _line(error: Mapping[str, Any], model: type[BaseModel], content: object) -> str:
    path = _written_path(error["loc"], content)
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_hint([part for part in error['loc'] if isinstance(part, str)], model)}"
    if kind == "missing":
        return f"{path}: missing"
    shown = _shown(error["input"])
    context = error.get("ctx", {})
    if kind == "literal_error":
        expected = f"one of {str(context['expected']).replace(' or ', ', ')}".replace("'", "")
    elif kind in ("greater_than_equal", "less_than_equal", "greater_than"):
        expected = f"a number {_BOUND[kind]} {next(iter(context.values()))}"
    else:
        expected = _EXPECTED.get(kind) or str(context.get("expected") or error["msg"])
    return f"{path or 'the file'} {shown}: expected {expected}"


def _written_path(places: Sequence[str | int], content: object) -> str:
    """`stack.dns[0].name`. A value that stands alone where a list could be has no position."""
    path = ""
    for place in places:
        if isinstance(place, int):
            if isinstance(content, list):
                path += f"[{place}]"
                content = content[place]
        elif place != "[key]":
            path += f".{place}" if path else place
            content = content.get(place) if isinstance(content, dict) else None
    return " ".join(path.split())


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else f"'{value}'"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _hint(path: Sequence[str], model: type[BaseModel]) -> str:
    """The nearest known key: of the same section, else that name in another one."""
    known = list(keys_of(model))
    beside = [key for key in known if key.split(".")[:-1] == list(path[:-1])]
    leaves = [key.rpartition(".")[2] for key in beside]
    near = difflib.get_close_matches(path[-1], leaves, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    elsewhere = {key.rpartition(".")[2].lower(): key for key in reversed(known)}
    found = elsewhere.get(path[-1].lower()) or elsewhere.get(path[-1].lower().replace("_", "-"))
    if found:
        return f"; did you mean {found!r}?"
    return f"; known are {', '.join(leaves)}" if leaves else ""


def keys_of(model: type[BaseModel], above: str = "") -> Sequence[str]:
    """All keys of a model and the models in it, as paths with dots; lists add nothing to a path."""
    found = []
    for name, field in model.model_fields.items():
        path = above + (field.alias or name)
        found.append(path)
        for inner in _models_in(field.annotation):
            found.extend(keys_of(inner, f"{path}."))
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    from typing import get_args

    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
