"""The office: contacts, mail, events, documents and tickets, and the changes that tools make."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from agentenv.envs.worlds.desk import find_row

Priority = Literal["low", "normal", "high"]
TicketStatus = Literal["open", "closed"]

OPEN_HOUR, CLOSE_HOUR = 9, 17
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Somebody of the company, or a customer (whose team is empty)."""

    email: str
    name: str
    team: str
    role: str
    manager: str
    phone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A mail in the inbox."""

    mail_id: str
    sender: str
    subject: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMail:
    """A mail that was sent."""

    to: str
    subject: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A calendar entry; hours are whole, `end` is the hour in which it is over."""

    title: str
    day: str
    start: int
    end: int
    room: str
    organiser: str
    attendees: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A ticket of the support desk."""

    title: str
    status: str
    priority: str
    assignee: str


@dataclass(kw_only=True)
class Office:
    """All tables, by id; contacts by e-mail address."""

    contacts: dict[str, Contact] = field(default_factory=dict)
    inbox: dict[str, Mail] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    outbox: list[SentMail] = field(default_factory=list)

    def copy(self) -> Office:
        """Return an independent copy; rows are frozen, so tables alone are copied."""
        return Office(
            contacts=dict(self.contacts),
            inbox=self.inbox,  # nothing changes it
            events=dict(self.events),
            documents=dict(self.documents),
            tickets=dict(self.tickets),
            outbox=list(self.outbox),
        )

    def snapshot(self) -> object:
        """Return what errands may change, but for the outbox: the environment knows what mails must say."""
        return self.contacts, Counter(self.events.values()), self.documents, Counter(self.tickets.values())

    def send_mail(self, to: str, subject: str, body: str) -> str:
        """Send a mail."""
        contact = find_row(self.contacts, to.strip().lower(), kind="contact with the e-mail address")
        self.outbox.append(SentMail(to=contact.email, subject=subject.strip(), body=body))
        return f"sent to {contact.email}"

    def update_contact(self, email: str, phone: str) -> Contact:
        """Change a phone number."""
        contact = replace(find_row(self.contacts, email.strip().lower(), kind="contact"), phone=phone.strip())
        self.contacts[contact.email] = contact
        return contact

    def add_event(self, event: Event) -> str:
        """Add an event and return its id."""
        return _add(self.events, "E", event)

    def create_event(self, title: str, day: str, start: int, end: int, attendees: list[str]) -> str:
        """Add an event of this mailbox's owner, without a room."""
        guests = tuple(
            sorted({find_row(self.contacts, who.strip().lower(), kind="contact").email for who in attendees})
        )
        event = Event(title=title.strip(), day=day, start=start, end=end, room="", organiser=ME, attendees=guests)
        return self.add_event(event)

    def cancel_event(self, event_id: str) -> str:
        """Remove an event."""
        find_row(self.events, event_id, kind="event")
        del self.events[event_id]
        return f"{event_id} is cancelled"

    def append_to_document(self, document_id: str, line: str) -> Document:
        """Add a line to a document."""
        document = find_row(self.documents, document_id, kind="document")
        changed = replace(document, text=f"{document.text}\n{line.strip()}")
        self.documents[document_id] = changed
        return changed

    def create_ticket(self, title: str, priority: str, assignee: str) -> str:
        """Open a ticket."""
        owner = find_row(self.contacts, assignee.strip().lower(), kind="contact")
        return _add(
            self.tickets, "T", Ticket(title=title.strip(), status="open", priority=priority, assignee=owner.email)
        )

    def update_ticket(self, ticket_id: str, assignee: str = "", status: str = "", priority: str = "") -> Ticket:
        """Change a ticket; empty texts leave a field as it is."""
        ticket = find_row(self.tickets, ticket_id, kind="ticket")
        if assignee:
            ticket = replace(ticket, assignee=find_row(self.contacts, assignee.strip().lower(), kind="contact").email)
        ticket = replace(ticket, status=status or ticket.status, priority=priority or ticket.priority)
        self.tickets[ticket_id] = ticket
        return ticket

    def is_free(self, email: str, day: str, start: int, end: int) -> bool:
        """True if somebody has no event in these hours."""
        return not any(
            event.day == day
            and email in (event.organiser, *event.attendees)
            and event.start < end
            and start < event.end
            for event in self.events.values()
        )


ME = "me@firm.example"
"""Whose mailbox it is."""


def _add(table: dict[str, object] | dict[str, Event] | dict[str, Ticket], letter: str, row: object) -> str:
    # ids go on counting where the highest stands, so a cancelled one never comes back for another row
    number = 1 + max((int(key[1:]) for key in table), default=100)
    table[f"{letter}{number}"] = row  # type: ignore[assignment]
    return f"{letter}{number}"
