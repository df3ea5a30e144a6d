"""What the next forward pass reads: one token per decoding slot, then as many prompt tokens as fit, none of them twice.

Shapes: T flat tokens of a step, D slots that decode, S slots that prefill, N slots that sample, U steps ahead.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentenv.engine.kv_cache import SlotCache, StepPlan, plan_step
from agentenv.engine.sampling import SamplingRows, sampling_rows, uniforms
from agentenv.engine.slots import SlotTable

IntArray = npt.NDArray[np.int64]

_LEAST_SHARED = 32  # shorter prefixes cost more to copy than to compute
_STEPS_AHEAD = 16  # random numbers are made for this many steps at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward pass: tokens in, and which slots sample from it.

    Attributes:
        token_T: int64.
        position_T: int64, of each token in its slot.
        plan: where keys and values go and what is attended to.
        select_N: tokens whose logits are wanted; None for all.
        sampled_N: the slots that sample, in the order of those logits.
        slots: the slots that take part.
        advances: by how many tokens the cache of each grows.
        rows: how each slot samples.
        uniform_UN: the random numbers of this step and of the next ones, should the same slots go on.
        epoch: of the slot table.
        age: row of `uniform_UN` for this step.
    """

    token_T: Tensor
    position_T: Tensor
    plan: StepPlan
    select_N: Tensor | None
    sampled_N: IntArray
    slots: IntArray
    advances: IntArray
    rows: SamplingRows
    uniform_UN: Tensor
    epoch: int
    age: int = 0


