"""pix2pix_fast: pix2pix generators as fast, correct picture translators.

>>> from pix2pix_fast import Engine
>>> with Engine("edges2shoes.safetensors") as engine:
...     engine.translate("drawing.png").save("shoe.png")

Importing this loads NumPy and nothing heavier.
"""

import logging

from . import backends, errors
from .engine import Engine
from .errors import BackendUnavailable, ForkError, ModelFormatError, P2PError

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "Engine",
    "ForkError",
    "ModelFormatError",
    "P2PError",
    "__version__",
    "backends",
    "errors",
    "kernels",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the caller listens


def kernels() -> list[str]:
    """Ids "room/op_algorithm_dtype" of every kernel in this build, whether this CPU can run it or
    not."""
    from . import _core

    return list(_core.kernels())
