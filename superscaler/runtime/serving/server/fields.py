"""Fields: what the body of a request says, each of the type it must have."""

import json
from collections.abc import Mapping
from typing import Any

from superscaler.runtime.serving.server.api_error import ApiError


def parse_body(body: bytes) -> "Fields":
    """The fields of a body.

    Raises:
        ApiError: It is no JSON object.
    """
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ApiError("the body is no JSON object")
    return Fields(found)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


class Fields:
    """The fields of an object; null is as good as absent.

    Args:
        values: By name.
        path: Of the object in the body, with a dot behind it.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self._path = values, path

    @property
    def names(self) -> frozenset[str]:
        """Of the fields that say something."""
        return frozenset(name for name, value in self._values.items() if value is not None)

    def get(self, name: str, default: Any = None) -> Any:
        """A field, whatever it is."""
        value = self._values.get(name)
        return default if value is None else value

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        return self._of(name, default, bool, "true or false")

    def integer(self, name: str, default: Any = None) -> Any:
        """A whole number."""
        value = self.get(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.wrong(name, "a whole number")
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        return value

    def text(self, name: str, default: Any = None) -> Any:
        """A text."""
        return self._of(name, default, str, "a text")

    def list(self, name: str) -> list[Any]:
        """A list."""
        return self._of(name, [], list, "a list")

    def object(self, name: str) -> "Fields | None":
        """An object, if it is there."""
        value = self._of(name, None, dict, "an object")
        return None if value is None else Fields(value, f"{self._path}{name}.")

    def values(self) -> dict[str, Any]:
        """All of them."""
        return dict(self._values)

    def wrong(self, name: str, wanted: str) -> ApiError:
        """The error for a field that is not what it must be."""
        shown = json.dumps(self._values.get(name))
        shown = shown if len(shown) <= 40 else shown[:40] + "..."
        path = self._path + name
        return ApiError(f"{path} is {shown}", param=path, remedy=f"it must be {wanted}")

    def refuse(self, name: str, remedy: str) -> ApiError:
        """The error for a field that says what this server does not do."""
        path = self._path + name
        return ApiError(f"{path} is not supported", param=path, code="unsupported_parameter", remedy=remedy)

    def _of(self, name: str, default: Any, kind: type, wanted: str) -> Any:
        value = self.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise self.wrong(name, wanted)
        return value
