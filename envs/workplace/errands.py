"""The errands of Workplace; each adds to the office what it is about, distractors included."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from agentenv.envs.workplace.office import (
    CLOSE_HOUR,
    DAYS,
    ME,
    OPEN_HOUR,
    Contact,
    Document,
    Event,
    Mail,
    Office,
    Ticket,
)
from agentenv.envs.worlds.errand import Call, Errand
from agentenv.envs.worlds.people import draw_people
from agentenv.splits import Split

TEAMS = ("Finance", "Research", "Sales", "Support", "Legal", "Design")
_ROOMS = ("Aquila", "Boreas", "Corvus", "Draco")
_PROJECTS = ("Lighthouse", "Meadow", "Quarry", "Sparrow", "Tideway", "Vineyard", "Walnut", "Yardarm", "Copper", "Dune")
_COMPLAINTS = (
    "Export fails",
    "Login loops",
    "Invoice is empty",
    "Sync is slow",
    "Labels overlap",
    "Search finds nothing",
)
_MEETINGS = ("Budget review", "Roadmap", "Hiring plan", "Launch check", "Retrospective", "Supplier talk")


class OfficeBuilder:
    """Fills an office and makes errands in it.

    Args:
        rnd: source of all chance.
        split: whose names are used.
        size: colleagues per team, and how many distractors of each kind.
    """

    def __init__(self, rnd: random.Random, *, split: Split, size: int) -> None:
        self.rnd, self.office = rnd, Office()
        people = draw_people(rnd, split=split, count=3 * size + 4, domain="firm.example")
        names = [(person.name, person.email) for person in people]
        self.managers = {team: names.pop()[1] for team in TEAMS[:3]}
        self.colleagues: list[Contact] = []
        for index, (name, email) in enumerate([(p.name, p.email) for p in people]):
            team = TEAMS[index % 3]
            role = "manager" if email in self.managers.values() else rnd.choice(["engineer", "analyst", "clerk"])
            team = next((t for t, head in self.managers.items() if head == email), team)
            self._add_contact(name, email, team=team, role=role)
        self._add_contact("Me", ME, team=TEAMS[0], role="assistant")
        self.workers = [c for c in self.colleagues if c.role != "manager" and c.email != ME]
        self._unused = {
            "project": rnd.sample(_PROJECTS, len(_PROJECTS)),
            "meeting": rnd.sample(_MEETINGS, len(_MEETINGS)),
        }
        self._pool = rnd.sample(self.workers, len(self.workers))
        self._fill(size)

    @property
    def makers(self) -> list[Callable[[], Errand]]:
        """Makers of errands; the first three need few calls."""
        return [
            self.answer_about_budget,
            self.change_phone,
            self.note_invoice,
            self.plan_meeting,
            self.hand_over_tickets,
            self.close_room,
            self.ticket_from_mail,
            self.count_tickets,
        ]

    def answer_about_budget(self) -> Errand:
        """Answer a mail with a figure of the final version of a document."""
        asker, project = self._pool.pop(), self._unused["project"].pop()
        final, draft = self.rnd.randrange(20, 400) * 100, self.rnd.randrange(20, 400) * 100
        self._document(f"{project} plan (draft)", f"Project {project}\nBudget: {draft + 50} euros\nStatus: superseded")
        document_id = self._document(
            f"{project} plan (final)", f"Project {project}\nBudget: {final} euros\nStatus: approved"
        )
        mail_id = self._mail(asker, f"Budget of {project}", f"How large is the approved budget of {project}?")
        arguments = {"to": asker.email, "subject": f"Re: Budget of {project}", "body": f"The budget is {final} euros."}
        return Errand(
            text=f'Answer the mail about the budget of {project}; the subject is "Re: " and the subject of the mail.',
            reads=(
                ("list_mails", {}),
                ("read_mail", {"mail_id": mail_id}),
                ("search_documents", {"text": project}),
                ("read_document", {"document_id": document_id}),
            ),
            writes=(("send_mail", arguments),),
        )

    def change_phone(self) -> Errand:
        """Take over a phone number that stands in a mail."""
        person = self._pool.pop()
        phone = f"0{self.rnd.randrange(10**8, 10**9)}"
        old = f"My old number {person.phone} will be switched off."
        mail_id = self._mail(person, "New phone", f"From next week on my number is {phone}. {old}")
        return Errand(
            text=f"{person.name} wrote about a new phone number. Put it into the contacts.",
            reads=(("list_mails", {}), ("read_mail", {"mail_id": mail_id})),
            writes=(("update_contact", {"email": person.email, "phone": phone}),),
        )

    def note_invoice(self) -> Errand:
        """Copy an invoice's number and amount from a mail into a document, in a given form."""
        sender, project = self._pool.pop(), self._unused["project"].pop()
        number, amount = self.rnd.randrange(10000, 99999), self.rnd.randrange(100, 9000)
        document_id = self._document(f"Invoices of {project}", f"{self.rnd.randrange(10000, 99999)}: 120 euros")
        body = f"The delivery for {project} was made. Invoice {number} is over {amount} euros, due in 30 days."
        mail_id = self._mail(sender, f"Invoice for {project}", body)
        line = f"{number}: {amount} euros"
        return Errand(
            text=(
                f'Add the invoice that came by mail for {project} to the document "Invoices of {project}", in the '
                f"form of its lines."
            ),
            reads=(
                ("list_mails", {}),
                ("read_mail", {"mail_id": mail_id}),
                ("search_documents", {"text": project}),
                ("read_document", {"document_id": document_id}),
            ),
            writes=(("append_to_document", {"document_id": document_id, "line": line}),),
        )

    def plan_meeting(self) -> Errand:
        """Find the first hour in which three calendars are free."""
        one, two, title = self._pool.pop(), self._pool.pop(), self._unused["meeting"].pop()
        day = self.rnd.choice(DAYS)
        for person in (one.email, two.email, ME):
            for start in self.rnd.sample(range(OPEN_HOUR, CLOSE_HOUR - 1), 3):
                if self.office.is_free(person, day, start, start + 1):
                    self._event(f"Focus time {len(self.office.events)}", day, start, organiser=person)
        free = [
            hour
            for hour in range(OPEN_HOUR, CLOSE_HOUR)
            if all(self.office.is_free(who, day, hour, hour + 1) for who in (one.email, two.email, ME))
        ]
        if not free:  # too many events fell on this day
            return self.count_tickets()
        attendees = [one.email, two.email]
        arguments = {"title": title, "day": day, "start": free[0], "end": free[0] + 1, "attendees": attendees}
        return Errand(
            text=(
                f'Plan a meeting "{title}" of one hour with {one.name} and {two.name} on {day}, in the first full hour '
                f"between {OPEN_HOUR} and {CLOSE_HOUR} in which the two of them and I ({ME}) are free."
            ),
            reads=(
                *(("find_contacts", {"text": person.name}) for person in (one, two)),
                *(("list_events", {"email": who, "day": day}) for who in (one.email, two.email, ME)),
            ),
            writes=(("create_event", arguments),),
        )

    def hand_over_tickets(self) -> Errand:
        """Give the open tickets of somebody to the deputy that a document names."""
        away, deputy, other = self._pool.pop(), self._pool.pop(), self._pool.pop()
        text = f"{other.name}: deputy is {away.name}\n{away.name}: deputy is {deputy.name}"
        document_id = self._document("Deputies", text)
        mine = [self._ticket(away, status="open") for _ in range(self.rnd.randrange(2, 4))]
        self._ticket(away, status="closed")
        return Errand(
            text=(
                f"{away.name} is away. Give every open ticket of {away.name} to the deputy named in the document "
                f'"Deputies".'
            ),
            reads=(
                ("search_documents", {"text": "Deputies"}),
                ("read_document", {"document_id": document_id}),
                ("find_contacts", {"text": away.name}),
                ("find_contacts", {"text": deputy.name}),
                ("list_tickets", {"assignee": away.email}),
            ),
            writes=tuple(("update_ticket", {"ticket_id": key, "assignee": deputy.email}) for key in mine),
        )

    def close_room(self) -> Errand:
        """Cancel what is planned in a room on a day, and tell those who planned it."""
        # cancelling what others meet for would free their hours, and change what another errand must find
        taken = {(event.room, event.day) for event in self.office.events.values()}
        room, day = self.rnd.choice([(r, d) for r in _ROOMS for d in DAYS if (r, d) not in taken])
        organisers = [self._pool.pop(), self._pool.pop()]
        for index, person in enumerate(organisers):
            self._event(self._unused["meeting"].pop(), day, 9 + 3 * index, organiser=person.email, room=room)
        self._event("Lunch talk", DAYS[(DAYS.index(day) + 1) % 5], 12, organiser=organisers[0].email, room=room)
        found = [(key, event) for key, event in self.office.events.items() if (event.room, event.day) == (room, day)]
        writes: list[Call] = []
        for key, event in found:
            body = f'Your event "{event.title}" is cancelled, because the room is closed.'
            writes.append(("cancel_event", {"event_id": key}))
            writes.append(("send_mail", {"to": event.organiser, "subject": "Room closed", "body": body}))
        return Errand(
            text=(
                f"Room {room} is closed on {day}. Cancel every event there on that day, and for each one write to its "
                'organiser with the subject "Room closed", naming the title of the event.'
            ),
            reads=(("list_events", {"room": room, "day": day}),),
            writes=tuple(writes),
        )

    def ticket_from_mail(self) -> Errand:
        """Open a ticket for a complaint, with the priority and the owner that the rules give."""
        customer, complaint = self._pool.pop(), self.rnd.choice(_COMPLAINTS)
        plans = ["gold", "silver", "basic"]
        plan = self.rnd.choice(plans)
        levels = dict(zip(plans, self.rnd.sample(["low", "normal", "high"], 3), strict=True))
        owners = dict(zip(levels, self.rnd.sample(self.workers, 3), strict=True))
        lines = [f"Plan {name}: priority {levels[name]}, goes to {owners[name].name}" for name in levels]
        document_id = self._document("Support levels", "\n".join(lines))
        mail_id = self._mail(customer, complaint, f"{complaint} since yesterday. Our plan is {plan}. Please help.")
        owner = owners[plan]
        ticket = {"title": complaint, "priority": levels[plan], "assignee": owner.email}
        return Errand(
            text=(
                f"{customer.name} complains by mail. Open a ticket whose title is the subject of the mail, as the "
                f"document "
                '"Support levels" says.'
            ),
            reads=(
                ("list_mails", {}),
                ("read_mail", {"mail_id": mail_id}),
                ("search_documents", {"text": "Support levels"}),
                ("read_document", {"document_id": document_id}),
                ("find_contacts", {"text": owner.name}),
            ),
            writes=(("create_ticket", ticket),),
        )

    def count_tickets(self) -> Errand:
        """Tell a manager how many open tickets of high priority somebody of the team has."""
        person = self._pool.pop()
        for index in range(self.rnd.randrange(3, 7)):
            self._ticket(person, status="open" if index % 3 else "closed", priority="high" if index % 2 else "low")
        own = [t for t in self.office.tickets.values() if t.assignee == person.email]
        count = sum(ticket.status == "open" and ticket.priority == "high" for ticket in own)
        body = f"{person.name} has {count} open tickets of high priority."
        return Errand(
            text=(
                f'Tell the manager of {person.name} by mail, with the subject "Tickets of {person.name}", how many '
                f"open "
                "tickets of high priority are assigned to that person, as a number."
            ),
            reads=(("find_contacts", {"text": person.name}), ("list_tickets", {"assignee": person.email})),
            writes=(("send_mail", {"to": person.manager, "subject": f"Tickets of {person.name}", "body": body}),),
        )

    def _fresh_id(self, letter: str, table: Mapping[str, object]) -> str:
        """Return an id that says nothing about when a row was added."""
        while True:
            key = f"{letter}{self.rnd.randrange(100, 900)}"
            if key not in table:
                return key

    def _fill(self, size: int) -> None:
        rnd = self.rnd
        for _ in range(3 * size):
            self._ticket(rnd.choice(self.workers), status=rnd.choice(["open", "closed"]))
            self._mail(
                rnd.choice(self.workers), rnd.choice(["Lunch?", "Minutes", "Parking", "Newsletter"]), "See you soon."
            )
        for index in range(2 * size):
            organiser, room = rnd.choice(self.workers), rnd.choice(_ROOMS)
            self._event(f"Weekly {index + 1}", rnd.choice(DAYS), 9 + index % 8, organiser=organiser.email, room=room)
        for index in range(size):
            self._document(f"Minutes {index + 1}", f"Budget: {rnd.randrange(100, 900)} euros for snacks")

    def _add_contact(self, name: str, email: str, *, team: str, role: str) -> None:
        phone = f"0{self.rnd.randrange(10**8, 10**9)}"
        manager = "" if role == "manager" else self.managers[team]
        contact = Contact(email=email, name=name, team=team, role=role, manager=manager, phone=phone)
        self.office.contacts[email] = contact
        self.colleagues.append(contact)

    def _mail(self, sender: Contact, subject: str, body: str) -> str:
        mail_id = self._fresh_id("M", self.office.inbox)
        self.office.inbox[mail_id] = Mail(mail_id=mail_id, sender=sender.email, subject=subject, body=body)
        return mail_id

    def _document(self, title: str, text: str) -> str:
        document_id = self._fresh_id("D", self.office.documents)
        self.office.documents[document_id] = Document(title=title, text=text)
        return document_id

    def _event(self, title: str, day: str, start: int, *, organiser: str, room: str = "") -> str:
        event = Event(title=title, day=day, start=start, end=start + 1, room=room, organiser=organiser, attendees=())
        return self.office.add_event(event)

    def _ticket(self, owner: Contact, *, status: str, priority: str = "") -> str:
        chosen = priority or self.rnd.choice(["low", "normal", "high"])
        key = self._fresh_id("T", self.office.tickets)
        title = f"{self.rnd.choice(_COMPLAINTS)} ({len(self.office.tickets) + 1})"
        self.office.tickets[key] = Ticket(title=title, status=status, priority=chosen, assignee=owner.email)
        return key
