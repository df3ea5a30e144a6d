"""BankLedger: money moves to the cent, reversals undo, and near misses are not touched."""

import pytest

from agentenv import tool_turn
from agentenv.envs.bank_ledger.env import BankLedger
from agentenv.envs.bank_ledger.errands import BankBuilder
from agentenv.envs.bank_ledger.ledger import Account, Booking, Ledger
from agentenv.errors import ToolError

KINDS = [
    "reverse_duplicate",
    "report_spending",
    "pay_rent",
    "flag_large",
    "cover_overdraft",
    "correct_recipient",
    "share_out",
]


class OneKind(BankLedger):
    """BankLedger with one errand of a given kind. Reward: 1.0 as there."""

    kind = ""

    def draw_world(self, rnd):
        builder = BankBuilder(rnd, split=self.split, num_owners=6, num_noise=3)
        return builder.ledger, (getattr(builder, self.kind)(),)


def started(kind, seed=0):
    env = OneKind()
    env.kind = kind
    env.reset(seed=seed)
    return env


def do(env, calls):
    for name, arguments in calls:
        assert not env.step(tool_turn(name, arguments).to_dict())[0].startswith("Error")


def small():
    ledger = Ledger(today="2025-07-01")
    ledger.accounts = {
        "A1": Account(account_id="A1", owner="Ada", kind="checking", balance=1000, limit=500),
        "A2": Account(account_id="A2", owner="Ben", kind="checking", balance=0),
    }
    ledger.bookings = {
        "B1": Booking(
            booking_id="B1", account_id="A1", day="2025-03-01", amount=-200, counterparty="Shop", text="card payment"
        )
    }
    return ledger


def test_a_transfer_moves_cents_and_books_both_sides():
    ledger = small()
    ledger.transfer("A1", "A2", 1500, "rent")
    assert [ledger.accounts[key].balance for key in ("A1", "A2")] == [-500, 1500]
    assert [(b.account_id, b.amount) for b in ledger.bookings.values()] == [("A1", -200), ("A1", -1500), ("A2", 1500)]


@pytest.mark.parametrize(
    ("source", "target", "cents", "told"),
    [
        ("A1", "A2", 1501, "may not go below -500"),
        ("A1", "A2", 0, "not a transfer"),
        ("A1", "A2", -5, "not a transfer"),
        ("A1", "A1", 5, "not a transfer"),
        ("A1", "A9", 5, "no account"),
    ],
)
def test_a_transfer_that_cannot_be_is_refused_and_moves_nothing(source, target, cents, told):
    ledger = small()
    before = ledger.snapshot()
    with pytest.raises(ToolError, match=told):
        ledger.transfer(source, target, cents)
    assert ledger.snapshot() == before


def test_a_reversal_gives_the_money_back_once():
    ledger = small()
    ledger.reverse_booking("B1")
    assert ledger.accounts["A1"].balance == 1200
    with pytest.raises(ToolError, match="reversed already"):
        ledger.reverse_booking("B1")


def test_memos_and_ids_of_transfers_do_not_count_but_amounts_do():
    one, two, three = small(), small(), small()
    one.transfer("A1", "A2", 10, "rent")
    two.transfer("A1", "A2", 10, "whatever")
    three.transfer("A1", "A2", 11, "rent")
    assert one.snapshot() == two.snapshot() != three.snapshot()


@pytest.mark.parametrize("kind", KINDS)
def test_the_writes_alone_solve_an_errand_and_leaving_one_out_does_not(kind):
    env = started(kind)
    do(env, env.all_writes)
    assert env.step("Done.")[1:3] == (1.0, True)

    env = started(kind)
    do(env, env.all_writes[:-1])
    assert env.step("Done.")[1:3] == (0.0, True)


@pytest.mark.parametrize("kind", KINDS)
def test_something_touched_besides_costs_everything(kind):
    env = started(kind)
    do(env, env.all_writes)
    touched = {arguments.get("booking_id") for _, arguments in env.all_writes}
    other = next(key for key in env.ledger.bookings if key not in touched)
    do(env, [("flag_booking", {"booking_id": other, "reason": "limit"})])
    assert env.step("Done.")[1] == 0.0


def test_the_near_misses_of_a_duplicate_stay():
    for seed in range(20):
        env = started("reverse_duplicate", seed)
        ((_, arguments),) = env.all_writes
        wrong = env.ledger.bookings[arguments["booking_id"]]
        same = [
            b
            for b in env.ledger.bookings.values()
            if (b.account_id, b.counterparty, b.amount) == (wrong.account_id, wrong.counterparty, wrong.amount)
        ]
        assert len(same) == 3  # two on one day, one five days later
        assert sorted(b.booking_id for b in same if b.day == wrong.day)[1] == wrong.booking_id


def test_a_payment_of_exactly_the_limit_is_not_above_it():
    env = started("flag_large")
    limit = 100 * int(env.errands[0].text.partition("more than ")[2].split()[0])
    amounts = [-env.ledger.bookings[arguments["booking_id"]].amount for _, arguments in env.all_writes]
    assert min(amounts) > limit
    assert limit in [-booking.amount for booking in env.ledger.bookings.values()]


def test_a_third_is_rounded_down():
    env = started("share_out")
    (_, first), (_, second) = env.all_writes
    balance = env.ledger.accounts[first["from_account"]].balance
    assert first["cents"] == second["cents"] == balance // 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("list_accounts", {"owner": "Nobody"}),
        ("list_bookings", {"account_id": "A0", "month": 1}),
        ("list_bookings", {"account_id": "A0", "month": 13}),
        ("transfer", {"from_account": "A0", "to_account": "A1", "cents": 5}),
        ("transfer", {"from_account": "A0", "to_account": "A1", "cents": 5.5}),
        ("reverse_booking", {"booking_id": "*"}),
    ],
)
def test_a_bad_call_is_refused(name, arguments):
    env = started("pay_rent")
    before = env.ledger.snapshot()
    assert env.step(tool_turn(name, arguments).to_dict())[0].startswith("Error: ")
    assert env.ledger.snapshot() == before
