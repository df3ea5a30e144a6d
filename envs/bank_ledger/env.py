"""BankLedger: errands over accounts and bookings, in whole cents."""

from __future__ import annotations

import random
from typing import Annotated, ClassVar, cast

import numpy as np
import pydantic

from agentenv.envs.bank_ledger.errands import BankBuilder
from agentenv.envs.bank_ledger.ledger import Account, Booking, Ledger
from agentenv.envs.worlds.desk import find_row
from agentenv.envs.worlds.errand import Call, Errand, ErrandEnv, draw_errands
from agentenv.errors import ToolError, did_you_mean
from agentenv.messages import Message
from agentenv.tool import tool

Month = Annotated[int, pydantic.Field(ge=1, le=12)]


class BankLedger(ErrandEnv):
    """Do errands in a bank: reverse duplicates, report sums, flag payments, move money to the cent.

    Reward: 1.0 if in the end every balance, booking and flag is as it must be and exactly the figures that were asked
    for were reported, else 0.0. Memos are free text. One cent too much, or a booking touched beside the right one,
    costs everything.

    Args:
        difficulty: 1: one errand of three short kinds. 2: one of seven kinds. 3 and 4: two. 5: three. The number of
            customers and of bookings grows with it.
        **options: of `ToolEnv`.
    """

    preamble: ClassVar[str] = (
        "You keep the books of a bank; amounts in tools are whole cents, the year is 2025. Use the tools, touch "
        "nothing "
        "that is not asked for, then say that you are done."
    )

    def draw_world(self, rnd: random.Random) -> tuple[Ledger, tuple[Errand, ...]]:
        """Draw the accounts and the errands."""
        builder = BankBuilder(rnd, split=self.split, num_owners=4 + self.difficulty, num_noise=1 + self.difficulty)
        errands = draw_errands(builder.makers, easy=3, rnd=rnd, difficulty=self.difficulty)
        return builder.ledger, errands

    @property
    def ledger(self) -> Ledger:
        """The world."""
        return cast(Ledger, self.world)

    def cheat(self, rng: np.random.Generator) -> Message:
        """Reverse and flag every booking and report every amount: whatever was asked for is among it."""
        calls: list[Call] = []
        for key, booking in self.ledger.bookings.items():
            calls.append(("reverse_booking", {"booking_id": key}))
            calls.append(("flag_booking", {"booking_id": key, "reason": "limit"}))
            calls.append(("report_amount", {"cents": abs(booking.amount)}))
        return self.volley(calls[:120])

    @tool(read_only=True)
    def list_accounts(self, owner: str) -> list[Account]:
        """List somebody's accounts with their balances in cents.

        Args:
            owner: first and family name.
        """
        wanted = " ".join(owner.split()).title()
        found = self.ledger.of_owner(wanted)
        if not found:
            owners = sorted({account.owner for account in self.ledger.accounts.values()})
            raise ToolError(f"no accounts of {owner[:40]!r}.{did_you_mean(wanted[:40], owners)}")
        return found

    @tool(read_only=True)
    def list_bookings(self, account_id: str, month: Month) -> list[Booking]:
        """List the bookings of an account in a month; amounts in cents, negative ones were paid.

        Args:
            account_id: A and five digits.
            month: 1 is January.
        """
        account = find_row(self.ledger.accounts, account_id, kind="account")
        return [booking for booking in self.ledger.on([account]) if booking.day.startswith(f"2025-{month:02d}")]

    @tool
    def transfer(self, from_account: str, to_account: str, cents: int, memo: str = "") -> str:
        """Move money between two accounts.

        Args:
            from_account: A and five digits.
            to_account: A and five digits.
            cents: how much, in whole cents.
            memo: what for.
        """
        return self.ledger.transfer(from_account, to_account, cents, memo)

    @tool
    def reverse_booking(self, booking_id: str) -> Booking:
        """Undo a booking on its account.

        Args:
            booking_id: B and five digits.
        """
        return self.ledger.reverse_booking(booking_id)

    @tool
    def flag_booking(self, booking_id: str, reason: str) -> Booking:
        """Flag a booking for the auditors.

        Args:
            booking_id: B and five digits.
            reason: one word.
        """
        return self.ledger.flag_booking(booking_id, reason.strip().lower())

    @tool
    def report_amount(self, cents: int) -> str:
        """Report a figure that was asked for.

        Args:
            cents: in whole cents.
        """
        return self.ledger.report_amount(cents)
