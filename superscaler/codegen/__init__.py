"""From a Plan to one Program per stage, its proof, and its source."""
