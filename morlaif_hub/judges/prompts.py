"""Prompt templates: text files beside the code, filled in one pass."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Template:
    """A text with placeholders in braces.

    `str.format` would read the braces of a response as placeholders; here the text is gone
    through once, and what is put in is never looked at again.
    """

    text: str

    @classmethod
    def read(cls, name: str) -> "Template":
        """Return the template of a file beside this one."""
        text = (files("morlaif_hub") / "judges" / name).read_text(encoding="utf-8")
        return cls(text.removesuffix("\n"))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with every placeholder that `values` names replaced by its value.

        Example:
            >>> Template("{a} and {b}, {c}").fill({"a": "{b}", "b": "2"})
            '{b} and 2, {c}'
        """
        names = "|".join(map(re.escape, values))
        return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], self.text)


def prompt_sha256(*templates: Template) -> str:
    """Return the hash of a judge's templates, in hex."""
    return hashlib.sha256("\0".join(template.text for template in templates).encode()).hexdigest()
