"""The bank's accounts and bookings, and the changes that tools make; amounts are whole cents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agentenv.envs.worlds.desk import find_row
from agentenv.errors import ToolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account; `limit` is how far below zero it may go."""

    account_id: str
    owner: str
    kind: str
    balance: int
    limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """A booking on one account; negative amounts leave it."""

    booking_id: str
    account_id: str
    day: str
    amount: int
    counterparty: str
    text: str
    is_reversed: bool = False
    flag: str = ""


@dataclass(kw_only=True)
class Ledger:
    """All accounts and bookings, by id, and what was reported."""

    today: str
    accounts: dict[str, Account] = field(default_factory=dict)
    bookings: dict[str, Booking] = field(default_factory=dict)
    reports: list[int] = field(default_factory=list)

    def copy(self) -> Ledger:
        """Return an independent copy; rows are frozen, so tables alone are copied."""
        return Ledger(
            today=self.today,
            accounts=dict(self.accounts),
            bookings=dict(self.bookings),
            reports=list(self.reports),
        )

    def snapshot(self) -> object:
        """Return accounts, reports and bookings; new bookings count without their ids, and memos are free text."""
        rows = (_compared(booking) for booking in self.bookings.values())
        return dict(self.accounts), Counter(rows), sorted(self.reports)

    def transfer(self, from_account: str, to_account: str, cents: int, memo: str = "") -> str:
        """Move money between two accounts."""
        source = find_row(self.accounts, from_account, kind="account")
        target = find_row(self.accounts, to_account, kind="account")
        if cents <= 0 or source is target:
            raise ToolError(f"{cents} cents from {from_account[:20]} to {to_account[:20]}: not a transfer")
        if source.balance - cents < -source.limit:
            raise ToolError(f"{from_account} holds {source.balance} cents and may not go below {-source.limit}")
        self._book(source, -cents, target.owner, memo)
        self._book(target, cents, source.owner, memo)
        return f"{cents} cents were moved"

    def reverse_booking(self, booking_id: str) -> Booking:
        """Undo a booking on its account."""
        booking = find_row(self.bookings, booking_id, kind="booking")
        if booking.is_reversed:
            raise ToolError(f"booking {booking_id} is reversed already")
        account = self.accounts[booking.account_id]
        self.accounts[account.account_id] = replace(account, balance=account.balance - booking.amount)
        self.bookings[booking_id] = replace(booking, is_reversed=True)
        return self.bookings[booking_id]

    def flag_booking(self, booking_id: str, reason: str) -> Booking:
        """Mark a booking for the auditors."""
        booking = find_row(self.bookings, booking_id, kind="booking")
        self.bookings[booking_id] = replace(booking, flag=reason)
        return self.bookings[booking_id]

    def report_amount(self, cents: int) -> str:
        """Report a figure."""
        self.reports.append(cents)
        return f"{cents} cents were reported"

    def of_owner(self, owner: str) -> list[Account]:
        """Return somebody's accounts."""
        return [account for account in self.accounts.values() if account.owner == owner]

    def on(self, accounts: Iterable[Account]) -> list[Booking]:
        """Return the bookings of accounts, by day."""
        ids = {account.account_id for account in accounts}
        found = (booking for booking in self.bookings.values() if booking.account_id in ids)
        return sorted(found, key=lambda booking: (booking.day, booking.booking_id))

    def _book(self, account: Account, amount: int, counterparty: str, memo: str) -> None:
        number = 1 + max((int(key[1:]) for key in self.bookings), default=10000)
        key = f"B{number}"
        self.accounts[account.account_id] = replace(account, balance=account.balance + amount)
        self.bookings[key] = Booking(
            booking_id=key,
            account_id=account.account_id,
            day=self.today,
            amount=amount,
            counterparty=counterparty,
            text=f"transfer {memo}".strip(),
        )


def _compared(booking: Booking) -> Booking:
    return replace(booking, booking_id="", text="") if booking.text.startswith("transfer") else booking
