"""`python -m batteries`: the command line."""

from batteries.cli import main

if __name__ == "__main__":
    main(prog_name="batteries")
