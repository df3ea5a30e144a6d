"""`python -m agentenv`, which is also how torchrun starts the command."""

from agentenv.cli import main

if __name__ == "__main__":
    main()
