"""`python -m fakes.ai_toolkit`."""

from fakes.ai_toolkit.command import main

if __name__ == "__main__":
    main()
