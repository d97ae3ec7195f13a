"""Draw how often each token is pruned; `--help` tells the options."""

from dato.cli.pruned_tokens import pruned_tokens
from dato.console import main

if __name__ == "__main__":
    main(pruned_tokens)
