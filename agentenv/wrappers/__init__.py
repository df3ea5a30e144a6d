"""Wrappers in Gymnasium's manner that also work under the runner; see docs/wrappers.md."""

from agentenv.wrappers.action_masking import ActionMasking
from agentenv.wrappers.agent_wrapper import AgentWrapper, Withheld
from agentenv.wrappers.format_penalty import FormatPenalty
from agentenv.wrappers.history_window import HistoryWindow
from agentenv.wrappers.record_to_store import RecordToStore
from agentenv.wrappers.reward_shaping import RewardShaping
from agentenv.wrappers.token_budget import TokenBudget
from agentenv.wrappers.verbaliser import Verbaliser

__all__ = [
    "ActionMasking",
    "AgentWrapper",
    "FormatPenalty",
    "HistoryWindow",
    "RecordToStore",
    "RewardShaping",
    "TokenBudget",
    "Verbaliser",
    "Withheld",
]
