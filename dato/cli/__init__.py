"""The command lines. The scripts in search/ and scripts/ and the command `dato` run them.

A module for each command declares its options and prints. What it does is a function elsewhere. `main` loads the module
of a command when it is needed, and a command imports torch and diffusers when it runs, so that help appears at once.
Error messages of the library name Python's arguments in backticks. `console` writes them as the command's flags.
"""
