"""Run the command line as ``python -m rheoscope``."""

from rheoscope.command_line import main

if __name__ == "__main__":
    main()
