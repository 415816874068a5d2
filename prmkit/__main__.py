"""`python -m prmkit`: the same as `prm`, for where the command is not on the path."""

from prmkit.cli import run_process

if __name__ == "__main__":
    run_process()
