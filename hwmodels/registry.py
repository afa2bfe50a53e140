"""Hardware by name or by file: the presets, TOML files, and classes that other packages bring.

A package adds a model class under the entry point group `apq_deploy.hardware`. Its object needs a class method
`from_document(document, origin)` to be read from TOML files that say `model = "its name"`, and may be called without
arguments to stand for a hardware of its own, so that `load_hardware("its name")` works.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from hwmodels.bitfusion import BitFusion
from hwmodels.errors import HardwareError
from hwmodels.files import MAX_TEXT_BYTES, read_within
from hwmodels.hardware import Hardware, class_name, description_sha256
from hwmodels.settings import commented_toml, model_from_document, nearest, toml_value

ENTRY_POINT_GROUP = "apq_deploy.hardware"
_OWN_MODEL = "bitfusion"


def _presets() -> dict[str, Any]:
    folder = files("hwmodels") / "presets"
    found = {each.name.removesuffix(".toml"): each for each in folder.iterdir() if each.name.endswith(".toml")}
    return dict(sorted(found.items()))


def _plugins() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=ENTRY_POINT_GROUP)}


def list_hardware() -> list[str]:
    """Names that `load_hardware` takes: the presets, then those that other packages bring."""
    presets = _presets()
    return [*presets, *sorted(name for name in _plugins() if name not in presets)]


def load_hardware(name_or_path: str | Path) -> Hardware:
    """The hardware of a preset or a package by its name, or of a TOML file by its path.

    Raises: HardwareError for an unknown name, with the nearest one, and for a file that cannot be read.
    """
    text = str(name_or_path)
    presets, plugins = _presets(), _plugins()
    if text in presets:
        return _from_text(presets[text].read_text(encoding="utf-8"), f"preset {text}")
    if text in plugins:
        return _checked(_call(_loaded(plugins[text]), f'hardware "{text}"'), f'hardware "{text}"')
    path = Path(name_or_path)
    if path.is_file():
        try:
            return _from_text(read_within(path, MAX_TEXT_BYTES).decode("utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise HardwareError(f"{path}: expected a readable UTF-8 text file, got: {reason}") from None
    if path.suffix == ".toml" or "/" in text:
        raise HardwareError(f"{path}: no such file; write one with `apq-deploy hardware new {path}`")
    raise HardwareError(f'unknown hardware "{text}"{nearest(text, list_hardware())}')


def _from_text(text: str, origin: str) -> Hardware:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise HardwareError(f"{origin}: expected TOML, got: {error}") from None
    model = document.get("model")
    if model == _OWN_MODEL:
        return model_from_document(BitFusion, document, origin)
    plugins = _plugins()
    if not isinstance(model, str) or model not in plugins:
        known = [_OWN_MODEL, *sorted(plugins)]
        if not isinstance(model, str):
            raise HardwareError(f"{origin}: expected a model = NAME line at the top, one of {', '.join(known)}")
        raise HardwareError(f'{origin}: unknown model "{model}"{nearest(model, known)}')
    reader = getattr(_loaded(plugins[model]), "from_document", None)
    if reader is None:
        raise HardwareError(f'{origin}: model "{model}" must have a from_document class method to be read from a file')
    try:
        return _checked(reader(document, origin), origin)
    except HardwareError:
        raise
    except Exception as error:
        raise HardwareError(f"{origin}: {plugins[model].value} fails with {_words(error)}; mend the class") from error


def _loaded(plugin: EntryPoint) -> Any:
    try:
        return plugin.load()
    except Exception as error:  # whatever importing a module may run into
        raise HardwareError(
            f'hardware "{plugin.name}" comes from {plugin.value}, which does not load ({_words(error)}); reinstall its '
            f"package"
        ) from error


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _call(factory: Callable[[], object], origin: str) -> object:
    try:
        return factory()
    except TypeError as error:
        raise HardwareError(
            f"{origin}: stands for no hardware of its own; name a TOML file instead ({error})"
        ) from None
    except HardwareError:
        raise
    except Exception as error:
        raise HardwareError(f"{origin} fails with {_words(error)}; mend the class") from error


def _checked(hardware: object, origin: str) -> Hardware:
    if not isinstance(hardware, Hardware):
        raise HardwareError(
            f"{origin}: expected name, describe, layer_cost and layer_costs, got a {type(hardware).__name__}"
        )
    try:
        description_sha256(hardware.describe())
    except Exception as error:
        raise HardwareError(
            f"{origin}: describe() of {class_name(hardware)} must give settings that JSON can write, got "
            f"{_words(error)}; mend the class"
        ) from error
    return hardware


def hardware_text(hardware: Hardware) -> str:
    """The whole hardware as text to read: its commented TOML file, or all settings of a class from another package."""
    if isinstance(hardware, BitFusion):
        return commented_toml(hardware, _OWN_MODEL)
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in hardware.describe().items())


def hardware_template() -> str:
    """A commented TOML file of an accelerator, to be changed into one's own: `bitfusion` under a new name."""
    text = _presets()["bitfusion"].read_text(encoding="utf-8")
    values: Mapping[str, Any] = tomllib.loads(text)
    renamed = {
        **values,
        "name": "my-accelerator",
        "description": "Copied from the preset bitfusion: change every number",
    }
    heading = (
        "# A hardware description for apq-deploy: change the values, keep every field ([energy] may go).\n"
        "# See it again with `apq-deploy hardware show FILE`, build a cost table with `apq-deploy lut build FILE`.\n"
    )
    return heading + commented_toml(model_from_document(BitFusion, renamed, "template"), _OWN_MODEL)
