"""`python -m lowpose`, as `accelerate launch -m lowpose` needs it."""

from lowpose.cli import main

if __name__ == "__main__":
    main()
