"""Every error that is not the caller's plain mistake (those are TypeError and ValueError).

Each takes one message: what was wrong, what was expected, what to do. All are picklable.
"""

from __future__ import annotations


class P2PError(Exception):
    """The root: `except P2PError` catches whatever this package raises on its own account."""


class ModelFormatError(P2PError, ValueError):
    """A model file or a part of it is not what it must be; the message names which and the rule."""


class BackendUnavailable(P2PError, RuntimeError):
    """Hardware or a library that was asked for is missing; the message says what was looked for."""


class DeviceError(P2PError, RuntimeError):
    """A GPU, its driver or its library failed while at work; the message says at what."""


class ForkError(P2PError, RuntimeError):
    """A child process met state that another thread of its parent held while it forked."""


class VideoError(P2PError, RuntimeError):
    """A video cannot be read or written."""
