"""Runs litevit_jax from a clone of the repository, as `litevit` does once installed.

    python main.py --config=configs/mae_tiny.py:digits
    python main.py --help

The program is litevit_jax/__main__.py, whose docstring is the first part of the help.
"""

from litevit_jax.__main__ import main

if __name__ == "__main__":
    main()
