"""Every error that the package raises on purpose.

Each class derives from :class:`ChitaError`, so that one ``except`` catches the package, and from
the builtin that a caller would expect. Messages name the value, the limit and the cure.
"""

from __future__ import annotations


class ChitaError(Exception):
    """Base class of every error raised by chita-opt."""


class ProblemError(ChitaError, ValueError):
    """The data of a quadratic pruning problem are inconsistent or out of range."""


class SupportError(ChitaError, ValueError):
    """A support family cannot be formed, or a mask does not fit it."""


class CurvatureError(ChitaError, ValueError):
    """A curvature matrix is malformed, not finite, not symmetric or not positive semidefinite."""


class MethodError(ChitaError, ValueError):
    """A method is unknown or does not serve the given problem."""


class CertificateError(ChitaError, ValueError):
    """A certificate is damaged, does not belong to its problem, or claims what is not so."""


class LayerError(ChitaError, ValueError):
    """A layer cannot be selected or pruned."""


class DataError(ChitaError, ValueError):
    """A data set or instance file is missing, malformed or too small."""


class MissingDependencyError(ChitaError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class MemoryLimitError(ChitaError, MemoryError):
    """A computation needs more memory than the caller allowed; the message names both numbers."""


class EngineError(ChitaError, RuntimeError):
    """Processes cannot be started, or keep dying."""
