"""What can be told of a run: each field once, with type, range, default and help.

Options of the command line, configuration files, checks, ``list`` and sweeps are made
of these dataclasses. They import nothing but each other, so that a command starts at
once.
"""
