"""Attacks on a sandbox, each with its expected result, judged from outside: `agentenv check sandbox`."""
