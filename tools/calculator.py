"""The `calculate` tool: exact arithmetic by a parser of its own, bounded in time and size, without `eval`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from agentenv.errors import ToolError
from agentenv.tool import tool

MAX_CHARS = 500
"""Longest expression."""
MAX_DEPTH = 50
"""Deepest nesting of parentheses, signs and powers."""
MAX_BITS = 3000
"""Largest numerator or denominator, about 900 digits."""
SIGNIFICANT_DIGITS = 15
"""Digits of a result that is not a whole number; whole numbers are always written in full."""


@tool(read_only=True, inline=True)
def calculate(expression: str) -> str:
    """Calculate an arithmetic expression.

    Args:
        expression: numbers with + - * / // % ** and parentheses, e.g. "12/60*50" or "80*(1-25%)".
    """
    return format_number(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """Return the exact value of an expression.

    Precedence and rounding are Python's (`-2**2` is -4, `**` binds to the right, `//` and `%` round down), but
    decimals are exact: `0.1+0.2` is 3/10. A `%` that is followed by a number or a parenthesis is the remainder,
    any other one means hundredths. `^`, `×`, `·`, `÷` and `−` are read as `**`, `*`, `*`, `/` and `-`; thousands may
    be set off by commas. Only a power with a fractional exponent is rounded, to double precision.

    Raises:
        ToolError: what is wrong, and where, in words for the model.
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(f"the expression has {len(expression)} characters; at most {MAX_CHARS} are allowed")
    parser = _Parser(_tokens(expression))
    value = parser.sum()
    if parser.token.kind != "end":
        raise _unexpected(parser.token)
    return value


def format_number(value: Fraction) -> str:
    """Write a number: whole numbers in full, others with up to 15 significant digits and no trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    context = Context(prec=SIGNIFICANT_DIGITS)
    rounded = context.divide(Decimal(value.numerator), Decimal(value.denominator)).normalize(context)
    if -7 <= rounded.adjusted() < SIGNIFICANT_DIGITS:
        return f"{rounded:f}"
    return f"{rounded:e}".replace("e+", "e")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "number", "end", or the operator itself
    text: str
    position: int  # of its first character, counted from 1


_LEXER = re.compile(
    r"(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
    r"|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<operator>\*\*|//|[-+*/%^()×·÷−])"
    r"|(?P<space>\s+)"
)
_SPELLINGS = {"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-"}


def _tokens(expression: str) -> list[_Token]:
    tokens: list[_Token] = []
    start = 0
    while start < len(expression):
        match = _LEXER.match(expression, start)
        if match is None:
            allowed = "only numbers, + - * / // % ** and parentheses are allowed"
            raise ToolError(f"unexpected {_shown(expression[start])} at position {start + 1}; {allowed}")
        text = match.group()
        if match.lastgroup == "number":
            tokens.append(_Token("number", text, start + 1))
        elif match.lastgroup == "operator":
            tokens.append(_Token(_SPELLINGS.get(text, text), text, start + 1))
        start = match.end()
    return [*tokens, _Token("end", "", len(expression) + 1)]


class _Parser:
    """Recursive descent, one method per level of precedence; `token` is the next one that nothing has read yet."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._depth = 0

    @property
    def token(self) -> _Token:
        return self._tokens[self._index]

    def _take(self) -> _Token:
        token = self.token
        self._index += 1
        return token

    def sum(self) -> Fraction:
        value = self._product()
        while self.token.kind in ("+", "-"):
            operator = self._take().kind
            right = self._product()
            value = _bounded(value + right if operator == "+" else value - right)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self.token.kind in ("*", "/", "//", "%"):
            operator = self._take()
            value = _apply(operator, value, self._signed())
        return value

    def _signed(self) -> Fraction:
        if self.token.kind not in ("+", "-"):
            return self._power()
        operator = self._take()
        self._descend(operator)
        value = self._signed()
        self._depth -= 1
        return -value if operator.kind == "-" else value

    def _power(self) -> Fraction:
        base = self._percent()
        if self.token.kind != "**":
            return base
        operator = self._take()
        self._descend(operator)
        exponent = self._signed()
        self._depth -= 1
        return _power(base, exponent)

    def _percent(self) -> Fraction:
        value = self._atom()
        while self.token.kind == "%" and self._tokens[self._index + 1].kind not in ("number", "("):
            self._take()
            value = _bounded(value / 100)
        return value

    def _atom(self) -> Fraction:
        token = self._take() if self.token.kind != "end" else self.token
        if token.kind == "number":
            return _number(token)
        if token.kind != "(":
            raise _unexpected(token)
        self._descend(token)
        value = self.sum()
        if self.token.kind != ")":
            if self.token.kind == "end":
                raise ToolError(f"the parenthesis at position {token.position} is not closed")
            raise _unexpected(self.token)
        self._take()
        self._depth -= 1
        return value

    def _descend(self, token: _Token) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolError(f"nested more than {MAX_DEPTH} deep at position {token.position}")


def _number(token: _Token) -> Fraction:
    mantissa, _, exponent = token.text.replace(",", "").lower().partition("e")
    if len(exponent) > 4 or abs(int(exponent or 0)) > MAX_BITS:  # length first: int() of a long text is slow
        raise _too_large()
    return _bounded(Fraction(mantissa) * Fraction(10) ** int(exponent or 0))


def _apply(operator: _Token, left: Fraction, right: Fraction) -> Fraction:
    if operator.kind == "*":
        return _bounded(left * right)
    if right == 0:
        raise ToolError(f"division by zero at position {operator.position}")
    if operator.kind == "/":
        return _bounded(left / right)
    return _bounded(Fraction(left // right) if operator.kind == "//" else left % right)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0 and exponent < 0:
        raise ToolError("division by zero: zero to a negative power")
    if exponent.denominator != 1:
        return _root(base, exponent)
    if base in (-1, 0, 1):  # any exponent will do: only its parity, or whether it is zero, counts
        return base ** (exponent.numerator % 2 if base else min(exponent.numerator, 1))
    size = max(abs(base.numerator).bit_length(), base.denominator.bit_length()) - 1
    if abs(exponent.numerator) * size > MAX_BITS:  # refused before it is computed
        raise _too_large()
    return _bounded(base**exponent.numerator)


def _root(base: Fraction, exponent: Fraction) -> Fraction:
    if base < 0:
        raise ToolError("a negative number has no real fractional power")
    try:
        value = float(base) ** float(exponent)
    except (OverflowError, ZeroDivisionError):  # the base may be too small for a float, too
        raise _too_large() from None
    return _bounded(Fraction(repr(value)))


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise _too_large()
    return value


def _too_large() -> ToolError:
    return ToolError("a number has too many digits")


def _unexpected(token: _Token) -> ToolError:
    if token.kind == "end":
        return ToolError("the expression ends where a number is expected")
    hint = "; write * to multiply" if token.kind in ("number", "(") else ""
    return ToolError(f"unexpected {_shown(token.text)} at position {token.position}{hint}")


def _shown(text: str) -> str:
    return f'"{text[:20]}"' if text.isprintable() else f"character U+{ord(text[0]):04X}"
