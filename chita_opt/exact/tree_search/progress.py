"""Log lines with the columns that OR people know, and the history for plots."""

from __future__ import annotations

from chita_opt.exact.options import Log
from chita_opt.exact.result import HistoryRow, relative_gap
from chita_opt.exact.tree_search.tree import Search
from chita_opt.solution import Clock

_HEADER = "   nodes    open   depth          bound      incumbent     gap %    newton    time s"


class Progress:
    """Called after every node; writes at most one line an interval."""

    def __init__(self, clock: Clock, log: Log | None, interval: float) -> None:
        self.clock, self.log, self.interval = clock, log, interval
        self.history: list[HistoryRow] = []
        self._last: float | None = None

    def update(self, search: Search, *, force: bool = False) -> None:
        """Keep a history row where something changed, and log."""
        now = self.clock.elapsed
        row = HistoryRow(now, search.lower, search.upper, search.open_nodes)
        last = self.history[-1] if self.history else None
        if force or last is None or (row.lower, row.upper) != (last.lower, last.upper):
            if force or last is None or row.upper != last.upper or now - last.seconds > 0.05:
                self.history.append(row)
        if self.log is not None and (
            force or self._last is None or now - self._last >= self.interval
        ):
            if self._last is None:
                self.log(_HEADER)
            self._last = now
            self.log(self._line(search, row))

    def _line(self, search: Search, row: HistoryRow) -> str:
        gap = 100.0 * relative_gap(row.lower, row.upper, row.upper - search.floor)
        depth = search.heap[0][2].depth if search.heap else 0
        return (
            f"{search.nodes:8d}{row.open_nodes:8d}{depth:8d}{row.lower:15.7g}{row.upper:15.7g}"
            f"{gap:10.4g}{search.newton:10d}{row.seconds:10.1f}"
        )
