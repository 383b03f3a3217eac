"""The header of files that hold weights in parts: one JSON text in a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chita_opt.errors import DataError
from chita_opt.nn.weight_files import checked_texts


@dataclass(frozen=True)
class LayeredHeader:
    """What a file says about its tensors.

    Attributes
    ----------
    layers : Mapping
        How each weight in parts is stored, by its name.
    aliases : Mapping
        Further names of tied tensors.
    notes : Mapping
        Text by name.
    """

    layers: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def metadata(self, format: str) -> dict[str, str]:
        """Metadata of a safetensors file: one entry, as several would come in no fixed order."""
        content: dict[str, Any] = {"format": format, "layers": dict(self.layers)}
        content |= {"aliases": dict(self.aliases)} if self.aliases else {}
        content |= {"notes": dict(self.notes)} if self.notes else {}
        return {"chita_opt": json.dumps(content, sort_keys=True)}

    @classmethod
    def read(cls, file: Path, metadata: Mapping[str, str], format: str) -> LayeredHeader:
        """Read the metadata of a file.

        Raises
        ------
        DataError
            If they are of another format, or damaged.
        """
        text = metadata.get("chita_opt", "{}")
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            content = text  # such as the header of plain weights
        found = content.get("format") if isinstance(content, dict) else content
        if found != format:
            raise DataError(f"{file} has format {found!r}; this version reads {format!r}")
        layers = content.get("layers")
        if not isinstance(layers, dict) or not all(isinstance(v, dict) for v in layers.values()):
            raise DataError(f"{file}: the list of weights is damaged: it maps no names to layers")
        aliases = checked_texts(file, "aliases", content.get("aliases", {}))
        return cls(layers, aliases, checked_texts(file, "notes", content.get("notes", {})))

    def check_names(self, file: Path, names: set[str]) -> None:
        """Refuse tensors left over of no weight, and aliases that clash or lead nowhere.

        Raises
        ------
        DataError
            The message names them.
        """
        left = sorted(name for name in names - set(self.layers) if "/" in name)
        if left:
            raise DataError(
                f"{file} holds {', '.join(left)}, which belong to no weight of its header"
            )
        for alias, name in self.aliases.items():
            if name not in names or alias in names:
                raise DataError(
                    f"{file} ties {alias!r} to {name!r}, which does not fit its tensors"
                )


__all__ = ["LayeredHeader"]
