"""The command lines: what the thin scripts in search/ and scripts/ run."""
