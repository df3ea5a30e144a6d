"""The ids of the environments that ship with the package, by family and import string."""

from __future__ import annotations

from collections.abc import Mapping

from agentenv.registry import load_plugins, register

# (name, import string below agentenv.envs, one line); a family's order is from easy to hard
_FAMILIES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "arithmetic and logic": (
        ("Arithmetic-v0", "arithmetic.env:Arithmetic", "Work out an expression of whole numbers."),
        ("LetterCount-v0", "letter_count.env:LetterCount", "Count letters in a line of words."),
        ("SortWords-v0", "sort_words.env:SortWords", "Bring words into order."),
        ("Sequence-v0", "sequence.env:Sequence", "Continue a sequence of numbers."),
        ("BaseConversion-v0", "base_conversion.env:BaseConversion", "Write a number in another base."),
        ("LinearEquation-v0", "linear_equation.env:LinearEquation", "Solve linear equations."),
        ("DateMath-v0", "date_math.env:DateMath", "Tell the date some days away."),
        ("Countdown-v0", "countdown.env:Countdown", "Reach a number with the given ones."),
        ("BooleanSat-v0", "boolean_sat.env:BooleanSat", "Find the values that satisfy all clauses."),
    ),
    "instruction following": (
        ("JsonExtract-v0", "json_extract.env:JsonExtract", "Write the facts of a text as JSON."),
        ("InstructFollow-v0", "instruct_follow.env:InstructFollow", "Write a text that keeps several rules."),
        ("RegexGolf-v0", "regex_golf.env:RegexGolf", "Part two lists of words by a short pattern."),
    ),
    "tools": (
        ("ToolSelect-v0", "tool_select.env:ToolSelect", "Call the one right tool among fifty or more."),
        ("UnicodeLookup-v0", "unicode_lookup.env:UnicodeLookup", "Follow characters through the Unicode database."),
        ("Calculator-v0", "calculator.env:Calculator", "Solve word problems with a calculator."),
        ("GSM8K-v0", "gsm8k.env:GSM8K", "Grade-school maths with a calculator tool."),
        ("DataTable-v0", "data_table.env:DataTable", "Answer questions about a table by filters and aggregates."),
        ("WikiHop-v0", "wiki_hop.env:WikiHop", "Follow a question over articles of an invented world."),
        ("PythonMath-v0", "python_math.env:PythonMath", "Solve number problems with a Python interpreter."),
        ("VirtualShell-v0", "virtual_shell.env:VirtualShell", "Do jobs on files with shell commands."),
        ("SqlQuery-v0", "sql_query.env:SqlQuery", "Answer a question with a SQL query."),
        ("StdlibCodeQA-v0", "stdlib_code_qa.env:StdlibCodeQA", "Answer questions about the standard library's code."),
        ("ApiExplorer-v0", "api_explorer.env:ApiExplorer", "Do a job through a web API without documentation."),
        ("BugFix-v0", "bug_fix.env:BugFix", "Find and mend the bugs in a function, for hidden tests."),
        ("CodeWrite-v0", "code_write.env:CodeWrite", "Write a function from its description, for hidden tests."),
        ("HumanEval-v0", "humaneval.env:HumanEval", "Complete the 164 functions of HumanEval, for hidden tests."),
    ),
    "work": (
        (
            "LogTriage-v0",
            "log_triage.env:LogTriage",
            "Find the service, the cause and the minute of an incident in logs.",
        ),
        ("NetRepair-v0", "net_repair.env:NetRepair", "Find and mend what is wrong in a small simulated network."),
        ("BankLedger-v0", "bank_ledger.env:BankLedger", "Reverse, report, flag and move money to the cent in a bank."),
        (
            "Scheduler-v0",
            "scheduler.env:Scheduler",
            "Book and move meetings at the first time that suits people and rooms.",
        ),
        ("Workplace-v0", "workplace.env:Workplace", "Errands over mail, calendars, documents, contacts and tickets."),
        (
            "RetailService-v0",
            "retail_service.env:RetailService",
            "Serve a customer of a shop within policy, by tools over its database.",
        ),
        (
            "TravelBooking-v0",
            "travel_booking.env:TravelBooking",
            "Book, change and cancel flights for a traveller within fare rules.",
        ),
    ),
    "games": (
        ("GuessNumber-v0", "guess_number.env:GuessNumber", "Find a number within a few guesses."),
        ("Wordle-v0", "wordle.env:Wordle", "Find a five-letter word from coloured hints."),
    ),
    "self-play": (
        ("Nim-v0", "nim.env:Nim", "Take the last stone from three heaps."),
        ("TicTacToe-v0", "tic_tac_toe.env:TicTacToe", "Three in a row against an opponent who makes mistakes."),
        ("ConnectFour-v0", "connect_four.env:ConnectFour", "Four in a row with discs that fall."),
        ("Kuhn-v0", "kuhn.env:Kuhn", "Three-card poker, without the luck of the deal."),
        ("Negotiation-v0", "negotiation.env:Negotiation", "Share items that are worth different things to two sides."),
    ),
    "interaction": (
        ("Clarify-v0", "clarify.env:Clarify", "Fill in an order form after asking for what the customer left out."),
        (
            "Preference-v0",
            "preference.env:Preference",
            "Find out what somebody likes by asking, then recommend the best item.",
        ),
        ("Tutor-v0", "tutor.env:Tutor", "Find and cure the misconceptions of a simulated learner."),
    ),
    "memory": (
        ("LongNeedle-v0", "long_needle.env:LongNeedle", "Follow a trail through a long text."),
        ("KeyValueStream-v0", "key_value_stream.env:KeyValueStream", "Remember values that keep changing."),
    ),
    "vision": (
        ("CountShapes-v0", "count_shapes.env:CountShapes", "Count shapes in a picture."),
        ("ChartRead-v0", "chart_read.env:ChartRead", "Read values off a bar chart."),
    ),
    "safety": (
        ("InjectionResist-v0", "injection_resist.env:InjectionResist", "Do an errand, not what documents say."),
        ("PolicyGuard-v0", "policy_guard.env:PolicyGuard", "Lend what a policy permits, refuse what it forbids."),
    ),
}

