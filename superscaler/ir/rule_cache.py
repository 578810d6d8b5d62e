"""The rule cache: rules found before, in a file, so that a model is probed once and not at every trace."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from superscaler.ir.custom_operator import signature
from superscaler.ir.find_rule import FoundRule
from superscaler.ir.letters import RuleText
from superscaler.ir.sample_call import CallShape

FORMAT = 1
log = logging.getLogger("superscaler")


class RuleCache:
    """Rules by call; a file that is damaged or cannot be written is done without, and said so.

    Args:
        file: The file; by default ``rules.json`` in the folder ``SUPERSCALER_CACHE`` names, else in
            ``superscaler`` under ``XDG_CACHE_HOME`` or ``~/.cache``.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or _default_file()
        self._found = self._read()

    def get(self, call: CallShape) -> FoundRule | None:
        """The rule found for such a call before."""
        return self._found.get(_key(call))

    def put(self, call: CallShape, found: FoundRule) -> None:
        """Remember a rule."""
        self._found = {**self._read(), **self._found, _key(call): found}
        rules = {key: {**asdict(rule), **asdict(rule.rule)} for key, rule in self._found.items()}
        for entry in rules.values():
            del entry["rule"]
        text = json.dumps({"format": FORMAT, "rules": rules}, indent=1)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle, fresh = tempfile.mkstemp(prefix=f".{self.file.name}.", dir=self.file.parent)
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(fresh, self.file)
        except OSError as error:
            log.warning("rules found are not kept for the next time: %s", error)

    def _read(self) -> dict[str, FoundRule]:
        try:
            document = json.loads(self.file.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                return {}
            return {key: _entry(**entry) for key, entry in document["rules"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is damaged and not used (%s); remove it", self.file, error)
            return {}


def _entry(text: str, shape_argument: int | None, cuttable: int, experiments: int) -> FoundRule:
    return FoundRule(RuleText(text, shape_argument), cuttable, experiments)


def _default_file() -> Path:
    own = os.environ.get("SUPERSCALER_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(shared) / "superscaler") / "rules.json"


def _key(call: CallShape) -> str:
    """All that a rule may depend on: the operator as it is defined, torch, arguments, shapes and dtypes."""
    operator = call.operator
    parts = (
        operator.kind, *signature(operator.kind), torch.__version__,
        operator.arguments, operator.keywords, call.reads, call.dtypes, call.writes,
    )  # fmt: skip
    return f"{operator.kind} {hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"
