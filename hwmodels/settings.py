"""Settings of a hardware model as documented dataclass fields: checked, read from TOML and written as commented TOML.

A setting is a dataclass field with its section of the file, unit, meaning and range; the checks, the reader and the
template all come from there, so none of them can know another set of fields.
"""

from __future__ import annotations

import difflib
import json
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin

from hwmodels.errors import HardwareError

SCHEMA_VERSION = 1


class _Described(Protocol):
    """A dataclass whose fields were all made by `setting`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Model = TypeVar("Model", bound=_Described)


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """What a setting means, apart from its name and type.

    `note` is advice for whoever writes the file. An `optional` setting may be left out, and is None then.
    """

    section: str
    unit: str
    meaning: str
    low: float | None
    high: float | None
    note: str
    optional: bool


def setting(
    section: str,
    unit: str,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    note: str = "",
    optional: bool = False,
) -> Any:
    """A dataclass field without a default that carries its documentation. `section` is "" at the top of a file."""
    return field(metadata={"doc": SettingDoc(section, unit, meaning, low, high, note, optional)})


def setting_docs(model: type[_Described]) -> dict[str, SettingDoc]:
    """The documentation of every setting by name, in the order of the fields."""
    return {each.name: each.metadata["doc"] for each in fields(model)}


def _types(model: type[_Described]) -> dict[str, Any]:
    """The type of every setting where it is given."""
    return {name: float if hint == float | None else hint for name, hint in typing.get_type_hints(model).items()}


def _expected(kind: Any, doc: SettingDoc) -> str:
    """What a setting takes, in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in get_args(kind))
    if kind is str:
        return "text on one line"
    if kind is bool:
        return "true or false"
    name = {int: "a whole number", float: "a number"}.get(kind, "a list of one or more different whole numbers")
    if doc.low is not None and doc.high is not None:
        return f"{name} from {doc.low:g} to {doc.high:g}"
    return name if doc.low is None else f"{name} of at least {doc.low:g}"


def _in_range(value: float, doc: SettingDoc) -> bool:
    # a whole number in a file may be larger than any float
    is_finite = abs(value) <= sys.float_info.max
    return is_finite and (doc.low is None or value >= doc.low) and (doc.high is None or value <= doc.high)


def _is_valid(value: object, kind: Any, doc: SettingDoc) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and bool(value.strip()) and value.isprintable()
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and _in_range(value, doc)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _in_range(value, doc)
    return (
        isinstance(value, tuple)
        and len(value) > 0
        and all(isinstance(each, int) and not isinstance(each, bool) and _in_range(each, doc) for each in value)
        and len(set(value)) == len(value)
    )


def _plain(value: object, kind: Any) -> object:
    """The value as the type that a setting holds, where nothing is lost by it: 5.0 for 5, a tuple for a list.

    Equal settings then give one description and one hash.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        whole = int(value)
        return float(whole) if kind is float and abs(whole) <= sys.float_info.max else whole
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(_plain(each, int) for each in value)
    return value


def settle_settings(model: _Described) -> None:
    """Brings every setting of a new, frozen model to its plain type and checks it.

    Raises: HardwareError for the first value of the wrong type or outside its range.
    """
    kinds = _types(type(model))
    for name, doc in setting_docs(type(model)).items():
        value = _plain(getattr(model, name), kinds[name])
        if value is None and doc.optional:
            continue
        object.__setattr__(model, name, value)
        if not _is_valid(value, kinds[name], doc):
            unit = f" ({doc.unit})" if doc.unit else ""
            shown = list(value) if isinstance(value, tuple) else value
            raise HardwareError(
                f"{name} must be {_expected(kinds[name], doc)}{unit}, got {shown!r}; correct the setting"
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?', or the names to choose from where none is near."""
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else "; known are " + ", ".join(choices)


def model_from_document(model: type[Model], document: Mapping[str, Any], origin: str) -> Model:
    """The model that a parsed TOML file describes. `origin` names the file in messages.

    Raises: HardwareError for another schema, unknown, missing or misplaced fields, and values out of range.
    """
    check_schema(document, origin)
    docs = setting_docs(model)
    sections = list(dict.fromkeys(doc.section for doc in docs.values() if doc.section))
    top = [name for name, doc in docs.items() if not doc.section]
    given: dict[str, Any] = {}
    for key, value in document.items():
        if key in ("schema", "model"):
            continue
        if key in sections:
            if not isinstance(value, Mapping):
                raise HardwareError(f"{origin}: [{key}] must be a section with fields, got {value!r}")
            own = [name for name, doc in docs.items() if doc.section == key]
            for name, inner in value.items():
                if name not in own:
                    raise HardwareError(f'{origin}: unknown field "{name}" in [{key}]{_hint(name, own, docs)}')
                given[name] = inner
        elif key in top:
            given[key] = value
        else:
            raise HardwareError(f'{origin}: unknown field "{key}"{_hint(key, [*top, *sections], docs)}')
    for name, doc in docs.items():
        if name not in given and doc.optional:
            given[name] = None
        elif name not in given:
            place = f"in [{doc.section}]" if doc.section else "at the top"
            raise HardwareError(f'{origin}: missing field "{name}" {place}: {doc.meaning}; add it')
    try:
        return model(**given)
    except HardwareError as error:
        raise HardwareError(f"{origin}: {error}") from None


def check_schema(document: Mapping[str, Any], origin: str) -> None:
    """Raises HardwareError where a file is of another schema than this package reads."""
    if type(document.get("schema")) is not int or document["schema"] != SCHEMA_VERSION:
        raise HardwareError(
            f"{origin}: expected schema = {SCHEMA_VERSION}, got {document.get('schema', 'none')!r}; "
            f"start from a fresh template (`apq-deploy hardware new FILE`)"
        )


def _hint(name: str, own: list[str], docs: Mapping[str, SettingDoc]) -> str:
    """The remedy for an unknown field: its right section if it is known elsewhere, else the nearest name."""
    if name in docs and name not in own:
        section = docs[name].section
        return f"; it belongs under [{section}]" if section else "; it belongs at the top, before the sections"
    return nearest(name, own)


def toml_value(value: object) -> str:
    """A setting as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{int(value):_}"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:_}"
    return repr(value)


def commented_toml(model: _Described, model_name: str) -> str:
    """The model as a TOML file in which every field stands below its meaning, unit and range."""
    kinds = _types(type(model))
    lines = [
        f"schema = {SCHEMA_VERSION}",
        "# Which kind of model reads this file.",
        f"model = {toml_value(model_name)}",
    ]
    section = ""
    for name, doc in setting_docs(type(model)).items():
        if doc.section != section:
            section = doc.section
            lines += ["", f"[{section}]"]
        unit = f" Unit: {doc.unit}." if doc.unit else ""
        meaning = doc.meaning[0].upper() + doc.meaning[1:]
        value = getattr(model, name)
        lines += textwrap.wrap(doc.note, 120, initial_indent="# ", subsequent_indent="# ")
        lines += [
            f"# {meaning}.{unit} Takes {_expected(kinds[name], doc)}.",
            f"# {name}: not given" if value is None else f"{name} = {toml_value(value)}",
        ]
    return "\n".join(lines) + "\n"
