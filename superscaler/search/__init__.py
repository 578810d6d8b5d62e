"""The search: the plan that trains a model fastest on a cluster, and how far from the best it may be."""
