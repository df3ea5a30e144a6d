"""The forms of Clarify: their fields, the values that fields take, and how customers speak of them."""

from __future__ import annotations

from dataclasses import dataclass

from agentenv.users import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a form.

    Attributes:
        slot: how it is asked for.
        values: what it takes.
        says: how a customer states it, with `{}` for the value.
    """

    slot: Slot
    values: tuple[str, ...]
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form.

    Attributes:
        name: of the thing ordered.
        opening: how a customer begins.
        fields: all must be filled in.
    """

    name: str
    opening: str
    fields: tuple[Field, ...]


def _field(name: str, asked_by: str, values: str, says: str) -> Field:
    slot = Slot(name=name, label=name.replace("_", " "), asked_by=tuple(asked_by.split("|")))
    return Field(slot=slot, values=tuple(values.split("|")), says=says)


_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_COLOURS = "black|white|red|blue|green|yellow|grey|purple"
_HOURS = "9:00|10:30|12:00|13:30|15:00|16:30|18:00|19:30"
_DAY_WORDS = "day|date|when"
_HOUR_WORDS = "time|hour|at what time|o clock"

FORMS: tuple[Form, ...] = (
    Form(
        name="cake",
        opening="I would like to order a cake.",
        fields=(
            _field(
                "flavour",
                "flavour|flavor|taste|kind of cake",
                "lemon|chocolate|carrot|vanilla|nut|cherry",
                "It should be {}.",
            ),
            _field(
                "servings",
                "serving|portion|size|how big|how large|people|guest",
                "6|8|10|12|16|20|24",
                "It is for {} people.",
            ),
            _field("pickup_day", f"{_DAY_WORDS}|pickup day", _DAYS, "I will pick it up on {}."),
            _field("icing", "icing|frosting|glaze|colour|color", _COLOURS, "The icing should be {}."),
            _field(
                "inscription",
                "inscription|text|write on|message|wording|lettering",
                "Happy Birthday|Well done|Welcome back|Good luck|Thank you|Congratulations",
                'Please write "{}" on it.',
            ),
            _field("payment", "payment|pay", "cash|card|invoice|voucher|transfer|cheque", "I pay by {}."),
        ),
    ),
    Form(
        name="table",
        opening="I want to reserve a table.",
        fields=(
            _field("day", _DAY_WORDS, _DAYS, "It is for {}."),
            _field("time", _HOUR_WORDS, _HOURS, "We come at {}."),
            _field("guests", "guest|people|person|party|how many|seat", "2|3|4|5|6|7|8|9", "We are {}."),
            _field(
                "area",
                "area|inside|outside|where|seating|room|place",
                "terrace|bar|window|garden|cellar|gallery",
                "We would like to sit in this area: {}.",
            ),
            _field(
                "menu",
                "menu|course|set menu|food",
                "vegetarian|fish|tasting|lunch|children|seasonal",
                "We take the {} menu.",
            ),
            _field(
                "occasion",
                "occasion|celebrating|celebrate|reason|event",
                "birthday|business|anniversary|reunion|graduation|wedding",
                "The occasion: {}.",
            ),
        ),
    ),
    Form(
        name="taxi",
        opening="I need a taxi.",
        fields=(
            _field(
                "pickup",
                "pickup|pick up|from where|start|where from|collect",
                "Central Station|Town Hall|Harbour|University|Stadium|Museum",
                "Pick me up here: {}.",
            ),
            _field(
                "destination",
                "destination|where to|drop|going to|go to|headed|take you",
                "Airport|Hospital|Zoo|Opera|Fair|Castle",
                "I am going here: {}.",
            ),
            _field("time", f"{_HOUR_WORDS}|when", _HOURS, "I want to leave at {}."),
            _field(
                "passengers",
                "passenger|how many|people|person|travelling|traveling",
                "1|2|3|4|5|6|7",
                "Number of passengers: {}.",
            ),
            _field(
                "luggage",
                "luggage|bag|suitcase|baggage",
                "none|one bag|two bags|three bags|a bicycle|a pram",
                "Luggage: {}.",
            ),
            _field("payment", "payment|pay", "cash|card|invoice|voucher|app|account", "I pay by {}."),
        ),
    ),
    Form(
        name="shirts",
        opening="We need printed shirts for our club.",
        fields=(
            _field("colour", "colour|color", _COLOURS, "They should be {}."),
            _field("size", "size|how big|how large", "XS|S|M|L|XL|XXL", "Size {}."),
            _field("count", "count|number|quantity|how many|amount", "10|15|20|25|30|40|50|75", "We need {}."),
            _field(
                "motif",
                "motif|logo|print|design|picture|image",
                "eagle|anchor|bear|star|wave|tree",
                "Print this on it: {}.",
            ),
            _field("fabric", "fabric|material|cloth|made of", "cotton|linen|wool|polyester|bamboo|hemp", "Made of {}."),
            _field("delivery_day", f"{_DAY_WORDS}|delivery|deliver", _DAYS, "We need them on {}."),
        ),
    ),
    Form(
        name="flowers",
        opening="Please send flowers to a friend.",
        fields=(
            _field(
                "kind",
                "kind|type|sort|which flower|what flower",
                "roses|tulips|lilies|daisies|orchids|peonies",
                "Take {}.",
            ),
            _field("colour", "colour|color", _COLOURS, "In {}."),
            _field("stems", "stem|how many|number|size|quantity", "5|7|10|12|15|20|25", "{} stems."),
            _field("delivery_day", f"{_DAY_WORDS}|delivery|deliver", _DAYS, "They should arrive on {}."),
            _field(
                "card",
                "card|text|message|greeting|note|write",
                "Get well|With love|Many thanks|Good luck|Welcome home|So sorry",
                'The card says "{}".',
            ),
            _field("vase", "vase|pot|container", "glass|ceramic|copper|wooden|paper|basket", "Vase: {}."),
        ),
    ),
    Form(
        name="room",
        opening="I would like to book a meeting room.",
        fields=(
            _field("day", _DAY_WORDS, _DAYS, "On {}."),
            _field("start", f"{_HOUR_WORDS}|start|begin", _HOURS, "We start at {}."),
            _field(
                "length",
                "length|long|duration|until|end|finish",
                "30 minutes|45 minutes|1 hour|90 minutes|2 hours|3 hours",
                "We need it for {}.",
            ),
            _field(
                "people",
                "people|person|attendee|participant|how many|seat|capacity",
                "3|4|6|8|10|12|15",
                "There are {} of us.",
            ),
            _field(
                "equipment",
                "equipment|device|technical|projector|screen|need in the room",
                "projector|whiteboard|camera|speakers|flipchart|microphone",
                "Equipment: {}.",
            ),
            _field(
                "drinks",
                "drink|catering|beverage|coffee|refreshment",
                "coffee|tea|water|juice|lemonade|cocoa",
                "Drinks: {}.",
            ),
        ),
    ),
)
"""Every field has at least six values."""