# environments of other packages, under one id each; an option says which
_ADAPTERS: tuple[tuple[str, str, str], ...] = (
    ("Gymnasium-v0", "gymnasium:Gymnasium", "Any Gymnasium environment with Discrete actions, in words."),
    ("ReasoningGym-v0", "reasoning_gym:ReasoningGym", "The generators of reasoning-gym."),
    ("TextArena-v0", "textarena:TextArena", "Games of textarena, alone or against a scripted opponent."),
    ("PettingZoo-v0", "pettingzoo:PettingZoo", "Turn games of PettingZoo against scripted opponents."),
    ("Verifiers-v0", "verifiers:Verifiers", "Environments written for verifiers."),
    ("OpenEnv-v0", "openenv:OpenEnv", "Environments behind an OpenEnv server."),
)


def families() -> dict[str, tuple[str, ...]]:
    """Return the ids of the shipped environments by family, from easy to hard."""
    return {name: tuple(f"agentenv/{row[0]}" for row in rows) for name, rows in _FAMILIES.items()}


def register_all() -> None:
    """Register the shipped environments and those of installed plugins; safe to call again."""
    for family, rows in _FAMILIES.items():
        for name, entry_point, description in rows:
            register(f"agentenv/{name}", f"agentenv.envs.{entry_point}", description=description, family=family)
    for name, entry_point, description in _ADAPTERS:
        register(
            f"adapter/{name}",
            f"agentenv.envs.adapters.{entry_point}",
            description=description,
            family="adapters",
            nondeterministic=name == "OpenEnv-v0",  # a live service
        )
    load_plugins()
