"""Simulated users: what they want and know, how they hear and answer, and environments that have one."""

from __future__ import annotations

from agentenv.users.brief import Fact, Persona, Slot, User, UserBrief, UserEnd, UserTurn, Want, draw_persona
from agentenv.users.env import UserEnv
from agentenv.users.hearing import asked_slots, hear
from agentenv.users.scripted import ScriptedUser

__all__ = [
    "Fact",
    "Persona",
    "ScriptedUser",
    "Slot",
    "User",
    "UserBrief",
    "UserEnd",
    "UserEnv",
    "UserTurn",
    "Want",
    "asked_slots",
    "draw_persona",
    "hear",
]
