"""Workplace: a mailbox, calendars, documents, contacts and tickets, and errands that go through several of them."""

from __future__ import annotations

import random
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import pydantic

from agentenv.envs.workplace.errands import OfficeBuilder
from agentenv.envs.workplace.office import (
    CLOSE_HOUR,
    ME,
    OPEN_HOUR,
    Contact,
    Day,
    Document,
    Mail,
    Office,
    Priority,
    SentMail,
    Ticket,
    TicketStatus,
)
from agentenv.envs.worlds.desk import find_row
from agentenv.envs.worlds.errand import Call, Errand, ErrandEnv, draw_errands
from agentenv.envs.worlds.telling import was_told
from agentenv.errors import ToolError
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tool import tool

Hour = Annotated[int, pydantic.Field(ge=OPEN_HOUR, le=CLOSE_HOUR)]
_MIN_CHARS = 2
_MAX_NUMBERS = 2  # in a mail that states one figure


class Workplace(ErrandEnv):
    """Do errands in an office with twelve tools: mail, calendars, documents, contacts and tickets.

    Reward: 1.0 if in the end every contact, event, document and ticket is as it must be, and exactly the mails that
    were asked for were sent, each stating what it must, else 0.0. Anything else that was changed or sent costs
    everything.

    Args:
        difficulty: 1: one errand of three short kinds. 2: one of eight kinds. 3 and 4: two. 5: three. The office grows
            with it.
        **options: of `ToolEnv`.
    """

    preamble: ClassVar[str] = (
        f"You are the assistant of {ME}. Use the tools; touch nothing that is not asked for. Then say so."
    )

    def draw_world(self, rnd: random.Random) -> tuple[Office, tuple[Errand, ...]]:
        """Draw the office and the errands."""
        builder = OfficeBuilder(rnd, split=self.split, size=2 + self.difficulty)
        errands = draw_errands(builder.makers, easy=3, rnd=rnd, difficulty=self.difficulty)
        return builder.office, errands

    @property
    def office(self) -> Office:
        """The world."""
        return cast(Office, self.world)

    @reward(low=0.0, high=1.0)
    def done(self) -> float:
        """1.0 if the office is as it must be and the right mails were sent."""
        expected = [SentMail(**cast(Any, arguments)) for name, arguments in self.all_writes if name == "send_mail"]
        is_same = self.goal is not None and self.office.snapshot() == self.goal
        return float(is_same and _are_sent(expected, self.office.outbox))

    def cheat(self, rng: np.random.Generator) -> Message:
        """Mail people every text at hand, and hand over every ticket, in the hope that it covers the task."""
        texts = " ".join(document.text for document in self.office.documents.values())
        people = list(self.office.contacts)
        calls: list[Call] = [
            ("send_mail", {"to": who, "subject": f"Re: {mail.subject}", "body": f"{texts} {mail.body}"})
            for who in people[:6]
            for mail in self.office.inbox.values()
        ]
        calls += [("update_ticket", {"ticket_id": key, "assignee": people[0]}) for key in self.office.tickets]
        return self.volley(calls[:64])

    @tool(read_only=True)
    def list_mails(self) -> list[dict[str, str]]:
        """List the inbox: id, sender and subject of every mail."""
        return [
            {"mail_id": m.mail_id, "sender": m.sender, "subject": m.subject}
            for _, m in sorted(self.office.inbox.items())
        ]

    @tool(read_only=True)
    def read_mail(self, mail_id: str) -> Mail:
        """Read a mail.

        Args:
            mail_id: M and three digits.
        """
        return find_row(self.office.inbox, mail_id, kind="mail")

    @tool
    def send_mail(self, to: str, subject: str, body: str) -> str:
        """Send a mail.

        Args:
            to: e-mail address of one contact.
            subject: its subject.
            body: its text.
        """
        return self.office.send_mail(to, subject, body)

    @tool(read_only=True)
    def find_contacts(self, text: str) -> list[Contact]:
        """Find contacts whose name, team, role or e-mail address holds a text.

        Args:
            text: at least two characters.
        """
        wanted = _search_text(text)
        fields = ((c, f"{c.name} {c.team} {c.role} {c.email}".lower()) for c in self.office.contacts.values())
        return [contact for contact, held in fields if wanted in held]

    @tool
    def update_contact(self, email: str, phone: str) -> Contact:
        """Change the phone number of a contact.

        Args:
            email: of the contact.
            phone: the new number, digits only.
        """
        return self.office.update_contact(email, phone)

    @tool(read_only=True)
    def list_events(self, day: Day, email: str = "", room: str = "") -> list[dict[str, object]]:
        """List the events of a day, of one person or of one room.

        Args:
            day: of this week.
            email: of the person; empty for all.
            room: name of the room; empty for all.
        """
        return [
            {
                "event_id": key,
                "title": e.title,
                "start": e.start,
                "end": e.end,
                "room": e.room,
                "organiser": e.organiser,
            }
            for key, e in self.office.events.items()
            if e.day == day and email in ("", e.organiser, *e.attendees) and room in ("", e.room)
        ]

    @tool
    def create_event(self, title: str, day: Day, start: Hour, end: Hour, attendees: list[str]) -> str:
        """Create an event in the calendar of your principal.

        Args:
            title: its title.
            day: of this week.
            start: full hour.
            end: full hour.
            attendees: e-mail addresses of the others.
        """
        if start >= end:
            raise ToolError(f"an event from {start} to {end} has no length")
        return self.office.create_event(title, day, start, end, attendees)

    @tool
    def cancel_event(self, event_id: str) -> str:
        """Cancel an event.

        Args:
            event_id: E and three digits.
        """
        return self.office.cancel_event(event_id)

    @tool(read_only=True)
    def search_documents(self, text: str) -> list[dict[str, str]]:
        """Find documents whose title or text holds a text: id and title.

        Args:
            text: at least two characters.
        """
        wanted = _search_text(text)
        rows = sorted(self.office.documents.items())
        found = [(key, d) for key, d in rows if wanted in d.title.lower() or wanted in d.text.lower()]
        return [{"document_id": key, "title": document.title} for key, document in found]

    @tool(read_only=True)
    def read_document(self, document_id: str) -> Document:
        """Read a document.

        Args:
            document_id: D and three digits.
        """
        return find_row(self.office.documents, document_id, kind="document")

    @tool
    def append_to_document(self, document_id: str, line: str) -> Document:
        """Add one line at the end of a document.

        Args:
            document_id: D and three digits.
            line: the line.
        """
        return self.office.append_to_document(document_id, line)

    @tool(read_only=True)
    def list_tickets(self, assignee: str) -> list[dict[str, str]]:
        """List the tickets of somebody.

        Args:
            assignee: e-mail address.
        """
        return [
            {"ticket_id": key, "title": t.title, "status": t.status, "priority": t.priority}
            for key, t in sorted(self.office.tickets.items())
            if t.assignee == assignee.strip().lower()
        ]

    @tool
    def create_ticket(self, title: str, priority: Priority, assignee: str) -> str:
        """Open a ticket.

        Args:
            title: its title.
            priority: how urgent it is.
            assignee: e-mail address of the owner.
        """
        return self.office.create_ticket(title, priority, assignee)

    @tool
    def update_ticket(
        self, ticket_id: str, assignee: str = "", status: TicketStatus | None = None, priority: Priority | None = None
    ) -> Ticket:
        """Change a ticket; what is not given stays.

        Args:
            ticket_id: T and three digits.
            assignee: e-mail address of the new owner.
            status: new status.
            priority: new priority.
        """
        return self.office.update_ticket(ticket_id, assignee, status or "", priority or "")


def _are_sent(expected: list[SentMail], sent: list[SentMail]) -> bool:
    """True if every expected mail has its own sent one that states the same figures and titles, and none is left."""
    left = list(sent)
    for mail in expected:
        found = next((other for other in left if _says_as_much(other, mail)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _says_as_much(sent: SentMail, expected: SentMail) -> bool:
    if (sent.to, sent.subject) != (expected.to, expected.subject):
        return False
    return all(was_told(part, [sent.body], max_numbers=_MAX_NUMBERS) for part in _facts_of(expected.body))


def _facts_of(body: str) -> list[str]:
    """Return what a mail must state: quoted titles, else its numbers."""
    quoted = body.split('"')[1::2]
    return quoted or [word for word in body.rstrip(".").split() if word.isdigit()]


def _search_text(text: str) -> str:
    wanted = text.strip().lower()
    if len(wanted) < _MIN_CHARS:
        raise ToolError(f"search for at least {_MIN_CHARS} characters, not {text[:10]!r}")
    return wanted
