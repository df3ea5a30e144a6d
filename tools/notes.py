"""Notes that the agent writes for itself and reads again: a memory of one episode, bounded in number and length."""

from __future__ import annotations

from collections.abc import Mapping

from agentenv.errors import ToolError, UsageError, did_you_mean
from agentenv.tool import tool
from agentenv.toolkit import Toolkit

MAX_NAME_CHARS = 100


class Notes(Toolkit):
    """Named texts.

    Args:
        notes: what stands there at the beginning.
        max_notes: how many there may be.
        max_chars: longest note.

    Attributes:
        notes: by name, in order of their first writing.
    """

    def __init__(
        self, notes: Mapping[str, str] | None = None, *, max_notes: int = 100, max_chars: int = 10_000
    ) -> None:
        if max_notes < 1 or max_chars < 1:
            raise UsageError(f"max_notes is {max_notes} and max_chars {max_chars}; at least 1 is needed")
        self.notes = dict(notes or {})
        self._max_notes = max_notes
        self._max_chars = max_chars

    @tool(inline=True)
    def write_note(self, name: str, text: str) -> str:
        """Write a note, in place of an older one of the same name.

        Args:
            name: under which it can be read again.
            text: what to remember.
        """
        if not name.strip() or len(name) > MAX_NAME_CHARS:
            raise ToolError(f"a note's name has 1 to {MAX_NAME_CHARS} characters; this one has {len(name)}")
        if len(text) > self._max_chars:
            raise ToolError(f"the note has {len(text):,} characters; at most {self._max_chars:,} are allowed")
        if name not in self.notes and len(self.notes) >= self._max_notes:
            raise ToolError(f"there are {len(self.notes)} notes, and no more are allowed; delete one first")
        self.notes[name] = text
        return f"Noted. There {'is 1 note' if len(self.notes) == 1 else f'are {len(self.notes)} notes'}."

    @tool(read_only=True, inline=True)
    def read_note(self, name: str) -> str:
        """Read a note.

        Args:
            name: of the note.
        """
        return self.notes[self._known(name)]

    @tool(read_only=True, inline=True)
    def list_notes(self) -> str:
        """List the names of all notes."""
        return "\n".join(self.notes) or "There are no notes."

    @tool(inline=True)
    def delete_note(self, name: str) -> str:
        """Delete a note.

        Args:
            name: of the note.
        """
        del self.notes[self._known(name)]
        return "Deleted."

    def _known(self, name: str) -> str:
        if name not in self.notes:
            raise ToolError(
                f'there is no note "{name[:MAX_NAME_CHARS]}".{did_you_mean(name[:MAX_NAME_CHARS], self.notes)}'
            )
        return name
