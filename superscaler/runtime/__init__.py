"""What a generated program needs while it runs: operators, communication, weights, data and the launcher."""
