"""Draw how often each token is pruned. `--help` lists the options."""

from dato.cli.console import main
from dato.cli.pruned_tokens import pruned_tokens

if __name__ == "__main__":
    main(pruned_tokens)
