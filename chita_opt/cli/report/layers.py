"""The table of layers: counted from the masks, with what the run noted beside them."""

from __future__ import annotations

from dataclasses import dataclass

from chita_opt.cli.report.reading import Network, Report


@dataclass(frozen=True)
class Layer:
    """One row.

    Attributes
    ----------
    name, shape : str
        The parameter.
    size, kept : int
        Weights in all, and kept: counted where masks are at hand.
    aliases : tuple of str
        Further names of a tied parameter.
    gap_share, own_gap : float or None
        Share of the certified gap that arises at its weights, and the relative gap of its own
        certificate: as the run noted them.
    flipped : float or None
        Share of the rectifiers after it that switched.
    """

    name: str
    shape: str
    size: int
    kept: int
    aliases: tuple[str, ...] = ()
    gap_share: float | None = None
    own_gap: float | None = None
    flipped: float | None = None

    @property
    def sparsity(self) -> float:
        """Share of pruned weights."""
        return 1.0 - self.kept / self.size if self.size else 0.0


def layer_rows(network: Network | None, notes: Report) -> list[Layer]:
    """Rows in the report's order; from the masks alone where there is no report."""
    masks = {} if network is None else network.masks
    described = notes.get("layers") or [
        {"name": name, "shape": mask.shape, "size": mask.size} for name, mask in masks.items()
    ]
    flipped = (notes.get("trust") or {}).get("flipped") or {}
    gaps = notes.get("layer_gaps") or {}
    rows = []
    for own in described:
        name, mask = str(own["name"]), masks.get(own["name"])
        kept = int(own["kept"]) if mask is None else int(mask.sum())
        shape = own.get("shape") or (() if mask is None else mask.shape)
        switched = flipped.get(name.removesuffix(".weight"))
        rows.append(
            Layer(
                name, " × ".join(map(str, shape)), int(own["size"]), kept,
                tuple(own.get("aliases") or ()), own.get("gap_share"), gaps.get(name), switched,
            )
        )  # fmt: skip
    return rows


__all__ = ["Layer", "layer_rows"]
