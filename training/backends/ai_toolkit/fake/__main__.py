"""`python -m training.backends.ai_toolkit.fake`."""

from training.backends.ai_toolkit.fake.command import main

if __name__ == "__main__":
    main()
