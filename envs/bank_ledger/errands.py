"""The errands of BankLedger; each adds the bookings that it is about, and near misses beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from agentenv.envs.bank_ledger.ledger import Account, Booking, Ledger
from agentenv.envs.worlds.errand import Call, Errand
from agentenv.envs.worlds.people import draw_people
from agentenv.splits import Split

MERCHANTS = ("Alpine Books", "Bay Fuel", "Corner Bakery", "Delta Cinema", "Echo Music", "Fresh Market", "Grand Hotel")
MONTHS = {1: "January", 2: "February", 3: "March", 4: "April", 5: "May", 6: "June"}
KINDS = ("checking", "savings", "card")


class BankBuilder:
    """Fills a ledger and makes errands in it.

    Args:
        rnd: source of all chance.
        split: whose names are used.
        num_owners: customers, with two or three accounts each.
        num_noise: bookings per account that are about nothing.
    """

    def __init__(self, rnd: random.Random, *, split: Split, num_owners: int, num_noise: int) -> None:
        self.rnd = rnd
        self.ledger = Ledger(today="2025-07-01")
        self.owners = [person.name for person in draw_people(rnd, split=split, count=num_owners)]
        for owner in self.owners:
            for kind in KINDS:
                self._account(owner, kind)
        for account in list(self.ledger.accounts.values()):
            for _ in range(num_noise):
                self._booking(account, -rnd.randrange(500, 30000), self._merchant(), month=rnd.choice(list(MONTHS)))
        self._pool = rnd.sample(self.owners, len(self.owners))

    @property
    def makers(self) -> list[Callable[[], Errand]]:
        """Makers of errands; the first three need few calls."""
        return [
            self.reverse_duplicate,
            self.report_spending,
            self.pay_rent,
            self.flag_large,
            self.cover_overdraft,
            self.correct_recipient,
            self.share_out,
        ]

    def reverse_duplicate(self) -> Errand:
        """Reverse the second of two equal bookings; equal amounts on other days are no duplicates."""
        owner, merchant, month = self._pool.pop(), self._merchant(), self._month()
        account, amount = self._of(owner, "checking"), -self.rnd.randrange(31000, 60000)
        day = self.rnd.randrange(2, 20)
        first = self._booking(account, amount, merchant, month=month, day=day)
        second = self._booking(account, amount, merchant, month=month, day=day)
        self._booking(account, amount, merchant, month=month, day=day + 5)
        self._booking(account, amount - 100, merchant, month=month, day=day)
        later = max(first.booking_id, second.booking_id)
        return Errand(
            text=(
                f"In {MONTHS[month]} {merchant} charged {owner} the same amount twice on one day, on the checking "
                f"account. "
                "Reverse the one of the two bookings with the higher id."
            ),
            reads=self._looks(owner, [account], month),
            writes=(("reverse_booking", {"booking_id": later}),),
        )

    def report_spending(self) -> Errand:
        """Add up what somebody paid to a merchant in a month over all accounts, without what was reversed."""
        owner, merchant, month = self._pool.pop(), self._merchant(), self._month()
        accounts = self.ledger.of_owner(owner)
        for account in accounts:
            self._booking(account, -self.rnd.randrange(500, 9000), merchant, month=month)
        undone = self._booking(accounts[0], -self.rnd.randrange(500, 9000), merchant, month=month)
        self.ledger.bookings[undone.booking_id] = replace(undone, is_reversed=True)
        prefix = f"2025-{month:02d}"
        paid = [b for b in self.ledger.on(accounts) if b.counterparty == merchant and b.day.startswith(prefix)]
        cents = -sum(booking.amount for booking in paid if not booking.is_reversed)
        return Errand(
            text=(
                f"Report how many cents {owner} paid to {merchant} in {MONTHS[month]}, over all accounts; bookings "
                f"that "
                "were reversed do not count."
            ),
            reads=self._looks(owner, accounts, month),
            writes=(("report_amount", {"cents": cents}),),
        )

    def pay_rent(self) -> Errand:
        """Move a stated amount between two customers."""
        payer, landlord = self._pool.pop(), self._pool.pop()
        cents = self.rnd.randrange(300, 900) * 100
        source, target = self._of(payer, "checking"), self._of(landlord, "checking")
        source = self._set_balance(source, cents + self.rnd.randrange(1000, 90000))
        arguments = {"from_account": source.account_id, "to_account": target.account_id, "cents": cents, "memo": "rent"}
        return Errand(
            text=(
                f"Transfer the rent of {cents // 100} euros from {payer}'s checking account to {landlord}'s "
                f"checking account."
            ),
            reads=(("list_accounts", {"owner": payer}), ("list_accounts", {"owner": landlord})),
            writes=(("transfer", arguments),),
        )

    def flag_large(self) -> Errand:
        """Flag every booking above an amount; one at the amount exactly is not above it."""
        owner, month = self._pool.pop(), self._month()
        accounts, limit = self.ledger.of_owner(owner), self.rnd.randrange(500, 800) * 100
        for account in accounts:
            self._booking(account, -limit - self.rnd.randrange(1, 20000), self._merchant(), month=month)
        self._booking(accounts[0], -limit, self._merchant(), month=month)
        self._booking(accounts[1], -limit - 5000, self._merchant(), month=month % 6 + 1)
        prefix = f"2025-{month:02d}"
        hit = [b for b in self.ledger.on(accounts) if b.amount < -limit and b.day.startswith(prefix)]
        return Errand(
            text=(
                f'Flag with the reason "limit" every payment of {owner} in {MONTHS[month]} of more than '
                f"{limit // 100} euros, "
                "on all accounts."
            ),
            reads=self._looks(owner, accounts, month),
            writes=tuple(("flag_booking", {"booking_id": b.booking_id, "reason": "limit"}) for b in hit),
        )

    def cover_overdraft(self) -> Errand:
        """Bring what is below zero to zero, out of the savings."""
        owner = self._pool.pop()
        checking = self._set_balance(self._of(owner, "checking"), -self.rnd.randrange(1000, 40000))
        card = self._set_balance(self._of(owner, "card"), self.rnd.choice([-1, 1]) * self.rnd.randrange(1000, 40000))
        savings = self._set_balance(self._of(owner, "savings"), self.rnd.randrange(100_000, 400_000))
        calls: list[Call] = [
            ("transfer", {"from_account": savings.account_id, "to_account": a.account_id, "cents": -a.balance})
            for a in (checking, card)
            if a.balance < 0
        ]
        return Errand(
            text=f"Bring every account of {owner} that is below zero to exactly zero, from the savings account.",
            reads=(("list_accounts", {"owner": owner}),),
            writes=tuple(calls),
        )

    def correct_recipient(self) -> Errand:
        """Undo a transfer that went to the wrong person on both sides, and send it to the right one."""
        payer, wrong, right = self._pool.pop(), self._pool.pop(), self._pool.pop()
        month, cents = self._month(), self.rnd.randrange(31000, 60000)
        source, mistaken, target = (self._of(name, "checking") for name in (payer, wrong, right))
        source = self._set_balance(source, cents + 5000)
        out = self._booking(source, -cents, wrong, month=month)
        into = self._booking(mistaken, cents, payer, month=month)
        arguments = {"from_account": source.account_id, "to_account": target.account_id, "cents": cents}
        return Errand(
            text=(
                f"In {MONTHS[month]} {payer} sent {cents // 100}.{cents % 100:02d} euros to {wrong} by mistake "
                f"(checking "
                f"accounts). Reverse both bookings of it, then transfer the amount to {right}'s checking account."
            ),
            reads=(
                *self._looks(payer, [source], month),
                *self._looks(wrong, [mistaken], month),
                ("list_accounts", {"owner": right}),
            ),
            writes=(
                ("reverse_booking", {"booking_id": out.booking_id}),
                ("reverse_booking", {"booking_id": into.booking_id}),
                ("transfer", arguments),
            ),
        )

    def share_out(self) -> Errand:
        """Divide the savings of one among three, in whole cents, the rest stays."""
        owner = self._pool.pop()
        heirs = [self._pool.pop() for _ in range(2)]
        savings = self._set_balance(self._of(owner, "savings"), self.rnd.randrange(30000, 90000))
        targets = [self._of(name, "checking") for name in heirs]
        part = savings.balance // 3
        return Errand(
            text=(
                f"Transfer one third each, rounded down to whole cents, of what {owner}'s savings account holds now "
                f"to the "
                f"checking accounts of {heirs[0]} and {heirs[1]}."
            ),
            reads=tuple(("list_accounts", {"owner": name}) for name in (owner, *heirs)),
            writes=tuple(
                ("transfer", {"from_account": savings.account_id, "to_account": t.account_id, "cents": part})
                for t in targets
            ),
        )

    def _looks(self, owner: str, accounts: Sequence[Account], month: int) -> tuple[Call, ...]:
        lists = (("list_bookings", {"account_id": a.account_id, "month": month}) for a in accounts)
        return (("list_accounts", {"owner": owner}), *lists)

    def _of(self, owner: str, kind: str) -> Account:
        return next(account for account in self.ledger.of_owner(owner) if account.kind == kind)

    def _set_balance(self, account: Account, cents: int) -> Account:
        changed = replace(account, balance=cents)
        self.ledger.accounts[account.account_id] = changed
        return changed

    def _account(self, owner: str, kind: str) -> None:
        key = self._fresh("A", self.ledger.accounts)
        balance, limit = self.rnd.randrange(1000, 900_000), 50_000 if kind != "savings" else 0
        self.ledger.accounts[key] = Account(account_id=key, owner=owner, kind=kind, balance=balance, limit=limit)

    def _booking(self, account: Account, amount: int, counterparty: str, *, month: int, day: int = 0) -> Booking:
        key = self._fresh("B", self.ledger.bookings)
        made = Booking(
            booking_id=key,
            account_id=account.account_id,
            day=f"2025-{month:02d}-{day or self.rnd.randrange(1, 29):02d}",
            amount=amount,
            counterparty=counterparty,
            text="card payment" if amount < 0 else "credit",
        )
        self.ledger.bookings[key] = made
        return made

    def _fresh(self, letter: str, table: dict[str, Account] | dict[str, Booking]) -> str:
        while True:
            key = f"{letter}{self.rnd.randrange(10000, 90000)}"
            if key not in table:
                return key

    def _merchant(self) -> str:
        return self.rnd.choice(MERCHANTS)

    def _month(self) -> int:
        return self.rnd.choice(list(MONTHS))
