"""Pure decision functions of the strategies: what is simulated is what runs. Standard library."""
