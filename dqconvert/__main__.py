"""``python -m dqconvert`` is the command ``dqconvert``."""

from dqconvert.cli import main

if __name__ == "__main__":
    main()
