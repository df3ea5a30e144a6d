"""Questions about characters, answered from the Unicode database through lookup tools."""
