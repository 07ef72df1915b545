"""How many bytes clients make the server hold, of all together: half a message that has come, a
frame in its slot, an answer that is not taken.

Each of these has a cap of its own, but 64 clients at their caps are half a gigabyte. Beyond the
limit the client that holds most is let go: drawings are a few KB, so those who draw hardly notice.
"""

from __future__ import annotations

from collections.abc import Callable


class Ledger:
    """The accounts that are open, and how to let each go. `limit`: bytes of all together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self.accounts: dict[Account, Callable[[], object]] = {}

    def open(self, leave: Callable[[], object]) -> Account:
        """An account for a new client; `leave` is called when it holds most and must go."""
        account = Account(self)
        self.accounts[account] = leave
        return account


class Account:
    """What one client makes the server hold."""

    def __init__(self, ledger: Ledger) -> None:
        self.total = 0
        self._ledger = ledger
        self._parts: dict[object, int] = {}

    def hold(self, what: object, size: int) -> None:
        """From now on `size` bytes are held under the name `what`; 0: none any more."""
        ledger = self._ledger
        if self not in ledger.accounts:
            return
        change = size - self._parts.pop(what, 0)
        if size:
            self._parts[what] = size
        self.total += change
        ledger.total += change
        while ledger.total > ledger.limit:
            greatest = max(ledger.accounts, key=lambda account: account.total)
            leave = ledger.accounts[greatest]
            greatest.close()
            leave()

    def more(self, what: object, size: int) -> None:
        """`size` bytes more under the name `what`."""
        self.hold(what, self._parts.get(what, 0) + size)

    def close(self) -> None:
        """The client has left: nothing of its is held, whatever is said from now on."""
        if self._ledger.accounts.pop(self, None):
            self._ledger.total -= self.total
