"""Methods in files of one's own: `method: {path: my_rule.py, ...}` in a config (docs/adding-a-method.md).

The file is Python code, and it is run (`own_file`). Only a command line that trains, or that names a config, does so.
What reads a run's network leaves the file alone (`Unread`), as the run may be a stranger's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import ConfigDict, Field

from dynsparse.errors import UserError
from dynsparse.methods import Method, MethodSettings
from pipelines.common.paths import PathText, expanded, written


class OwnMethod(MethodSettings):
    """A method of your own, in one Python file (docs/adding-a-method.md). Its other options are those of the file."""

    path: PathText
    """The file, beside the config's own file, else from the current folder. A run keeps a copy of it."""
    checksum: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """The first 16 digits of the file's SHA-256. A run notes it; a file of another is refused. null: any file."""
    starts_from: Literal["sparse", "dense"] | None = None
    """The network that the method starts from. A run notes it, so that it can be read without the file."""
    source: ClassVar[bytes] = b""
    """Content of the file that was run."""


class Unread(OwnMethod):
    """A method whose file is not run: as much of it as reading a run's network takes."""

    model_config = ConfigDict(extra="allow")

    def build(self) -> Method:
        """Make a method that does nothing."""
        return Method()

    @property
    def starts(self) -> Literal["sparse", "dense"]:
        """Kind of network that the run noted."""
        return self.starts_from or "sparse"


def with_own_method(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a config's JSON schema in which `method` may also be a file of one's own, with any options."""
    own = {**Unread.model_json_schema(), "description": OwnMethod.__doc__, "required": ["path"]}
    properties = schema["properties"]
    either = {"anyOf": [properties["method"], {"$ref": "#/$defs/OwnMethod"}]}
    definitions = {**schema["$defs"], "OwnMethod": own}
    return {**schema, "$defs": dict(sorted(definitions.items())), "properties": {**properties, "method": either}}


def is_own(method: object) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether a config's section, not validated, asks for a file of one's own."""
    return isinstance(method, Mapping) and "path" in method


def beside(section: Mapping[Any, Any], folder: Path, name: str | None = None) -> dict[Any, Any]:
    """Return a config's `method` with the path of the file in this folder, if it is there.

    `name`: of the file there; None: what the section says.
    """
    try:
        path = folder / (name or expanded(section["path"]))
    except (TypeError, ValueError):  # What reads the file says why.
        return dict(section)
    return {**section, "path": written(str(path))} if path.is_file() else dict(section)


def source_of(method: MethodSettings) -> bytes | None:
    """Return the content of the file that was run for these settings. None for built-in methods, and `Unread` ones."""
    return method.source if isinstance(method, OwnMethod) and method.source else None


def noted(settings: MethodSettings) -> MethodSettings:
    """Return the settings with the kind of network that the method starts from. UserError if it ties weights."""
    if settings.starts == "tied":
        raise UserError(f"method {settings.name} starts tied, and a method from a file cannot: start sparse or dense")
    return settings.model_copy(update={"starts_from": settings.starts})
