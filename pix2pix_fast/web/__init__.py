"""The page to draw on: `serve` answers a browser's frames with translated pictures.

Reading order: protocol.py (what travels), turns.py (who is next), ledger.py (how much may wait),
guard.py (who may speak at all), server.py (everything put together), page.html (the browser's
side, in one file).
"""

from .server import serve

__all__ = ["serve"]