class StepPlanner:
    """Lays out step after step; as long as the same slots decode, each from the one before it.

    Args:
        slots: what runs; compact.
        cache: where keys and values go; reserved here.
        max_step_tokens: tokens of one step, at most.
        shares_prefixes: copy what another slot holds of the same prompt instead of computing it again.
        vocab_size: number of logits per token.
        device: of the model.
    """

    def __init__(
        self,
        *,
        slots: SlotTable,
        cache: SlotCache,
        max_step_tokens: int,
        shares_prefixes: bool,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._slots, self._cache = slots, cache
        self._max_step_tokens, self._shares_prefixes = max_step_tokens, shares_prefixes
        self._vocab_size, self._device = vocab_size, device
        self._last: Step | None = None
        self._drawn_N = torch.zeros(0, dtype=torch.int64, device=device)

    def next_step(self) -> Step:
        """Return the step for the slots that run now; at least one must."""
        self._last = self._following() or self._new_step()
        return self._last

    def note_drawn(self, token_N: Tensor) -> None:
        """Take the tokens that were drawn after the last step; they stay on their device."""
        self._drawn_N = token_N

    def _following(self) -> Step | None:
        """The step after one in which every slot decoded and none entered or left: most steps, and cheap."""
        last = self._last  # a slot that waits for a prefix has one that prefills beside it, so it is never forgotten
        if last is None or last.epoch != self._slots.epoch or last.age + 1 == len(last.uniform_UN):
            return None
        plan = last.plan.following()
        if plan is None:
            return None
        position_T = last.position_T + 1
        return dataclasses.replace(last, token_T=self._drawn_N, position_T=position_T, plan=plan, age=last.age + 1)

    def _new_step(self) -> Step:
        table = self._slots
        is_held_R = self._share_prefixes() if self._shares_prefixes else np.zeros(table.num_running, dtype=np.bool_)
        length_R, computed_R = table.length_S[: table.num_running], table.computed_S[: table.num_running]
        pending_R = np.where(is_held_R, 0, length_R - computed_R)
        slot_D = np.flatnonzero(pending_R == 1)
        slot_S, new_S = self._choose_prefills(pending_R, budget=self._max_step_tokens - len(slot_D))
        past_S = computed_R[slot_S]
        longest = max(int(length_R[slot_D].max(initial=0)), int((past_S + new_S).max(initial=0)))
        self._cache.reserve(num_slots=table.num_running, num_places=longest)
        plan = plan_step(
            self._cache,
            slot_D=slot_D,
            position_D=computed_R[slot_D],
            slot_S=slot_S,
            past_S=past_S,
            new_S=new_S,
            device=self._device,
        )
        token_T, position_T = self._flat_tokens(slot_D, slot_S=slot_S, new_S=new_S)
        table.is_unread_S[slot_S] = table.is_unread_S[slot_D] = False
        is_complete_S = new_S == pending_R[slot_S]
        select_N = np.concatenate((np.arange(len(slot_D)), len(slot_D) + np.cumsum(new_S)[is_complete_S] - 1))
        sampled_N = np.concatenate((slot_D, slot_S[is_complete_S]))
        return Step(
            token_T=self._put(token_T),
            position_T=self._put(position_T),
            plan=plan,
            select_N=self._put(select_N) if len(slot_S) else None,
            sampled_N=sampled_N,
            slots=np.concatenate((slot_D, slot_S)),
            advances=np.concatenate((np.ones_like(slot_D), new_S)),
            rows=self._sampling_rows(sampled_N),
            uniform_UN=self._uniforms(sampled_N),
            epoch=table.epoch,
        )

    def _share_prefixes(self) -> npt.NDArray[np.bool_]:
        """Give unread slots what others hold of their tokens; episodes of a group start with the same prompt.

        Returns:
            True for slots that wait for a step, because an older one is about to compute a prefix that they share.
        """
        table = self._slots
        is_held_R = np.zeros(table.num_running, dtype=np.bool_)
        is_leader_S, is_target_S = np.zeros((2, table.max_slots), dtype=np.bool_)
        sources: list[int] = []
        targets: list[int] = []
        unread = np.flatnonzero(table.is_unread_S[: table.num_running]).tolist()
        for slot in sorted(unread, key=lambda slot: table.request_at(slot).arrival):
            least = int(table.computed_S[slot]) + _LEAST_SHARED
            other_S, common_S = table.common_prefixes(slot, least=least)
            # what a slot is given in this very step is not in its place yet
            held_S = np.where(is_target_S[other_S], 0, np.minimum(common_S, table.computed_S[other_S]))
            if held_S.max(initial=0) >= least:
                sources.append(int(other_S[held_S.argmax()]))
                targets.append(slot)
                is_target_S[slot] = True
                self._note_cached(slot, count=int(held_S.max()))
            is_worth_waiting_S = is_leader_S[other_S] & (common_S >= table.computed_S[slot] + _LEAST_SHARED)
            is_held_R[slot] = is_worth_waiting_S.any()
            is_leader_S[slot] = not is_held_R[slot]
        if targets:
            longest = int(table.computed_S[targets].max())
            self._cache.move(np.array(sources), np.array(targets), num_places=longest)
        return is_held_R

    def _note_cached(self, slot: int, *, count: int) -> None:
        table = self._slots
        table.computed_S[slot] = count
        if table.length_S[slot] == table.prompt_S[slot]:
            table.request_at(slot).num_cached_tokens = count

    def _choose_prefills(self, pending_R: IntArray, *, budget: int) -> tuple[IntArray, IntArray]:
        """Return slots that read several tokens and how many each reads now, oldest request first."""
        slots = sorted(np.flatnonzero(pending_R > 1).tolist(), key=lambda slot: self._slots.request_at(slot).arrival)
        slot_S = np.array(slots, dtype=np.int64)
        pending_S = pending_R[slot_S]
        new_S = np.clip(budget - (np.cumsum(pending_S) - pending_S), 0, pending_S)
        return slot_S[new_S > 0], new_S[new_S > 0]

    def _flat_tokens(self, slot_D: IntArray, *, slot_S: IntArray, new_S: IntArray) -> tuple[IntArray, IntArray]:
        """Return ids and positions: the decoding slots' newest token, then the prefilling slots' segments."""
        table = self._slots
        position_D = table.computed_S[slot_D]
        tokens, positions = [table.token_SX[slot_D, position_D]], [position_D]
        for slot, new in zip(slot_S.tolist(), new_S.tolist(), strict=True):
            past = int(table.computed_S[slot])
            tokens.append(table.token_SX[slot, past : past + new])
            positions.append(np.arange(past, past + new))
        return np.concatenate(tokens), np.concatenate(positions)

    def _sampling_rows(self, slot_N: IntArray) -> SamplingRows:
        return sampling_rows(
            temperature_B=self._slots.temperature_S[slot_N],
            top_p_B=self._slots.top_p_S[slot_N],
            top_k_B=self._slots.top_k_S[slot_N],
            vocab_size=self._vocab_size,
            device=self._device,
        )

    def _uniforms(self, slot_N: IntArray) -> Tensor:
        position_UN = self._slots.length_S[slot_N] + np.arange(_STEPS_AHEAD)[:, None]
        return self._put(uniforms(self._slots.seed_S[slot_N], position_UN))

    def _put(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
